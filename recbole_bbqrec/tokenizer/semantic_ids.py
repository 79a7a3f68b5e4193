"""Unique semantic IDs: items that quantise to one ID are moved to the nearest free ones.

Shapes: N items, P positions of an ID, L last positions of it that may change, K codes per position, D code width.
"""

from collections import Counter, defaultdict

import numpy as np
import torch

ID = tuple[int, ...]


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

    The last L positions of the IDs [N, P] belong to one residual chain, with its inputs [N, D] and codebooks [L, K, D];
    K ** L is at least N.
    """
    levels, size = codebooks.shape[:2]
    points, books = inputs.double().cpu().numpy(), codebooks.double().cpu().numpy()
    table = codes.cpu().numpy().copy()
    first = table.shape[1] - levels
    quantised = np.sum([book[column] for book, column in zip(books, table[:, first:].T, strict=True)], axis=0)
    order = np.argsort(np.square(points - quantised).sum(1), kind="stable")
    _, keeps = np.unique(table[order], axis=0, return_index=True)  # of equal rows the first, which is the nearest
    movers = np.delete(order, keeps)
    below: dict[ID, Counter[int]] = defaultdict(Counter)  # prefix of IDs -> next code -> number of items with both

    def occupy(row: ID) -> None:
        for position in range(first, len(row)):
            below[row[:position]][row[position]] += 1

    def room(prefix: ID) -> np.ndarray:
        """Which codes [K] may follow `prefix` with a free ID below them."""
        capacity = size ** (table.shape[1] - 1 - len(prefix))
        free = np.ones(size, dtype=bool)
        free[[code for code, count in below[prefix].items() if count >= capacity]] = False
        return free

    for row in table[order[keeps]].tolist():
        occupy(tuple(row))
    for mover in movers:
        found = tuple(table[mover, :-1].tolist())
        while len(found) > first and not room(found).any():
            found = found[:-1]
        residual = points[mover] - sum(book[code] for book, code in zip(books, found[first:], strict=False))
        for book in books[len(found) - first :]:
            code = int(np.where(room(found), np.square(residual - book).sum(1), np.inf).argmin())
            residual, found = residual - book[code], (*found, code)
        occupy(found)
        table[mover] = found
    return torch.from_numpy(table), len(movers)
