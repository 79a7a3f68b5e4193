"""Candidate similarity: what the last items of a history say about each candidate (an extension of ours).

The linear form of a second stage: how near a candidate is to each of the last items, by behaviour and by content,
discretised, adds a learned weight to its score. An item lists its nearest neighbours by each signal; all others share
one bucket, whose weight is zero.

The weights are fitted on validation, when the model is trained and frozen: a training target is part of its own counts,
and the model has memorised it besides. A hash of its items puts every history into one of two halves. A history that
the weights were fitted on is scored with the weights that the other half gave, whoever asks for it, so no validation
figure rests on its own target. Every other history gets the mean of the two. A test history may be equal to a fitted
one, of another user as a rule: it is scored as that one is, with weights that have not seen the target of either.

Shapes: B histories, T items of the longest, N items (row 0 = padding), S signals, J last items of a history, F weights.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import nn

from ..model.catalogue import Catalogue
from ..model.counts import pairs_apart
from ..model.protocol import FirstStage
from ..tokenizer.behavior_bind import FUSED_SIGNAL, ID_SIGNAL
from .hashing import Folds, hashes_of
from .linear_new import Lists, new_lists
from .neighbours import ROUNDING, by_item_id, cooccurrence, nearest, token_order, transitions, walk

BOUND = (ID_SIGNAL, FUSED_SIGNAL)  # signals of an item tokenizer that compare items by behaviour
COUNT_EDGES = (1.5, 2.5, 4.5, 8.5, 16.5, 32.5)  # transition counts on a log scale: 1, 2, 3-4, 5-8, 9-16, 17-32, more
N_BINS = 16  # buckets of the neighbours' similarity, as many as attention has
HALVES = 2  # parts of the histories that judge each other's weights


class Signal(nn.Module):
    """One signal: the `Lists` of items that training knows, and those that join new items with them."""

    buckets: torch.Tensor

    def __init__(self, offsets: torch.Tensor, items: torch.Tensor, buckets: torch.Tensor) -> None:
        super().__init__()
        for name, value in zip(Lists._fields, (offsets, items, buckets), strict=True):
            self.register_buffer(name, value)
            self.register_buffer(f"new_{name}", value[:0], persistent=False)  # they come with the catalogue

    def take_in(self, lists: Lists) -> None:
        """Take in lists that join new items with all others."""
        for name, value in zip(Lists._fields, lists, strict=True):
            self.register_buffer(f"new_{name}", value, persistent=False)

    @property
    def parts(self) -> list[Lists]:
        """The lists there are."""
        found = [Lists(*(self.get_buffer(begin + name) for name in Lists._fields)) for begin in ("", "new_")]
        return [part for part in found if len(part.items)]

    @property
    def n_buckets(self) -> int:
        """Number of buckets up to the last one that is met."""
        return int(self.buckets.max()) + 1 if len(self.buckets) else 0


def _listed(offsets: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the list of each item [n] begins and how long it is; items beyond those known have none."""
    last = len(offsets) - 1
    begin = offsets[item.clamp(max=last)]
    return begin, offsets[(item + 1).clamp(max=last)] - begin


class CandidateSimilarity(nn.Module):
    """Adds learned bucket weights to the scores of candidates that are near the last items of a history.

    Weight number 0 belongs to candidates that stand in the history; then comes, for each signal, one for every
    position from the end and bucket. Nothing is a parameter: all of it is fitted when training is done.

    Parameters
    ----------
    signals : name -> signal.
    n_last : number J of last items that are looked at.
    item_hashes : [N + 1] see `hashes_of`.

    Attributes
    ----------
    weights : [3, 1 + F] a scale of the model's scores and the F weights, for each half of the histories those that the
        other half gave, then their mean.
    halves : which histories gave the weights, and the half of each.
    """

    weights: torch.Tensor
    starts: torch.Tensor

    def __init__(self, signals: Mapping[str, Signal], n_last: int, item_hashes: torch.Tensor) -> None:
        super().__init__()
        self.signals = nn.ModuleDict({name: signals[name] for name in sorted(signals)})
        # One row for each signal and position from the end: how many buckets, and the number of the first weight.
        sizes = np.repeat([each.n_buckets for each in self._signals()], n_last)
        starts = 1 + np.cumsum(sizes) - sizes
        self.register_buffer("starts", torch.from_numpy(starts).long().view(-1, n_last))  # [S, J]
        self.register_buffer("weights", torch.eye(1, 2 + int(sizes.sum())).repeat(HALVES + 1, 1))  # scale 1, the rest 0
        self.halves = Folds(HALVES, item_hashes)

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> "CandidateSimilarity":
        """Return one of the size of a `state_dict`, ready to load it."""
        names = {key.split(".")[1] for key in state if key.startswith("signals.")}
        parts = ("offsets", "items", "buckets")
        signals = {name: Signal(*(state[f"signals.{name}.{part}"].clone() for part in parts)) for name in names}
        made = cls(signals, state["starts"].shape[1], state["halves.item_hashes"].clone())
        made.halves.fitted = state["halves.fitted"].clone()
        return made

    @property
    def n_weights(self) -> int:
        """Number F of weights."""
        return self.weights.shape[1] - 1

    def _signals(self) -> Iterator[Signal]:
        return (signal for signal in self.signals.values() if isinstance(signal, Signal))

    @torch.no_grad()
    def take_over(self, fitted: "CandidateSimilarity") -> None:
        """Take over the weights fitted for the same signals over other lists of neighbours: the mean of the halves.

        Buckets are places in the order of similarities, so their numbers correspond; one that `fitted` lacks gets the
        weight of its last one. No history counts as fitted on.
        """
        mean, weights = fitted.weights[HALVES], torch.zeros_like(self.weights[0])
        weights[:2] = mean[:2]  # scale, and seen items
        there = dict(zip(fitted.signals, zip(fitted._signals(), fitted.starts, strict=True), strict=True))
        for name, signal, begin in zip(self.signals, self._signals(), self.starts, strict=True):
            known, known_begin = there[name]
            if known.n_buckets:
                bucket = torch.arange(signal.n_buckets, device=begin.device)
                same = bucket.clamp(max=known.n_buckets - 1)
                weights[1 + begin[:, None] + bucket] = mean[1 + known_begin[:, None] + same]
        self.weights, self.halves.fitted = weights.repeat(HALVES + 1, 1), self.halves.fitted[:0]

    def entries(self, histories: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row and item of scores, and the number of a weight to add to each, all [n], for histories [B, T]."""
        row, column = torch.nonzero(histories, as_tuple=True)
        rows, items, numbers = [row], [histories[row, column]], [torch.zeros_like(row)]
        lengths = (histories != 0).sum(1)
        for signal, starts in zip(self._signals(), self.starts, strict=True):
            for back, start in enumerate(starts):
                row = torch.nonzero(lengths > back).flatten()
                for part in signal.parts:
                    begin, count = _listed(part.offsets, histories[row, lengths[row] - 1 - back])
                    index = torch.repeat_interleave(torch.arange(len(row), device=row.device), count)
                    within = torch.arange(len(index), device=row.device) - (count.cumsum(0) - count)[index]
                    place = begin[index] + within
                    rows.append(row[index])
                    items.append(part.items[place])
                    numbers.append(start + part.buckets[place].long())
        return torch.cat(rows), torch.cat(items), torch.cat(numbers)

    def forward(self, first: FirstStage, histories: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Return the model's scores [B, N], scaled, with the weights of the candidates added, whatever the targets."""
        half, (rows, items, numbers) = self.halves(histories), self.entries(histories)
        weights = self.weights.to(first.scores.dtype)
        scores = (first.scores * weights[half, :1]).contiguous()
        added = weights[half[rows], 1 + numbers]
        return scores.view(-1).index_add_(0, rows * scores.shape[1] + items, added).view_as(scores)


def restore_linear(state: Mapping[str, torch.Tensor], catalogue: Catalogue) -> CandidateSimilarity:
    """Return the module for a `state_dict`, ready to load it, with lists for new items of a grown catalogue."""
    made = CandidateSimilarity.from_state(state)
    if catalogue.n_trained is not None:
        for name, signal in made.signals.items():
            if isinstance(signal, Signal) and signal.parts and (lists := new_lists(signal.parts[0], name, catalogue)):
                signal.take_in(lists)
    return made


def build_linear(config: Any, dataset: Any) -> CandidateSimilarity | None:
    """Return candidate similarity by the signals of `candidate_similarity`, not fitted yet; none where there are none.

    The signals are `behavior`, `codes` (the quantised vectors that compare items by behaviour), modalities, and `seen`
    for the weight of candidates that stand in the history, which every signal brings along. Of the data set,
    `catalogue` and `train_sequences` are read.
    """
    wanted: list[str] = config["candidate_similarity"]
    size, catalogue, tokens = config["n_candidate_neighbours"], dataset.catalogue, dataset.catalogue.tokens
    order, place = token_order(tokens)
    offsets, items = dataset.train_sequences.offsets, place[dataset.train_sequences.items]
    lists: dict[str, tuple[csr_array, np.ndarray]] = {}
    # By content, candidates are compared as they are: what quantising loses is what tells near items apart.
    compared = {name: signal for name, signal in catalogue.content.items() if name in wanted}
    if "behavior" in wanted:
        given = offsets, items, len(tokens), size
        lists["transition"] = transitions(*given), np.asarray(COUNT_EDGES)
        # A training pair is among its own counts: edges come from what is listed alone.
        for name, listed in (("cooccurrence", cooccurrence), ("walk", walk)):
            lists[name] = (found := listed(*given)), _edges(found)
    if "codes" in wanted:
        compared |= {name: signal for name, signal in catalogue.quantised.items() if name in BOUND}
    pairs = pairs_apart(offsets, items, 1)
    for name, (rows, present) in compared.items():
        found = nearest(rows[order], present[order], size)
        lists[name] = found, _edges(found, pairs)
    signals = {name: _signal(found, edges, order, place) for name, (found, edges) in lists.items()}
    if not signals and "seen" not in wanted:
        return None
    return CandidateSimilarity(signals, config["n_candidate_last"], hashes_of(tokens))


def _edges(lists: csr_array, pairs: np.ndarray | None = None) -> np.ndarray:
    """Bucket edges, at most `N_BINS` - 1: quantiles of what is listed, the upper tail of all pairs of items.

    Where training pairs [2, n] can be looked up without having made the lists themselves, every second edge is a
    quantile of the listed ones among them, which is where next items are.
    """
    if not lists.nnz:
        return np.zeros(0)
    share = N_BINS if pairs is None else N_BINS // 2
    edges = np.quantile(lists.data, np.arange(1, share) / share)
    if pairs is not None:
        n_items, rest = lists.shape[0], N_BINS - share + 1
        keys = np.repeat(np.arange(n_items), np.diff(lists.indptr)) * n_items + lists.indices
        wanted = pairs[0] * n_items + pairs[1]
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        met = lists.data[place[keys[place] == wanted]]
        if len(met):
            edges = np.r_[edges, np.quantile(met, np.arange(1, rest) / rest)]
    # A quantile often is one of the values, which are rounded: the edge is put between it and the one below.
    return np.unique(edges - ROUNDING / 2)


def _signal(lists: csr_array, edges: np.ndarray, order: np.ndarray, place: np.ndarray) -> Signal:
    """Discretise lists of neighbours and number their items by id, see `token_order`."""
    buckets = np.searchsorted(edges, lists.data, side="right").astype(np.int16)
    return Signal(*by_item_id(csr_array((buckets, lists.indices, lists.indptr), shape=lists.shape), order, place))
