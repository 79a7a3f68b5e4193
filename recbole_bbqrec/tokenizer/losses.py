"""The objectives of the item tokenizer, one function or module each.

Shapes: B items, R targets, S signals, D code width.
"""

import torch
from torch import nn
from torch.nn import functional


def reconstruction(decoded: torch.Tensor, features: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean squared error per dimension of standardised features [B, D_m] over items that have the modality [B]."""
    error = (decoded - features).square().mean(-1)
    return (error * present).sum() / present.sum().clamp(min=1)


def sequence_to_item_contrast(
    encoded: torch.Tensor, candidates: torch.Tensor, items: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE between encoded histories and their next items; the other targets of the batch are the negatives.

    An item that is the target of two histories is no negative of itself.

    Parameters
    ----------
    encoded, candidates : [R, D] row i of one belongs to row i of the other.
    items : [R] which item a candidate is.
    """
    if not len(items):
        return encoded.sum() + candidates.sum()
    return _info_nce(encoded, candidates, items, temperature)


def cross_signal_contrast(
    signals: torch.Tensor, known: torch.Tensor, items: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE in both directions between each two signals of an item, over items that have both.

    Parameters
    ----------
    signals : [S, B, D] quantised vectors.
    known : [S, B] whether the item has the signal.
    items : [B] which item a row is.
    """
    terms = [signals.sum() * 0.0]
    for first in range(len(signals)):
        for second in range(first + 1, len(signals)):
            both = known[first] & known[second]
            left, right, ids = signals[first][both], signals[second][both], items[both]
            if len(ids) > 1:
                terms.append(_info_nce(left, right, ids, temperature))
                terms.append(_info_nce(right, left, ids, temperature))
    return torch.stack(terms).sum() / max(len(terms) - 1, 1)


def _info_nce(queries: torch.Tensor, keys: torch.Tensor, items: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = functional.normalize(queries, dim=-1) @ functional.normalize(keys, dim=-1).T / temperature
    same = items.unsqueeze(0) == items.unsqueeze(1)
    same.fill_diagonal_(False)
    return functional.cross_entropy(logits.masked_fill(same, -torch.inf), torch.arange(len(items), device=items.device))


class Club(nn.Module):
    """Upper bound on the mutual information of two vectors (CLUB, Cheng et al. 2020, arXiv 2006.12013).

    `q(y | x) = N(mean(x), variance(x))` is fitted by its own optimiser on detached inputs (`fit_loss`); the bound is
    then minimised over the encoders of x and y with q held fixed (`bound`).
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
        # tanh keeps the variance between e^-4 and e^4 while q has not seen enough.
        return self.mean(hidden), 4 * torch.tanh(self.log_variance(hidden) / 4)
