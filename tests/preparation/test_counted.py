"""Counted encoders: what they learn, and that what they have learned gives rows the same features again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_bbqrec.preparation.counted import FITTED, Counted, codes, tfidf


def test_tfidf_reduces_and_leaves_blank_texts_zero() -> None:
    texts = ["red lamp", "red lamp big", "blue tent", "", "blue tent big", "!!"]
    matrix, known, _ = tfidf(texts, dim=3, seed=0)
    assert matrix.shape == (6, 3) and matrix.dtype == torch.float32
    assert known.tolist() == [True, True, True, False, True, False]
    assert not matrix[[3, 5]].any()
    near, far = torch.cosine_similarity(matrix[0], matrix[1], 0), torch.cosine_similarity(matrix[0], matrix[2], 0)
    assert near > 0.8 > far
    assert torch.equal(matrix, tfidf(texts, dim=3, seed=0)[0])


def test_tfidf_with_fewer_terms_than_dimensions_is_exact() -> None:
    matrix, known, _ = tfidf(["a b", "a c", "b c"], dim=256, seed=0)
    assert matrix.shape == (3, 3) and known.all()  # the pairs of words occur once each
    torch.testing.assert_close(matrix.norm(dim=1), torch.ones(3))
    assert tfidf(["lonely words"], dim=256, seed=0)[0].shape == (1, 3)  # no term is shared: all count


@pytest.mark.parametrize("dim", [2, 256])
@pytest.mark.parametrize(
    ("encode", "rows"),
    [
        (tfidf, ["red lamp", "red lamp big", "odd red", "blue tent", "blue tent big", "odd"]),
        (codes, ["a b", "a c", "a z", "d c", "d b", "z"]),
    ],
)
def test_nothing_is_learned_from_rows_that_are_not_fitted(encode, rows, dim) -> None:
    fitted = np.array([True, True, False, True, True, False])
    matrix, known, _ = encode(rows, dim, 0, fitted)
    alone, _, _ = encode([row for row, has in zip(rows, fitted, strict=True) if has], dim, 0)
    assert torch.equal(matrix[fitted], alone), "as if the others were not there"
    assert known.tolist() == [True, True, True, True, True, False] and not matrix[5].any()
    assert torch.cosine_similarity(matrix[2], matrix[0], 0) > torch.cosine_similarity(matrix[2], matrix[3], 0)


@pytest.mark.parametrize("texts", [["", ""], ["!", "?"]])
def test_tfidf_without_any_word(texts: list[str]) -> None:
    matrix, known, _ = tfidf(texts, dim=4, seed=0)
    assert matrix.shape == (2, 0) and not known.any()


def test_codes_are_one_hot_per_position() -> None:
    matrix, known, _ = codes(["A_1 B_1", "A_2 B_1", "", "A_1", "B_1 A_1"], dim=8, seed=0)
    # In sorted order: (0, A_1) (0, A_2) (0, B_1) (1, A_1) (1, B_1); the last item has its codes in other positions.
    expected = [[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 0]]
    assert matrix.tolist() == expected and known.tolist() == [True, True, False, True, True]
    assert not codes(["", ""], dim=8, seed=0)[1].any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=30), st.integers(1, 5))
def test_reduced_codes_keep_equal_items_equal(rows: list[list[int]], dim: int) -> None:
    texts = [f"a_{first} b_{second}" for first, second in rows]
    matrix, known, _ = codes(texts, dim, seed=1)
    assert known.all() and matrix.shape[1] <= dim and torch.isfinite(matrix).all()
    for left in range(len(texts)):
        same = texts.index(texts[left])
        torch.testing.assert_close(matrix[left], matrix[same])


@pytest.mark.parametrize("dim", [2, 256])
@pytest.mark.parametrize(
    ("encode", "rows", "new"),
    [
        (tfidf, ["Red lamp", "red lamp big", "blue tent", "", "bl\u00fce tent big"], "big red TENT"),
        (codes, ["a b", "a c", "d c", "", "d b b"], "d c"),
    ],
)
def test_what_was_learned_gives_rows_their_features_again(encode, rows, new, dim) -> None:
    matrix, known, notes = encode(rows, dim, seed=0)
    learned = notes[FITTED]
    restored = Counted.restore(learned.method, learned.state())
    again, there = restored.encode(rows)
    torch.testing.assert_close(again, matrix, atol=1e-6, rtol=0)
    assert torch.equal(there, known) and again.dtype == torch.float32
    (features, has), (nothing, has_not) = restored.encode([new]), restored.encode(["unheard of"])
    assert has.all() and features.any() and not has_not.any() and not nothing.any()
