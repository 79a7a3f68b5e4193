"""Cross-entropy of targets among negatives that all of them share, in as few passes over the scores as there can be.

Shapes: n targets, m negatives, H width of the states.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _SampledCrossEntropy(torch.autograd.Function):
    """One [n, m] buffer holds scores, then probabilities, then the gradient of the scores.

    Written with torch's operations, each of masking, joining with the positives, softmax and their gradients would make
    an [n, m] tensor of its own: a tenth of a training step of a small transformer.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, negatives: torch.Tensor, positive: torch.Tensor, excluded: torch.Tensor
    ) -> torch.Tensor:
        scores = (hidden @ negatives.T).masked_fill_(excluded, -torch.inf)
        top = torch.maximum(scores.amax(dim=1), positive)
        shares = scores.sub_(top.unsqueeze(1)).exp_()
        total = shares.sum(dim=1) + (positive - top).exp()
        ctx.save_for_backward(hidden, negatives, shares, total)
        loss = total.log() + top - positive
        ctx.lost = -torch.expm1(-loss)  # what the softmax gives to the negatives of each target
        return loss.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, negatives, shares, total = ctx.saved_tensors
        each = gradients[0] / len(hidden)
        slopes = shares * (each / total).unsqueeze(1)
        return slopes @ negatives, slopes.T @ hidden, -each * ctx.lost, None


def sampled_cross_entropy(
    hidden: torch.Tensor, negatives: torch.Tensor, positive: torch.Tensor, excluded: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of each target among itself and the negatives; scores are dot products.

    Parameters
    ----------
    hidden : states [n, H].
    negatives : item rows [m, H].
    positive : score [n] of each state's own target.
    excluded : [n, m], true where a negative does not count for a target, as where it is that target.
    """
    loss = _SampledCrossEntropy.apply(hidden, negatives, positive, excluded)
    assert isinstance(loss, torch.Tensor)
    return loss
