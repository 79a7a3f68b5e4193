import numpy as np
import pytest
import scipy.sparse
import torch
from recbole.evaluator.collector import Collector
from recbole.evaluator.register import metrics_dict

from recbole_bbqrec import compat
from recbole_bbqrec.evaluation.candidates import Sampling, among, candidates_of, sampling_of
from recbole_bbqrec.evaluation.ranking import NOT_FOUND, Ranks, rank_targets, tie_order

N_ITEMS = 60


def rows(seed=0, n_rows=40):
    """Users, their targets, what they had seen, and how popular items are."""
    generator = np.random.default_rng(seed)
    users = np.repeat(np.arange(1, n_rows // 2 + 1), 2)
    pairs = [generator.choice(np.arange(1, N_ITEMS), 12, replace=False) for _ in range(n_rows // 2)]
    targets = np.concatenate([pair[:2] for pair in pairs])
    seen = np.zeros((n_rows, N_ITEMS), bool)
    for row in range(n_rows):
        seen[row, pairs[row // 2][2:]] = True
    return users, targets, scipy.sparse.csr_array(seen), np.r_[0, generator.integers(0, 9, N_ITEMS - 1)]


@pytest.mark.parametrize("by_popularity", [False, True])
def test_candidates_are_different_items_that_the_user_has_not_met(by_popularity):
    users, targets, seen, popularity = rows(n_rows=200)
    found = candidates_of(users, targets, seen, popularity, Sampling(10, by_popularity))
    for column, drawn in found.items():
        dense = drawn.toarray()
        assert (dense.sum(1) == 10).all() and not dense[:, 0].any()
        assert not dense[np.arange(len(users)), targets].any()
        assert not by_popularity or not dense[:, popularity == 0].any()
        met = (dense & seen.toarray()).any() or dense[np.arange(0, 200, 2), targets[1::2]].any()
        assert bool(met) == (column == "unmasked"), "of 200 rows some meet an item again, where they may"
    share = found["unmasked"].toarray().sum(0)[1:]
    if by_popularity:
        assert np.corrcoef(share, popularity[1:])[0, 1] > 0.7
    else:
        assert share.min() > 0


def test_what_is_drawn_does_not_depend_on_the_order_of_rows():
    users, targets, seen, popularity = rows()
    order = np.random.default_rng(1).permutation(len(users))
    one = candidates_of(users, targets, seen, popularity, Sampling(7, False))
    other = candidates_of(users[order], targets[order], seen[order], popularity, Sampling(7, False))
    for column, drawn in one.items():
        assert (drawn[order] != other[column]).nnz == 0


def test_where_too_few_are_left_all_of_them_are_candidates():
    users, targets, seen, popularity = rows()
    found = candidates_of(users, targets, seen, popularity, Sampling(50, False))
    expected = ~seen.toarray() & (np.arange(N_ITEMS) > 0)
    for row, user in enumerate(users):
        expected[row, targets[users == user]] = False
    assert np.array_equal(found["masked"].toarray(), expected)


@pytest.mark.parametrize("per_user", [False, True])
def test_ranks_among_candidates_are_recboles_evaluator_of_the_same_ones(per_user):
    """RecBole gives every item that is no candidate minus infinity and cuts the lists that are left."""
    compat.restore_numpy_names()
    users, targets, seen, popularity = rows(1)
    scores = torch.rand(len(users) // 2, N_ITEMS, generator=torch.Generator().manual_seed(0))[(users - 1).tolist()]
    drawn = candidates_of(users, targets, seen, popularity, Sampling(10, False), per_user)["masked"]
    pairs = tuple(torch.from_numpy(part).long() for part in drawn.nonzero())
    ranks = among(rank_targets(scores, torch.from_numpy(targets), pairs, tie_order(N_ITEMS, 0)), NOT_FOUND).numpy()
    names = ["recall", "ndcg", "mrr", "map", "hit", "precision"]
    config = {"topk": [1, 5], "metrics": names, "metric_decimal_place": 12, "device": "cpu"}
    collector = Collector({**config, "eval_args": {"mode": "uni10"}})
    step = 2 if per_user else 1
    listed = torch.full((len(users) // step, N_ITEMS), -torch.inf)
    for row in range(len(users)):
        items = [*np.flatnonzero(drawn.toarray()[row]), targets[row]]
        listed[row // step, items] = scores[row, items]
    collector.eval_batch_collect(listed, None, torch.arange(len(users)) // step, torch.from_numpy(targets))
    data, expected = collector.get_data_struct(), {}
    for name in names:
        expected |= metrics_dict[name](config).calculate_metric(data)
    found = Ranks(users, ranks, ranks, per_user=per_user).metrics(names, [1, 5])["masked"]
    assert found == pytest.approx(expected, abs=1e-9)


def test_what_is_not_found_has_no_rank_among_candidates_either():
    ranks = {"unmasked": torch.tensor([NOT_FOUND, 5]), "masked": torch.tensor([NOT_FOUND, 3])}
    assert among(ranks, NOT_FOUND).tolist() == [NOT_FOUND, 3]


def test_the_mode_of_a_split():
    assert sampling_of({"eval_args": {"mode": "full"}}, "valid") is None
    both = {"eval_args": {"mode": {"valid": "uni100", "test": "full"}}}
    assert sampling_of(both, "valid") == Sampling(100, False) and sampling_of(both, "test") is None
    popular = sampling_of({"eval_args": {"mode": "pop5"}}, "test")
    assert popular and popular.words == "5 items sampled by popularity"
