"""AdamW that also keeps an average of the weights, which generalises better than where training happens to stand.

Polynomial-decay averaging (O. Shamir and T. Zhang, *Stochastic Gradient Descent for Non-smooth Optimization*, ICML
2013): after step t the average moves to the weights by (eta + 1) / (t + eta). However long training is, it forgets the
beginning: about the last 1 / (eta + 1) of all steps count.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

ETA = 8
"""The larger, the fewer of the last steps count."""


class AveragedAdamW(torch.optim.AdamW):
    """AdamW whose state of each parameter has its `average`; like all state it is saved and loaded."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step, and let the averages follow."""
        result = super().step(closure)
        for parameter, state in self.state.items():
            if "average" not in state:
                state["average"] = parameter.detach().clone()
            state["average"].lerp_(parameter, (ETA + 1) / (state["step"].item() + ETA))  # a number: faster by far
        return result

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters hold their averages within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, state in self.state.items():
            held = parameter.detach().clone()
            parameter.copy_(state["average"])
            state["average"].copy_(held)
