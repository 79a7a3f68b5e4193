"""How the rows of a split are judged: which items leave or make up a ranking, and whether shown items are counted.

Shapes: R rows of the split, B of them at once, N items (0 = padding), C cut-offs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from .. import distributed
from ..data.sequences import targets_by_item
from ..model.decoding import Pairs
from .candidates import among
from .lists import Lists
from .metrics import COLUMNS, Shown
from .ranking import NOT_FOUND

Rank = Callable[[Pairs, Lists | None], Mapping[str, torch.Tensor]]
"""`ranking.rank_targets` or `rank_products` of some rows; open are the pairs that leave the masked column, and
lists."""


class ShownCounts:
    """Counts how often each item stands among the first `topk` of a row, in both columns.

    Where a user's rows are targets of one list, only the list of the first of the `judged` rows [r] counts.
    """

    def __init__(
        self, topk: Sequence[int], n_items: int, judged: np.ndarray, users: np.ndarray | None, device: torch.device
    ) -> None:
        self.topk = tuple(topk)
        self.counts = torch.zeros(len(COLUMNS), len(self.topk), n_items, dtype=torch.long, device=device)
        first = judged if users is None else judged[np.unique(users[judged], return_index=True)[1]]
        self._counts_for = np.zeros(int(judged.max(initial=-1)) + 1, bool)
        self._counts_for[first] = True

    def add(self, rows: np.ndarray, lists: Lists, columns: Sequence[str]) -> None:
        """Count the lists of `rows` [B] in some columns."""
        listed, own = lists.items(), torch.from_numpy(self._counts_for[rows])
        for column in columns:
            items = listed[column][own.to(listed[column].device)]
            for counts, k in zip(self.counts[COLUMNS.index(column)], self.topk, strict=True):
                counts += torch.bincount(items[:, :k].flatten(), minlength=len(counts))
        self.counts[:, :, 0] = 0  # where a list ends before

    def total(self, train: Any, tail_ratio: float) -> Shown:
        """What all processes together have counted, with what metrics ask of the data set of training."""
        found = self.counts.cpu().numpy()
        distributed.add(found)
        return Shown(self.topk, found, targets_by_item(train, found.shape[-1]), tail_ratio)


@dataclass(frozen=True)
class Judging:
    """What the rows of a split are judged by.

    Attributes
    ----------
    seen : [R, N] what leaves the ranking of the masked column.
    ties : [N] see `ranking.tie_order`.
    candidates : by column the items [R, N] that targets are ranked among; none: all items.
    shown : counts what is shown; none where no metric asks for it.
    """

    seen: csr_array
    ties: torch.Tensor
    candidates: Mapping[str, csr_array] | None = None
    shown: ShownCounts | None = None

    def pairs(self, entries: csr_array, rows: np.ndarray) -> Pairs:
        """The entries of `rows` [B], as (index into rows, item) pairs."""
        index, items = (torch.from_numpy(part).long().to(self.ties.device) for part in entries[rows].nonzero())
        return index, items

    def ranks(self, rows: np.ndarray, rank: Rank, columns: Sequence[str] = COLUMNS) -> dict[str, torch.Tensor]:
        """Ranks [B] of `rows` by column."""
        if self.candidates is not None:
            of = self.candidates
            return {column: among(rank(self.pairs(of[column], rows), None), NOT_FOUND) for column in columns}
        seen, lists = self.pairs(self.seen, rows), None
        if self.shown is not None:
            lists = Lists(len(rows), max(self.shown.topk), seen, self.ties)
        found = rank(seen, lists)
        if self.shown is not None and lists is not None:
            self.shown.add(rows, lists, columns)
        return {column: found[column] for column in columns}
