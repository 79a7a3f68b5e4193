"""AdamW on the rows of a table that a step reads; what happens to the others in between has a closed form.

Plain AdamW moves every row at every step: one without a gradient decays, drifts on by the momentum that it has, and its
average follows. All of that depends on nothing but the steps that have gone by, so it is done when the row is next
read. Three things are approximate. The corrections of the young moments, which change little over the ten steps or so
that a drift lasts, are taken at its middle; the average follows the place where the drift ends; and where the learning
rate changes, the drift has that of its beginning, and the decay the mean of both ends.

Shapes: n rows, D numbers each.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8
"""torch's defaults."""
_RATIO = BETAS[0] / math.sqrt(BETAS[1])  # by which a drift shrinks every step


class Rows(NamedTuple):
    """Rows of a table: weights, moments and average [n, D], the step after which they stand so and its rate [n, 1]."""

    weights: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    average: Tensor
    at_step: Tensor
    rate: Tensor


def caught_up(rows: Rows, n_steps: int, lr: float, weight_decay: float, eta: int) -> Rows:
    """Return `rows` as they are after step `n_steps`, if none since theirs had a gradient for them; changes them too.

    `eta` is that of the polynomial-decay average.
    """
    weights, mean, square, average, since, rate = rows
    behind = n_steps - since
    left = _RATIO**behind
    middle = since + 1 / (1 - _RATIO) - behind * left / (1 - left).clamp(min=1e-6)
    correction = (1 - BETAS[1] ** middle).clamp(min=0).sqrt() / (1 - BETAS[0] ** middle)
    drift = rate * correction * _RATIO * (1 - left) / (1 - _RATIO)
    # Rows that are up to date have no middle of a drift.
    drift = torch.where(behind > 0, drift, 0.0)
    weights.mul_((1 - (rate + lr) / 2 * weight_decay) ** behind).addcdiv_(
        mean * drift, square.sqrt().add_(EPS), value=-1
    )
    # The product of 1 - (eta + 1) / (t + eta) over the steps t between: all but eta + 1 factors cancel.
    forgotten = torch.ones_like(since)
    for offset in range(eta + 1):
        forgotten *= (since + offset) / max(n_steps + offset, 1)
    average.lerp_(weights, torch.where(behind > 0, 1 - forgotten, 0.0))
    mean.mul_(BETAS[0] ** behind)
    square.mul_(BETAS[1] ** behind)
    return Rows(weights, mean, square, average, torch.full_like(since, n_steps), torch.full_like(since, lr))


def stepped(rows: Rows, gradient: Tensor, n_steps: int, lr: float, weight_decay: float, share: float) -> Rows:
    """Return `rows`, which stand as before step `n_steps`, after it; changes them too.

    `share` is how far their averages move.
    """
    weights, mean, square, average, since, _ = rows
    mean.lerp_(gradient, 1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    scale = square.sqrt().div_(math.sqrt(1 - BETAS[1] ** n_steps)).add_(EPS)
    weights.mul_(1 - lr * weight_decay).addcdiv_(mean, scale, value=-lr / (1 - BETAS[0] ** n_steps))
    average.lerp_(weights, share)
    return Rows(weights, mean, square, average, torch.full_like(since, n_steps), torch.full_like(since, lr))
