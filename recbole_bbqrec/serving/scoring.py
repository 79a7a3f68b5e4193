"""Scores, best items and reasons after histories of item ids: what is between a model and the answers of a bundle.

Shapes: B histories, T items of the longest that the model reads, N items (row 0 = padding), m candidates.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.decoding import Pairs
from ..model.protocol import ranker_of
from ..second_stage.linear import CandidateSimilarity
from ..second_stage.ranker import BoostedRanker
from ..second_stage.reasons import OWN_SCORE, Reason, reasons_for
from . import explain
from .best import best
from .index import FaissIndex

BATCH = 512
"""Histories that are scored together, at most."""
SCORES = 1 << 25
"""Scores that are held at once, at most: 128 MiB, and as much again for the choice of the best."""

Ids = Sequence[list[int]]
"""Item ids, a list for each history."""


class Scorer:
    """Asks a trained model for all items after histories, on the model's device.

    Parameters
    ----------
    model : in evaluation mode.
    settings : of the run, with the `device` the model is on.
    n_items : number N of items.
    """

    def __init__(self, model: Any, settings: Any, n_items: int) -> None:
        self.model, self.settings, self.n_items = model, settings, n_items
        self.ranker, self.device = ranker_of(model, settings), settings["device"]
        self.index: FaissIndex | None = None

    @functools.cached_property
    def shared(self) -> Any:
        """What all histories share: a loaded model does not change. Threads that ask first may each compute it."""
        with torch.inference_mode():
            return self.ranker.shared()

    @torch.inference_mode()
    def score(self, histories: Ids, candidates: Tensor | None = None, excluded: Pairs | None = None) -> Tensor:
        """Scores [B, N], or [B, m] of candidates, as `Ranker.score` gives them."""
        candidates = None if candidates is None else candidates.to(self.device)
        return self.ranker.score(self._padded(histories), candidates, excluded, self.shared)

    def batches(self, histories: Ids) -> Iterator[list[int]]:
        """Rows of the histories that hold an item, batch by batch, those of like length together."""
        size = max(1, min(BATCH, SCORES // self.n_items))
        rows = sorted((row for row, items in enumerate(histories) if items), key=lambda row: len(histories[row]))
        return (rows[start : start + size] for start in range(0, len(rows), size))

    def _padded(self, histories: Ids) -> Tensor:
        """Histories [B, T] as the model reads them."""
        length = self.settings["MAX_ITEM_LIST_LENGTH"]
        recent = [history[-length:] for history in histories]
        longest = max(map(len, recent))
        return torch.tensor([history + [0] * (longest - len(history)) for history in recent], device=self.device)

    @torch.inference_mode()
    def top(
        self, histories: Ids, k: int, exclude_seen: bool, permitted: Ids | None = None, denied: Ids | None = None
    ) -> list[tuple[list[int], list[float]]]:
        """Return the `k` best items of each history and their scores; fewer where no more have a score.

        `permitted` and `denied` are lists of items, one for all histories or one for each.
        """
        barred = histories if exclude_seen else [[] for _ in histories]
        of_all = denied[0] if denied and len(denied) == 1 else []
        if denied and (len(denied) > 1 or self.ranker.is_beam_search or self.index):
            barred = [seen + also for seen, also in zip(barred, itertools.cycle(denied))]
        pairs = self._pairs(barred)
        if self.index and permitted is None and (found := self.index.top(self._padded(histories), k, pairs)):
            return found
        if permitted is None:
            # A beam search leaves out what has been seen before it cuts its beam, also what the model does not read.
            scores = self.score(histories, excluded=pairs).clone()
        else:
            other = torch.ones(len(permitted), self.n_items, dtype=torch.bool)
            other[tuple(part.cpu() for part in self._pairs(permitted))] = False
            candidates = torch.nonzero(~other.all(0)).flatten()
            scores = torch.full((len(histories), self.n_items), -torch.inf, device=self.device)
            scores[:, candidates.to(self.device)] = self.score(histories, candidates).to(scores.dtype)
            scores.masked_fill_(other.to(self.device), -torch.inf)
        scores[:, [0, *of_all]] = scores[pairs] = -torch.inf
        return best(scores, k, self.settings["seed"])

    def _pairs(self, lists: Ids) -> Pairs:
        """(row, item) pairs of items by row."""
        counts = torch.tensor([len(items) for items in lists])
        rows = torch.arange(len(lists)).repeat_interleave(counts).to(self.device)
        return rows, torch.tensor([*itertools.chain.from_iterable(lists)], dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def reasons(self, histories: Ids, items: Ids, tokens: list[str]) -> list[list[Reason]]:
        """A reason for each of the items of each history, see `explain`."""
        stage = getattr(self.model, "second_stage", None)
        if isinstance(stage, BoostedRanker):
            given = self._padded(histories)
            longest = max(map(len, items))
            offered = torch.tensor([some + [0] * (longest - len(some)) for some in items], device=self.device).long()
            found = reasons_for(stage, self.ranker.first_stage(given, shared=self.shared), given, offered, tokens)
        else:
            found = [[Reason(None, OWN_SCORE, 1.0)] * len(some) for some in items]
        return [self._spoken(stage, *row, tokens) for row in zip(histories, items, found, strict=True)]

    def _spoken(
        self, stage: Any, history: list[int], items: list[int], reasons: list[Reason], tokens: list[str]
    ) -> list[Reason]:
        """The reasons after one history; where one is the model's own score, the item of the history behind it."""
        own = [at for at, reason in enumerate(reasons) if reason.signal == OWN_SCORE]
        if not own:
            return reasons
        history = history[-self.settings["MAX_ITEM_LIST_LENGTH"] :]
        by_trees = isinstance(stage, BoostedRanker)
        score = self._first_scores if by_trees else self.score
        sayers, losses = explain.left_out(
            history, [items[at] for at in own], score, self.n_items, self.settings["seed"]
        )
        reasons = [*reasons]
        for at, loss in zip(own, losses, strict=True):
            sayer, share = explain.loudest(sayers, loss)
            if sayer is None:
                continue
            # Trees have told the share of the score; of other models it is the sayer's part of what all items say.
            reasons[at] = Reason(tokens[sayer], OWN_SCORE, reasons[at].share if by_trees else share)
            if isinstance(stage, CandidateSimilarity):
                said = explain.linear_signal(stage, self._padded([history]), items[at], sayer)
                # Name the signal where its weight is at least half of what the item loses.
                if said and said[1] >= max(loss) / 2:
                    reasons[at] = reasons[at]._replace(signal=said[0])
        return reasons

    def _first_scores(self, histories: Ids, items: Tensor) -> Tensor:
        """Scores [B, k] of items [k] by the model alone, without its second stage."""
        return self.ranker.first_stage(self._padded(histories), shared=self.shared).scores[:, items.to(self.device)]
