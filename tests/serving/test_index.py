"""What a nearest-neighbour index finds against the exact search, and which bundles it refuses."""

import sys

import pytest
import torch
from conftest import QUICK

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.serving.dot_product import DotProduct
from recbole_bbqrec.serving.index import RECALL, FaissIndex

pytest.importorskip("faiss")
N_ITEMS = 4000
NOTHING = torch.zeros(2, 0, dtype=torch.long)


class LastItem(torch.nn.Module):
    """A history is the vector of its last item, a little moved."""

    def __init__(self, items):
        super().__init__()
        self.items = items

    def forward(self, histories):
        return 0.9 * self.items[histories[:, -1]] + 0.1 * self.items[histories[:, 0]]


@pytest.fixture(scope="module")
def scores():
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(N_ITEMS // 40, 16, generator=generator)
    noise = torch.randn(N_ITEMS, 16, generator=generator)
    lengths = 0.5 + torch.rand(N_ITEMS, 1, generator=generator)  # popular items often have longer vectors
    items = lengths * (centres[torch.arange(N_ITEMS) % len(centres)] + noise)
    items[0] = 0.0
    return DotProduct(LastItem(items), items)


@pytest.fixture(scope="module")
def index(scores):
    return FaissIndex(scores, seed=1)


def test_nearly_all_of_the_exact_lists_is_found_without_looking_everywhere(scores, index):
    histories = torch.randint(1, N_ITEMS, (200, 3), generator=torch.Generator().manual_seed(2))
    expected = scores.encoder(histories) @ scores.items.T
    exact, found = 1 + expected[:, 1:].topk(10).indices, index.top(histories, 10, NOTHING)
    shares = [len({*items} & {*other.tolist()}) / 10 for (items, _), other in zip(found, exact, strict=True)]
    assert 1 < index.n_searched < index.n_cells
    assert sum(shares) / len(shares) > RECALL - 0.03  # it was measured on other histories
    for (items, values), row in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(values), row[items])
        assert values == sorted(values, reverse=True)


def test_what_is_excluded_is_not_found_and_its_places_are_filled(scores, index):
    histories = torch.tensor([[7, 8, 9], [10, 11, 12]])
    first = index.top(histories, 10, NOTHING)
    again = index.top(histories, 10, (torch.zeros(5, dtype=torch.long), torch.tensor(first[0][0][:5])))
    assert again[0][0][:5] == first[0][0][5:] and len(again[0][0]) == 10
    assert again[1] == first[1]


def test_a_long_list_is_left_to_the_exact_search(index):
    assert index.top(torch.tensor([[1]]), 1001, NOTHING) is None
    assert index.top(torch.tensor([[1]]), 10, (torch.zeros(995).long(), torch.arange(995))) is None


def test_the_same_seed_gives_the_same_index(scores, index):
    again, histories = FaissIndex(scores, seed=1), torch.arange(1, 50).unsqueeze(1)
    assert again.n_searched == index.n_searched
    assert again.top(histories, 10, NOTHING) == index.top(histories, 10, NOTHING)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("BBQRec", {"scoring": "joint", "second_stage": "off"}),
        ("BBQRec", {"scoring": "codes", "second_stage": "off"}),
        ("UniSRec", {}),
        ("SASRec", {}),
        ("GRU4Rec", {}),
    ],
)
def test_a_bundle_with_an_index_recommends_the_same(tiny, untrained, model, changes):
    bundle = untrained(tiny, model, **changes)
    tokens = bundle.item_tokens
    histories = [[tokens[1 + (3 * at + step) % 39] for step in range(1 + at)] for at in range(12)]
    calls = [{}, {"k": 3}, {"exclude_seen": False}, {"allow": tokens[5:9]}, {"deny": tokens[9:14]}, {"k": 1000}]
    exact = [bundle.recommend(histories, **call) for call in calls]
    assert bundle.use_index() is bundle
    for call, expected in zip(calls, exact, strict=True):
        for one, other in zip(bundle.recommend(histories, **call), expected, strict=True):
            assert one.items == other.items
            assert one.scores == pytest.approx(other.scores, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("model", "changes", "why"),
    [
        ("BBQRec", {"second_stage": "linear"}, None),
        ("BBQRecGenerate", {**QUICK}, "models that decode IDs"),
        ("Pop", {}, "decode IDs, count"),
        ("RepeatNet", {}, "index: found a model whose scores are no products"),
    ],
)
def test_a_bundle_that_cannot_have_an_index_says_why(tiny, untrained, model, changes, why):
    bundle = untrained(tiny, model, **changes)
    if why is None:
        bundle.model.second_stage, why = torch.nn.Identity(), "run with --second_stage=off, which does not train again"
    with pytest.raises(InputError, match=why):
        bundle.use_index()


def test_what_is_no_index_or_not_installed_is_one_line(tiny, untrained, monkeypatch):
    bundle = untrained(tiny, "SASRec")
    with pytest.raises(InputError, match="index: found 'annoy', expected 'faiss'"):
        bundle.use_index("annoy")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'recbole-bbqrec\[faiss\]'"):
        bundle.use_index()
