"""Histories as flat arrays: training sequences, their windows, and what a user has seen before a target.

Rows of RecBole's sequential data sets are prefixes: `item_id_list` (right-padded with 0), `item_length`, and the target
`item_id`. Everything here is derived from those rows, after the split, so it holds for any way of splitting.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sequences:
    """Sequences of item ids, one after the other.

    Attributes
    ----------
    offsets : [U + 1], sequence `u` is `items[offsets[u] : offsets[u + 1]]`.
    items : [n] item ids in time order.
    """

    offsets: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.items[self.offsets[index] : self.offsets[index + 1]]


def training_sequences(train: Any) -> Sequences:
    """Return the training part of every user's sequence, users in the order of their tokens.

    The order of users depends on their tokens alone, not on the ids RecBole gave them, so that what is learned from the
    sequences does not depend on rows outside the training split.
    """
    users, targets, lengths, first = _rows_by_user(train)
    if not len(users):
        return Sequences(np.zeros(1, np.int64), np.zeros(0, np.int64))
    starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    counts = np.diff(np.r_[starts, len(users)])
    tokens = train.field2id_token[train.uid_field][users[starts]].astype(str)
    pieces = []
    for index in np.argsort(tokens, kind="stable"):
        row = starts[index]
        history = first[row][: lengths[row]]
        pieces.append(np.r_[history, targets[row : row + counts[index]]])
    return Sequences(np.r_[0, np.cumsum([len(piece) for piece in pieces])], np.concatenate(pieces))


def _rows_by_user(dataset: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Users, targets, lengths and histories of the rows, grouped by user, in time order within one."""
    rows = dataset.inter_feat
    users = rows[dataset.uid_field].numpy()
    order = np.argsort(users, kind="stable")
    history = rows[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
    lengths = rows[dataset.item_list_length_field].numpy()
    return users[order], rows[dataset.iid_field].numpy()[order], lengths[order], history[order]


def windows(sequences: Sequences, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut sequences into windows in which every training target occurs exactly once.

    A window shows up to `length` items and asks for the item after each of them. Users with more targets give several
    windows; each starts half a window earlier than its first target, so that a target has at least `length // 2` items
    of context where the user has that many.

    Returns
    -------
    start : [W] position of a window's first item in `sequences.items`.
    size : [W] number of items shown.
    skipped : [W] leading items of the window whose next item is the target of an earlier window.
    """
    found: list[tuple[int, int, int]] = []
    stride = max(length // 2, 1)
    for begin, end in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True):
        n_inputs = end - begin - 1
        done = min(n_inputs, length)
        if n_inputs > 0:
            found.append((begin, done, 0))
        while 0 < done < n_inputs:
            new = min(stride, n_inputs - done)
            found.append((begin + done + new - length, length, length - new))
            done += new
    start, size, skipped = np.asarray(found, np.int64).reshape(-1, 3).T
    return start, size, skipped


@dataclass(frozen=True)
class Seen:
    """What each evaluation row's user had interacted with before its target.

    Attributes
    ----------
    offsets : [R + 1], row `r` has seen `items[offsets[r] : offsets[r + 1]]`, ascending.
    items : [n] item ids; the row's own target is never among them.
    n_repeated : rows whose target the user had met before; it stays in the ranking.
    """

    offsets: np.ndarray
    items: np.ndarray
    n_repeated: int

    def pairs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `(index into rows, item id)` of everything seen by the given rows."""
        index, places = _all_places(self.offsets[rows], self.offsets[rows + 1])
        return index, self.items[places]


def seen_before(evaluated: Any, earlier: list[Any]) -> Seen:
    """Collect all earlier interactions of the users of `evaluated` from the split, not from truncated lists.

    Parameters
    ----------
    evaluated : data set whose rows are ranked (validation or test).
    earlier : the data sets before it in time (training; for test also validation).
    """
    n_items = evaluated.item_num
    known = _distinct(np.concatenate([_user_item_keys(dataset, n_items) for dataset in earlier]))
    users = evaluated.inter_feat[evaluated.uid_field].numpy()
    low, high = np.searchsorted(known, users * n_items), np.searchsorted(known, (users + 1) * n_items)
    rows, places = _all_places(low, high)
    items = known[places] % n_items
    history = evaluated.inter_feat[evaluated.iid_field + evaluated.config["LIST_SUFFIX"]].numpy()
    own_rows, own_columns = np.nonzero(history)
    keys = _distinct(np.r_[rows * n_items + items, own_rows * n_items + history[own_rows, own_columns]])
    targets = np.arange(len(users)) * n_items + evaluated.inter_feat[evaluated.iid_field].numpy()
    repeated = np.isin(keys, targets)
    n_repeated, keys = int(repeated.sum()), keys[~repeated]
    return Seen(np.searchsorted(keys, np.arange(len(users) + 1) * n_items), keys % n_items, n_repeated)


def _all_places(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write out ranges: which range each place belongs to, and the places `starts[i] .. ends[i] - 1` one by one."""
    counts = ends - starts
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(starts)), counts), np.repeat(starts, counts) + within


def _user_item_keys(dataset: Any, n_items: int) -> np.ndarray:
    users = dataset.inter_feat[dataset.uid_field].numpy()
    history = dataset.inter_feat[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
    rows, columns = np.nonzero(history)
    targets = users * n_items + dataset.inter_feat[dataset.iid_field].numpy()
    return _distinct(np.r_[targets, users[rows] * n_items + history[rows, columns]])


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Return `np.unique(keys)`, which looks integers up in a hash table and takes five times as long as sorting."""
    keys = np.sort(keys)
    return keys[np.r_[True, keys[1:] != keys[:-1]][: len(keys)]]
