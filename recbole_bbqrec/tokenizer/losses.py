"""The objectives of the item tokenizer, one function or module each.

Shapes: B items, R targets, S signals, D code width.
"""

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

TEMPERATURE = 0.07
"""Of both contrasts; the usual one of InfoNCE (MoCo, arXiv 1911.05722)."""


def reconstruction(decoded: torch.Tensor, features: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean squared error per dimension of standardised features [B, D_m] over items that have the modality [B]."""
    error = (decoded - features).square().mean(-1)
    return (error * present).sum() / present.sum().clamp(min=1)


class Contrast(torch.autograd.Function):
    """InfoNCE of unit rows, its gradient written out: one [R, R] buffer holds logits, then shares, and is all it keeps.

    torch's own operations make six such matrices for each of the contrasts of a step, most of its memory traffic.
    """

    @staticmethod
    def forward(ctx: Any, queries: torch.Tensor, keys: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        """Mean loss of queries [R, D] with keys [R, D]; row i has key i, and `same` [R, R] are no negatives."""
        # Cosines end at 1, so that no exponential below can overflow.
        least = queries.new_full((1,), -1 / TEMPERATURE)
        logits = torch.addmm(least, queries, keys.T, alpha=1 / TEMPERATURE)
        own = logits.diagonal().clone()
        shares = logits.masked_fill_(same, -torch.inf).exp_()
        total = shares.sum(1)
        ctx.save_for_backward(queries, keys, shares, total)
        return (total.log() - own).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries and keys."""
        queries, keys, shares, total = ctx.saved_tensors
        scale = gradients[0] / (len(queries) * TEMPERATURE)
        each = (scale / total).unsqueeze(1)
        return (shares @ keys) * each - scale * keys, shares.T @ (queries * each) - scale * queries, None


contrast = cast(Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], Contrast.apply)


def info_nce(queries: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Contrast of each query with its own key against those of the other rows [R, D]; row i has the key `labels[i]`.

    Rows of one label are no negatives of each other: they are one item, or items that quantise to the same codes, which
    no query can tell apart. Zero where there are no rows.
    """
    if not len(labels):
        return queries.sum() + keys.sum()
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    same.fill_diagonal_(False)
    return contrast(functional.normalize(queries, dim=-1), functional.normalize(keys, dim=-1), same)


def cross_signal_contrast(signals: torch.Tensor, known: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """InfoNCE in both directions between each two signals [S, B, D] of an item, over items that have both [S, B].

    `known` stands on the CPU, wherever the signals are: how many rows there are is asked of it. Items of one label
    [S, B] have the same signal, as in `info_nce`.
    """
    terms = [signals.sum() * 0.0]
    for first, second in itertools.permutations(range(len(signals)), 2):
        both = known[first] & known[second]
        if both.sum() > 1:
            terms.append(info_nce(*(kept(rows, both) for rows in (signals[first], signals[second], labels[second]))))
    return torch.stack(terms).sum() / max(len(terms) - 1, 1)


def kept(rows: torch.Tensor, has: torch.Tensor) -> torch.Tensor:
    """Rows [B, ...] of any device that a mask [B] on the CPU keeps, without waiting for that device."""
    if bool(has.all()):
        return rows
    return rows.index_select(0, torch.nonzero(has).flatten().to(rows.device, non_blocking=True))


class Probe(nn.Module):
    """A small network that predicts one vector from another, and by which encoders learn to give nothing away.

    It is fitted by its own optimiser on detached inputs (`fit_loss`); the share it explains is then lowered by the
    encoders with the probe held fixed (`explained`): adversarial training as in arXiv 1505.07818.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def fit_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean squared error of `y` as predicted from `x` [B, D]; inputs receive no gradient."""
        return functional.mse_loss(self.layers(x.detach()), y.detach())

    def explained(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Share of the variance of `y` [B, D] that the probe predicts from `x` [B, D], not below zero.

        Fooling a probe that is no better than the mean removes nothing.
        """
        variance = (y - y.mean(0)).square().mean()
        return (1 - functional.mse_loss(self.layers(x), y) / variance.clamp(min=1e-6)).clamp(min=0.0)


class Club(nn.Module):
    """Upper bound on the mutual information of two vectors (CLUB, Cheng et al. 2020, arXiv 2006.12013).

    `q(y | x) = N(mean(x), variance(x))` is fitted on detached inputs (`fit_loss`); `bound` then takes q as it is. The
    report card measures by it; as an objective it fails (docs/semantic-ids.md).
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, hidden), nn.GELU())
        self.mean = nn.Linear(hidden, dim)
        self.log_variance = nn.Linear(hidden, dim)

    def fit_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Negative mean log-likelihood of `y` given `x` [B, D], up to a constant; inputs receive no gradient."""
        mean, log_variance = self._predict(x.detach())
        return 0.5 * ((y.detach() - mean).square() / log_variance.exp() + log_variance).sum(-1).mean()

    def bound(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean `log q(y_i | x_i)` less mean `log q(y_j | x_i)` over all pairs, not below zero.

        Mutual information is never negative, its estimate may be.
        """
        mean, log_variance = self._predict(x)
        precision = (-log_variance).exp()
        matched = (y - mean).square()
        # The mean of (y_j - mean_i)^2 over j, from the first two moments of y: no [B, B, D] tensor.
        unmatched = y.square().mean(0) - 2 * mean * y.mean(0) + mean.square()
        return (0.5 * (unmatched - matched) * precision).sum(-1).mean().clamp(min=0.0)

    def _predict(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.body(x)
        # tanh keeps the variance between e^-4 and e^4 while q has not seen enough.
        return self.mean(hidden), 4 * torch.tanh(self.log_variance(hidden) / 4)
