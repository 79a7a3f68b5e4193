"""Histories as flat arrays: training sequences, their windows, and what a user has seen before a target.

Rows of RecBole's sequential data sets are prefixes and their targets. A prefix is a slice of items that it shares with
others, and becomes a list of items when a batch asks for it. Everything here is derived from the rows after the split,
so it holds for any way of splitting.
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

    def padded(self, length: int) -> np.ndarray:
        """The last `length` items of each history, [R, length]; 0 pads on the right."""
        size = np.minimum(self.stop - self.start, length)
        inside = np.arange(length) < size[:, None]
        found = np.zeros(inside.shape, np.int64)
        found[inside] = Histories(self.items, self.stop - size, self.stop).entries()[1]
        return found

    def covering(self) -> np.ndarray:
        """Return rows whose histories together hold all there is: the longest of those that begin at the same place."""
        order = np.lexsort((self.stop, self.start))
        return order[np.r_[np.diff(self.start[order]) != 0, True][: len(order)]]


def training_sequences(train: Any) -> Sequences:
    """Return the training part of every user's sequences.

    Users are in the order of their tokens, not of RecBole's ids: nothing depends on rows outside the training split.
    Rows that RecBole has made continue one another, and so do plain interactions. Rows that came with histories of
    their own are joined where they do, see `_joined`; all positions of a sequence are targets, as in unsplit data.
    Where rows are interactions without an order, those of a user are in a random one, drawn with the run's seed.
    """
    rows = train.inter_feat
    users = rows[train.uid_field].numpy()
    owners = token_places(train, train.uid_field)[users]
    if train.rows_are_interactions:
        items = rows[train.iid_field].numpy()
        order = np.lexsort((train.places_of(items, rows[train.time_field].numpy()), owners))
        if not train.is_ordered:  # neighbours are any two items then
            drawn = np.random.default_rng(train.config["seed"]).random(len(order))
            order = order[np.lexsort((drawn, owners[order]))]
        return Sequences(np.r_[0, np.flatnonzero(np.diff(owners[order])) + 1, len(order)], items[order])
    order = np.argsort(owners, kind="stable")  # of rows; within a user they are in the order of time
    targets, users = rows[train.iid_field].numpy()[order], users[order]
    starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]][: len(order)])
    sizes, histories = np.diff(np.r_[starts, len(order)]), train.histories[order]
    if len(np.unique(histories.start)) == len(starts):
        firsts = histories[starts]
        before = firsts.stop - firsts.start
        offsets = np.r_[0, np.cumsum(before + sizes)]
        items = np.empty(offsets[-1], np.int64)
        is_target = np.ones(len(items), bool)
        row, given = firsts.entries()
        places = offsets[row] + np.arange(len(row)) - np.repeat(np.cumsum(before) - before, before)
        items[places], is_target[places] = given, False
        items[is_target] = targets
        return Sequences(offsets, items)
    longest = int((histories.stop - histories.start).max())
    parts = (slice(begin, begin + size) for begin, size in zip(starts.tolist(), sizes.tolist(), strict=True))
    pieces = [np.asarray(one) for part in parts for one in _joined(histories[part], targets[part], longest)]
    return Sequences(np.cumsum([0, *map(len, pieces)]), np.concatenate([np.zeros(0, np.int64), *pieces]))


def token_places(dataset: Any, field: str) -> np.ndarray:
    """Place [U] of each id of a column of tokens, such as that of users, in the order of the tokens."""
    tokens = dataset.field2id_token[field].astype(str)
    places = np.empty(len(tokens), np.int64)
    places[np.argsort(tokens, kind="stable")] = np.arange(len(tokens))
    return places


def _joined(histories: Histories, targets: np.ndarray, longest: int) -> list[list[int]]:
    """Join a user's rows into sequences.

    A row continues the sequence that its history begins with; rows between the two may be missing. A history of the
    `longest` length there is may have been cut: it also continues the sequence that ends with it. A row that continues
    none is a session of its own.
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
    stride = max(length // 2, 1)
    n_inputs = np.maximum(np.diff(sequences.offsets) - 1, 0)
    more = -(-np.maximum(n_inputs - length, 0) // stride)  # windows beside the first
    counts = np.where(n_inputs > 0, 1 + more, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    at = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)  # which window of its sequence
    # Of all inputs, how many earlier windows have had, and how many this one is the first to have.
    done = np.where(at > 0, length + (at - 1) * stride, 0)
    new = np.minimum(np.where(at > 0, stride, length), n_inputs[owner] - done)
    size = np.where(at > 0, length, new)
    return sequences.offsets[owner] + done + new - size, size, size - new


def seen_before(evaluated: Any, earlier: Iterable[Any]) -> scipy.sparse.csr_array:
    """Collect all earlier interactions of the users of `evaluated`, not from truncated lists.

    Returns [R, N] for the R ranked rows: an entry for each item that the row's user had interacted with before its
    target, in the data sets `earlier` in time (training; for test also validation) or in the row's history. The target
    itself is never among them, and stays in the ranking; where rows are interactions, so do the user's other targets.
    """
    users, targets = _columns(evaluated)
    is_asked = np.zeros(evaluated.user_num, bool)
    is_asked[users] = True
    met: Any = 0
    for dataset in earlier:
        owner, items = _columns(dataset)
        asked = np.flatnonzero(is_asked[owner])
        owner, items, histories = owner[asked], items[asked], dataset.histories[asked]
        rows = histories.covering()
        row, before = histories[rows].entries()
        shape = dataset.user_num, evaluated.item_num
        met = met + _entries(np.r_[owner[rows[row]], owner], np.r_[before, items], shape)
    row, before = evaluated.histories.entries()
    own = _entries(row, before, (len(users), evaluated.item_num))
    seen = scipy.sparse.coo_array(met[users] + own)
    other = seen.col != targets[seen.row]
    if evaluated.rows_are_interactions:
        own_targets = users * evaluated.item_num + targets
        other = ~np.isin(users[seen.row] * evaluated.item_num + seen.col, own_targets)
    return scipy.sparse.csr_array((seen.data[other], (seen.row[other], seen.col[other])), shape=seen.shape)


def targets_by_item(train: Any, n_items: int) -> np.ndarray:
    """Count the training rows [N] that have each item as target, as RecBole does; none for items held out."""
    counts = np.bincount(train.inter_feat[train.iid_field].numpy(), minlength=n_items)
    counts[len(train.catalogue.tokens) :] = 0
    return counts


def _columns(dataset: Any) -> Iterator[np.ndarray]:
    """Users [R] and targets [R] of the rows of a data set."""
    return (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))


def _entries(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((np.ones(len(row), bool), (row, column)), shape=shape)
