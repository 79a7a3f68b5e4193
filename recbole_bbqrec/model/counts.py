"""How often items follow each other in training sequences, counted part by part."""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_array, csr_array

AT_ONCE = 2**23
"""Interactions whose pairs are held at once: 128 MiB, beside the counts."""


def pair_counts(offsets: np.ndarray, items: np.ndarray, n_items: int, window: int) -> csr_array:
    """How often one item comes at most `window` steps before another [N, N]; an item with itself does not count."""
    found = distance_counts(offsets, items, n_items, 1)
    for distance in range(2, window + 1):
        found = found + distance_counts(offsets, items, n_items, distance)
    return csr_array(found)


def distance_counts(offsets: np.ndarray, items: np.ndarray, n_items: int, distance: int) -> csr_array:
    """How often one item comes `distance` steps before another [N, N]; an item with itself does not count."""
    found = csr_array((n_items, n_items), dtype=np.int32)
    for begin, end in _parts(offsets):
        first, last = offsets[begin], offsets[end]
        left, right = pairs_apart(offsets[begin : end + 1] - first, items[first:last], distance)
        other = left != right
        places = left[other].astype(np.int32), right[other].astype(np.int32)
        counted = coo_array((np.ones(len(places[0]), np.int32), places), shape=found.shape)
        found = found + csr_array(counted)
    return csr_array(found)


def _parts(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield where parts of the sequences begin and end, which hold about `AT_ONCE` interactions each."""
    begin, n_sequences = 0, len(offsets) - 1
    while begin < n_sequences:
        end = int(np.searchsorted(offsets, offsets[begin] + AT_ONCE, side="right")) - 1
        end = min(max(end, begin + 1), n_sequences)
        yield begin, end
        begin = end


def pairs_apart(offsets: np.ndarray, items: np.ndarray, distance: int) -> np.ndarray:
    """Pairs [2, n] of items that stand `distance` apart in one sequence."""
    user = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    together = user[distance:] == user[:-distance]
    return np.stack([items[:-distance][together], items[distance:][together]])
