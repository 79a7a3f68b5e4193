"""Plain measures: of semantic IDs, of which items are near each other in which space, and of two parts' independence.

Shapes: N items, P positions of an ID, Q items asked about, k neighbours, n items with both parts, D width of a part.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .losses import Club
from .semantic_ids import row_numbers
from .training import learning_rate_schedule, seeded

CHUNK, MOST_COSINES = 500, 2**26
"""Items whose cosines with all others are held at once, and how many cosines at most."""
MAX_ITEMS = 8000
"""Items the probes are fitted and asked on; more cost time and change the second digit."""
HELD_OUT = 0.25
PASSES, MIN_STEPS, BATCH, LEARNING_RATE = 50, 100, 512, 3e-3
HIDDEN, RIDGE = 128, 1.0
"""Width of the nonlinear probes, and penalty of the linear one."""


def code_use(codes: torch.Tensor, size: int) -> tuple[list[float], list[float]]:
    """Utilisation and perplexity at each position of `codes` [N, P], where -1 does not count.

    The share of the `size` codes in use; and how many an even use would need, the exponential of the codes' entropy.
    """
    utilisation, perplexity = [], []
    for column in codes.T:
        counts = torch.bincount(column[column >= 0], minlength=size)
        share = counts.double() / counts.sum().clamp(min=1)
        utilisation.append(float((counts > 0).double().mean()))
        perplexity.append(float(torch.exp(-torch.special.xlogy(share, share).sum())) if counts.sum() else 0.0)
    return utilisation, perplexity


def collisions(codes: torch.Tensor) -> dict[str, int]:
    """Count `sharing` items, whose ID [P] another item has too, `distinct` IDs, and the `largest` group with one ID."""
    counts = np.bincount(row_numbers(codes.numpy()))
    sharing = int(counts[counts > 1].sum())
    return {"sharing": sharing, "distinct": len(counts), "largest": int(counts.max(initial=0))}


def first_code_agreement(codes: torch.Tensor, offsets: np.ndarray, items: np.ndarray) -> dict[str, float]:
    """Return the `share` of consecutive items with equal codes [N], none of them -1, and its `chance`.

    The latter is the share for two independent draws from the left and the right sides of the pairs.
    """
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    column = codes.numpy()[items]
    kept = (user[1:] == user[:-1]) & (column[:-1] >= 0) & (column[1:] >= 0)
    left, right = column[:-1][kept], column[1:][kept]
    if not len(left):
        return {"share": 0.0, "chance": 0.0}
    size = int(max(left.max(), right.max())) + 1
    share_left, share_right = (np.bincount(side, minlength=size) / len(left) for side in (left, right))
    return {"share": float((left == right).mean()), "chance": float(share_left @ share_right)}


def nearest(rows: torch.Tensor, has: torch.Tensor, asked: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """The k items [Q, k] of highest cosine with each asked item [Q], itself left out; -1 where there are fewer.

    Equal cosines stand in a seeded random order. Items that do not have [N] a row [N, D] are nobody's neighbours.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    order = order[has[order]]
    unit = functional.normalize(rows.float(), dim=-1)
    found = torch.full((len(asked), k), -1)
    width = min(k, max(len(order) - 1, 0))
    chunk = max(min(CHUNK, MOST_COSINES // max(len(order), 1)), 1)
    for begin in range(0, len(asked) if width else 0, chunk):
        part = asked[begin : begin + chunk]
        # Equal vectors have equal cosines only up to rounding, which depends on where they stand.
        cosine = (unit[part] @ unit[order].T).mul_(1e5).round_()
        cosine[part.unsqueeze(1) == order] = -torch.inf
        found[begin : begin + chunk, :width] = order[cosine.topk(width, dim=1).indices]
    return found.masked_fill(~has[asked].unsqueeze(1), -1)


def cooccurrence(
    offsets: np.ndarray, items: np.ndarray, n_items: int, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of different items that stand at most `window` places apart, both ways round: left, right and how often."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = []
    for distance in range(1, window + 1):
        together = user[distance:] == user[:-distance]
        left, right = items[:-distance][together], items[distance:][together]
        pairs += [left * n_items + right, right * n_items + left]
    keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
    left, right = np.divmod(keys, n_items)
    different = left != right
    return left[different], right[different], counts[different]


def cooccurring(
    offsets: np.ndarray, items: np.ndarray, n_items: int, asked: torch.Tensor, k: int, window: int, seed: int
) -> torch.Tensor:
    """The k items [Q, k] most often at most `window` places from each asked item [Q]; otherwise as `nearest`."""
    left, right, counts = cooccurrence(offsets, items, n_items, window)
    order = np.lexsort((np.random.default_rng(seed).random(len(left)), -counts, left))
    left, right = left[order], right[order]
    place = np.arange(len(left)) - np.searchsorted(left, left)
    table = np.full((n_items, k), -1, dtype=np.int64)
    kept = place < k
    table[left[kept], place[kept]] = right[kept]
    return torch.from_numpy(table)[asked]


def overlap(reference: torch.Tensor, found: torch.Tensor) -> float | None:
    """Mean share of the reference neighbours [Q, k] among those found [Q, k], over items that have both, if any."""
    counts = (reference >= 0).sum(1)
    kept = (counts > 0) & (found >= 0).any(1)
    same = (reference.unsqueeze(2) == found.unsqueeze(1)) & (reference >= 0).unsqueeze(2)
    return float((same.any(2).sum(1)[kept] / counts[kept]).mean()) if kept.any() else None


def independence(specific: torch.Tensor, behavior: torch.Tensor, seed: int) -> dict[str, float]:
    """Measure how independent two parts [n, D] of the same items are, by models fitted for that alone.

    The probes of training chase the encoders that run from them; these are drawn afresh, fitted on some of the
    items and asked about the rest. Both parts are standardised first, so that neither scale nor shift decides.

    `club` is the bound in nats; `r2_ridge` and `r2_mlp` are the shares of the variance of the behaviour part that a
    linear and a nonlinear probe predict from the specific part, `r2` the larger. Nothing for fewer than 8 items.
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

    They tell a part that has collapsed, and is independent of everything, from one that says something.
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


def _fit(model: nn.Module, loss: Callable[..., torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    n_steps = max(PASSES * len(x) // BATCH, MIN_STEPS)
    schedule = learning_rate_schedule(optimizer, n_steps)
    for _ in range(n_steps):
        rows = torch.randint(len(x), (min(BATCH, len(x)),))
        optimizer.zero_grad(set_to_none=True)
        loss(x[rows], y[rows]).backward()
        optimizer.step()
        schedule.step()
