import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from recbole_bbqrec.model import counts
from recbole_bbqrec.second_stage import neighbours
from recbole_bbqrec.second_stage.neighbours import cooccurrence, nearest, transitions, walk

OFFSETS, ITEMS = np.array([0, 4, 6, 6]), np.array([1, 2, 3, 2, 1, 2])


def table(lists: csr_array) -> np.ndarray:
    assert lists.has_canonical_format and lists.dtype == np.float32
    return lists.toarray()


def test_transitions_count_what_directly_follows():
    wanted = np.zeros((5, 5))
    wanted[1, 2], wanted[2, 3], wanted[3, 2] = 2, 1, 1
    assert (table(transitions(OFFSETS, ITEMS, 5, 4)) == wanted).all()


def test_cooccurrence_is_the_cosine_of_counts_within_the_window_in_both_directions():
    counts = np.zeros((5, 5))
    for left, right in [(1, 2), (1, 3), (1, 2), (2, 3), (3, 2), (1, 2)]:  # an item with itself does not count
        counts[left, right] += 1
        counts[right, left] += 1
    total = counts.sum(1) + 1
    np.testing.assert_allclose(
        table(cooccurrence(OFFSETS, ITEMS, 5, 4)), counts / np.sqrt(np.outer(total, total)), 1e-6
    )


def test_no_pair_crosses_users():
    apart = transitions(np.array([0, 2, 4]), np.array([1, 2, 3, 4]), 5, 4)
    assert table(apart)[2, 3] == 0 and table(apart)[1, 2] == 1


def test_walk_takes_two_steps_and_keeps_the_largest():
    met = table(cooccurrence(OFFSETS, ITEMS, 5, 4))
    total = np.zeros(5)
    for left, right in [(1, 2), (1, 3), (1, 2), (2, 3), (3, 2), (1, 2)]:
        total[left] += 1
        total[right] += 1
    total = total + 1
    counts = met * np.sqrt(np.outer(total, total))
    step = counts / total[:, None]
    wanted = step @ step / np.sqrt(total)
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(table(walk(OFFSETS, ITEMS, 5, size=4)), wanted, atol=1e-5)
    short = walk(OFFSETS, ITEMS, 5, size=1)
    assert (np.diff(short.indptr) <= 1).all()
    assert short.indices[short.indptr[1]] == wanted[1].argmax()


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 1000))
def test_nearest_lists_the_largest_cosines_of_items_that_have_the_signal(n_items, size, seed):
    random = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(n_items, 3, generator=random), dim=-1)
    present = torch.rand(n_items, generator=random) < 0.7
    lists = nearest(unit, present, size)
    cosine = (unit @ unit.T).numpy()
    n_known = int(present.sum())
    for item in range(n_items):
        part = slice(lists.indptr[item], lists.indptr[item + 1])
        listed = lists.indices[part]
        assert len(listed) == (min(size, n_known - 1) if present[item] else 0)
        assert item not in listed and present[torch.from_numpy(listed)].all()
        others = [other for other in range(n_items) if present[other] and other != item and other not in listed]
        if len(listed) and others:
            assert lists.data[part].min() >= cosine[item, others].max() - 1.1e-5
        np.testing.assert_allclose(lists.data[part], cosine[item, listed], atol=1e-5)


def test_a_large_catalogue_is_searched_by_cells(monkeypatch):
    pytest.importorskip("faiss")
    random = torch.Generator().manual_seed(0)
    kinds = torch.randn(50, 16, generator=random).repeat(60, 1) + 0.3 * torch.randn(3000, 16, generator=random)
    unit, present = torch.nn.functional.normalize(kinds, dim=-1), torch.rand(3000, generator=random) < 0.9
    exact = nearest(unit, present, 10)
    monkeypatch.setattr(neighbours, "LARGE", 100)
    monkeypatch.setattr(neighbours, "MANY", 1000)
    found = nearest(unit, present, 10)
    assert np.array_equal(found.indptr, exact.indptr)
    both = found.astype(bool).multiply(exact.astype(bool))
    assert 0.95 < both.nnz / exact.nnz <= 1
    np.testing.assert_allclose(found.multiply(both).data, exact.multiply(both).data, atol=1e-5)
    monkeypatch.setattr(neighbours, "LOOKED_INTO", 1)  # too little lies in one cell: then all are looked into
    assert np.array_equal(nearest(unit, present, 200).indptr, np.r_[0, np.cumsum(np.where(present, 200, 0))])


def test_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    offsets = np.r_[0, np.cumsum(generator.integers(0, 9, 200))]
    items = generator.integers(1, 40, offsets[-1])
    unit = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=-1)

    def made():
        lists = [make(offsets, items, 40, 5) for make in (transitions, cooccurrence, walk)]
        return [*lists, nearest(unit, torch.ones(40, dtype=torch.bool), 5)]

    whole = made()
    monkeypatch.setattr(counts, "AT_ONCE", 30)
    monkeypatch.setattr(neighbours, "CELLS", 100)
    monkeypatch.setattr(neighbours, "ENTRIES", 50)
    for one, other in zip(whole, made(), strict=True):
        assert (one != other).nnz == 0 and one.nnz == other.nnz > 0


@pytest.mark.parametrize("make", [transitions, cooccurrence, walk])
def test_nothing_known_gives_empty_lists(make):
    lists = make(np.array([0, 1]), np.array([2]), 4, 3)
    assert lists.indptr.tolist() == [0] * 5 and not lists.nnz
