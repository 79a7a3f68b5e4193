"""Unique semantic IDs: items that quantise to one ID are moved to the nearest free ones.

Shapes: N items, G chains of codes, P positions of an ID, L last positions of it that may change, K codes per position,
D code width.
"""

import itertools
from collections import Counter, defaultdict
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
    known = torch.cat([known[:-1], known[-1:] | ~known.any(0)]).cpu()
    patterns, counts = torch.unique(known.T, dim=0, return_counts=True)
    for has, n_items in zip(patterns.tolist(), counts.tolist(), strict=True):
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
    width = table.shape[1]
    first = width - levels
    prefixes, members = np.unique(table[:, :first], axis=0, return_counts=True)
    most, prefix = int(members.max()), prefixes[members.argmax()].tolist()
    if most > size**levels:
        raise InputError(
            f"semantic IDs: {most} items have the codes {prefix} before their last signal, which has {size**levels} "
            f"places to tell them apart; {REMEDY}"
        )
    _, which, sharing = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    crowded = np.flatnonzero((sharing[which] > 1).cpu().numpy())
    distances = []
    for rows in np.array_split(crowded, len(crowded) // CHUNK + 1):
        quantised = sum(book[column] for book, column in zip(books, table[rows, first:].T, strict=True))
        distances.append(np.square(points[rows] - quantised).sum(1))
    order = crowded[np.argsort(np.concatenate(distances), kind="stable")]
    _, keeps = np.unique(table[order], axis=0, return_index=True)  # of equal rows the first, which is the nearest
    movers = np.delete(order, keeps)
    below: Counter[ID] = Counter()  # prefix of IDs -> number of items
    full: dict[ID, list[int]] = defaultdict(list)  # prefix of IDs -> next codes that have no free ID below them

    def occupy(row: ID) -> None:
        for end in range(first + 1, width + 1):
            below[row[:end]] += 1
            if below[row[:end]] == size ** (width - end):
                full[row[: end - 1]].append(row[end - 1])

    for row in np.delete(table, movers, axis=0).tolist():
        occupy(tuple(row))
    for mover in movers:
        found = tuple(table[mover, :-1].tolist())
        while len(full[found]) == size:
            found = found[:-1]
        residual = points[mover] - sum(book[code] for book, code in zip(books, found[first:], strict=False))
        for book in books[len(found) - first :]:
            distance = np.square(residual - book).sum(1)
            distance[full[found]] = np.inf
            code = int(distance.argmin())
            residual, found = residual - book[code], (*found, code)
        occupy(found)
        table[mover] = found
    return torch.from_numpy(table), len(movers)
