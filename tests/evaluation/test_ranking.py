import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import ranking
from recbole_bbqrec.evaluation.ranking import (
    COLUMNS,
    NOT_FOUND,
    Ranks,
    per_row,
    rank_products,
    rank_targets,
    tie_order,
)

NOTHING = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))


def brute_force(scores, target, seen, order):
    """Sort all items by score, then by the tie order, and look where the target stands."""
    allowed = [item for item in range(1, len(scores)) if item not in seen]
    return sorted(allowed, key=lambda item: (-scores[item], order[item])).index(target) + 1


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 4))
def test_ranks_equal_a_plain_sort_with_many_ties(seed, n_items, n_rows):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, (n_rows, n_items)).astype(np.float32)
    targets = generator.integers(1, n_items, n_rows)
    order = tie_order(n_items, seed)
    seen = [set(generator.choice(np.arange(1, n_items), n_items // 3, replace=False)) - {t} for t in targets]
    rows = torch.tensor([row for row, items in enumerate(seen) for _ in items], dtype=torch.long)
    items = torch.tensor([int(item) for items in seen for item in items], dtype=torch.long)
    ranks = rank_targets(torch.from_numpy(scores), torch.from_numpy(targets), (rows, items), order)
    for row, target in enumerate(targets):
        assert ranks["unmasked"][row] == brute_force(scores[row], target, set(), order)
        assert ranks["masked"][row] == brute_force(scores[row], target, seen[row], order)


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 9))
def test_products_are_ranked_as_the_scores_they_make_with_many_ties(pytestconfig, seed, n_items, n_rows):
    device, generator = pytestconfig.getoption("--device", "cpu"), torch.Generator().manual_seed(seed)
    queries, keys = (torch.randint(-1, 2, (size, 2), generator=generator).float() for size in (n_rows, n_items))
    targets = torch.randint(1, n_items, (n_rows,), generator=generator)
    seen = torch.nonzero(torch.rand(n_rows, n_items, generator=generator) < 0.3)
    seen = seen[(seen[:, 1] > 0) & (seen[:, 1] != targets[seen[:, 0]])].unbind(1)
    order = tie_order(n_items, seed)
    expected = rank_targets(queries @ keys.T, targets, seen, order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "BLOCK", 8)  # several blocks, the last one cut short
        found = rank_products(queries, keys, targets, seen, order)
        patch.setattr(ranking, "CELLS", 8)
        patch.setattr(ranking, "_is_on_cpu", lambda _: False)  # the way of other devices, on whatever there is
        there = [part.to(device) for part in (queries, keys, targets)]
        on_device = rank_products(*there, (seen[0].to(device), seen[1].to(device)), order)
    for column in COLUMNS:
        assert torch.equal(found[column], expected[column])
        assert torch.equal(on_device[column].cpu(), expected[column])
    for row, target in enumerate(targets.tolist()):
        scores, own = (queries @ keys.T)[row].numpy(), {int(item) for at, item in zip(*seen, strict=True) if at == row}
        assert found["masked"][row] == brute_force(scores, target, own, order)


def test_equal_items_tie_with_the_target_whatever_the_shape_of_a_product_does_to_its_last_bit():
    generator = torch.Generator().manual_seed(0)
    queries, vectors = torch.randn(1, 130, generator=generator), torch.randn(700, 130, generator=generator)
    keys, order = (
        vectors.repeat(3, 1),
        tie_order(2100, 0),
    )  # one query: its product with the target alone is another sum
    for target in range(700, 760):
        best = int((queries @ keys[1:].T > (queries @ keys[target : target + 1].T) + 1e-4).sum())
        rank = int(rank_products(queries, keys, torch.tensor([target]), NOTHING, order)["unmasked"])
        twins = [item for item in (target - 700, target + 700) if item]
        assert rank == 1 + best + sum(int(order[item] < order[target]) for item in twins)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_product_that_may_not_be_finite_is_an_error(bad):
    keys = torch.ones(5, 2)
    keys[4, 0] = bad
    with pytest.raises(InputError, match="not finite"):
        rank_products(torch.full((1, 2), 1e15), keys, torch.tensor([1]), NOTHING, tie_order(5, 0))


def test_a_constant_model_gets_the_rank_of_chance():
    n_items = 1001
    targets = torch.arange(1, n_items)
    ranks = rank_targets(torch.zeros(n_items - 1, n_items), targets, NOTHING, tie_order(n_items, 0))["unmasked"]
    assert sorted(ranks.tolist()) == list(range(1, n_items))


def test_padding_never_takes_part():
    scores = torch.tensor([[9.0, 1.0, 2.0]])
    assert rank_targets(scores, torch.tensor([2]), NOTHING, tie_order(3, 0))["unmasked"].item() == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_an_error(bad):
    scores = torch.tensor([[0.0, 1.0, bad]])
    with pytest.raises(InputError, match="not finite"):
        rank_targets(scores, torch.tensor([1]), NOTHING, tie_order(3, 0))


def test_metrics_by_hand():
    ranks = np.array([1, 3, 11])
    np.testing.assert_allclose(per_row(ranks, "NDCG", 10), [1.0, 0.5, 0.0])
    np.testing.assert_allclose(per_row(ranks, "Recall", 10), [1, 1, 0])
    np.testing.assert_allclose(per_row(ranks, "MRR", 10), [1, 1 / 3, 0])
    np.testing.assert_allclose(per_row(ranks, "Precision", 10), [0.1, 0.1, 0])
    metrics = Ranks(np.arange(3), ranks, ranks + 10).metrics(["Recall"], [10])
    assert metrics == {"masked": {"recall@10": pytest.approx(2 / 3)}, "unmasked": {"recall@10": 0.0}}


def test_what_a_model_does_not_find_has_no_place():
    scores = torch.tensor(
        [[0.0, 3.0, -torch.inf, 2.0], [0.0, 3.0, -torch.inf, 2.0], [0.0, -torch.inf, -torch.inf, 1.0]]
    )
    targets, seen = torch.tensor([2, 3, 3]), (torch.tensor([1]), torch.tensor([1]))
    ranks = rank_targets(scores, targets, seen, tie_order(4, 0), is_beam_search=True)
    assert ranks["masked"].tolist() == [NOT_FOUND, 1, 1]
    assert ranks["unmasked"].tolist() == [NOT_FOUND, 2, 1]
    with pytest.raises(InputError, match="not finite"):
        rank_targets(scores, targets, seen, tie_order(4, 0))
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(InputError, match="not finite"):
            rank_targets(torch.full((1, 4), wrong), targets[:1], seen, tie_order(4, 0), is_beam_search=True)
