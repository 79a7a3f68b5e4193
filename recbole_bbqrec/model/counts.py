"""How often items follow each other in training sequences."""

import numpy as np
from scipy.sparse import coo_array, csr_array


def pair_counts(offsets: np.ndarray, items: np.ndarray, n_items: int, window: int) -> csr_array:
    """How often one item comes at most `window` steps before another [N, N]; an item with itself does not count."""
    pairs = [pairs_apart(offsets, items, distance) for distance in range(1, window + 1)]
    return counts_of(np.concatenate(pairs, axis=1), n_items)


def counts_of(pairs: np.ndarray, n_items: int) -> csr_array:
    """How often each of the pairs [2, n] occurs [N, N]; an item with itself does not count."""
    left, right = pairs[:, pairs[0] != pairs[1]]
    return csr_array(coo_array((np.ones(len(left)), (left, right)), shape=(n_items, n_items)))


def pairs_apart(offsets: np.ndarray, items: np.ndarray, distance: int) -> np.ndarray:
    """Pairs [2, n] of items that stand `distance` apart in one sequence."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    together = user[distance:] == user[:-distance]
    return np.stack([items[:-distance][together], items[distance:][together]])
