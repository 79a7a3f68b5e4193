"""How much the specific part of a modality still says of its behaviour part, by models fitted for that alone.

The CLUB estimators of training chase the encoders that run from them; these are drawn afresh, fitted on some of the
items and asked about the rest. Both parts are standardised first, so that neither their scale nor their shift decides.

Shapes: n items, D width of both parts.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from .losses import Club
from .training import learning_rate_schedule, seeded

MAX_ITEMS = 8000
"""Items the probes are fitted and asked on; more cost time and change the second digit."""
HELD_OUT = 0.25
PASSES, MIN_STEPS, BATCH, LEARNING_RATE = 50, 100, 512, 3e-3
HIDDEN = 128
RIDGE = 1.0


def independence(specific: torch.Tensor, behavior: torch.Tensor, seed: int) -> dict[str, float]:
    """Measure how independent two parts [n, D] of the same items are.

    Returns
    -------
    `club`: CLUB bound in nats; `r2_ridge` and `r2_mlp`: share of the variance of the behaviour part that a linear and a
    nonlinear probe predict from the specific part, not below zero; `r2`: the larger. All of held-out items. Nothing
    where there are fewer than 8 items.
    """
    if len(specific) < 8:
        return {}
    with seeded(seed, torch.device("cpu")):
        order = torch.randperm(len(specific))[:MAX_ITEMS]
        asked, fitted = order.tensor_split([max(int(len(order) * HELD_OUT), 2)])
        (x, asked_x), (y, asked_y) = (_standardised(part.float(), fitted, asked) for part in (specific, behavior))
        probe = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, y.shape[1]))
        _fit(probe, lambda rows, targets: functional.mse_loss(probe(rows), targets), x, y)
        club = Club(x.shape[1], HIDDEN)
        _fit(club, club.fit_loss, x, y)
    gram = x.double().T @ x.double() + RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
    ridge = torch.linalg.solve(gram, x.double().T @ y.double())
    with torch.no_grad():
        r2_ridge, r2_mlp = _r2((asked_x.double() @ ridge).float(), asked_y), _r2(probe(asked_x), asked_y)
        bound = float(club.bound(asked_x, asked_y))
    return {"club": bound, "r2": max(r2_ridge, r2_mlp), "r2_ridge": r2_ridge, "r2_mlp": r2_mlp}


def spread(rows: torch.Tensor) -> dict[str, float]:
    """Variance of rows [n, D], mean over dimensions, and how many dimensions an even spread of it would need.

    A part that has collapsed to a point or a line is independent of everything; these two tell it from one that is
    independent and yet says something.
    """
    centred = rows.double() - rows.double().mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / max(len(rows), 1)).clamp(min=0)
    dimensions = eigenvalues.sum().square() / eigenvalues.square().sum().clamp(min=1e-30)
    return {"variance": float(eigenvalues.mean()), "dimensions": float(dimensions)}


def _standardised(part: torch.Tensor, fitted: torch.Tensor, asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to fit on and rows to ask about, by the mean and deviation of the former."""
    mean, deviation = part[fitted].mean(0), part[fitted].std(0)
    scaled = (part - mean) / torch.where(deviation > 1e-6, deviation, 1.0)
    return scaled[fitted], scaled[asked]


def _r2(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    """Share of the variance explained, over all dimensions together; the mean of the fitted items explains none."""
    total = truth.square().sum()
    return float((1 - (predicted - truth).square().sum() / total).clamp(min=0)) if total > 0 else 0.0


def _fit(
    model: nn.Module, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    n_steps = max(PASSES * len(x) // BATCH, MIN_STEPS)
    schedule = learning_rate_schedule(optimizer, n_steps)
    for _ in range(n_steps):
        rows = torch.randint(len(x), (min(BATCH, len(x)),))
        optimizer.zero_grad(set_to_none=True)
        loss(x[rows], y[rows]).backward()
        optimizer.step()
        schedule.step()
