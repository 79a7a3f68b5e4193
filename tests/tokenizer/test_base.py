import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.tokenizer.base import effective_size, feature_statistics, flat_sequences


def test_sequences_in_both_forms():
    offsets, items = flat_sequences([np.array([1, 2]), np.array([], dtype=int), np.array([0])], 3)
    assert offsets.tolist() == [0, 2, 2, 3] and items.tolist() == [1, 2, 0]
    assert flat_sequences((offsets, items), 3)[1].tolist() == [1, 2, 0]
    assert flat_sequences([], 3)[0].tolist() == [0]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([np.array([3])], "found item 3, expected 0 to 2"),
        ([np.array([-1])], "found item -1"),
        ((np.array([0, 1]), np.array([0, 1])), "expected offsets that rise from 0 to 2"),
    ],
)
def test_sequences_that_do_not_fit(sequences, message):
    with pytest.raises(InputError, match=message):
        flat_sequences(sequences, 3)


def test_statistics_are_those_of_present_items_and_constant_dimensions_stay_as_they_are():
    matrix = torch.tensor([[1.0, 5.0], [3.0, 5.0], [99.0, 0.0]])
    statistics = feature_statistics(matrix, torch.tensor([True, True, False]))
    assert statistics.tolist() == [[2.0, 5.0], [1.0, 1.0]]
    assert feature_statistics(matrix, torch.zeros(3, dtype=torch.bool)).tolist() == [[0.0, 0.0], [1.0, 1.0]]


@given(st.integers(1, 300), st.integers(1, 3))
def test_shrunken_codebooks_still_tell_all_items_apart(n_items, levels):
    size = effective_size(256, levels, n_items) if n_items <= 256 else 256
    assert size <= 256 and size**levels >= min(n_items, 256)
