"""Fitting the weights of candidate similarity: a convex problem of some hundred weights, solved to its optimum.

A few hundred users say little about hundreds of weights, so what a fit adds to the model is shrunk by a share between 0
and 1, the likeliest one for users that the weights were not fitted on. The share for a half's weights is chosen by the
very users that give them: each half is split once more, and what one part gives is tried on the other. Where nothing is
to be gained the share is 0, which leaves the model's scores as they are.

Shapes: R histories, N items, F weights, n pairs of a history and a candidate.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from tqdm import tqdm

from .. import distributed
from ..model.protocol import FirstStage
from .hashing import fold_of
from .linear import HALVES, CandidateSimilarity

MAX_USERS = 20_000
"""Histories fitted on per half: with 5,000 the weights of rare buckets follow single users."""
BEST, SAMPLED = 100, 128
"""Candidates of a history beside those that receive a weight: the best of the model, and random ones."""
RIDGE = 10.0
"""Penalty on the squared weights, beside a sum over histories."""
ITERATIONS = 60
ROWS = 256


class _Problem(NamedTuple):
    """Candidates of some histories, those of one history side by side.

    Attributes
    ----------
    table : [n, F] which weights a candidate receives, and how often.
    scores, offset : [n] the model's score, and the log of how many candidates a random one stands for.
    history : [n] whose candidate it is.
    first, target : [R] where each history's candidates begin, and where its target stands.
    """

    table: scipy.sparse.csr_array
    scores: np.ndarray
    offset: np.ndarray
    history: np.ndarray
    first: np.ndarray
    target: np.ndarray

    def loss(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Cross-entropy, summed over the histories, and its slope at scale and weights [1 + F]."""
        weights = x.astype(np.float32)
        logits = weights[0] * self.scores + self.table @ weights[1:] + self.offset
        logits -= np.maximum.reduceat(logits, self.first)[self.history]
        odds = np.exp(logits)
        total = np.add.reduceat(odds, self.first)
        value = np.log(total).sum(dtype=np.float64) - logits[self.target].sum(dtype=np.float64)
        slope = odds / total[self.history]
        slope[self.target] -= 1.0
        return value, np.r_[slope @ self.scores, self.table.T @ slope].astype(np.float64)


def fit_linear(
    candidates: CandidateSimilarity,
    first: Callable[[torch.Tensor], FirstStage],
    histories: torch.Tensor,
    targets: torch.Tensor,
    seed: int,
    progress: bool = False,
) -> list[float]:
    """Fit `candidates` in place: cross-entropy of the targets over all items, for each half of the histories.

    Candidates without a weight are too many to look at; random ones stand for them (importance sampling), the best of
    them by the model for themselves.

    `first` gives what the model says after histories [B, T]. `histories` [R, T] (0 pads on the right) and `targets`,
    the next items [R], are of R users in validation. Returns, for each half, the share that is kept of what the other
    half gave; 0 where the latter is empty.
    """
    generator = np.random.default_rng(seed)
    hashes = candidates.halves.hashes(histories)
    halves, parts = (fold_of(bits, HALVES).cpu().numpy() for bits in (hashes, hashes << 1))
    rows = [generator.permutation(np.flatnonzero(halves != half))[:MAX_USERS] for half in range(HALVES)]
    bar = tqdm(desc="Candidates", total=sum(map(len, rows)), ncols=100, disable=not progress, leave=False)

    def problems(chosen: np.ndarray) -> list[_Problem]:
        found = []
        for chunk in (chosen[begin : begin + ROWS] for begin in range(0, len(chosen), ROWS)):
            scores = first(histories[chunk]).scores
            found.append(_problem(candidates, scores, histories[chunk], targets[chunk], generator))
            bar.update(len(chunk))
        return found

    nothing = np.eye(1, 1 + candidates.n_weights)[0]  # scale 1 and no weight
    weights, shares = [], []
    with bar:
        for chosen in rows:
            one, other = (problems(np.sort(chosen[parts[chosen] == part])) for part in range(2))
            shares.append(
                _share([(other, _solve(one, nothing) - nothing), (one, _solve(other, nothing) - nothing)], nothing)
            )
            weights.append(nothing + shares[-1] * (_solve([*one, *other], nothing) - nothing))
    found = torch.from_numpy(np.stack([*weights, np.mean(weights, axis=0)]))
    candidates.weights = found.to(candidates.weights)
    candidates.halves.fitted = hashes[torch.from_numpy(np.concatenate(rows))].unique()
    return shares


def fit_and_tell(
    candidates: CandidateSimilarity,
    first: Callable[[torch.Tensor], FirstStage],
    histories: torch.Tensor,
    targets: torch.Tensor,
    seed: int,
    progress: bool = False,
) -> tuple[str, bool]:
    """As `fit_linear`, for `socket.FORMS`: what has come of it, and that it is kept. The main process fits alone."""
    if not distributed.is_main():
        return "fitted by the main process", True
    with distributed.all_threads():
        shares = fit_linear(candidates, first, histories, targets, seed, progress)
    kept = ", ".join(f"{share:.2f}" for share in shares)
    signals = ", ".join(candidates.signals) or "none"
    return (
        f"candidate similarity: {candidates.n_weights} weights, signals {signals}; of what they add {kept} is kept for "
        "the two halves of the histories"
    ), True


def _problem(
    candidates: CandidateSimilarity,
    scores: torch.Tensor,
    histories: torch.Tensor,
    targets: torch.Tensor,
    generator: np.random.Generator,
) -> _Problem:
    """Choose the candidates of R histories, whose `scores` [R, N] the model has given."""
    scores = scores.float().cpu()
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
    history = np.repeat(index, counts)
    return _Problem(table, scores.numpy().ravel()[keys], offset, history, np.cumsum(counts) - counts, place[own])


def _solve(problems: Sequence[_Problem], start: np.ndarray) -> np.ndarray:
    """Return scale and weights [1 + F] of least penalised cross-entropy; `start` where there are no histories."""

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        values, slopes = zip(
            (RIDGE * float(x[1:] @ x[1:]), 2 * RIDGE * np.r_[0.0, x[1:]]),
            *(problem.loss(x) for problem in problems),
            strict=True,
        )
        return sum(values), np.sum(slopes, axis=0)

    bounds = [(0.0, None), *[(None, None)] * (len(start) - 1)]  # a poor model must not be turned upside down
    options = {"maxiter": ITERATIONS}
    return scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def _share(trials: Sequence[tuple[Sequence[_Problem], np.ndarray]], start: np.ndarray) -> float:
    """Share between 0 and 1 of each step [1 + F] from `start` that is likeliest for the histories it is tried on."""

    def slope(share: float) -> float:
        return float(sum(problem.loss(start + share * step)[1] @ step for tried, step in trials for problem in tried))

    if slope(0.0) >= 0:
        return 0.0
    return 1.0 if slope(1.0) <= 0 else scipy.optimize.brentq(slope, 0.0, 1.0)  # convex: the slope only grows
