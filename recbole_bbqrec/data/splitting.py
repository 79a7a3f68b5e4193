"""Splits as arrays: RecBole's splits of each user's rows, in RecBole's order, and splits by time over all users.

Shapes: R rows in order of time, P parts. Of a user, earlier parts have the earlier rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError

LEAVE_ONE_OUT = {"valid_and_test": (1, 2), "valid_only": (1,), "test_only": (2,)}
"""Which parts get one row of each user, the last part the last row; other parts but the first get none."""


class Grouped(NamedTuple):
    """Rows by user, users in the order in which they are met.

    Attributes
    ----------
    rows : [R] numbers of the rows, those of a user side by side, in their order.
    place : [R] position of each of these among the rows of its user, from 0.
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
    """Divide the rows of each user at the P - 1 ascending places that `cut` gives for their number."""
    by_user = grouped(users)
    sizes, of_size = np.unique(by_user.size, return_inverse=True)
    edges = np.array([cut(int(size)) for size in sizes], np.int64).reshape(len(sizes), n_parts - 1)
    part = np.zeros(len(users), np.int64)
    for edge in edges.T:
        part += by_user.place >= edge[of_size]
    return [by_user.rows[part == number] for number in range(n_parts)]


def by_time(users: np.ndarray, times: np.ndarray, ratios: Sequence[float]) -> list[np.ndarray]:
    """Give rows later than a share `1 - ratios[2]` of all rows to test, and divide the other rows of each user."""
    is_test = times > np.percentile(times, 100 * (1 - ratios[-1]))
    early = np.flatnonzero(~is_test)
    train, valid = by_ratio(users[early], 2, lambda size: [int(size * (ratios[0] / (1 - ratios[2])))])
    test = grouped(users).rows
    return [early[train], early[valid], test[is_test[test]]]


def shares_of_time(eval_args: Mapping[str, Any]) -> list[float] | None:
    """Return the shares of training, validation and test where the split is by time over all users, else none.

    `TS` with `group_by: user` is RecBole's: its test begins at a point in time, and validation is of each user.
    """
    shares, group_by = (eval_args.get("split") or {}).get("TS"), eval_args.get("group_by")
    if shares is None or str(group_by).lower() == "user":
        return None
    return [share / sum(shares) for share in shares]


def check_split_by_time(run: Mapping[str, Any]) -> None:
    """Raise an `InputError` where a run's settings ask for a split by time over all users that it cannot have."""
    if shares_of_time(run["eval_args"]) is None or run.get("benchmark_filename"):
        return
    found = f"eval_args: found split {run['eval_args']['split']}"
    if run["TIME_FIELD"] is None:
        raise InputError(f"{found} without TIME_FIELD, a column of times; name it, or take {{'RS': [0.8, 0.1, 0.1]}}")
    if run.get("train_on") == "all":
        why = "users and items that its training part does not know would be left out of a training on everything"
        raise InputError(f"train_on: found 'all' with a split by time over all users; {why}; split by LS for it")


def cuts_in_time(times: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return the points in time [P - 1] at which the later parts begin, at the `shares` [P] of the rows.

    A part includes the rows at its beginning: those of equal times [R], in any order, stay together, in the later part.
    A part without a share begins at infinity; one that has a share and gets no row is an `InputError`.
    """
    ordered = np.sort(times)
    places = np.rint(np.cumsum(shares[:-1]) * len(times)).astype(np.int64)
    cuts = np.r_[ordered, np.inf][places]
    sizes = np.diff(np.r_[0, np.searchsorted(ordered, cuts), len(ordered)])
    check_sizes(sizes, shares, f"{len(np.unique(times))} different times, and rows of one time stay together")
    return cuts


def check_sizes(sizes: np.ndarray, shares: Sequence[float], why: str) -> None:
    """Raise an `InputError` where a part with a share of the rows gets none; the message says `why`."""
    for name, size, share in zip(("training", "validation", "test"), sizes, shares, strict=True):
        if share and not size:
            raise InputError(f"eval_args: found no row for {name} in a split by time ({why}); give it other shares")


def part_of(times: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Return the number of the part [R] of rows with these times [R], of parts that begin at `cuts` [P - 1]."""
    return np.searchsorted(cuts, times, side="right")


def over_all_users(times: np.ndarray, cuts: np.ndarray) -> list[np.ndarray]:
    """Divide rows by their times [R] at the `cuts` [P - 1], see `cuts_in_time`; rows keep their order."""
    part = part_of(times, cuts)
    return [np.flatnonzero(part == number) for number in range(len(cuts) + 1)]
