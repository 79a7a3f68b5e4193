"""Adam for a table of which a step reads few rows.

Shapes: N rows of the table, B rows of a step, D their width.
"""

import torch
from torch import nn

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Those of `torch.optim.AdamW`."""
CHUNK = 2**16
"""Rows that are settled at once."""


class RowAdam:
    """Adam whose steps cost what the rows of a batch cost, however long the table is.

    `torch.optim` moves all N rows in every step: those that are in no batch drift on by their momentum. Here a row
    makes up for that drift when it is next read. It is a geometric series, exact but for the learning rate and the bias
    correction, which are taken as they were when the row was last moved. No weight decay: rows are read by their
    direction alone.
    """

    def __init__(self, table: nn.Parameter) -> None:
        self.table = table.requires_grad_(False)
        self.first, self.second = torch.zeros_like(table), torch.zeros_like(table)
        self.moved = torch.zeros(len(table), 1, device=table.device)  # step in which a row was moved last
        self.rate = torch.zeros(len(table), 1, device=table.device)  # and its learning rate, bias corrected
        self.n_steps = 0

    @torch.no_grad()
    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows [B, D] of different numbers [B] as they are now: a leaf, whose gradient `move` reads."""
        first, second = self.first[rows], self.second[rows]
        gap, (fast, slow) = self.n_steps - self.moved[rows], BETAS
        ratio = fast / slow**0.5  # by which a step of drift is shorter than the one before
        drift = self.rate[rows] * (ratio * (1 - ratio**gap) / (1 - ratio))
        values = self.table[rows] - drift * first / (second.sqrt() + EPSILON)
        self.rows, self.moments = rows, (first * fast**gap, second * slow**gap)
        self.values = values.requires_grad_()
        return self.values

    @torch.no_grad()
    def move(self, learning_rate: float) -> None:
        """One step of the rows taken last, along their gradient."""
        self.n_steps += 1
        gradient = self.values.grad if self.values.grad is not None else torch.zeros_like(self.values)
        (fast, slow), (first, second) = BETAS, self.moments
        first.lerp_(gradient, 1 - fast)
        second.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        rate = learning_rate * (1 - slow**self.n_steps) ** 0.5 / (1 - fast**self.n_steps)
        self._write(self.values - rate * first / (second.sqrt() + EPSILON))
        self.rate[self.rows] = rate

    @torch.no_grad()
    def settle(self) -> None:
        """Bring all rows of the table up to date, for readers that do not go through `take`."""
        for rows in torch.arange(len(self.table), device=self.table.device).split(CHUNK):
            self._write(self.take(rows).detach())

    def _write(self, values: torch.Tensor) -> None:
        self.table[self.rows] = values
        self.first[self.rows], self.second[self.rows] = self.moments
        self.moved[self.rows] = self.n_steps
