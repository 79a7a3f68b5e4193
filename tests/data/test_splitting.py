"""Splits as arrays against RecBole's own, row for row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import settings
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data import splitting
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.data.sequences import Histories

USERS = st.lists(st.integers(1, 6), max_size=40)


def rows_of_recbole(split, users, times=None):
    """Which rows RecBole puts into which part."""
    users = np.array(users, np.int64)
    columns = {"user": users, "time": users * 0.0 if times is None else times, "row": np.arange(len(users))}
    stub = SimpleNamespace(
        inter_feat=Interaction({name: torch.from_numpy(values) for name, values in columns.items()}),
        time_field="time",
        logger=SimpleNamespace(debug=lambda _: None),
        _drop_unused_col=lambda: None,
        copy=lambda rows: rows["row"].tolist(),
    )
    for name in ("_grouped_index", "_split_index_by_leave_one_out", "_calcu_split_ids"):
        setattr(stub, name, getattr(Dataset, name).__get__(stub))
    return split(stub)


def lists(parts):
    return [part.tolist() for part in parts]


@given(USERS, st.sampled_from(["valid_and_test", "valid_only", "test_only"]))
def test_leaving_one_out(users, mode):
    expected = rows_of_recbole(lambda stub: Dataset.leave_one_out(stub, "user", mode), users)
    assert lists(splitting.leave_one_out(np.array(users, np.int64), mode)) == expected


@given(USERS, st.sampled_from([[8, 1, 1], [0.5, 0.25, 0.25], [0.3, 0.3, 0.4]]))
def test_a_share_of_each_user(users, ratios):
    expected = rows_of_recbole(lambda stub: Dataset.split_by_ratio(stub, ratios, "user"), users)
    shares = [ratio / sum(ratios) for ratio in ratios]
    cut = lambda size: Dataset._calcu_split_ids(None, size, shares)  # noqa: E731
    assert lists(splitting.by_ratio(np.array(users, np.int64), len(ratios), cut)) == expected


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.sampled_from([[0.8, 0.1, 0.1], [0.4, 0.2, 0.4]]))
def test_a_border_in_time(users, ratios):
    times = np.sort(np.random.default_rng(len(users)).integers(0, 9, len(users))).astype(np.float32)
    expected = rows_of_recbole(lambda stub: Dataset.time_based_split(stub, ratios, "user"), users, times)
    assert lists(splitting.by_time(np.array(users, np.int64), times, ratios)) == expected


def test_histories_end_at_their_target():
    histories = Histories(np.arange(1, 9), np.array([0, 2, 5]), np.array([4, 3, 5]))
    assert histories.padded(3).tolist() == [[2, 3, 4], [3, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [0.6, 0.2, 0.2]}, {"TS": [0.6, 0.2, 0.2]}])
def test_batches_have_the_rows_that_recbole_makes(tiny, split):
    """Of a model of ours and one of RecBole's, whose rows hold their lists before anyone asks for them."""
    eval_args = {"split": split, "order": "TO", "group_by": "user", "mode": "full"}
    found = []
    for model in ("SASRecPlus", "SASRec"):
        config = Config(config_dict=settings(tiny, model, eval_args=eval_args, MAX_ITEM_LIST_LENGTH=4))
        loaders = split_loaders(config, registry.get_dataset(model)(config))
        parts = [loader._dataset for loader in loaders]
        assert ["item_id_list" in part.inter_feat for part in parts] == [model == "SASRec"] * 3
        found.append([part[np.arange(len(part))] for part in parts])
    for ours, theirs in zip(*found, strict=True):
        for field in ("user_id", "item_id", "item_id_list", "item_length", "timestamp"):
            assert torch.equal(ours[field], theirs[field])
