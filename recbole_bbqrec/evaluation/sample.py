"""Which rows stand for all where ranking every row would take as long as training."""

import numpy as np


def sampled_rows(n_rows: int, n_wanted: int, seed: int) -> np.ndarray:
    """Return the indices, sorted, of `n_wanted` of `n_rows` rows, drawn by `seed`; all rows where that is 0 or more.

    A smaller sample of a seed is part of each larger one.
    """
    if not 0 < n_wanted < n_rows:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).permutation(n_rows)[:n_wanted])
