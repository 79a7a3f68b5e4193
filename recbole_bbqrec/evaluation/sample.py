"""Which rows are judged where not all of them are."""

import numpy as np


def sampled_rows(n_rows: int, n_wanted: int, seed: int) -> np.ndarray:
    """Return `n_wanted` of the rows 0 to `n_rows` - 1, ascending, drawn with a seed; all where there are no more."""
    if n_wanted >= n_rows:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, n_wanted, replace=False))


def rows_of_some(users: np.ndarray, n_users: int) -> np.ndarray | None:
    """Return the rows of `n_users` of the `users` [R], the same ones in every run; none where that is all (0: all)."""
    known = np.unique(users)
    if not 0 < n_users < len(known):
        return None
    return np.flatnonzero(np.isin(users, known[sampled_rows(len(known), n_users, seed=0)]))
