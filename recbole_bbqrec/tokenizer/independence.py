"""How much the specific part of a modality still says of its behaviour part, judged by models fitted for that alone.

Training's own CLUB estimators are judge and party; these are drawn afresh, fitted on some of the items and asked about
the others. Both parts are standardised first, so that neither their scale nor their shift decides.

Shapes: n items, D width of both parts.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from .losses import Club
from .training import learning_rate_factor, seeded

MAX_ITEMS = 8000
"""Items the judges are fitted and asked on; more cost time and change the second digit."""
HELD_OUT = 0.25
PASSES, MIN_STEPS, BATCH, LEARNING_RATE = 50, 100, 512, 3e-3
HIDDEN = 128
RIDGE = 1.0


class Parts(NamedTuple):
    """Standardised x and y [n, D] of the items to fit on and of those to ask about."""

    x: torch.Tensor
    y: torch.Tensor
    asked_x: torch.Tensor
    asked_y: torch.Tensor


def independence(specific: torch.Tensor, behavior: torch.Tensor, seed: int) -> dict[str, float] | None:
    """Judge how independent two parts [n, D] of the same items are.

    Returns
    -------
    `club`: CLUB bound in nats; `r2_ridge` and `r2_mlp`: share of the variance of the behaviour part that a linear and a
    nonlinear probe predict from the specific part, not below zero; `r2`: the larger. All of held-out items. None where
    there are fewer than 8 items.
    """
    if len(specific) < 8:
        return None
    with seeded(seed, torch.device("cpu")):
        parts = _split(specific.float(), behavior.float())
        ridge, mlp = _ridge_r2(parts), _mlp_r2(parts)
        return {"club": _club_bound(parts), "r2": max(ridge, mlp), "r2_ridge": ridge, "r2_mlp": mlp}


def spread(rows: torch.Tensor) -> dict[str, float]:
    """Variance of rows [n, D], mean over dimensions, and how many dimensions an even spread of it would need.

    A part that has collapsed to a point or a line is independent of everything; these two tell it from one that is
    independent and yet says something.
    """
    centred = rows.double() - rows.double().mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / max(len(rows), 1)).clamp(min=0)
    dimensions = eigenvalues.sum().square() / eigenvalues.square().sum().clamp(min=1e-30)
    return {"variance": float(eigenvalues.mean()), "dimensions": float(dimensions)}


def _split(x: torch.Tensor, y: torch.Tensor) -> Parts:
    order = torch.randperm(len(x))[:MAX_ITEMS]
    n_asked = max(int(len(order) * HELD_OUT), 2)
    asked, fitted = order[:n_asked], order[n_asked:]
    rows = []
    for part in (x, y):
        mean, deviation = part[fitted].mean(0), part[fitted].std(0)
        scaled = (part - mean) / torch.where(deviation > 1e-6, deviation, 1.0)
        rows.append((scaled[fitted], scaled[asked]))
    return Parts(rows[0][0], rows[1][0], rows[0][1], rows[1][1])


def _club_bound(parts: Parts) -> float:
    club = Club(parts.x.shape[1], HIDDEN)
    _fit(club, club.fit_loss, parts)
    with torch.no_grad():
        return float(club.bound(parts.asked_x, parts.asked_y))


def _mlp_r2(parts: Parts) -> float:
    width = parts.x.shape[1]
    probe = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, parts.y.shape[1]))
    _fit(probe, lambda x, y: functional.mse_loss(probe(x), y), parts)
    with torch.no_grad():
        return _r2(probe(parts.asked_x), parts)


def _ridge_r2(parts: Parts) -> float:
    x, y = parts.x.double(), parts.y.double()
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return _r2((parts.asked_x.double() @ weights).float(), parts)


def _r2(predicted: torch.Tensor, parts: Parts) -> float:
    """Share of the variance explained, over all dimensions together; the mean of the fitted items explains none."""
    total = parts.asked_y.square().sum()
    return float((1 - (predicted - parts.asked_y).square().sum() / total).clamp(min=0)) if total > 0 else 0.0


def _fit(model: nn.Module, loss, parts: Parts) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    n_steps = max(PASSES * len(parts.x) // BATCH, MIN_STEPS)
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * learning_rate_factor(step / n_steps)
        rows = torch.randint(len(parts.x), (min(BATCH, len(parts.x)),))
        optimizer.zero_grad(set_to_none=True)
        loss(parts.x[rows], parts.y[rows]).backward()
        optimizer.step()
