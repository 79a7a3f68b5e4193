"""Fitting the trees of the second stage on validation, each fold's on the histories of all others.

How many trees is chosen by the NDCG@10 of histories that they were not fitted on, seen items masked. Where its gain
over the model alone may well be chance, the second stage is not worth having, and the caller leaves it out.

Shapes: R histories of validation, n candidates of all that have their target among them, F features.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import distributed
from ..evaluation.ranking import per_row
from ..model.protocol import FirstStage
from .features import Feature
from .hashing import first_by_hash, fold_of
from .ranker import FOLDS, TIE, BoostedRanker, of_rows
from .trees import Trees

MAX_HISTORIES = 40_000
"""Histories fitted on."""
SAMPLED = 25
"""Candidates of a history beside its target that trees learn from; with all of them they learn less of the targets."""
N_TREES = (20, 40, 60, 80)
METRIC, CUT_OFF = "ndcg", 10
LEAST_GAIN = 2.0
"""In standard errors; the best of several numbers of trees is above zero most of the time even if they add only
noise."""
ROWS = 256
CELLS = 2**24
"""Scores of all items that are held at once."""
AT_ONCE = 2**17
"""Candidates whose features are copied for the trees at once."""


class Examples(NamedTuple):
    """Candidates [n] of the histories [H] whose target is among them, those of one history side by side.

    Attributes
    ----------
    features : [n, F].
    history : [n] whose candidate it is, ascending.
    item, slot : [n] what it is, and its place among the candidates of its history.
    is_target : [n].
    is_seen : [n] stands in the history and is not the target: no ranking shows it.
    fold : [H].
    row : [H] number of the history among all that there are.
    """

    features: np.ndarray
    history: np.ndarray
    item: np.ndarray
    slot: np.ndarray
    is_target: np.ndarray
    is_seen: np.ndarray
    fold: np.ndarray
    row: np.ndarray

    def ranks(self, scores: np.ndarray) -> np.ndarray:
        """Rank [H] of each target by scores [n], from 1; of equal ones the first candidate wins."""
        wanted, place = scores[self.is_target][self.history], np.arange(len(scores))
        is_before = place < place[self.is_target][self.history]
        beats = (scores > wanted) | ((scores == wanted) & is_before)
        return 1 + np.bincount(self.history[beats & ~self.is_seen], minlength=len(self.fold))

    def values(self, scores: np.ndarray) -> np.ndarray:
        """NDCG@10 [H] of each history by scores [n]."""
        return per_row(self.ranks(scores), METRIC, CUT_OFF)


def fit_boosted(
    stage: BoostedRanker,
    first: Callable[[Tensor], FirstStage],
    histories: Tensor,
    targets: Tensor,
    seed: int,
    progress: bool = False,
) -> tuple[str, bool]:
    """Fit `stage` in place; returns a sentence for the log, and whether it surely ranks better than the model alone.

    `first` gives what the model says after histories [B, T]. `histories` [R, T] (0 pads on the right) and `targets`,
    the next items [R], are of R users in validation.
    """
    rows = chosen(stage, histories, targets)
    examples = collect(stage, first, histories[rows], targets[rows], progress)
    if not distributed.is_main():
        return "fitted by the main process", False
    if len(np.unique(examples.fold)) < 2:
        return f"{len(examples.fold)} histories have their next item among the candidates, too few: left out", False
    with distributed.all_threads():
        found = cross_fit(examples, stage.features, seed, progress)
    before = examples.values(examples.features[:, 0])
    n_trees, after = found.best(examples)
    words = (
        f"{len(stage.features)} features, {n_trees} trees; {METRIC}@{CUT_OFF} of histories not fitted on "
        f"{before.sum() / len(rows):.4f} -> {after.sum() / len(rows):.4f}"
    )
    if not gains(before, after):
        return f"{words}: left out", False
    learned = sampled(examples, np.ones(len(examples.fold), bool), seed)
    del examples  # of which trees learn a small part
    with distributed.all_threads():
        of_all = Trees.fit(*learned, stage.features, n_trees, seed)
    stage.trees = torch.nn.ModuleList([*(trees.first(n_trees) for trees in found.trees), of_all])
    stage.folds.fitted = stage.folds.hashes(histories[rows]).unique()
    return words, True


def gains(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether values [H] have gained more than chance may well account for; all other histories gain 0."""
    gained = after - before
    return bool(gained.sum() > LEAST_GAIN * np.sqrt((gained**2).sum()))


def chosen(stage: BoostedRanker, histories: Tensor, targets: Tensor) -> Tensor:
    """Which histories [R, T] with their next items [R] are fitted on, at most `MAX_HISTORIES`, see `first_by_hash`."""
    return first_by_hash(stage.folds.hashes(histories), stage.folds.item_hashes[targets])[:MAX_HISTORIES]


def collect(
    stage: BoostedRanker,
    first: Callable[[Tensor], FirstStage],
    histories: Tensor,
    targets: Tensor,
    progress: bool = False,
) -> Examples:
    """Choose candidates, and compute the features of those histories [R, T] whose target [R] is among theirs.

    Of several processes each computes those of a share of the histories, and the main one gets all of them.
    """
    lengths = (histories != 0).sum(1)
    order = lengths.argsort(stable=True)  # little padding
    own = distributed.share(order.split(max(1, min(ROWS, CELLS // stage.n_items))))
    n_own = sum(map(len, own))
    # The features are nearly all of what is kept, in one copy: memory is reserved for as many as there may be, and the
    # system provides only what is written to.
    features = np.empty((n_own * stage.most_candidates(histories.shape[1]), len(stage.features)), np.float32)
    parts: list[tuple[np.ndarray, ...]] = []
    n_histories = n = 0
    with tqdm(desc="Candidates", total=n_own, ncols=100, disable=not progress, leave=False) as bar:
        for rows in own:
            bar.update(len(rows))
            trimmed = histories[rows, : int(lengths[rows].max())]
            said = first(trimmed)
            batch = stage.batch(said.scores, trimmed)
            has = (batch.items == targets[rows].unsqueeze(1)).any(1)
            if not has.any():
                continue
            said, batch = of_rows(said, batch, has)
            known, is_target = batch.items > 0, batch.items == targets[rows][has].unsqueeze(1)
            slot = torch.arange(known.shape[1], device=known.device, dtype=torch.int16).expand_as(known)
            is_seen = (batch.items.unsqueeze(2) == batch.recent.unsqueeze(1)).any(2) & ~is_target
            history = torch.arange(n_histories, n_histories + len(known), device=known.device, dtype=torch.int32)
            of_candidates = history.unsqueeze(1).expand_as(known), batch.items.int(), slot, is_target, is_seen
            of_histories = fold_of(stage.folds.hashes(trimmed[has]), FOLDS), rows[has]
            values = stage.features_of(said, batch)[known].cpu().numpy()
            features[n : n + len(values)] = values
            parts.append(tuple(part.cpu().numpy() for part in (*(of[known] for of in of_candidates), *of_histories)))
            n_histories, n = n_histories + len(known), n + len(values)
    nothing = [np.zeros(0, kind) for kind in (np.int32, np.int32, np.int16, bool, bool, np.int64, np.int64)]
    found = Examples(features[:n], *(np.concatenate(part) for part in zip(nothing, *parts, strict=True)))
    return found if distributed.world() == 1 else _gathered(found, order.argsort().cpu().numpy())


def _gathered(own: Examples, place: np.ndarray) -> Examples:
    """The examples of all processes on the main one, in the order in which one alone would have made them.

    Of each history there is its `place` [R] in that order.
    """
    found = [distributed.gather(part) for part in own]
    if not distributed.is_main():
        return own
    parts = dict(zip(Examples._fields, found, strict=True))
    before = np.cumsum([0, *map(len, parts["fold"][:-1])])
    parts["history"] = [(part + n).astype(part.dtype) for part, n in zip(parts["history"], before, strict=True)]
    whole = Examples(**{name: np.concatenate(of_all) for name, of_all in parts.items()})
    order = place[whole.row].argsort()  # of the histories
    history = order.argsort()[whole.history]
    rows = history.argsort(kind="stable")
    of_rows = {name: getattr(whole, name)[rows] for name in Examples._fields[:6]}
    return Examples(**{**of_rows, "history": history[rows], "fold": whole.fold[order], "row": whole.row[order]})


class CrossFit(NamedTuple):
    """Trees of each fold, fitted on all other folds, and number of trees -> the log-odds [n] that these give."""

    trees: list[Trees]
    log_odds: dict[int, np.ndarray]

    def best(self, examples: Examples) -> tuple[int, np.ndarray]:
        """Return the best number of trees, and the metric of each history [H]."""
        judged = {number: examples.values(odds) for number, odds in self.log_odds.items()}
        number = max(judged, key=lambda one: judged[one].sum())
        return number, judged[number]


def cross_fit(examples: Examples, features: Sequence[Feature], seed: int, progress: bool = False) -> CrossFit:
    """Fit the trees of every fold on all other folds, and score the fold with them."""
    trees, log_odds = [], {number: np.zeros(len(examples.history), np.float32) for number in N_TREES}
    for fold in tqdm(range(FOLDS), "Trees", ncols=100, disable=not progress, leave=False):
        judged = examples.fold == fold
        trees.append(fit_trees(examples, ~judged, features, max(N_TREES), seed))
        of_fold = judged[examples.history]
        if of_fold.any():
            for rows in np.split(np.flatnonzero(of_fold), range(AT_ONCE, int(of_fold.sum()), AT_ONCE)):
                for number, odds in trees[-1].staged(examples.features[rows], N_TREES):
                    log_odds[number][rows] = odds
    ties = TIE * examples.slot.astype(np.float32)  # as the ranker breaks them
    return CrossFit(trees, {number: odds - ties for number, odds in log_odds.items()})


def fit_trees(examples: Examples, of: np.ndarray, features: Sequence[Feature], n_trees: int, seed: int) -> Trees:
    """Fit trees on the histories `of` [H], see `sampled`."""
    return Trees.fit(*sampled(examples, of, seed), features, n_trees, seed)


def sampled(examples: Examples, of: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features [m, F] of targets of histories `of` [H] and `SAMPLED` others each, and which are targets [m]."""
    rows = np.flatnonzero(of[examples.history])
    history, is_target = examples.history[rows], examples.is_target[rows]
    # What is drawn must not depend on the histories that are judged either.
    draw = np.where(is_target, -1.0, np.random.default_rng(seed).random(len(rows)))
    order = np.lexsort((draw, history))  # of each history the target first, then the others at random
    place = np.arange(len(rows)) - np.searchsorted(history, history)
    kept = np.sort(rows[order[place <= SAMPLED]])
    return examples.features[kept], examples.is_target[kept]
