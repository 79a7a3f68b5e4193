"""Unique semantic IDs: items that quantise to one ID are moved to the nearest free ones.

Shapes: N items, G chains of codes, P positions of an ID, L last positions of it that may change, K codes per position,
D code width.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from ..errors import InputError

ID = tuple[int, ...]
CHUNK = 4096
"""Items whose distances from their IDs are computed at once."""
REMEDY = "raise levels or codebook_size (the settings sid_levels and sid_codebook_size)"


def check_capacity(known: torch.Tensor, chains: Sequence[str], levels: int, size: int) -> None:
    """Refuse more items with the same chains of codes than there are IDs, whatever training makes of them.

    `known` [G, N] says which of the `chains` items have; one that has none has codes in the last.
    """
    columns = torch.cat([known[:-1], known[-1:] | ~known.any(0)]).T.cpu().numpy()
    _, index, counts = np.unique(row_numbers(columns), return_index=True, return_counts=True)
    for has, n_items in zip(columns[index].tolist(), counts.tolist(), strict=True):
        n_ids = size ** (levels * sum(has))
        if n_items > n_ids:
            names = " + ".join(itertools.compress(chains, has))
            found = f"{n_ids} IDs for {n_items} items with codes of {names}"
            raise InputError(f"codebook_size={size}, levels={levels}: {found}; {REMEDY}")


def resolve_chains(codes: torch.Tensor, inputs: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Give every item an ID of its own; `resolve_collisions` in the last chain that the item has.

    IDs that end in different chains differ, so that each chain is settled by itself. Codes [N, P] stand chain after
    chain, -1 throughout one that the item lacks; inputs [G, N, D] are what each chain quantises; codebooks [C * L, K,
    D] are those of all chains (C = 1) or of each (C = G).
    """
    levels = codes.shape[1] // len(inputs)
    books = codebooks.split(levels)
    codes, n_moved = codes.clone(), 0
    last = (codes >= 0).int().cumsum(1).argmax(1) // levels  # chain of the last code
    for chain in torch.unique(last).tolist():
        rows, width = last == chain, (chain + 1) * levels
        unique, moved = resolve_collisions(codes[rows, :width], inputs[chain, rows], books[chain % len(books)])
        codes[rows, :width] = unique
        n_moved += moved
    return codes, n_moved


def resolve_collisions(codes: torch.Tensor, inputs: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Give every item an ID of its own by changing as few and as late codes as possible; also, how many items moved.

    Of the items that share an ID the one nearest to it keeps it; the others, nearest first, take the nearest free code
    at the last position. Where the last position has none left, the nearest code with room is taken one position
    earlier, and so on up to the first of the L positions. Equal distances are settled by the order of the items, which
    the caller keeps canonical; otherwise the order of the items does not matter.

    The last L positions of the IDs [N, P] belong to one residual chain, with its inputs [N, D] and codebooks [L, K, D].

    Raises
    ------
    InputError : more than K ** L items with equal codes at the other positions, all of which stay as they are.
    """
    levels, size = codebooks.shape[:2]
    points, books = inputs.cpu().numpy(), codebooks.double().cpu().numpy()
    table = codes.cpu().numpy().copy()
    first = table.shape[1] - levels
    before, which = row_numbers(table[:, :first]), row_numbers(table)
    members = np.bincount(before)
    if members.max() > size**levels:
        prefix = table[(before == members.argmax()).argmax(), :first].tolist()
        raise InputError(
            f"semantic IDs: {members.max()} items have the codes {prefix} before their last signal, which has "
            f"{size**levels} places to tell them apart; {REMEDY}"
        )
    movers = _movers(table[:, first:], which, points, books)
    movers = movers[np.argsort(before[movers], kind="stable")]  # the items of one prefix after those of another
    staying = np.isin(before, before[movers])
    staying[movers] = False
    rows = np.flatnonzero(staying)
    taken, at = Taken(table[rows[np.argsort(which[rows])]], first, size), -1
    for mover in movers:
        if before[mover] != at:
            at = before[mover]
            taken.forget()
        table[mover] = _nearest_free(tuple(table[mover].tolist()), points[mover], books, taken)
    return torch.from_numpy(table), len(movers)


def row_numbers(rows: np.ndarray) -> np.ndarray:
    """Number rows [N, P] of whole numbers in their lexicographic order, equal ones alike, without gaps [N]."""
    numbers, span = np.zeros(len(rows), np.int64), 1
    for column in rows.T if len(rows) else ():
        least = int(column.min())
        width = int(column.max()) - least + 1
        if span * width > 2**62:
            numbers = np.unique(numbers, return_inverse=True)[1]
            span = int(numbers.max()) + 1
        numbers, span = numbers * width + (column.astype(np.int64) - least), span * width
    return np.unique(numbers, return_inverse=True)[1]


def _movers(codes: np.ndarray, which: np.ndarray, points: np.ndarray, books: np.ndarray) -> np.ndarray:
    """Items that share their ID, of number `which` [N], with one that is nearer to it; nearest first."""
    crowded = np.flatnonzero(np.bincount(which)[which] > 1)
    distances = []
    for rows in np.array_split(crowded, len(crowded) // CHUNK + 1):
        quantised = sum(book[column] for book, column in zip(books, codes[rows].T, strict=True))
        distances.append(np.square(points[rows] - quantised).sum(1))
    order = crowded[np.argsort(np.concatenate(distances), kind="stable")]
    _, keeps = np.unique(which[order], return_index=True)  # of equal rows the first, which is the nearest
    return np.delete(order, keeps)


def _nearest_free(row: ID, point: np.ndarray, books: np.ndarray, taken: "Taken") -> ID:
    """The free ID that an item moves to; it is taken then."""
    size, first = books.shape[1], taken.first
    found = row[:-1]
    while len(taken.full(found)) == size:
        found = found[:-1]
    residual = point - sum(book[code] for book, code in zip(books, found[first:], strict=False))
    for book in books[len(found) - first :]:
        distance = np.square(residual - book).sum(1)
        distance[taken.full(found)] = np.inf
        code = int(distance.argmin())
        residual, found = residual - book[code], (*found, code)
    taken.take(found)
    return found


class Taken:
    """Which IDs are taken, counted only below the prefixes that are asked about.

    Rows [n, P] are the IDs of items that stay, in lexicographic order: those of a prefix stand together. Only the last
    positions, from `first` on, are ever asked about.
    """

    def __init__(self, rows: np.ndarray, first: int, size: int) -> None:
        self.rows, self.first, self.size = np.asfortranarray(rows), first, size
        self.forget()

    def forget(self) -> None:
        """Drop what has been counted; afterwards, only prefixes below which `take` took no ID may be asked about."""
        self._below: dict[ID, dict[int, int]] = {}
        self._full: dict[ID, list[int]] = {}
        self._span: dict[ID, tuple[int, int]] = {}

    def full(self, prefix: ID) -> list[int]:
        """Next codes after a prefix below which no ID is free."""
        if prefix not in self._full:
            begin, end = self._find(prefix)
            codes, counts = np.unique(self.rows[begin:end, len(prefix)], return_counts=True)
            self._below[prefix] = dict(zip(codes.tolist(), counts.tolist(), strict=True))
            places = self._places(prefix)
            self._full[prefix] = [code for code, count in self._below[prefix].items() if count == places]
        return self._full[prefix]

    def take(self, row: ID) -> None:
        """Take an ID that is free."""
        for end in range(self.first, len(row)):
            prefix, code = row[:end], row[end]
            full, below = self.full(prefix), self._below[prefix]
            below[code] = below.get(code, 0) + 1
            if below[code] == self._places(prefix):
                full.append(code)

    def _places(self, prefix: ID) -> int:
        """IDs below each next code."""
        return self.size ** (self.rows.shape[1] - len(prefix) - 1)

    def _find(self, prefix: ID) -> tuple[int, int]:
        """Where the rows of a prefix begin and end."""
        if not prefix:
            return 0, len(self.rows)
        if prefix not in self._span:
            begin, end = self._find(prefix[:-1])
            column = self.rows[begin:end, len(prefix) - 1]
            self._span[prefix] = (
                begin + int(np.searchsorted(column, prefix[-1], "left")),
                begin + int(np.searchsorted(column, prefix[-1], "right")),
            )
        return self._span[prefix]
