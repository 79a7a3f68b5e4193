"""Whether training was kept apart from what is judged: checked on a run's own loaders, before it trains.

The sequences that everything is compared with are made from users, items and times alone, not by the code that splits
them or collects what users have seen.

Shapes: R rows (prefixes with their targets), U users with rows, n = R + U interactions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.sequences import Sequences, seen_before
from ..errors import InputError


@dataclass(frozen=True)
class _Rows:
    """Rows of one or several data sets in the order they were given: users, targets, times [R]."""

    users: np.ndarray
    targets: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, *datasets: Any) -> "_Rows":
        """Rows of the data sets, one after the other."""
        fields = (datasets[0].uid_field, datasets[0].iid_field, datasets[0].time_field)
        return cls(*(np.concatenate([data.inter_feat[field].numpy() for data in datasets]) for field in fields))


def check_leakage(dataset: Any, train: Any, valid: Any, test: Any) -> dict[str, str]:
    """Check a split, and return what the record says of it: `leakage_check`.

    Every user's sequence by time is his training part, then his validation and then his test target; training rows and
    `train_sequences` hold nothing else; the items masked for a target are exactly those before it.

    Parameters
    ----------
    dataset : RecBole's data set before its split.
    train, valid, test : loaders of its parts.

    Raises
    ------
    InputError : one of these is not so; the first user with whom it is not is named.
    """
    if dataset.config["benchmark_filename"]:
        return {"leakage_check": "not made, the split comes with the data"}
    parts = [loader._dataset for loader in (train, valid, test)]
    whole, split = _Rows.of(dataset), _Rows.of(*parts)
    if len(whole.users) != len(split.users):
        raise InputError(f"leakage check: found {len(split.users)} rows in the split, expected {len(whole.users)}")
    phase = np.repeat(np.arange(3), [len(part.inter_feat) for part in parts])
    by_time = np.lexsort((whole.times, whole.users))
    by_phase = np.lexsort((split.times, phase, split.users))
    wrong = (whole.users[by_time] != split.users[by_phase]) | (whole.targets[by_time] != split.targets[by_phase])
    _refuse(dataset, whole.users[by_time][wrong], "a held-out item that is not behind all training items in time")

    items, starts, places = _interactions(dataset, whole, by_time)
    place = np.empty(len(places), np.int64)
    place[by_phase] = places  # of each row of the split among the interactions
    bounds = np.cumsum([0, *(len(part.inter_feat) for part in parts)])
    _check_training(parts[0], place[: bounds[1]], items, starts)
    for at in (1, 2):
        _check_seen(parts[at], parts[:at], place[bounds[at] : bounds[at + 1]], items, starts)
    return {"leakage_check": "passed"}


def _refuse(dataset: Any, users: np.ndarray, found: str) -> None:
    if len(users):
        token = dataset.field2id_token[dataset.uid_field][users[0]]
        raise InputError(
            f"leakage check: user {token}: found {found} ({len(np.unique(users))} users in all), expected a split in "
            "which training ends before validation and validation before test; look at eval_args and the data's times"
        )


def _interactions(dataset: Any, whole: _Rows, by_time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items [n] of all users in time order, where each user's start [U], and where each row's target stands [R].

    A user's first interaction has no row of its own: it is the history of his first row.
    """
    users, targets = whole.users[by_time], whole.targets[by_time]
    is_first = np.r_[True, users[1:] != users[:-1]][: len(users)]
    firsts = np.flatnonzero(is_first)
    history = dataset.inter_feat[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
    items = np.insert(targets, firsts, history[by_time[firsts], 0])
    return items, firsts + np.arange(len(firsts)), np.arange(len(users)) + np.cumsum(is_first)


def _check_training(train: Any, place: np.ndarray, items: np.ndarray, starts: np.ndarray) -> None:
    """What models learn from: rows, and the sequences that windows and tokenizers are cut from."""
    users, n_items = train.inter_feat[train.uid_field].numpy(), train.item_num
    unique, first = np.unique(users, return_index=True)
    begin = _start_of(starts, place[first])
    size = np.bincount(np.searchsorted(unique, users), minlength=len(unique)) + 1
    tokens = train.field2id_token[train.uid_field][unique].astype(str)
    order = np.argsort(tokens, kind="stable")
    expected = items[_ranges(begin[order], size[order])]
    learned: Sequences = train.train_sequences
    if not (np.array_equal(np.diff(learned.offsets), size[order]) and np.array_equal(learned.items, expected)):
        raise InputError("leakage check: the training sequences are not the training part of the users' sequences")
    allowed = np.repeat(unique[order], size[order]) * n_items + expected
    history = train.inter_feat[train.iid_field + train.config["LIST_SUFFIX"]].numpy()
    rows, columns = np.nonzero(history)
    foreign = ~np.isin(users[rows] * n_items + history[rows, columns], allowed)
    _refuse(train, users[rows][foreign], "a training history with an item from outside the training part")


def _check_seen(evaluated: Any, earlier: list[Any], place: np.ndarray, items: np.ndarray, starts: np.ndarray) -> None:
    """What is masked for each row of `evaluated`: everything before its target, but not the target."""
    users, targets = (evaluated.inter_feat[field].numpy() for field in (evaluated.uid_field, evaluated.iid_field))
    rows, begin = np.arange(len(users)), _start_of(starts, place)
    row = np.repeat(rows, place - begin)
    # Sorted by hand: numpy's own way to distinct values takes ten times as long on a large data set.
    before = np.sort(row * evaluated.item_num + items[_ranges(begin, place - begin)])
    before = before[np.diff(before, prepend=-1) != 0]
    expected = np.setdiff1d(before, rows * evaluated.item_num + targets, assume_unique=True)
    index, masked = seen_before(evaluated, earlier).pairs(rows)
    wrong = np.setxor1d(index * evaluated.item_num + masked, expected, assume_unique=True) // evaluated.item_num
    _refuse(evaluated, users[wrong], "masked items that are not those before the target")


def _start_of(starts: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Where the users of targets at these places start."""
    return starts[np.searchsorted(starts, place, side="right") - 1]


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Write out `starts[i], ..., starts[i] + sizes[i] - 1`, one range after the other."""
    return np.arange(sizes.sum()) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
