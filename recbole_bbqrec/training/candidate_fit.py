"""Fitting the weights of candidate similarity: a convex problem of some hundred weights, solved to its optimum.

Shapes: R histories, N items, F weights, n pairs of a history and a candidate.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

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


class Problem(NamedTuple):
    """Candidates of all histories, a history's side by side.

    Attributes
    ----------
    weights : [n, F] which weights a candidate receives, and how often.
    scores : [n] the encoder's score.
    offset : [n] log of how many candidates a random one stands for.
    history, first, target : [n] history of a candidate; [R] first candidate and target of a history.
    """

    weights: scipy.sparse.csr_array
    scores: np.ndarray
    offset: np.ndarray
    history: np.ndarray
    first: np.ndarray
    target: np.ndarray


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
    them by the encoder for themselves.

    Parameters
    ----------
    score : the encoder's scores [B, N] of histories [B, T].
    histories, targets : [R, T] (0 pads on the right) and [R] the next items; validation, see the module `candidates`.
    halves : [R] 0 or 1, the half to which a history's user belongs.
    """
    generator = np.random.default_rng(seed)
    device = candidates.weights.device
    fitted = []
    for half in range(HALVES):
        others = np.flatnonzero(halves != half)
        rows = np.sort(generator.permutation(others)[:MAX_USERS])
        problem = _problem(candidates, score, histories[rows], targets[rows], generator, progress)
        fitted.append(torch.from_numpy(_solve(problem)).float() if len(rows) else candidates.weights[half].cpu())
    candidates.weights = torch.stack([*fitted, torch.stack(fitted).mean(0)]).to(device)


def _problem(
    candidates: CandidateSimilarity,
    score: Callable[[torch.Tensor], torch.Tensor],
    histories: torch.Tensor,
    targets: torch.Tensor,
    generator: np.random.Generator,
    progress: bool,
) -> Problem:
    bar = tqdm(range(0, len(histories), ROWS), desc="Candidates", ncols=100, disable=not progress, leave=False)
    parts = [
        _candidates_of(candidates, score, histories[begin : begin + ROWS], targets[begin : begin + ROWS], generator)
        for begin in bar
    ]
    columns = list(zip(*parts, strict=True)) or [()] * 6
    lengths = np.array([len(part) for part in columns[1]], int)
    n_histories = np.array([len(part) for part in columns[4]], int)
    shift, history_shift = (np.cumsum(sizes) - sizes for sizes in (lengths, n_histories))
    join: Iterator[np.ndarray] = (
        np.concatenate([part + begin for part, begin in zip(columns[place], by, strict=True)])
        for place, by in ((3, history_shift), (4, shift), (5, shift))
    )
    weights = scipy.sparse.csr_array(scipy.sparse.vstack(columns[0], format="csr"))
    return Problem(weights, np.concatenate(columns[1]), np.concatenate(columns[2]), *join)


def _candidates_of(
    candidates: CandidateSimilarity,
    score: Callable[[torch.Tensor], torch.Tensor],
    histories: torch.Tensor,
    targets: torch.Tensor,
    generator: np.random.Generator,
) -> tuple:
    scores = score(histories).float().cpu()
    n_rows, n_items = scores.shape
    scores[:, 0] = -torch.inf
    found = candidates.entries(histories)
    rows, items, weights = (part.cpu().numpy() for part in found)
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
    keys = np.flatnonzero(taken)
    place_of = np.cumsum(taken) - 1
    history = keys // n_items
    offset = np.where(drawn.ravel()[keys], stands_for[history], 0.0)
    place = place_of[given]
    table = scipy.sparse.csr_array(
        (np.ones(len(place), np.float32), (place, weights)), shape=(len(keys), candidates.n_weights)
    )
    values = scores.numpy()[history, keys % n_items].astype(np.float32)
    return (
        table,
        values,
        offset.astype(np.float32),
        history,
        np.searchsorted(history, index),
        place_of[own],
    )


def _solve(problem: Problem) -> np.ndarray:
    """Return scale and weights [1 + F] of least penalised cross-entropy."""
    transposed = scipy.sparse.csr_array(problem.weights.T)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        scale, weights = np.float32(x[0]), x[1:].astype(np.float32)
        logits = scale * problem.scores + problem.weights @ weights + problem.offset
        logits -= np.maximum.reduceat(logits, problem.first)[problem.history]
        odds = np.exp(logits)
        total = np.add.reduceat(odds, problem.first)
        value = np.log(total).sum(dtype=np.float64) - logits[problem.target].sum(dtype=np.float64)
        slope = odds / total[problem.history]
        slope[problem.target] -= 1.0
        gradient = np.r_[slope @ problem.scores, transposed @ slope + 2 * RIDGE * weights].astype(np.float64)
        return value + RIDGE * float(x[1:] @ x[1:]), gradient

    start = np.r_[1.0, np.zeros(problem.weights.shape[1])]
    bounds = [(0.0, None), *[(None, None)] * (len(start) - 1)]  # a poor encoder must not be turned upside down
    options = {"maxiter": ITERATIONS}
    return scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
