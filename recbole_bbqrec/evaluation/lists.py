"""The first items of each row's ranking, gathered from the same blocks of scores in which targets are ranked.

Shapes: B rows, N items (column 0 = padding), b items of a block, n entries of all rows together.
"""

import torch

from ..model.decoding import Pairs
from .metrics import COLUMNS

CELLS = 2**22
"""Scores that are looked through at once."""


class Lists:
    """The best `k` items of each row, with and without the items that its user has seen.

    Kept is what may still stand in a list: of each row the best `k` unseen items so far, and the seen ones above them.
    Equal scores stand in the order of `order` [N], as in the ranks: a target is listed exactly where its rank is `k` at
    most. Minus infinity is never listed.
    """

    def __init__(self, n_rows: int, k: int, seen: Pairs, order: torch.Tensor) -> None:
        rows, items = seen
        self.n_rows, self.k, self.order = n_rows, k, order.to(items.device)
        self._seen = torch.sort(rows * len(order) + items).values  # each pair as one number
        most_seen = int(torch.bincount(rows).max()) if len(rows) else 0
        self._room = k + most_seen  # this many of the best include `k` that are not seen
        self._rows = self._items = rows[:0]  # [n] entries: by row, then by score, then by the order of ties
        self._values = torch.zeros(0, device=items.device)
        self._least: torch.Tensor | None = None  # [B, 1] score of the last entry that a list has by now, and its place
        self._place = torch.zeros(n_rows, 1, dtype=torch.long, device=items.device)

    def look(self, scores: torch.Tensor, begin: int) -> None:
        """Take in scores [B, b] of the items from `begin` on."""
        size = max(1024, CELLS // max(self.n_rows, 1))
        for first in range(0, scores.shape[1], size):
            self._look(scores[:, first : first + size], begin + first)

    def _look(self, scores: torch.Tensor, begin: int) -> None:
        if self._least is None:
            self._least = scores.new_full((self.n_rows, 1), -torch.inf)
            bound = scores.topk(min(self._room, scores.shape[1])).values[:, -1:]
            chosen = (scores >= bound) & (scores > -torch.inf)
        else:
            order = self.order[begin : begin + scores.shape[1]]
            chosen = (scores > self._least) | ((scores == self._least) & (order < self._place))
        row, at = torch.nonzero(chosen, as_tuple=True)
        self._rows, self._items = torch.cat([self._rows, row]), torch.cat([self._items, at + begin])
        self._values = torch.cat([self._values.to(scores.dtype), scores[row, at]])
        for key in (lambda: self.order[self._items], lambda: -self._values, lambda: self._rows):
            self._keep(torch.argsort(key(), stable=True))
        unseen = ~self._is_seen()
        nth = self._nth(unseen)
        last = unseen & (nth == self.k - 1)
        self._least[self._rows[last], 0] = self._values[last]
        self._place[self._rows[last], 0] = self.order[self._items[last]]
        self._keep(nth < self.k)

    def _keep(self, which: torch.Tensor) -> None:
        self._rows, self._items, self._values = self._rows[which], self._items[which], self._values[which]

    def _is_seen(self) -> torch.Tensor:
        if not len(self._seen):
            return torch.zeros_like(self._rows, dtype=torch.bool)
        keys = self._rows * len(self.order) + self._items
        return self._seen[torch.searchsorted(self._seen, keys).clamp(max=len(self._seen) - 1)] == keys

    def _nth(self, counted: torch.Tensor) -> torch.Tensor:
        """How many of the `counted` entries [n] stand before each entry of its row."""
        before = torch.cat([counted.new_zeros(1, dtype=torch.long), counted.long().cumsum(0)])
        begins = torch.searchsorted(self._rows, torch.arange(self.n_rows, device=self._rows.device))
        return before[:-1] - before[begins][self._rows]

    def items(self) -> dict[str, torch.Tensor]:
        """Item ids [B, k] of both columns, best first; 0 where a list ends before."""
        seen, found = self._is_seen(), {}
        for column, counted in zip(COLUMNS, (~seen, torch.ones_like(seen)), strict=True):
            place = self._nth(counted)
            listed = counted & (place < self.k)
            found[column] = torch.zeros(self.n_rows, self.k, dtype=torch.long, device=self._rows.device)
            found[column][self._rows[listed], place[listed]] = self._items[listed]
        return found
