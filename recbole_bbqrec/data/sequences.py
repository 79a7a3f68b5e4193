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

    def only(self, kept: np.ndarray) -> "Sequences":
        """The items `kept`, bool [n], in their order; sequences of which nothing is left are left out."""
        return Sequences(np.unique(np.r_[0, np.cumsum(kept)][self.offsets]), self.items[kept])


@dataclass(frozen=True)
class Histories:
    """What stands before the target of R rows: `items[start[r] : stop[r]]`; rows may share items."""

    items: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __getitem__(self, rows: Any) -> "Histories":
        return Histories(self.items, self.start[rows], self.stop[rows])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.items[begin:end] for begin, end in zip(self.start, self.stop, strict=True))

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the row and the item of everything in the histories."""
        counts = self.stop - self.start
        first = np.repeat(self.start - np.cumsum(counts) + counts, counts)
        return np.repeat(np.arange(len(counts)), counts), self.items[np.arange(counts.sum()) + first]

    def covering(self) -> np.ndarray:
        """Return rows whose histories have everything that is in any of them: the longest of those that begin alike."""
        order = np.lexsort((self.stop, self.start))
        return order[np.r_[np.diff(self.start[order]) != 0, True][: len(order)]]


def training_sequences(train: Any) -> Sequences:
    """Return the training part of every user's sequences.

    Users are in the order of their tokens, not of RecBole's ids: nothing depends on rows outside the training split.
    Rows that RecBole has made continue one another, and so do plain interactions. Rows that came with histories of
    their own are joined where they do, see `_joined`; all positions of a sequence are targets, as in unsplit data.
    """
    rows = train.inter_feat
    tokens = train.field2id_token[train.uid_field].astype(str)[rows[train.uid_field].numpy()]
    order = np.argsort(tokens, kind="stable")  # of rows; within a user they are in the order of time
    targets = rows[train.iid_field].numpy()[order]
    starts = np.flatnonzero(np.r_[True, tokens[order][1:] != tokens[order][:-1]][: len(order)])
    by_user = np.split(targets, starts[1:])[: len(starts)]
    histories = train.histories[order]
    if len(np.unique(histories.start)) == len(starts):
        pieces = [np.r_[history, rest] for history, rest in zip(histories[starts], by_user, strict=True)]
    else:
        longest = int((histories.stop - histories.start).max())
        rows = (slice(begin, begin + len(rest)) for begin, rest in zip(starts, by_user, strict=True))
        parts = (_joined(histories[part], targets[part], longest) for part in rows)
        pieces = [np.asarray(sequence) for joined in parts for sequence in joined]
    offsets = np.cumsum([0, *(len(piece) for piece in pieces)])
    return Sequences(offsets, np.concatenate([np.zeros(0, np.int64), *pieces]))


def _joined(histories: Histories, targets: np.ndarray, longest: int) -> list[list[int]]:
    """Join a user's rows into sequences.

    A row continues the sequence that its history begins with; the target of every row between may be missing. A history
    of the `longest` length there is may have been cut: it also continues the sequence that ends with it. A row that
    continues none is a session of its own.
    """
    found: list[list[int]] = []
    by_first: dict[int, list[list[int]]] = {}
    for items, target in zip(histories, targets.tolist(), strict=True):
        history, n = items.tolist(), len(items)
        candidates = found if n == longest else by_first.get(history[0], [])
        fits = [one for one in candidates if history[: len(one)] == one or (n == longest and one[-n:] == history)]
        if fits:
            sequence = max(fits, key=len)
            sequence[:] = [*(sequence if len(sequence) > n else history), target]
        else:
            found.append([*history, target])
            by_first.setdefault(history[0], []).append(found[-1])
    return found


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
    """Collect all earlier interactions of the users of `evaluated`, not from truncated lists.

    Returns [R, N] for the R ranked rows: an entry for each item that the row's user had interacted with before its
    target, in the data sets `earlier` in time (training; for test also validation) or in the row's history. The target
    itself is never among them, and stays in the ranking.
    """
    users, targets = _columns(evaluated)
    met: Any = 0
    for dataset in earlier:
        owner, items = _columns(dataset)
        rows = dataset.histories.covering()
        row, before = dataset.histories[rows].entries()
        shape = dataset.user_num, evaluated.item_num
        met = met + _entries(np.r_[owner[rows[row]], owner], np.r_[before, items], shape)
    row, before = evaluated.histories.entries()
    own = _entries(row, before, (len(users), evaluated.item_num))
    seen = scipy.sparse.coo_array(met[users] + own)
    other = seen.col != targets[seen.row]
    return scipy.sparse.csr_array((seen.data[other], (seen.row[other], seen.col[other])), shape=seen.shape)


def _columns(dataset: Any) -> Iterator[np.ndarray]:
    """Users [R] and targets [R] of the rows of a data set."""
    return (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))


def _entries(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((np.ones(len(row), bool), (row, column)), shape=shape)
