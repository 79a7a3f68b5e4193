"""Unique semantic IDs: items that quantise to one ID are moved to the nearest free ones.

Shapes: N items, P positions of an ID, L last positions of it that may change, K codes per position, D code width.
"""

from collections import Counter, defaultdict

import numpy as np
import torch

from ..errors import InputError

ID = tuple[int, ...]


def resolve_chains(codes: torch.Tensor, inputs: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Give every item an ID of its own, `resolve_collisions` in the last chain that the item has.

    IDs that end in different chains differ, so that each chain is settled by itself.

    Parameters
    ----------
    codes : [N, P] IDs, chain after chain; -1 throughout a chain that the item lacks.
    inputs : [G, N, D] what each chain quantises.
    codebooks : [C * L, K, D] codebooks of all chains (C = 1) or of each (C = G).

    Returns
    -------
    codes, n_moved : as `resolve_collisions` does.
    """
    levels = codes.shape[1] // len(inputs)
    books = codebooks.split(levels)
    codes, n_moved = codes.clone(), 0
    last = (codes >= 0).int().cumsum(1).argmax(1) // levels  # chain of the last code
    for chain in torch.unique(last).tolist():
        rows, width = last == chain, (chain + 1) * levels
        codes[rows, :width], moved = resolve_collisions(
            codes[rows, :width], inputs[chain, rows], books[chain % len(books)]
        )
        n_moved += moved
    return codes, n_moved


def resolve_collisions(codes: torch.Tensor, inputs: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Give every item an ID of its own by changing as few and as late codes as possible.

    Of the items that share an ID the one nearest to it keeps it; the others, nearest first, take the nearest free code
    at the last position. Where the last position has none left, the nearest code with room is taken one position
    earlier, and so on up to the first of the L positions. Equal distances are settled by the order of the items, which
    the caller keeps canonical; otherwise the order of the items does not matter.

    Parameters
    ----------
    codes : [N, P] IDs, some of them shared; the last L positions belong to one residual chain.
    inputs : [N, D] what that chain quantises.
    codebooks : [L, K, D] its codebooks.

    Returns
    -------
    codes : [N, P] without two equal rows; an item that shared its ID with no other keeps it.
    n_moved : number of items whose ID changed.

    Raises
    ------
    InputError : more items than the L positions can tell apart.
    """
    levels, size = codebooks.shape[:2]
    if len(codes) > size**levels:
        raise InputError(
            f"semantic IDs: {len(codes)} items, but {levels} levels of {size} codes tell only {size**levels} apart;"
            " raise the codebook size or the number of levels"
        )
    points, books = inputs.double().cpu().numpy(), codebooks.double().cpu().numpy()
    table = codes.cpu().numpy().copy()
    chosen = zip(books, table[:, -levels:].T, strict=True)
    error = np.square(points - np.sum([book[column] for book, column in chosen], axis=0)).sum(1)
    order = np.argsort(error, kind="stable")
    _, keeps = np.unique(table[order], axis=0, return_index=True)  # of equal rows the first, which is the nearest
    movers = np.delete(order, keeps)
    space = _FreeSpace(table[order[keeps]], levels, size)
    for row in movers:
        table[row] = space.place(tuple(table[row].tolist()), points[row], books)
    return torch.from_numpy(table), len(movers)


class _FreeSpace:
    """The tree of IDs in use: how many items stand below each code that may follow a prefix."""

    def __init__(self, table: np.ndarray, levels: int, size: int) -> None:
        self.levels, self.size = levels, size
        self.below: dict[ID, Counter[int]] = defaultdict(Counter)
        for row in table.tolist():
            self._add(tuple(row))

    def place(self, row: ID, point: np.ndarray, books: np.ndarray) -> ID:
        """Occupy and return the nearest free ID for an item that shares `row`."""
        start, level = len(row) - self.levels, self.levels - 1
        while level and not self._room(row[: start + level], level).any():
            level -= 1
        found = row[: start + level]
        residual = point - sum(book[code] for book, code in zip(books, found[start:], strict=False))
        for deeper in range(level, self.levels):
            distances = np.square(residual - books[deeper]).sum(1)
            code = int(np.where(self._room(found, deeper), distances, np.inf).argmin())
            residual = residual - books[deeper][code]
            found = (*found, code)
        self._add(found)
        return found

    def _room(self, prefix: ID, level: int) -> np.ndarray:
        """Which codes [K] may follow `prefix` with a free ID below them."""
        capacity = self.size ** (self.levels - 1 - level)
        room = np.ones(self.size, dtype=bool)
        room[[code for code, count in self.below[prefix].items() if count >= capacity]] = False
        return room

    def _add(self, row: ID) -> None:
        for position in range(len(row) - self.levels, len(row)):
            self.below[row[:position]][row[position]] += 1
