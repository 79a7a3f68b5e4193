"""Histories as flat arrays: training sequences, their windows, and what a user has seen before a target.

Rows of RecBole's sequential data sets are prefixes: `item_id_list` (right-padded with 0), `item_length`, and the target
`item_id`. Everything here is derived from those rows, after the split, so it holds for any way of splitting.
"""

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse


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


def seen_before(evaluated: Any, earlier: Iterable[Any]) -> scipy.sparse.csr_array:
    """Collect all earlier interactions of the users of `evaluated` from the split, not from truncated lists.

    Parameters
    ----------
    evaluated : data set whose R rows are ranked (validation or test).
    earlier : the data sets before it in time (training; for test also validation).

    Returns
    -------
    [R, N], an entry for each item that the row's user had interacted with before its target; the target itself is never
    among them, and stays in the ranking.
    """
    met = functools.reduce(operator.add, map(_met, earlier))
    rows = evaluated.inter_feat
    users, targets = (rows[field].numpy() for field in (evaluated.uid_field, evaluated.iid_field))
    seen = scipy.sparse.coo_array(met[users] + _entries(np.arange(len(users)), *_history(evaluated)))
    other = seen.col != targets[seen.row]
    return scipy.sparse.csr_array((seen.data[other], (seen.row[other], seen.col[other])), shape=seen.shape)


def _met(dataset: Any) -> scipy.sparse.csr_array:
    """Interactions [users, N] of a part of the split."""
    users, targets = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
    history, n_items = _history(dataset)
    return _entries(users, np.c_[history, targets], n_items, dataset.user_num)


def _history(dataset: Any) -> tuple[np.ndarray, int]:
    return dataset.inter_feat[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy(), dataset.item_num


def _entries(owner: np.ndarray, items: np.ndarray, n_items: int, n_rows: int | None = None) -> scipy.sparse.csr_array:
    """Matrix [n_rows, N] with an entry at (`owner[i]`, each of `items[i]` but padding)."""
    row, column = np.nonzero(items)
    place = owner[row], items[row, column]
    shape = (len(owner) if n_rows is None else n_rows, n_items)
    return scipy.sparse.csr_array((np.ones(len(row), bool), place), shape=shape)
