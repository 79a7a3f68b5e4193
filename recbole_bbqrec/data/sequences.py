"""Histories as flat arrays: training sequences, their windows, and what a user has seen before a target.

Rows of RecBole's sequential data sets are prefixes: `item_id_list` (right-padded with 0), `item_length`, and the target
`item_id`. Everything here is derived from those rows, after the split, so it holds for any way of splitting.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse


@dataclass(frozen=True)
class Sequences:
    """Item ids [n] in time order; sequence `u` of U is `items[offsets[u] : offsets[u + 1]]`, so [U + 1] offsets."""

    offsets: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.items[self.offsets[index] : self.offsets[index + 1]]


def training_sequences(train: Any) -> Sequences:
    """Return the training part of every user's sequence.

    Users are in the order of their tokens, not of RecBole's ids: nothing depends on rows outside the training split.
    """
    rows = train.inter_feat
    tokens = train.field2id_token[train.uid_field].astype(str)[rows[train.uid_field].numpy()]
    order = np.argsort(tokens, kind="stable")  # of rows; within a user they are in the order of time
    fields = (train.iid_field, train.item_list_length_field, train.iid_field + train.config["LIST_SUFFIX"])
    targets, lengths, history = (rows[field].numpy()[order] for field in fields)
    starts = np.flatnonzero(np.r_[True, tokens[order][1:] != tokens[order][:-1]][: len(order)])
    parts = zip(starts, [*starts[1:], len(order)], strict=True) if len(order) else ()
    pieces = [np.r_[history[begin][: lengths[begin]], targets[begin:end]] for begin, end in parts]
    offsets = np.cumsum([0, *(len(piece) for piece in pieces)])
    return Sequences(offsets, np.concatenate([np.zeros(0, np.int64), *pieces]))


def windows(sequences: Sequences, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut sequences into windows in which every training target occurs exactly once.

    A window shows up to `length` items and asks for the item after each of them. Users with more targets give several
    windows; each starts half a window earlier than its first target, so that a target has at least `length // 2` items
    of context where the user has that many. Returns, of each of W windows, the position of its first item, the number
    of items shown, and how many of these come first whose next item is the target of an earlier window.
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


def seen_before(evaluated: Any, earlier: Iterable[Any]) -> scipy.sparse.csr_array:
    """Collect all earlier interactions of the users of `evaluated` from the split, not from truncated lists.

    Returns [R, N] for the R ranked rows: an entry for each item that the row's user had interacted with before its
    target, in the data sets `earlier` in time (training; for test also validation) or in the row's history. The target
    itself is never among them, and stays in the ranking.
    """
    users, targets, history = _columns(evaluated)
    met: Any = 0
    for dataset in earlier:
        owner, items, before = _columns(dataset)
        met = met + _entries(owner, np.c_[before, items], (dataset.user_num, dataset.item_num))
    own = _entries(np.arange(len(users)), history, (len(users), evaluated.item_num))
    seen = scipy.sparse.coo_array(met[users] + own)
    other = seen.col != targets[seen.row]
    return scipy.sparse.csr_array((seen.data[other], (seen.row[other], seen.col[other])), shape=seen.shape)


def _columns(dataset: Any) -> Iterator[np.ndarray]:
    """Users [R], targets [R] and histories [R, T] of the rows of a data set."""
    fields = dataset.uid_field, dataset.iid_field, dataset.iid_field + dataset.config["LIST_SUFFIX"]
    return (dataset.inter_feat[field].numpy() for field in fields)


def _entries(owner: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> scipy.sparse.csr_array:
    """Matrix with an entry at (`owner[i]`, each of `items[i]` but padding)."""
    row, column = np.nonzero(items)
    return scipy.sparse.csr_array((np.ones(len(row), bool), (owner[row], items[row, column])), shape=shape)
