"""Nearest-neighbour search (faiss) in place of scoring every item, for catalogues of more than a hundred thousand.

The items lie in cells around centres (an inverted file). A search looks into the cells whose centres score best, and
scores the items it finds there exactly; what lies elsewhere it misses. It looks into as many cells as it takes to find
`RECALL` of the items that the exact search finds, measured when the index is built.

Shapes: B histories, T items of the longest, N items (row 0 = padding), W width of the vectors.
"""

import logging
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..model.decoding import Pairs
from .best import order_of
from .dot_product import DotProduct

RECALL, AT = 0.99, 20
"""Share of the first `AT` items of the exact search that is found."""
PROBES = 256
"""Items that are histories of one item while the number of cells is chosen."""
CELLS = 4.0
"""Cells per square root of the number of items: then about as many centres as items in cells are scored."""
PER_CELL = 64
"""Most items a cell that its centre is learned from; more of them take longer and change little."""
LEAST_PER_CELL = 39
"""Fewer items a cell are too few to make centres, according to faiss."""
MOST = 1000
"""Lists of more items, those left out included, are made by the exact search."""


class FaissIndex:
    """Finds nearly all of the items that score best.

    Attributes
    ----------
    n_cells, n_searched : number of cells, and of those that a search looks into.
    """

    def __init__(self, scores: DotProduct, seed: int) -> None:
        faiss, started = _faiss(), time.perf_counter()
        self.scores, self.seed, vectors = scores, seed, scores.items[1:].float().cpu().contiguous()
        n_items, width = vectors.shape
        self.n_cells = max(1, min(int(CELLS * n_items**0.5), n_items // LEAST_PER_CELL))
        # Cells by inner product, as items are scored: their order does not depend on the length of a history's vector.
        self._centres = faiss.IndexFlatIP(width)
        self._index = faiss.IndexIVFFlat(self._centres, width, self.n_cells, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.seed, self._index.cp.niter, self._index.cp.max_points_per_centroid = seed, 10, PER_CELL
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(n_items, generator=generator)[: PER_CELL * self.n_cells]
        self._index.train(vectors[chosen].numpy())
        self._index.add(vectors.numpy())
        self.n_searched = self._cells_needed(1 + chosen[:PROBES])
        logging.getLogger().info(
            f"index: {n_items:,} items in {self.n_cells:,} cells, {self.n_searched:,} of them searched, built in "
            f"{time.perf_counter() - started:.1f} s"
        )

    @torch.no_grad()
    def _cells_needed(self, items: Tensor) -> int:
        """Choose how many cells to look into, fewest first, and have them looked into from now on."""
        queries = self.scores.encoder(items.unsqueeze(1).to(self.scores.items.device))  # [n, W]
        size = min(AT, len(self.scores.items) - 1)
        exact = (queries @ self.scores.items[1:].T).topk(size).indices.cpu()
        n_cells = 1
        while True:
            self._index.nprobe = n_cells
            found = torch.from_numpy(self._index.search(queries.cpu().numpy(), size)[1])
            if (found.unsqueeze(2) == exact.unsqueeze(1)).any(1).float().mean() >= RECALL or n_cells == self.n_cells:
                return n_cells
            n_cells = min(1 + int(1.3 * n_cells), self.n_cells)

    @torch.no_grad()
    def top(self, histories: Tensor, k: int, excluded: Pairs) -> list[tuple[list[int], list[float]]] | None:
        """Items and scores of the `k` best after each of the histories [B, T], but (history, item) pairs of `excluded`.

        None where the exact search has to be asked: for long lists, and where too little lies in the cells.
        """
        n_items, rows = len(self.scores.items), torch.arange(len(histories)).unsqueeze(1)
        barred = (excluded[0] * n_items + excluded[1]).cpu()
        size = k + int(torch.bincount(excluded[0], minlength=1).max())
        if size > MOST:
            return None
        queries = self.scores.encoder(histories)
        items = 1 + torch.from_numpy(self._index.search(queries.cpu().numpy(), size)[1])  # [B, size], -1 is nothing
        scores = (self.scores.items[items.to(queries.device)] @ queries.unsqueeze(2)).squeeze(2).cpu()
        free = (items > 0) & ~torch.isin(rows * n_items + items, barred)
        if bool((free.sum(1) < k).any()):
            return None
        # Exact scores, in the order that the exact search gives them.
        ties, values = order_of(n_items, self.seed)[items], scores.masked_fill(~free, -torch.inf)
        places = torch.from_numpy(np.lexsort((ties.numpy(), -values.numpy()))[:, :k].copy())
        return [*zip(items.gather(1, places).tolist(), values.gather(1, places).tolist(), strict=True)]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        how = "pip install 'recbole-bbqrec[faiss]', or leave the index out: the search is exact then"
        raise InputError(f"index: faiss is not installed; {how}") from error
    return faiss
