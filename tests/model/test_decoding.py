import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.catalogue import SemanticIds
from recbole_bbqrec.model.decoding import Trie, beam_search, exact_likelihood

MISSING = -1


@st.composite
def catalogues(draw, size=4):
    """A codebook size and different IDs of some items, with missing codes among them."""
    depth = draw(st.integers(1, 4))
    ids = draw(st.lists(st.tuples(*[st.integers(MISSING, size - 1)] * depth), min_size=1, max_size=30, unique=True))
    return size, ids


def trie_of(ids, size=4):
    codes, nothing = torch.tensor([[MISSING] * len(ids[0]), *ids]), torch.zeros(0)
    return Trie(SemanticIds(codes, nothing, nothing, [], size))


class WavyDecoder:
    """Logits that differ between all histories and prefixes; remembers what it was asked."""

    def __init__(self, n_rows, n_symbols):
        self.phase, self.wave = 0.9 + torch.arange(n_rows).view(-1, 1) * 1.3, torch.arange(1, 1 + n_symbols) * 0.7
        self.calls = []

    def __call__(self, state, parents, tokens):
        before = torch.zeros(1, 1) if state is None else state
        before = before.expand(max(len(before), len(parents)), -1)
        prefix = before.gather(1, parents.expand(len(before), -1)) * 0.37 + tokens * 0.61
        self.calls.append(tokens)
        return 3 * torch.sin((prefix + self.phase).unsqueeze(-1) * self.wave), prefix

    def logits(self, row, tokens):
        """The same for one history and one prefix."""
        prefix = torch.tensor(0.0)
        for token in tokens:
            prefix = prefix * 0.37 + token * 0.61
        return 3 * torch.sin((prefix + self.phase[row]) * self.wave)


def steps_by_hand(decoder, row, prefix, ids, size):
    """Log-probability of every symbol that continues a prefix of some ID, by definition."""
    tokens = [0, *(1 + position * (size + 1) + code % (size + 1) for position, code in enumerate(prefix))]
    logits = decoder.logits(row, tokens)
    codes = sorted({item[len(prefix)] for item in ids if item[: len(prefix)] == prefix})
    chosen = logits[[code % (size + 1) for code in codes]]  # -1 % S is "no code", the last symbol
    return dict(zip(codes, (chosen - chosen.logsumexp(0)).tolist(), strict=True))


def likelihood_by_hand(decoder, row, item, ids, size):
    return sum(steps_by_hand(decoder, row, item[:position], ids, size)[item[position]] for position in range(len(item)))


def beam_by_hand(decoder, row, ids, size, width, excluded=()):
    """Plain beam search over dictionaries: item id -> log-probability."""
    beam = {(): 0.0}
    for _ in range(len(ids[0])):
        longer = {
            (*prefix, code): score + step
            for prefix, score in beam.items()
            for code, step in steps_by_hand(decoder, row, prefix, ids, size).items()
        }
        free = {item[: len(next(iter(longer)))] for number, item in enumerate(ids, 1) if number not in excluded}
        ranked = sorted((prefix for prefix in longer if prefix in free), key=lambda prefix: -longer[prefix])
        beam = {prefix: longer[prefix] for prefix in ranked[:width]}
    return {ids.index(item) + 1: score for item, score in beam.items()}


def as_dict(scores):
    return {item: score for item, score in enumerate(scores.tolist()) if score > -math.inf}


def children_of(trie, nodes):
    nodes = torch.tensor([nodes])
    below, real, _ = trie.continuations(nodes, torch.zeros(1, nodes.numel(), trie.n_symbols))
    return below[real].tolist()


# The trie


@settings(deadline=None)
@given(catalogues())
def test_the_trie_holds_exactly_the_items(catalogue):
    size, ids = catalogue
    trie = trie_of(ids, size)
    found, paths = [(0, ())], []
    for _ in range(trie.depth):
        grown = []
        for node, path in found:
            grown += [
                (child, (*path, (trie.tokens[child].item() - 1) % (size + 1))) for child in children_of(trie, [node])
            ]
        found = grown
    paths = {tuple(MISSING if symbol == size else symbol for symbol in path): node for node, path in found}
    assert sorted(paths) == sorted(ids)
    assert [trie.leaf_items[trie.leaf_ranges[paths[item], 0]].item() for item in ids] == list(range(1, len(ids) + 1))


@settings(deadline=None)
@given(catalogues())
def test_nodes_are_the_prefixes_and_know_what_is_below(catalogue):
    size, ids = catalogue
    trie = trie_of(ids, size)
    nodes = [0]
    for depth in range(trie.depth + 1):
        prefixes = {item[:depth] for item in ids}
        assert len(nodes) == len(prefixes)
        below = []
        for node in nodes:
            first, end = trie.leaf_ranges[node].tolist()
            items = [ids[item - 1] for item in trie.leaf_items[first:end].tolist()]
            prefix = {item[:depth] for item in items}
            assert len(prefix) == 1 and set(items) == {item for item in ids if {item[:depth]} == prefix}
            below += items
        assert sorted(below) == sorted(ids)
        nodes = children_of(trie, nodes) if depth < trie.depth else []


def test_nodes_by_hand():
    trie = trie_of([(2, 0), (0, 1), (0, MISSING), (2, 3)])
    assert trie.tokens.tolist() == [0, 1, 3, 7, 10, 6, 9], "breadth first, no code last"
    assert trie.item_symbols.tolist() == [[4, 9], [2, 5], [0, 6], [0, 9], [2, 8]]
    assert trie.first_children.tolist() == [1, 3, 5, 7, 7, 7, 7, 7], "two nodes below the root, two below each of them"
    assert trie.leaf_items.tolist() == [2, 3, 1, 4] and trie.item_leaves.tolist() == [-1, 2, 0, 1, 3]
    assert trie.widest == 2


def test_siblings_of_different_number_are_filled_up_and_marked():
    trie = trie_of([(0, 0), (0, 2), (0, 3), (1, 1)])
    below, real, step = trie.continuations(torch.tensor([[1, 2]]), torch.zeros(1, 2, 5))
    assert real.tolist() == [[[True, True, True], [True, False, False]]]
    assert below.tolist() == [[[3, 4, 5], [6, 6, 6]]], "filling stays below its prefix"
    torch.testing.assert_close(step.exp(), torch.tensor([[[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]]]))


def test_the_trie_moves_with_a_model_but_is_not_in_its_checkpoint():
    trie = trie_of([(0, 1), (1, 1)])
    assert trie.state_dict() == {}
    assert all(buffer.device.type == "meta" for buffer in trie.to("meta").buffers())


def test_two_items_with_one_id_are_named():
    with pytest.raises(InputError, match=r"2 items share the ID.*for instance items 1 and 3"):
        trie_of([(0, 1), (2, 2), (0, 1), (0, 1)])


# Exact likelihood


@settings(deadline=None)
@given(catalogues())
def test_exact_likelihood_by_hand_and_it_sums_to_one(catalogue):
    size, ids = catalogue
    decoder = WavyDecoder(2, size + 1)
    scores = exact_likelihood(trie_of(ids, size), decoder)
    assert scores.shape == (2, len(ids) + 1) and (scores[:, 0] == -torch.inf).all()
    expected = [[likelihood_by_hand(decoder, row, item, ids, size) for item in ids] for row in range(2)]
    torch.testing.assert_close(scores[:, 1:], torch.tensor(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(2))


def test_each_open_prefix_is_decoded_once():
    ids = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 2, 2), (2, 2, 3)]
    decoder = WavyDecoder(3, 5)
    exact_likelihood(trie_of(ids), decoder)
    # (1,) and (0, 1) lead to one item each: nothing is left to decode there.
    assert [call.shape for call in decoder.calls] == [(1, 1), (1, 2), (1, 2)]
    assert [call.tolist() for call in decoder.calls] == [[[0]], [[1, 3]], [[6, 8]]]
    # Of candidates 4 and 2, padding and nothing else: (1,) is certain, and below (0, 0) stands item 2.
    decoder.calls.clear()
    exact_likelihood(trie_of(ids), decoder, torch.tensor([4, 0, 2]))
    assert [call.tolist() for call in decoder.calls] == [[[0]], [[1]], [[6]]]


@settings(deadline=None)
@given(catalogues(), st.data())
def test_candidates_have_the_likelihood_that_they_have_among_all(catalogue, data):
    size, ids = catalogue
    trie, some = trie_of(ids, size), data.draw(st.lists(st.integers(0, len(ids))))
    exact = exact_likelihood(trie, WavyDecoder(2, size + 1))
    found = exact_likelihood(trie, WavyDecoder(2, size + 1), torch.tensor(some, dtype=torch.long))
    expected = torch.full_like(exact, -math.inf)
    expected[:, some] = exact[:, some]
    torch.testing.assert_close(found, expected)


# Beam search


@settings(deadline=None)
@given(catalogues())
def test_a_beam_as_wide_as_the_catalogue_is_exact(catalogue):
    size, ids = catalogue
    trie = trie_of(ids, size)
    exact = exact_likelihood(trie, WavyDecoder(3, size + 1))
    found = beam_search(trie, WavyDecoder(3, size + 1), 3, len(ids) + 5)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(catalogues(), st.integers(1, 8), st.data())
def test_beam_search_by_hand(catalogue, width, data):
    size, ids = catalogue
    rows = [data.draw(st.sets(st.integers(1, len(ids)))) for _ in range(2)]
    pairs = [(row, item) for row, items in enumerate(rows) for item in items]
    excluded = tuple(torch.tensor(pairs, dtype=torch.long).view(-1, 2).T)
    decoder = WavyDecoder(2, size + 1)
    found = beam_search(trie_of(ids, size), decoder, 2, width, excluded)
    assert not found.isnan().any()
    for row, items in enumerate(rows):
        assert as_dict(found[row]) == pytest.approx(beam_by_hand(decoder, row, ids, size, width, items), abs=1e-3)


def test_a_narrow_beam_finds_what_fits_with_exact_scores():
    ids = list(product(range(4), repeat=3))
    trie, width = trie_of(ids), 10
    exact = exact_likelihood(trie, WavyDecoder(5, 5))
    found = beam_search(trie, WavyDecoder(5, 5), 5, width)
    inside = found > -torch.inf
    assert (inside.sum(1) == width).all()
    torch.testing.assert_close(found[inside], exact[inside], rtol=1e-4, atol=1e-4)


def test_excluded_items_take_no_place_in_the_beam():
    ids = [(code,) for code in range(4)]
    trie = trie_of(ids)
    ranking = exact_likelihood(trie, WavyDecoder(1, 5))[0].argsort(descending=True).tolist()
    best_two = (torch.zeros(2, dtype=torch.long), torch.tensor(ranking[:2]))
    assert set(as_dict(beam_search(trie, WavyDecoder(1, 5), 1, 2)[0])) == set(ranking[:2])
    assert set(as_dict(beam_search(trie, WavyDecoder(1, 5), 1, 2, best_two)[0])) == set(ranking[2:4])


def test_a_prefix_with_nothing_left_takes_no_place_in_the_beam():
    ids = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    trie = trie_of(ids)
    first_best = exact_likelihood(trie_of([(0,), (1,), (2,)]), WavyDecoder(1, 5))[0].argmax().item() - 1
    gone = [item for item, (code, _) in enumerate(ids, 1) if code == first_best]
    excluded = (torch.zeros(len(gone), dtype=torch.long), torch.tensor(gone))
    found = as_dict(beam_search(trie, WavyDecoder(1, 5), 1, 1, excluded)[0])
    assert len(found) == 1 and not set(found) & set(gone)


def test_exclusion_is_by_row_and_changes_no_other_score():
    ids = list(product(range(3), repeat=2))
    trie = trie_of(ids)
    free = beam_search(trie, WavyDecoder(2, 5), 2, 50)
    # Given twice, in no order, with padding among them, as a history may have it.
    excluded = (torch.tensor([1, 1, 1, 1, 0]), torch.tensor([7, 3, 7, 0, 0]))
    found = beam_search(trie, WavyDecoder(2, 5), 2, 50, excluded)
    assert torch.equal(found[0], free[0])
    assert set(as_dict(free[1])) - set(as_dict(found[1])) == {3, 7}
    kept = found[1] > -torch.inf
    assert torch.equal(found[1, kept], free[1, kept])


def test_nothing_is_made_up_where_nothing_is_left():
    ids = [(0, MISSING), (1, 2), (MISSING, 0)]
    trie = trie_of(ids)
    assert len(as_dict(beam_search(trie, WavyDecoder(1, 5), 1, 50)[0])) == 3
    all_gone = (torch.zeros(3, dtype=torch.long), torch.arange(1, 4))
    found = beam_search(trie, WavyDecoder(2, 5), 2, 50, all_gone)
    assert (found[0] == -torch.inf).all() and len(as_dict(found[1])) == 3
