"""Candidate similarity: what the last items of a history say about each candidate (an extension of ours).

The similarity that re-weights attention, on the output side: how near a candidate is to each of the last items, by
behaviour and by content, discretised, adds a learned weight to its score. An item lists its nearest neighbours by each
signal; all others share one bucket, whose weight is zero.

The weights are fitted when the encoder is done and frozen, on validation: a training target is part of its own counts,
and the encoder remembers it besides. Each half of the users is judged with the weights that the other half gave, so no
validation figure rests on its own target; everybody else (test, new histories) gets the mean of the two.

Shapes: B histories, T items of the longest, N items (row 0 = padding), S signals, J last items of a history, F weights.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from .. import storage
from ..tokenizer.behavior_bind import FUSED_SIGNAL, ID_SIGNAL
from .neighbours import ROUNDING, cooccurrence, nearest, pairs_apart, transitions, walk

CANDIDATES = "candidates.safetensors"
"""Name of the file in a run's folder."""
BEHAVIOR, TRANSITION, COOCCURRENCE, WALK, SEEN = "behavior", "transition", "cooccurrence", "walk", "seen"

BOUND = (ID_SIGNAL, FUSED_SIGNAL)
"""Signals of an item tokenizer that compare items by behaviour."""

COUNT_EDGES = (1.5, 2.5, 4.5, 8.5, 16.5, 32.5)
"""Transition counts are discretised on a log scale: 1, 2, 3-4, 5-8, 9-16, 17-32, more."""

N_BINS = 16
"""Buckets of the neighbours' similarity."""

HALVES = 2
"""Parts of the users that judge each other's weights."""


class Signal(NamedTuple):
    """One signal: item `i` lists `items[offsets[i] : offsets[i + 1]]`, pair `e` in bucket `buckets[e]` (int16)."""

    offsets: torch.Tensor
    items: torch.Tensor
    buckets: torch.Tensor
    n_buckets: int


class CandidateSimilarity:
    """Adds learned bucket weights to the scores of candidates that are near the last items of a history.

    Weight number 0 belongs to candidates that stand in the history; then comes, for each signal, one for every
    position from the end and bucket.

    Parameters
    ----------
    signals : name -> signal.
    n_last : number J of last items that are looked at.
    weights : [HALVES + 1, 1 + F] a scale of the encoder's scores and the F weights, fitted for each half of the users
        on the other half, then their mean; none before fitting.
    """

    def __init__(self, signals: Mapping[str, Signal], n_last: int, weights: torch.Tensor | None = None) -> None:
        self.signals = dict(signals)
        self.n_last = n_last
        sizes = [signal.n_buckets * n_last for signal in self.signals.values()]
        self.starts = np.r_[1, 1 + np.cumsum(sizes)].astype(int).tolist()
        self.n_weights: int = self.starts[-1]  # F
        self.weights = torch.zeros(HALVES + 1, 1 + self.n_weights) if weights is None else weights
        if weights is None:
            self.reset()
        self.fitted_on = ""
        """Fingerprint of the rows that gave the weights; see `sequence_trainer.fingerprint_of`."""
        self.part = HALVES
        """Which row of `weights` scores: a half of the users in validation, else the mean."""

    def reset(self) -> None:
        """Leave the encoder's scores as they are, whatever was fitted before."""
        self.weights.zero_()
        self.weights[:, 0] = 1.0

    def to(self, device: torch.device | str) -> "CandidateSimilarity":
        """Move everything to `device`, in place."""
        for name, (offsets, items, buckets, n_buckets) in self.signals.items():
            self.signals[name] = Signal(offsets.to(device), items.to(device), buckets.to(device), n_buckets)
        self.weights = self.weights.to(device)
        return self

    def entries(self, histories: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row and item of scores, and the number of a weight to add to each, all [n], for histories [B, T]."""
        row, column = torch.nonzero(histories, as_tuple=True)
        rows, items, weights = [row], [histories[row, column]], [torch.zeros_like(row)]
        lengths = (histories != 0).sum(1)
        for signal, start in zip(self.signals.values(), self.starts, strict=False):
            for back in range(self.n_last):
                row = torch.nonzero(lengths > back).flatten()
                last = histories[row, lengths[row] - 1 - back]
                begin, count = signal.offsets[last], signal.offsets[last + 1] - signal.offsets[last]
                index = torch.repeat_interleave(torch.arange(len(row), device=row.device), count)
                within = torch.arange(len(index), device=row.device) - (count.cumsum(0) - count)[index]
                place = begin[index] + within
                rows.append(row[index])
                items.append(signal.items[place])
                weights.append(start + back * signal.n_buckets + signal.buckets[place].long())
        return torch.cat(rows), torch.cat(items), torch.cat(weights)

    def __call__(self, scores: torch.Tensor, histories: torch.Tensor) -> torch.Tensor:
        """Return the encoder's scores [B, N], scaled, with the weights of the candidates added."""
        scale, weights = self.weights[self.part, 0], self.weights[self.part, 1:]
        rows, items, numbers = self.entries(histories)
        scores = (scores * scale).contiguous()
        added = weights[numbers].to(scores.dtype)
        return scores.view(-1).index_add_(0, rows * scores.shape[1] + items, added).view_as(scores)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to `path`."""
        tensors = {"weights": self.weights}
        for name, signal in self.signals.items():
            tensors |= {f"{name}.{part}": value for part, value in zip(Signal._fields, signal[:3], strict=False)}
        sizes = [[name, signal.n_buckets] for name, signal in self.signals.items()]
        header = {"signals": sizes, "n_last": self.n_last, "fitted_on": self.fitted_on}
        storage.save(path, "candidates", tensors, header)

    @classmethod
    def load(cls, path: str | os.PathLike, n_items: int = 0) -> "CandidateSimilarity":
        """Read what `save` wrote; on the CPU. Of `n_items` items, those that are new have no neighbours."""
        tensors, header = storage.load(path, "candidates")
        signals = {}
        for name, n_buckets in header["signals"]:
            offsets, items, buckets = (tensors[f"{name}.{part}"] for part in ("offsets", "items", "buckets"))
            n_new = max(n_items + 1 - len(offsets), 0)
            offsets = torch.cat([offsets, offsets[-1:].expand(n_new)])
            signals[name] = Signal(offsets, items, buckets, n_buckets)
        loaded = cls(signals, header["n_last"], tensors["weights"])
        loaded.fitted_on = header["fitted_on"]
        return loaded


def build_candidates(config: Any, dataset: Any) -> CandidateSimilarity | None:
    """Return the candidate similarity that the settings ask for, its weights not fitted yet; none where it is off.

    Parameters
    ----------
    config : reads `candidate_similarity` (`behavior`, names of modalities, and `seen` for the weight of candidates that
        stand in the history, which every signal brings along), `n_candidate_neighbours` and `n_candidate_last`.
    dataset : its `catalogue` and `train_sequences`.
    """
    wanted: list[str] = config["candidate_similarity"] or []
    if not wanted or config["scoring"] == "generate":
        return None
    size, catalogue, tokens = config["n_candidate_neighbours"], dataset.catalogue, dataset.catalogue.tokens
    # Equally near items are told apart by their order: that of their tokens, which no held-out interaction decides.
    order = np.array([0, *sorted(range(1, len(tokens)), key=lambda item: tokens[item])])  # [N] item ids
    place = np.argsort(order)
    offsets, items = dataset.train_sequences.offsets, place[dataset.train_sequences.items]
    lists: dict[str, tuple[csr_array, np.ndarray]] = {}
    # By content, candidates are compared as they are: what quantising loses is what tells near items apart.
    compared = {name: signal for name, signal in catalogue.content.items() if name in wanted}
    if BEHAVIOR in wanted:
        given = offsets, items, len(tokens)
        lists[TRANSITION] = transitions(*given, size), np.asarray(COUNT_EDGES)
        # A training pair is among its own counts: edges come from what is listed alone.
        for name, found in ((COOCCURRENCE, cooccurrence(*given, size)), (WALK, walk(*given, size))):
            lists[name] = found, _edges(found)
        compared |= {name: signal for name, signal in catalogue.quantised.items() if name in BOUND}
    pairs = pairs_apart(offsets, items, 1)
    for name, (rows, present) in compared.items():
        found = nearest(rows[order], present[order], size)
        lists[name] = found, _edges(found, pairs)
    signals = {name: _signal(found, edges, order, place) for name, (found, edges) in lists.items()}
    return CandidateSimilarity(signals, config["n_candidate_last"]) if signals or SEEN in wanted else None


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
    """Discretise lists of neighbours and number their items by id: item `order[i]` stands at place `i` in the lists."""
    buckets = np.searchsorted(edges, lists.data, side="right").astype(np.int16)
    by_id = csr_array((buckets, lists.indices, lists.indptr), shape=lists.shape)[place]
    offsets, items = torch.from_numpy(by_id.indptr).long(), torch.from_numpy(order[by_id.indices]).int()
    return Signal(offsets, items, torch.from_numpy(by_id.data), len(edges) + 1)


def candidates_of(folder: Path, n_items: int = 0) -> CandidateSimilarity | None:
    """Read the candidate similarity of a run's folder, see `CandidateSimilarity.load`; none where the run has none."""
    path = folder / CANDIDATES
    return CandidateSimilarity.load(path, n_items) if path.is_file() else None
