"""Metrics against RecBole's own classes, fed with the lists that its collector would have collected."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.evaluator.collector import Collector
from recbole.evaluator.register import metrics_dict, smaller_metrics

from recbole_bbqrec import compat
from recbole_bbqrec.evaluation import metrics
from recbole_bbqrec.evaluation.labels import LABEL_METRICS
from recbole_bbqrec.evaluation.metrics import COLUMNS, LIST_METRICS, METRICS, SMALLER, Shown, of_users
from recbole_bbqrec.evaluation.ranking import Ranks
from recbole_bbqrec.recbole_keys import METRICS as NAMES

TOPK = [1, 3, 5]
CONFIG = {"topk": TOPK, "metric_decimal_place": 12, "eval_args": {"mode": "full"}, "device": "cpu"}


def recboles(names, lists, hits, n_targets, popularity, tail_ratio=None):
    """What RecBole's metric classes make of lists [U, K], which of them are hits, and the number of targets [U]."""
    compat.restore_numpy_names()
    config = {**CONFIG, "metrics": names, "tail_ratio": tail_ratio}
    data = Collector(config).data_struct
    data.set("rec.topk", torch.from_numpy(np.concatenate([hits, n_targets[:, None]], axis=1)))
    data.set("rec.items", torch.from_numpy(lists))
    data.set("data.num_items", len(popularity))
    data.set("data.count_items", {item: int(count) for item, count in enumerate(popularity) if count})
    found = {}
    for name in names:
        found |= metrics_dict[name](config).calculate_metric(data)
    return found


@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 9))
def test_metrics_of_users_with_several_targets_are_recboles(seed, n_users, most):
    generator = np.random.default_rng(seed)
    n_items = 30
    popularity = np.r_[0, generator.integers(0, 5, n_items - 1)]
    users, ranks, lists, hits, counts = [], [], [], [], []
    for user in range(n_users):
        ranking = 1 + generator.permutation(n_items - 1)
        targets = generator.choice(ranking, generator.integers(1, most + 1), replace=False)
        users += [user] * len(targets)
        ranks += [int(np.flatnonzero(ranking == target)[0]) + 1 for target in targets]
        lists.append(ranking[: max(TOPK)])
        hits.append(np.isin(lists[-1], targets).astype(int))
        counts.append(len(targets))
    order = generator.permutation(len(users))
    users, ranks = np.array(users)[order], np.array(ranks)[order]
    given_lists = np.array(lists), np.array(hits), np.array(counts), popularity
    expected = recboles([*METRICS], *given_lists)
    found = Ranks(users, ranks, ranks, per_user=True).metrics(NAMES, TOPK)
    for column in COLUMNS:
        assert found[column] == pytest.approx(expected, abs=1e-9)
    judged, values = of_users(users, ranks, "NDCG", 3)
    assert judged.tolist() == [*range(n_users)] and len(values) == n_users
    first = np.unique(users, return_index=True)[1]  # of one target, both ways of counting are one
    alone = Ranks(users[first], ranks[first], ranks[first])
    one = Ranks(users[first], ranks[first], ranks[first], per_user=True)
    assert alone.metrics(NAMES, TOPK)["masked"] == pytest.approx(one.metrics(NAMES, TOPK)["masked"])


@pytest.mark.parametrize("tail_ratio", [None, 0.3, 1, 2])
@given(st.integers(0, 10_000))
def test_metrics_of_lists_are_recboles(tail_ratio, seed):
    generator = np.random.default_rng(seed)
    n_items, n_users = 25, 8
    popularity = np.r_[0, generator.integers(0, 4, n_items - 1)]
    popularity[1] += 1  # something has been bought
    weights = generator.random(n_items - 1) ** 3 + 1e-9
    draw = [1 + generator.choice(n_items - 1, 5, replace=False, p=weights / weights.sum()) for _ in range(n_users)]
    lists = np.array(draw)
    hits, ones = np.zeros_like(lists), np.ones(n_users, int)
    counts = np.array([np.bincount(lists[:, :k].ravel(), minlength=n_items) for k in TOPK])
    shown = Shown(tuple(TOPK), np.stack([counts, counts[::-1]]), popularity, 0.1 if tail_ratio is None else tail_ratio)
    found = {f"{name}@{k}": shown.value("masked", name, k) for name in LIST_METRICS for k in TOPK}
    assert found == pytest.approx(recboles([*LIST_METRICS], lists, hits, ones, popularity, tail_ratio), abs=1e-9)
    assert shown.value("unmasked", "itemcoverage", 1) == shown.value("masked", "ItemCoverage", 5)


def test_names_and_directions_are_recboles():
    assert {name.lower() for name in NAMES} == {*METRICS, *LIST_METRICS} <= {*metrics_dict}
    assert {*SMALLER} == {*smaller_metrics} & {*METRICS, *LIST_METRICS, *LABEL_METRICS}
    assert metrics.of_lists(["Recall", "ItemCoverage"]) == ["itemcoverage"]
