"""RecBole's splits of rows by user as arrays: which rows go into which part, in the order in which RecBole puts them.

Shapes: R rows in order of time, P parts. Of a user, earlier parts have the earlier rows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LEAVE_ONE_OUT = {"valid_and_test": (1, 2), "valid_only": (1,), "test_only": (2,)}
"""Which parts get one row of each user, from the last one backwards; the others but the first get none."""


class Grouped(NamedTuple):
    """Rows by user, users in the order in which they are met.

    Attributes
    ----------
    rows : [R] numbers of the rows, those of a user side by side, in their order.
    place : [R] of each of these, the how many-th it is of its user, from 0.
    size : [R] number of rows of its user.
    """

    rows: np.ndarray
    place: np.ndarray
    size: np.ndarray


def grouped(users: np.ndarray) -> Grouped:
    """Group rows by `users` [R]."""
    first = np.zeros(int(users.max(initial=-1)) + 1, np.int64)
    first[users[::-1]] = np.arange(len(users))[::-1]
    rows = np.argsort(first[users], kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(users[rows]) != 0][: len(rows)])
    sizes = np.diff(np.r_[begins, len(rows)])
    return Grouped(rows, np.arange(len(rows)) - np.repeat(begins, sizes), np.repeat(sizes, sizes))


def leave_one_out(users: np.ndarray, mode: str) -> list[np.ndarray]:
    """Give the last row of each user to the last part that gets one, the row before to the one before.

    A user's first row stays in training, whatever that leaves to the others.
    """
    by_user, takers = grouped(users), LEAVE_ONE_OUT[mode]
    from_end = by_user.size - by_user.place  # 1 is the last row
    left = np.minimum(len(takers), by_user.size - 1)
    parts = [by_user.rows[from_end > left], by_user.rows[:0], by_user.rows[:0]]
    for nth, part in enumerate(reversed(takers), start=1):
        parts[part] = by_user.rows[(from_end == nth) & (nth <= left)]
    return parts


def by_ratio(users: np.ndarray, n_parts: int, cut: Callable[[int], Sequence[int]]) -> list[np.ndarray]:
    """Divide the rows of each user where `cut` says for their number: P - 1 places, ascending."""
    by_user = grouped(users)
    sizes, of_size = np.unique(by_user.size, return_inverse=True)
    edges = np.array([cut(int(size)) for size in sizes], np.int64).reshape(len(sizes), n_parts - 1)
    part = np.zeros(len(users), np.int64)
    for edge in edges.T:
        part += by_user.place >= edge[of_size]
    return [by_user.rows[part == number] for number in range(n_parts)]


def by_time(users: np.ndarray, times: np.ndarray, ratios: Sequence[float]) -> list[np.ndarray]:
    """Give what is later than a share `1 - ratios[2]` of all rows to test, and divide the rest of each user."""
    is_test = times > np.percentile(times, 100 * (1 - ratios[-1]))
    early = np.flatnonzero(~is_test)
    train, valid = by_ratio(users[early], 2, lambda size: [int(size * (ratios[0] / (1 - ratios[2])))])
    test = grouped(users).rows
    return [early[train], early[valid], test[is_test[test]]]
