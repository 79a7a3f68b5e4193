"""The objectives of the item tokenizer, one function or module each.

Shapes: B items, R targets, S signals, D code width.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional

TEMPERATURE = 0.07
"""Of both contrasts; the usual one of InfoNCE (MoCo, arXiv 1911.05722)."""


def reconstruction(decoded: torch.Tensor, features: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean squared error per dimension of standardised features [B, D_m] over items that have the modality [B]."""
    error = (decoded - features).square().mean(-1)
    return (error * present).sum() / present.sum().clamp(min=1)


def info_nce(queries: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Contrast of each query with its own key against those of the other rows [R, D]; row i has the key `labels[i]`.

    Rows of one label are no negatives of each other: they are one item, or items that quantise to the same codes, which
    no query can tell apart. Zero where there are no rows.
    """
    if not len(labels):
        return queries.sum() + keys.sum()
    logits = functional.normalize(queries, dim=-1) @ functional.normalize(keys, dim=-1).T / TEMPERATURE
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    same.fill_diagonal_(False)
    return functional.cross_entropy(
        logits.masked_fill(same, -torch.inf), torch.arange(len(labels), device=labels.device)
    )


def cross_signal_contrast(signals: torch.Tensor, known: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """InfoNCE in both directions between each two signals [S, B, D] of an item, over items that have both [S, B].

    Items of one label [S, B] have the same signal, as in `info_nce`.
    """
    terms = [signals.sum() * 0.0]
    for first, second in itertools.permutations(range(len(signals)), 2):
        both = known[first] & known[second]
        if both.sum() > 1:
            terms.append(info_nce(signals[first][both], signals[second][both], labels[second][both]))
    return torch.stack(terms).sum() / max(len(terms) - 1, 1)


class Club(nn.Module):
    """Upper bound on the mutual information of two vectors (CLUB, Cheng et al. 2020, arXiv 2006.12013).

    `q(y | x) = N(mean(x), variance(x))` is fitted by its own optimiser on detached inputs (`fit_loss`); the bound is
    then minimised over the encoders of x and y with q held fixed (`bound`).

    Parameters
    ----------
    dim, hidden : D, and width of the hidden layer of q.
    unit_variance : q has variance 1, for standardised y. The bound is then the covariance of y and its prediction, and
        the encoders cannot lower it by spoiling the estimate of the variance.
    """

    def __init__(self, dim: int, hidden: int, unit_variance: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, hidden), nn.GELU())
        self.mean = nn.Linear(hidden, dim)
        self.log_variance = None if unit_variance else nn.Linear(hidden, dim)

    def fit_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Negative mean log-likelihood of `y` given `x` [B, D], up to a constant; inputs receive no gradient."""
        mean, log_variance = self._predict(x.detach())
        return 0.5 * ((y.detach() - mean).square() / log_variance.exp() + log_variance).sum(-1).mean()

    def bound(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean `log q(y_i | x_i)` less mean `log q(y_j | x_i)` over all pairs, not below zero.

        Mutual information is never negative; without the clamp the encoders would drive the estimate to minus infinity.
        """
        mean, log_variance = self._predict(x)
        precision = (-log_variance).exp()
        matched = (y - mean).square()
        # The mean of (y_j - mean_i)^2 over j, from the first two moments of y: no [B, B, D] tensor.
        unmatched = y.square().mean(0) - 2 * mean * y.mean(0) + mean.square()
        return (0.5 * (unmatched - matched) * precision).sum(-1).mean().clamp(min=0.0)

    def _predict(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.body(x)
        mean = self.mean(hidden)
        if self.log_variance is None:
            return mean, torch.zeros_like(mean)
        # tanh keeps the variance between e^-4 and e^4 while q has not seen enough.
        return mean, 4 * torch.tanh(self.log_variance(hidden) / 4)
