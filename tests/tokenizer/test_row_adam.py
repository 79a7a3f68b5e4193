"""A table whose steps read few rows moves as under an optimiser that moves them all."""

import torch
from torch import nn

from recbole_bbqrec.tokenizer.row_adam import RowAdam


def targets(step: int, rows: torch.Tensor) -> torch.Tensor:
    return torch.sin(rows.float()).unsqueeze(1) * torch.tensor([1.0, 2.0, -1.0]) + 0.1 * (step % 3)


def batch(step: int, n_rows: int) -> torch.Tensor:
    return torch.randperm(n_rows, generator=torch.Generator().manual_seed(step))[:4]


def loss(values: torch.Tensor, step: int, rows: torch.Tensor) -> torch.Tensor:
    return (values - targets(step, rows)).square().sum()


def test_it_moves_rows_as_adam_of_the_whole_table_does():
    start = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    dense, sparse = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    adam, table = torch.optim.Adam([dense], lr=1e-2), RowAdam(sparse)
    for step in range(200):
        rows = batch(step, 12)
        adam.zero_grad()
        loss(dense[rows], step, rows).backward()
        adam.step()
        loss(table.take(rows), step, rows).backward()
        table.move(1e-2)
    table.settle()
    way = (dense - start).norm()
    assert (sparse - dense).norm() < 0.03 * way and way > 1


def test_rows_that_no_step_reads_stay():
    parameter = nn.Parameter(torch.ones(5, 2))
    table = RowAdam(parameter)
    for _ in range(3):
        table.take(torch.tensor([1, 3])).sum().backward()
        table.move(0.1)
    table.settle()
    assert torch.equal(parameter[[0, 2, 4]], torch.ones(3, 2)) and (parameter[[1, 3]] < 0.9).all()


def test_to_settle_twice_is_to_settle_once():
    parameter = nn.Parameter(torch.ones(3, 2))
    table = RowAdam(parameter)
    table.take(torch.tensor([0, 1])).sum().backward()
    table.move(0.1)
    table.take(torch.tensor([2])).sum().backward()
    table.move(0.1)
    table.settle()
    once = parameter.clone()
    table.settle()
    torch.testing.assert_close(parameter.detach(), once.detach())
