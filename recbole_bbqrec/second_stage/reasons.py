"""Why the trees of the second stage rank an item where they do: the main reason in words, and where it comes from.

Shapes: B histories, k items of each (0 = none), J items of the history from the last one backwards, n items to explain,
F features, G groups of features that share their words.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model.protocol import FirstStage
from .boosted import CODE_STEPS, COSINE, QUANTISED, TOWERS
from .features import MODEL, Feature, brought
from .ranker import BoostedRanker

OWN_SCORE = "the model's own score"
WORDS = {
    **dict.fromkeys(("score", "margin", "rank"), OWN_SCORE),
    **{"length": "length of the history", "seen": "already in the history"},
    **{"next_1": "came next after", "next_2": "came 2 places after", "next_3": "came 3 places after"},
    **{"step": "often follows", "walk": "follows by way of another item"},
    **{"side_step": "often near", "side_walk": "near by way of another item"},
    **{"together": "bought together", "together_normalised": "bought together"},
    **{"popularity": "popular", "popularity_of_last": "popularity of the last item"},
    **{TOWERS: "what follows by content", "id_log_p": "codes that the model expects"},
    **{COSINE: "similar ", QUANTISED: "similar codes", CODE_STEPS: "codes that follow"},
}
"""What a person reads for a signal, by its name or what that begins with."""
OF_NO_ITEM = ("popularity", "popularity_of_last", "id_log_p")


class Reason(NamedTuple):
    """The main reason for an item.

    Attributes
    ----------
    item : token of the history's item that it comes from; `None` if no single item is the source.
    signal : in words, see `WORDS`.
    share : its share of all reasons, from 0 to 1: Shapley values of the trees (`Trees.contributions`), those of the
        signal's features added up, over the sum of all positive ones. 1 if the model's own score alone ranks the item,
        which is then not a candidate of the second stage; 0 if nothing speaks for it.
    """

    item: str | None
    signal: str
    share: float


@torch.no_grad()
def reasons_for(
    stage: BoostedRanker, first: FirstStage, histories: Tensor, items: Tensor, tokens: Sequence[str]
) -> list[list[Reason]]:
    """Return a reason for each of the items [B, k] after histories [B, T]; `tokens` [N] are those of item ids.

    A signal that no item of the history gives a candidate is no reason for it, even where its absence speaks for it.
    """
    batch = stage.batch(first.scores, histories)
    slots = batch.slots.gather(1, items).long()
    row, column = torch.nonzero(slots >= 0, as_tuple=True)
    slot = slots[row, column]
    found = [[Reason(None, OWN_SCORE, 1.0)] * int(count) for count in (items > 0).sum(1)]
    if not len(row):
        return found
    values = stage.features_of(first, batch)[row, slot]  # [n, F]
    shares = stage.contributions(values, stage.folds(histories)[row])  # [n, F]
    sayers = np.zeros(shares.shape, np.int64)  # item that brings most to a feature; -1 where it says nothing
    said: dict[str, Tensor] = {}
    for place, feature in enumerate(stage.features):
        if feature.signal == "seen":
            sayers[:, place] = torch.where(values[:, place] > 0, items[row, column], -1).cpu().numpy()
        if feature.group == MODEL or feature.signal in OF_NO_ITEM:
            continue
        if feature.signal not in said:
            said[feature.signal] = stage.signals[feature.signal](batch)[row, slot]  # [n, J]
        most, back = brought(feature.form, said[feature.signal]).max(1)
        sayers[:, place] = torch.where(most > 0, batch.recent[row, back], -1).cpu().numpy()
    for at, reason in enumerate(_strongest(stage.features, shares, sayers, tokens)):
        found[int(row[at])][int(column[at])] = reason
    return found


def _strongest(
    features: Sequence[Feature], shares: np.ndarray, sayers: np.ndarray, tokens: Sequence[str]
) -> list[Reason]:
    """The reason for each row of shares [n, F]; `sayers` [n, F]: the item behind a feature, 0: no item, -1: nothing."""
    words = [words_of(feature.signal) for feature in features]
    names = list(dict.fromkeys(words))
    group = np.array([names.index(word) for word in words])  # [F]
    totals = np.stack([shares[:, group == number].sum(1) for number in range(len(names))], axis=1)  # [n, G]
    speaks = np.stack([(sayers[:, group == number] >= 0).any(1) for number in range(len(names))], axis=1)
    best = np.where(speaks, totals, -np.inf).argmax(1)
    positive, rows = np.maximum(totals, 0.0).sum(1), np.arange(len(totals))
    # Of the signal's features, the one that speaks loudest knows the item.
    loudest = np.where((group == best[:, None]) & (sayers >= 0), shares, -np.inf).argmax(1)
    values, items = totals[rows, best], sayers[rows, loudest]
    return [
        Reason(str(tokens[item]) if item else None, names[number], float(value / whole))
        if value > 0
        else Reason(None, OWN_SCORE, 0.0)
        for item, number, value, whole in zip(items, best, values, positive, strict=True)
    ]


def words_of(signal: str) -> str:
    """What a person reads for a signal."""
    if signal.startswith(COSINE):
        return WORDS[COSINE] + signal.removeprefix(COSINE)
    return WORDS.get(signal) or next(words for begin, words in WORDS.items() if signal.startswith(begin))
