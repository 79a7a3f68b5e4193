"""Why a bundle recommends an item: by the trees of its second stage, else by leaving items of the history out.

Trees tell what each signal adds (`second_stage.reasons`). A model's own score is asked for again without one item of
the history at a time: what an item's score loses is what the left-out one said for it.

Shapes: B histories, T items of the longest, k items of each, m different items of one history, N items (row 0 =
padding).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..second_stage.boosted import COSINE, QUANTISED
from ..second_stage.linear import BOUND, CandidateSimilarity
from ..second_stage.ranker import recent_first
from ..second_stage.reasons import words_of

N_OTHERS = 32
"""Random one-item histories that a history of one item is compared with, as nothing is left of it without that item."""
_AS_TREES_SAY = {"transition": "next_1", "cooccurrence": "side_step", "walk": "side_walk"}
"""Signals of the linear second stage that have words by other names."""

Score = Callable[[list[list[int]], Tensor], Tensor]
"""Scores [n, k] of items [k] after histories, lists of item ids."""


def left_out(
    history: list[int], items: list[int], score: Score, n_items: int, seed: int
) -> tuple[list[int], list[list[float]]]:
    """Return the different items of a history, and what each of the `items` [k] loses without each of them, [k][m]."""
    sayers = list(dict.fromkeys(history))
    if len(sayers) > 1:
        others = [[item for item in history if item != sayer] for sayer in sayers]
    else:
        drawn = torch.randint(1, n_items, (N_OTHERS,), generator=torch.Generator().manual_seed(seed))
        others = [[item] for item in drawn.tolist()]
    scores = score([history, *others], torch.tensor(items))
    without = scores[1:] if len(sayers) > 1 else scores[1:].mean(0, keepdim=True)
    return sayers, (scores[0] - without).nan_to_num(0.0, 0.0, 0.0).T.tolist()


def loudest(sayers: list[int], losses: list[float]) -> tuple[int | None, float]:
    """Return which of the `sayers` says most for an item, by its `losses` without each, and its share; none: nobody."""
    spoke = sum(max(loss, 0.0) for loss in losses)
    if spoke <= 0:
        return None, 1.0  # whatever the history is, as popularity has it
    best = max(range(len(losses)), key=losses.__getitem__)
    return sayers[best], losses[best] / spoke


def linear_signal(stage: CandidateSimilarity, history: Tensor, item: int, sayer: int) -> tuple[str, float] | None:
    """What `sayer`, an item of a history [1, T], says most for `item` by the linear stage: in words, and its weight."""
    _, items, numbers = stage.entries(history)
    numbers = numbers[(items == item) & (numbers > 0)]  # 0: that it stands in the history
    starts = stage.starts.flatten()
    place = torch.searchsorted(starts, numbers, right=True) - 1
    n_last = stage.starts.shape[1]
    said = recent_first(history)[0][place % n_last] == sayer
    weights = stage.weights[stage.halves(history)[0], 1 + numbers].masked_fill(~said, -torch.inf)
    if not len(weights) or (best := weights.max()) <= 0:
        return None
    name = list(stage.signals)[int(place[weights.argmax()]) // n_last]
    if name in _AS_TREES_SAY:
        return words_of(_AS_TREES_SAY[name]), float(best)
    return words_of((QUANTISED if name in BOUND else COSINE) + name), float(best)
