"""Fitting the weights of candidate similarity: a convex problem of some hundred weights, solved to its optimum.

Shapes: R histories, N items, F weights, n pairs of a history and a candidate.
"""

from collections.abc import Callable

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from tqdm import tqdm

from ..model.candidates import HALVES, CandidateSimilarity

MAX_USERS = 20_000
"""Histories fitted on per half: with 5,000 the weights of rare buckets follow single users."""
BEST, SAMPLED = 100, 128
"""Candidates of a history beside those that receive a weight: the best of the encoder, and random ones."""
RIDGE = 10.0
"""Penalty on the squared weights, beside a sum over histories."""
ITERATIONS = 60
ROWS = 256


def fit_candidates(
    candidates: CandidateSimilarity,
    score: Callable[[torch.Tensor], torch.Tensor],
    histories: torch.Tensor,
    targets: torch.Tensor,
    halves: np.ndarray,
    seed: int,
    progress: bool = False,
) -> None:
    """Fit `candidates.weights` in place: cross-entropy of the targets over all items, for each half of the users.

    Candidates without a weight are too many to look at; random ones stand for them (importance sampling), the best of
    them by the encoder for themselves. A half whose others are nobody keeps the weights it has.

    `score` gives the encoder's scores [B, N] of histories [B, T]. Of R users in validation there are the histories
    [R, T] (0 pads on the right), the next items [R], and the half [R] of each, 0 or 1.
    """
    generator = np.random.default_rng(seed)
    fitted = []
    for half in range(HALVES):
        rows = np.sort(generator.permutation(np.flatnonzero(halves != half))[:MAX_USERS])
        if not len(rows):
            fitted.append(candidates.weights[half].cpu())
            continue
        bar = tqdm(range(0, len(rows), ROWS), desc="Candidates", ncols=100, disable=not progress, leave=False)
        chunks = (rows[begin : begin + ROWS] for begin in bar)
        parts = [_problem(candidates, score, histories[chunk], targets[chunk], generator) for chunk in chunks]
        tables, *columns = zip(*parts, strict=True)
        table = scipy.sparse.csr_array(scipy.sparse.vstack(tables, format="csr"))
        weights = _solve(table, *(np.concatenate(column) for column in columns))
        fitted.append(torch.from_numpy(weights).float())
    candidates.weights = torch.stack([*fitted, torch.stack(fitted).mean(0)]).to(candidates.weights.device)


def _problem(
    candidates: CandidateSimilarity,
    score: Callable[[torch.Tensor], torch.Tensor],
    histories: torch.Tensor,
    targets: torch.Tensor,
    generator: np.random.Generator,
) -> tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Choose the candidates of R histories; returns what `_solve` takes."""
    scores = score(histories).float().cpu()
    n_rows, n_items = scores.shape
    scores[:, 0] = -torch.inf
    rows, items, weights = (part.cpu().numpy() for part in candidates.entries(histories))
    index = np.arange(n_rows)
    best = scores.topk(min(BEST, n_items - 1), dim=1).indices.numpy()
    given, own = rows * n_items + items, index * n_items + targets.cpu().numpy()
    # Marks in a table of all pairs: several times faster than sorting the pairs to find repeated ones.
    listed, drawn = np.zeros((2, n_rows, n_items), bool)
    for keys in (given, index[:, None] * n_items + best, own):
        listed.reshape(-1)[keys] = True
    drawn[index[:, None], generator.integers(1, n_items, size=(n_rows, SAMPLED))] = True
    drawn &= ~listed
    n_listed, n_drawn = listed.sum(1), drawn.sum(1)
    stands_for = np.log(np.maximum(n_items - 1 - n_listed, 1) / np.maximum(n_drawn, 1))
    taken = (listed | drawn).ravel()
    keys, place, counts = np.flatnonzero(taken), np.cumsum(taken) - 1, n_listed + n_drawn
    table = scipy.sparse.csr_array(
        (np.ones(len(given), np.float32), (place[given], weights)), shape=(len(keys), candidates.n_weights)
    )
    offset = np.where(drawn.ravel()[keys], np.repeat(stands_for, counts), 0.0).astype(np.float32)
    own_place = place[own] - (np.cumsum(counts) - counts)
    return table, scores.numpy().ravel()[keys].astype(np.float32), offset, counts, own_place


def _solve(
    table: scipy.sparse.csr_array, scores: np.ndarray, offset: np.ndarray, counts: np.ndarray, own_place: np.ndarray
) -> np.ndarray:
    """Return scale and weights [1 + F] of least penalised cross-entropy; candidates of a history stand side by side.

    Parameters
    ----------
    table : [n, F] which weights a candidate receives, and how often.
    scores, offset : [n] the encoder's score, and the log of how many candidates a random one stands for.
    counts, own_place : [R] candidates of each history, and where its target stands among them.
    """
    transposed = scipy.sparse.csr_array(table.T)
    first = np.cumsum(counts) - counts
    history, target = np.repeat(np.arange(len(first)), counts), first + own_place

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        scale, weights = np.float32(x[0]), x[1:].astype(np.float32)
        logits = scale * scores + table @ weights + offset
        logits -= np.maximum.reduceat(logits, first)[history]
        odds = np.exp(logits)
        total = np.add.reduceat(odds, first)
        value = np.log(total).sum(dtype=np.float64) - logits[target].sum(dtype=np.float64)
        slope = odds / total[history]
        slope[target] -= 1.0
        gradient = np.r_[slope @ scores, transposed @ slope + 2 * RIDGE * weights].astype(np.float64)
        return value + RIDGE * float(x[1:] @ x[1:]), gradient

    start = np.r_[1.0, np.zeros(table.shape[1])]
    bounds = [(0.0, None), *[(None, None)] * (len(start) - 1)]  # a poor encoder must not be turned upside down
    options = {"maxiter": ITERATIONS}
    return scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
