"""Lists of an item's nearest neighbours, by training sequences and by vectors.

A list is a row of a sparse matrix [N, N] of similarities (float32), ascending by item, without its own. N items (row 0
= padding); the sequence of user `u` is `items[offsets[u] : offsets[u + 1]]`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array, vstack

from ..model.counts import pair_counts

WINDOW = 3  # items at most this far apart in a training sequence count as met together
ROUNDING = 1e-5  # cosines are multiples of it
CELLS = 2**24  # pairs of items whose similarities are held at once, never all
ENTRIES = 2**21  # of rows whose largest entries are sought at once: 150 MiB
LARGE = 200_000
"""More items than this are searched by faiss: all pairs of a million are hours on a CPU."""
MANY = 4096  # items that faiss searches for at once
LOOKED_INTO, PER_CELL, SPARE = 32, 64, 17
"""Cells that a search looks into, items that each is learned from, and items found beyond those wanted: the item
itself, and some whose rounded cosines are equal."""


def rows_at_once(n_items: int) -> int:
    """Return how many items are compared with all others at once."""
    return max(1, CELLS // n_items)


def token_order(tokens: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Item ids [N] in the order of their `tokens`, padding first, and the place of each id in it.

    Lists are made in this order: equally near items are told apart by it, and no held-out interaction decides it.
    """
    order = np.array([0, *sorted(range(1, len(tokens)), key=lambda item: tokens[item])])
    return order, np.argsort(order)


def by_item_id(lists: csr_array, order: np.ndarray, place: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Offsets [N + 1], items (int32) and values of lists by item id, from those in the order of `token_order`."""
    by_id = csr_array(lists)[place]
    offsets = torch.from_numpy(by_id.indptr).long()
    items = torch.from_numpy(order.astype(np.int32)[by_id.indices])
    return offsets, items, torch.from_numpy(by_id.data)


def transitions(offsets: np.ndarray, items: np.ndarray, n_items: int, size: int) -> csr_array:
    """List the `size` items that most often directly followed an item in the training sequences, and how often."""
    return largest(pair_counts(offsets, items, n_items, 1), size)


def cooccurrence(offsets: np.ndarray, items: np.ndarray, n_items: int, size: int) -> csr_array:
    """List the `size` items met most within `WINDOW` steps of an item, before or after it: their counts as a cosine.

    The cosine of two items' counts is the count of both over the root of the product of their totals: what many met
    together with everything is near to nothing.
    """
    counts = _met_together(offsets, items, n_items)
    scale = diags_array(1.0 / np.sqrt(np.asarray(counts.sum(axis=1)).ravel() + 1.0))
    return largest(csr_array(scale @ counts @ scale), size)


def walk(offsets: np.ndarray, items: np.ndarray, n_items: int, size: int) -> csr_array:
    """List the `size` items a random walk of two steps over co-occurrences reaches most often beyond their popularity.

    Most next items have never been met together with the history (92 % on Amazon Sports): the second step finds them.
    """
    counts = _met_together(offsets, items, n_items)
    total = np.asarray(counts.sum(axis=1)).ravel() + 1.0
    step = diags_array(1.0 / total) @ counts
    return two_steps(csr_array(step), size, diags_array(1.0 / np.sqrt(total)))


def two_steps(step: csr_array, size: int, scale: Any = None) -> csr_array:
    """List the `size` items that two steps [N, N] reach most often, columns scaled by a diagonal matrix if given."""
    lengths, blocks = np.diff(step.indptr), []
    # Two steps reach a good part of the catalogue: rows are taken in blocks of limited reach.
    reach = np.r_[0, np.cumsum(abs(step).astype(bool) @ lengths)]
    for begin, end in _rows_of(reach, ENTRIES):
        reached = step[begin:end] @ step
        blocks.append(largest(csr_array(reached if scale is None else reached @ scale), size, begin))
    return csr_array(vstack(blocks, format="csr"))


@torch.no_grad()
def nearest(vectors: torch.Tensor, present: torch.Tensor, size: int) -> csr_array:
    """List the `size` items of largest cosine to an item, rounded to `ROUNDING`; of equal ones, the first.

    Quantised vectors have few different cosines: without rounding, the last bit would tell equal ones apart. Of the
    unit vectors [N, C], those not `present` [N] are listed with none, and none with them. Of more than `LARGE` items on
    a CPU, where faiss is installed, a few of the nearest may be missed, see `_in_cells`.
    """
    known = torch.nonzero(present).flatten()
    rows = vectors[known].float()
    n_items, size = len(vectors), min(size, len(known) - 1)
    if size < 1:
        return csr_array((n_items, n_items), dtype=np.float32)
    # Less than a step in all: it orders equal cosines and changes no other order.
    later = torch.arange(len(rows), dtype=torch.float64, device=rows.device) / (2 * len(rows))
    search = _in_cells(rows) if len(rows) > LARGE and rows.device.type == "cpu" else None
    blocks, at_once = [], MANY if search else rows_at_once(len(rows))
    for own in torch.arange(len(rows), device=rows.device).split(at_once):
        if search is not None:
            cosines, items = search(rows[own], size + SPARE)
        else:
            cosines = rows[own] @ rows.T
            items = torch.arange(len(rows), device=rows.device).expand_as(cosines)
        steps = cosines.double().div_(ROUNDING).round_().masked_fill_(items == own.unsqueeze(1), -torch.inf)
        found, places = steps.sub_(later[items]).topk(size, dim=1)
        blocks.append((found, items.gather(1, places)))
    values, places = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    values = ((values + later[places]).round() * ROUNDING).float()
    items, order = torch.sort(known[places], dim=1)
    offsets = torch.cat([torch.zeros_like(known[:1]), torch.where(present, size, 0).cumsum(0)])
    parts = (values.gather(1, order).flatten(), items.flatten(), offsets)
    return csr_array(tuple(part.cpu().numpy() for part in parts), shape=(n_items, n_items))


Search = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def _in_cells(rows: torch.Tensor) -> Search | None:
    """Return what finds cosines and places [B, n] of nearly all of the nearest of `rows`; none without faiss.

    The rows lie in cells around centres, of which the `LOOKED_INTO` nearest are looked into, or all where these hold
    too little.
    """
    try:
        import faiss
    except ImportError:
        return None
    width, n_cells = rows.shape[1], 4 * int(len(rows) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, n_cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid, index.nprobe = 0, 10, PER_CELL, LOOKED_INTO
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: PER_CELL * n_cells]
    index.train(rows[chosen].numpy())
    index.add(rows.numpy())

    def search(queries: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        cosines, items = (torch.from_numpy(part) for part in index.search(queries.numpy(), size))
        few = torch.nonzero((items < 0).any(1)).flatten()
        if len(few):
            index.nprobe = n_cells
            cosines[few], items[few] = (torch.from_numpy(part) for part in index.search(queries[few].numpy(), size))
            index.nprobe = LOOKED_INTO
        return cosines, items

    return search


def _met_together(offsets: np.ndarray, items: np.ndarray, n_items: int) -> csr_array:
    counts = pair_counts(offsets, items, n_items, WINDOW)
    return csr_array(counts + counts.T)


def largest(block: csr_array, size: int, first: int = 0) -> csr_array:
    """Keep the `size` largest entries of each row, without its own item; ties by item id. Row 0 is item `first`."""
    parts = [_largest(block[begin:end], size, first + begin) for begin, end in _rows_of(block.indptr, ENTRIES)]
    return csr_array(vstack(parts, format="csr")) if len(parts) > 1 else parts[0]


def _rows_of(offsets: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Yield where parts of consecutive rows begin and end that have `most` entries together, or one row of more."""
    begin, n_rows = 0, len(offsets) - 1
    while begin < n_rows or begin == n_rows == 0:
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + most, side="right")) - 1)
        yield begin, min(end, n_rows)
        begin = end


def _largest(block: csr_array, size: int, first: int) -> csr_array:
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    keep = block.indices != first + row
    row, item, value = row[keep], block.indices[keep], block.data[keep]
    # What is below the last place of its row goes first: sorting all of it would be most of the work.
    least = np.full(block.shape[0], -np.inf)
    ends = np.cumsum(np.bincount(row, minlength=block.shape[0]))
    for place, (begin, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
        if end - begin > size:
            least[place] = np.partition(value[begin:end], end - begin - size)[end - begin - size]
    keep = value >= least[row]
    row, item, value = row[keep], item[keep], value[keep]
    order = np.lexsort((item, -value, row))
    row, item, value = row[order], item[order], value[order]
    within = np.arange(len(row)) - np.searchsorted(row, row)
    kept = within < size
    lists = csr_array((value[kept].astype(np.float32), (row[kept], item[kept])), shape=block.shape)
    lists.sort_indices()
    return lists
