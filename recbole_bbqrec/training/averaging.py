"""AdamW that also keeps an average of the weights, which generalises better than where training happens to stand.

Polynomial-decay averaging (O. Shamir and T. Zhang, *Stochastic Gradient Descent for Non-smooth Optimization*, ICML
2013): after step t the average moves to the weights by (eta + 1) / (t + eta). However long training is, it forgets the
beginning: about the last 1 / (eta + 1) of all steps count.

Tables of large catalogues are updated by row: a step costs what it reads of them, see `by_row`.

Shapes: N rows of a table, D numbers a row, n rows that a step reads.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed
from .by_row import BETAS, EPS, Rows, caught_up, stepped

ETA = 8
"""The larger, the fewer of the last steps count."""


def share(n_steps: int) -> float:
    """How far the averages move to the weights after step `n_steps`, the first being 1."""
    return (ETA + 1) / (n_steps + ETA)


class AveragedAdamW(torch.optim.AdamW):
    """AdamW whose state of each parameter has its `average`; like all state it is saved and loaded.

    Parameters
    ----------
    parameters : all parameters of the model.
    tables : embeddings among them that are updated by row. Their gradients are sparse from now on; in training mode a
        row is brought up to date whenever it is read. A step looks up every row once; only a row whose gradient is zero
        may be repeated.
    settings : `lr`, `weight_decay` and `fused`, as those of `torch.optim.AdamW`.
    """

    def __init__(self, parameters: Iterable[Tensor], tables: Iterable[nn.Embedding] = (), **settings: Any) -> None:
        parameters, tables = list(parameters), list(tables)
        by_row = {id(table.weight) for table in tables}
        groups: list[dict[str, Any]] = [
            {"params": [each for each in parameters if id(each) not in by_row], "by_row": False, "n_steps": 0}
        ]
        if tables:
            groups.append({"params": [table.weight for table in tables], "by_row": True, "n_steps": 0})
        super().__init__(groups, betas=BETAS, eps=EPS, **settings)
        for table in tables:
            # The gradient of padding is zero without being left out, which on a GPU would be one more wait.
            table.sparse, table.padding_idx = True, None
            table.register_forward_pre_hook(self._before_reading)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step, and let the averages follow."""
        tables = [(group, table) for group in self.param_groups if group["by_row"] for table in group["params"]]
        gradients = [table.grad for _, table in tables]
        for _, table in tables:
            table.grad = None  # torch's step passes it by
        result = super().step(closure)
        for group in self.param_groups:
            group["n_steps"] += 1  # counted here: torch's count is a tensor, on a GPU one to wait for
        for (group, table), gradient in zip(tables, gradients, strict=True):
            table.grad = gradient
            if gradient is not None:
                self._step_rows(group, table, gradient)
        self._follow()
        return result

    def _follow(self) -> None:
        """Let the averages of all parameters that are not updated by row follow the weights."""
        group = self.param_groups[0]
        weights = [parameter for parameter in group["params"] if parameter in self.state]
        for parameter in weights:
            if "average" not in self.state[parameter]:
                self.state[parameter]["average"] = parameter.detach().clone()
        if weights:
            averages = [self.state[parameter]["average"] for parameter in weights]
            torch._foreach_lerp_(averages, weights, share(group["n_steps"]))  # pyright: ignore[reportPrivateImportUsage]

    def _step_rows(self, group: dict[str, Any], table: Tensor, gradient: Tensor) -> None:
        rows, values = gradient._indices()[0], gradient._values()
        n_steps, now = group["n_steps"], self._read(table, rows)
        if distributed.world() > 1:  # other processes have read rows that this one has not brought up to date
            now = caught_up(now, n_steps - 1, group["lr"], group["weight_decay"], ETA)
        new = stepped(now, values, n_steps, group["lr"], group["weight_decay"], share(n_steps))
        self._write(table, rows, new)

    @torch.no_grad()
    def _before_reading(self, embedding: nn.Embedding, arguments: tuple[Tensor, ...]) -> None:
        """Bring the rows up to date that are about to be read."""
        if embedding.training:
            rows = arguments[0].flatten()
            self._write(embedding.weight, rows, self._now(embedding.weight, rows))

    def _now(self, table: Tensor, rows: Tensor) -> Rows:
        """Rows [n] of a table as they are after the steps so far."""
        group = next(group for group in self.param_groups if any(each is table for each in group["params"]))
        return caught_up(self._read(table, rows), group["n_steps"], group["lr"], group["weight_decay"], ETA)

    def _read(self, table: Tensor, rows: Tensor) -> Rows:
        state = self.state[table]
        if not state:
            state.update({name: torch.zeros_like(table) for name in ("exp_avg", "exp_avg_sq")})
            state["average"] = table.detach().clone()
            # A float, as `load_state_dict` would make it one: exact up to 16 million steps.
            state["step"] = torch.zeros(())  # torch looks for it when it loads; `n_steps` counts
            state["at_step"] = torch.zeros(len(table), 1, device=table.device)
            state["rate"] = torch.full_like(state["at_step"], self.param_groups[0]["lr"])
        values = (table.detach(), *(state[name] for name in Rows._fields[1:]))
        return Rows(*(each.index_select(0, rows) for each in values))

    def _write(self, table: Tensor, rows: Tensor, new: Rows) -> None:
        table.detach().index_copy_(0, rows, new.weights)
        for name, values in zip(Rows._fields[1:], new[1:], strict=True):
            self.state[table][name].index_copy_(0, rows, values)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters hold their averages within the block."""
        held = [(parameter, parameter.detach().clone()) for parameter in list(self.state)]
        self._take_averages()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in held:
                    parameter.copy_(value)

    @torch.no_grad()
    def _take_averages(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter not in self.state:
                    continue
                if not group["by_row"]:
                    parameter.copy_(self.state[parameter]["average"])
                    continue
                for rows in torch.arange(len(parameter), device=parameter.device).split(2**16):
                    parameter[rows] = self._now(parameter, rows).average
