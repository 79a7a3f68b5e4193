"""The second stage by gradient-boosted trees: candidates, their features, and trees that no judged history has fitted.

The candidates of a history are the best of the model, the best by how training sequences lead from the history to them,
and the items of the history itself. They are ranked by the log-odds that trees give their features; all other items
follow, in the model's order.

A hash of its items puts every history into one of `FOLDS` folds. A history that trees were fitted on is ranked by those
of its fold, which have seen no history of it, whoever asks: no validation figure rests on its own target. Every other
history, of test or of a new user, gets the trees of all.

Shapes: B histories, C candidates of each (0 = none), T items of the longest history, J of them from the last one
backwards, N items (row 0 = padding), F features.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..model.protocol import FirstStage
from .features import DECAY, Feature, features_of
from .hashing import Folds
from .signals import Batch, PairList
from .towers import Towers
from .trees import Trees

FOLDS = 3
BEST, COUNTED = 120, 60
"""Candidates by the model's scores, and by counts."""
REACH = ("step", "walk")
"""Lists whose sum, with `DECAY` for every step back, brings candidates."""
GROUPS = 8
"""Groups of items for each candidate, of which only the largest values are sorted, see `not_above`."""
TIE = 2e-6
"""Below what trees tell apart: of equal log-odds the order of the candidates decides, the model's best first."""


class BoostedRanker(nn.Module):
    """Ranks candidates by trees.

    Parameters
    ----------
    signals : name -> what says something of pairs of items, see `signals`.
    features : what the trees read, in order.
    item_hashes : [N + 1] see `hashing.hashes_of`.
    towers : what the signal of that name was made by, kept for new items; none where there is none.

    Attributes
    ----------
    about : names of the signals and the features, as JSON, so that its state says all.
    trees : those of each fold, fitted on all others, then those of all; none before it is fitted.
    folds : which histories were fitted on, and the fold of each.
    """

    about: Tensor

    def __init__(
        self,
        signals: Mapping[str, nn.Module],
        features: Sequence[Feature],
        item_hashes: Tensor,
        towers: Towers | None = None,
    ) -> None:
        super().__init__()
        self.signals, self.features = nn.ModuleDict(signals), tuple(features)
        self.towers = towers.requires_grad_(False) if towers is not None else None
        self.folds = Folds(FOLDS, item_hashes)
        self.trees = nn.ModuleList()
        about = {
            "signals": list(signals),
            "features": features,
            "towers": towers.widths if towers is not None else None,
        }
        self.register_buffer("about", torch.frombuffer(bytearray(json.dumps(about), "utf-8"), dtype=torch.uint8))

    def resize(self, state: Mapping[str, Tensor]) -> None:
        """Make room for the trees and the fitted histories of a `state_dict`."""
        numbers = sorted(int(name.split(".")[1]) for name in state if name.startswith("trees."))
        self.trees = nn.ModuleList(Trees(state[f"trees.{number}.content"].clone()) for number in numbers)
        self.folds.fitted = state["folds.fitted"].clone()

    def take_over(self, fitted: "BoostedRanker") -> None:
        """Take over the trees of all that were fitted over other training sequences; no history counts as fitted on.

        Trees of other features, where the ordinary run had too few pairs for towers, are an `InputError`.
        """
        if self.features != fitted.features:
            raise InputError(
                "second stage: all interactions give it other features than training had; set it to linear"
            )
        self.trees, self.folds.fitted = nn.ModuleList([fitted.trees[FOLDS]] * (FOLDS + 1)), self.folds.fitted[:0]

    @property
    def n_items(self) -> int:
        """Number of items that training knows, padding included."""
        return len(self.folds.item_hashes) - 1

    def most_candidates(self, length: int) -> int:
        """How many candidates a history of `length` items has at most."""
        return BEST + COUNTED + length

    def batch(self, scores: Tensor, histories: Tensor) -> Batch:
        """Choose candidates by the model's scores [B, N] after histories [B, T]."""
        recent, n_items = recent_first(histories), scores.shape[1]
        free = scores.float().clone()
        free.scatter_(1, recent, -torch.inf)  # padding among them
        free[:, 0] = -torch.inf
        best = self._largest(free, BEST, torch.finfo(torch.float32).min)
        parts = [best]
        if reach := [signal for name, signal in self.signals.items() if name in REACH and isinstance(signal, PairList)]:
            counted = free.zero_()  # its memory, once more
            for signal in reach:
                row, back, count, place = signal.entries(recent)
                cell = (row * n_items).repeat_interleave(count) + signal.items.index_select(0, place)
                value = (DECAY**back).repeat_interleave(count) * signal.values.index_select(0, place)
                counted.view(-1).index_add_(0, cell, value)
            for taken in (recent, best):
                counted.scatter_(1, taken, 0.0)
            counted[:, 0] = 0.0
            parts.append(self._largest(counted, COUNTED, torch.finfo(torch.float32).tiny))
        again = (recent.unsqueeze(2) == recent.unsqueeze(1)).tril(-1).any(2)  # stands nearer to the end as well
        items = torch.cat([*parts, recent.masked_fill(again, 0)], dim=1)
        slots = torch.full(scores.shape, -1, dtype=torch.int16, device=scores.device)
        places = torch.arange(items.shape[1], dtype=torch.int16, device=scores.device)
        slots.scatter_(1, items, places.expand_as(items))
        slots[:, 0] = -1
        return Batch(recent, items, slots)

    def _largest(self, values: Tensor, size: int, least: float) -> Tensor:
        """Items [B, size] of the largest values [B, N], best first; of equal ones tokens decide, not item ids.

        Where fewer are at least as large as `least`, 0 comes after them.
        """
        size = min(size, values.shape[1] - 1)
        row, item = torch.nonzero(values >= not_above(values, size).clamp(min=least), as_tuple=True)
        counts = torch.bincount(row, minlength=len(values))
        place = row, torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        keys = torch.full((len(values), max(size, int(counts.max()))), torch.iinfo(torch.int64).min, device=row.device)
        items = torch.zeros_like(keys)
        keys[place], items[place] = self._keys(values[row, item], item), item
        return items.gather(1, keys.topk(size).indices)

    def _keys(self, values: Tensor, items: Tensor) -> Tensor:
        """Whole numbers that ascend as values do, of equal ones as the hashes of their items' tokens."""
        hashes = self.folds.item_hashes[items.clamp(max=len(self.folds.item_hashes) - 1)]
        bits = (values + 0.0).view(torch.int32)  # no -0
        return (bits ^ (bits >> 31 & 0x7FFFFFFF)).long().mul_(2**32).add_(hashes & 0xFFFFFFFF)

    def features_of(self, first: FirstStage, batch: Batch) -> Tensor:
        """Features [B, C, F] of the candidates."""
        n_best = min(BEST, first.scores.shape[1] - 1)
        return features_of(self.features, dict(self.signals.items()), first, batch, n_best)

    def log_odds(self, features: Tensor, batch: Batch, fold: Tensor) -> Tensor:
        """Log-odds [B, C] of candidates by the trees `fold` [B]; minus infinity where there is no candidate."""
        found = np.full(batch.items.shape, -np.inf, np.float32)
        values, known, folds = features.cpu().numpy(), (batch.items > 0).cpu().numpy(), fold.cpu().numpy()
        for number, trees in enumerate(self.trees):
            chosen = known & (folds == number)[:, None]
            if chosen.any():
                found[chosen] = trees(values[chosen])
        found -= TIE * np.arange(found.shape[1], dtype=np.float32)
        return torch.from_numpy(found).to(batch.items.device)

    def contributions(self, features: Tensor, fold: Tensor) -> np.ndarray:
        """Shares [n, F] of the features [n, F] in the log-odds by the trees `fold` [n], see `Trees.contributions`."""
        values, folds = features.cpu().numpy(), fold.cpu().numpy()
        found = np.zeros(values.shape)
        for number, trees in enumerate(self.trees):
            if isinstance(trees, Trees) and (chosen := folds == number).any():
                found[chosen] = trees.contributions(values[chosen])
        return found

    @torch.no_grad()
    def forward(self, first: FirstStage, histories: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return scores [B, N]: the candidates' log-odds, and below them the model's scores of all other items.

        Where nothing but the rank of `targets` [B] is asked for, trees are asked only of histories that have it among
        their candidates: of all others, every candidate stands above it.
        """
        batch = self.batch(first.scores, histories)
        if targets is None:
            odds = self.log_odds(self.features_of(first, batch), batch, self.folds(histories))
        else:
            odds = torch.zeros_like(batch.items, dtype=torch.float32).masked_fill_(batch.items == 0, -torch.inf)
            has = (batch.items == targets.unsqueeze(1)).any(1)
            if has.any():
                of_first, part = of_rows(first, batch, has)
                odds[has] = self.log_odds(self.features_of(of_first, part), part, self.folds(histories)[has])
        least = odds.masked_fill(batch.items == 0, torch.inf).amin(1, keepdim=True)
        scores = first.scores.float().clone()
        scores.scatter_(1, batch.items, -torch.inf)
        scores[:, 0] = -torch.inf
        highest = scores.amax(1, keepdim=True)
        scores -= torch.where(highest.isneginf(), 0.0, highest)  # everything may be a candidate
        scores += least - 1.0
        scores.scatter_(1, batch.items, odds)
        scores[:, :1] = least - 1.0
        return scores


def of_rows(first: FirstStage, batch: Batch, has: Tensor) -> tuple[FirstStage, Batch]:
    """Return some rows of what a model says, not asking it anew: its last bits may depend on the rest of the batch."""
    asked, items = first.id_log_p, batch.items
    id_log_p = None if asked is None else lambda _: asked(items)[has]
    return FirstStage(first.scores[has], id_log_p), Batch(*(part[has] for part in batch))


def not_above(values: Tensor, size: int) -> Tensor:
    """Return numbers [B, 1] that at least `size` of the values [B, N] reach, and few more than that.

    Only the largest value of each group of items is sorted: at least `size` groups reach the number.
    """
    n_groups = max(GROUPS * size, 1)
    width = values.shape[1] // n_groups
    if width > 1:
        whole = values[:, : width * n_groups].unflatten(1, (width, n_groups)).amax(1)
        values = torch.cat([whole, values[:, width * n_groups :]], dim=1)
    return values.topk(size, sorted=False).values.amin(1, keepdim=True)


def recent_first(histories: Tensor) -> Tensor:
    """Histories [B, T] (0 pads on the right) from the last item backwards [B, J]."""
    lengths = (histories != 0).sum(1, keepdim=True)
    place = lengths - 1 - torch.arange(int(lengths.max()), device=histories.device)
    return torch.where(place >= 0, histories.gather(1, place.clamp(min=0)), 0)
