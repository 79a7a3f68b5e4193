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


def share(n_steps: int) -> float:
    """How far the averages move to the weights after step `n_steps`, the first being 1."""
    return (ETA + 1) / (n_steps + ETA)


class AveragedAdamW(torch.optim.AdamW):
    """AdamW whose state of each parameter has its `average`; like all state it is saved and loaded."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step, and let the averages follow."""
        result = super().step(closure)
        group = self.param_groups[0]
        # Counted here: each parameter's own count is a tensor, on a GPU one to wait for.
        group["n_averaged"] = group.get("n_averaged", 0) + 1
        averages, weights = [], []
        for parameter, state in self.state.items():
            if "average" not in state:
                state["average"] = parameter.detach().clone()
            averages.append(state["average"])
            weights.append(parameter)
        torch._foreach_lerp_(averages, weights, share(group["n_averaged"]))
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
