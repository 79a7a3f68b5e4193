"""How often items follow each other in training sequences."""

import numpy as np
from scipy.sparse import coo_array, csr_array


def pair_counts(offsets: np.ndarray, items: np.ndarray, n_items: int, window: int) -> csr_array:
    """How often one item comes at most `window` steps before another [N, N]; an item with itself does not count."""
    pairs = [pairs_apart(offsets, items, distance) for distance in range(1, window + 1)]
    left, right = np.concatenate(pairs, axis=1)
    kept = left != right
    ones = np.ones(kept.sum(), np.float64)
    return csr_array(coo_array((ones, (left[kept], right[kept])), shape=(n_items, n_items)))


def pairs_apart(offsets: np.ndarray, items: np.ndarray, distance: int) -> np.ndarray:
    """Pairs [2, n] of items that stand `distance` apart in one sequence."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    together = user[distance:] == user[:-distance]
    return np.stack([items[:-distance][together], items[distance:][together]])
