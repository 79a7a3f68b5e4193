import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_bbqrec.evaluation import lists as module
from recbole_bbqrec.evaluation import ranking
from recbole_bbqrec.evaluation.lists import Lists
from recbole_bbqrec.evaluation.metrics import COLUMNS
from recbole_bbqrec.evaluation.ranking import rank_products, rank_targets, tie_order


def some(seed, n_items, n_rows, values):
    """Scores with many ties, targets, what was seen, and the order of ties."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randint(-values, values + 1, (n, 2), generator=generator).float() for n in (n_rows, n_items))
    targets = torch.randint(1, n_items, (n_rows,), generator=generator)
    seen = torch.nonzero(torch.rand(n_rows, n_items, generator=generator) < 0.4)
    seen = seen[(seen[:, 1] > 0) & (seen[:, 1] != targets[seen[:, 0]])].unbind(1)
    return queries, keys, targets, seen, tie_order(n_items, seed)


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 7), st.integers(1, 6), st.integers(0, 3))
def test_lists_are_the_ranking_and_have_the_target_exactly_where_its_rank_says(
    pytestconfig, seed, n_items, n_rows, k, values
):
    device = pytestconfig.getoption("--device", "cpu")
    queries, keys, targets, seen, order = some(seed, n_items, n_rows, values)
    scores = queries @ keys.T
    there = [part.to(device) for part in (queries, keys, targets)]
    seen_there = seen[0].to(device), seen[1].to(device)
    by_products, by_scores = Lists(n_rows, k, seen_there, order), Lists(n_rows, k, seen, order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "BLOCK", 8)  # several blocks, the last one cut short
        ranks = rank_products(*there, seen_there, order, by_products)
    rank_targets(scores, targets, seen, order, lists=by_scores)
    masked = {*zip(seen[0].tolist(), seen[1].tolist(), strict=True)}
    for column in COLUMNS:
        found = by_products.items()[column].cpu()
        assert torch.equal(found, by_scores.items()[column])
        for row, target in enumerate(targets.tolist()):
            allowed = [item for item in range(1, n_items) if column == "unmasked" or (row, item) not in masked]
            expected = sorted(allowed, key=lambda item: (-scores[row, item], order[item]))[:k]
            assert found[row].tolist() == expected + [0] * (k - len(expected))
            assert (target in expected) == bool(ranks[column][row] <= k)


def test_what_is_looked_through_in_pieces_gives_the_same_lists(monkeypatch):
    queries, keys, _, seen, order = some(3, 5000, 4, 50)
    scores = queries @ keys.T
    whole, pieces = Lists(4, 20, seen, order), Lists(4, 20, seen, order)
    whole.look(scores[:, 1:], 1)
    monkeypatch.setattr(module, "CELLS", 1)
    pieces.look(scores[:, 1:], 1)
    for column in COLUMNS:
        assert torch.equal(whole.items()[column], pieces.items()[column])


def test_what_a_beam_search_has_not_found_is_not_listed():
    scores = torch.tensor([[0.0, 3.0, -torch.inf, 2.0], [0.0] + [-torch.inf] * 3])
    lists = Lists(2, 3, (torch.tensor([0]), torch.tensor([1])), tie_order(4, 0))
    rank_targets(scores, torch.tensor([3, 3]), (torch.tensor([0]), torch.tensor([1])), tie_order(4, 0), True, lists)
    assert lists.items()["masked"].tolist() == [[3, 0, 0], [0, 0, 0]]
    assert lists.items()["unmasked"].tolist() == [[1, 3, 0], [0, 0, 0]]
