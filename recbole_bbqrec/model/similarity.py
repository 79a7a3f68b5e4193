"""The paper's similarity-enhanced attention: the cosine of every pair of items in a history becomes a learned bias.

The bias re-weights attention scores and leaves the sequence model as it is; it suits whatever model has attention
layers.

Shapes: B histories, T items of the longest, N items (row 0 = padding), M signals, C width of a signal's vectors, Q
buckets of a signal, E attention layers, A heads.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from .catalogue import Vectors

N_BINS = 16  # quantile buckets of the cosine of two items: three signals still make one table of `MAX_TABLE`
ROUNDING = 1e-5  # how far bucket edges stay below the cosines they were measured from
MAX_TABLE = 8192  # most joint buckets of several signals in one table of biases, which is made anew in every step
N_PAIRS = 200_000  # most training pairs that bucket edges are measured from


class SimilarityAttention(nn.Module):
    """Biases of attention scores, learned for the similarity of the items of a history; all zero at the start.

    `additive` and `multiplicative` discretise the cosine of two items (they differ in how the bias enters, see
    `attention.reweight`): buckets 0 .. n_bins - 1 are quantiles over pairs of items that stand in one training
    sequence; bucket n_bins means the same item, n_bins + 1 that one of the two lacks the signal. Every bucket has a
    weight per signal, layer and head. `undiscretised` is the control for it, and additive: instead of the buckets one
    weight times the cosine, one where an item lacks the signal, and one, common to all signals, for the same item.

    Parameters
    ----------
    signals : what is compared, by name, at least one; widths may differ.
    mode : additive | multiplicative | undiscretised.
    n_layers, n_heads : attention layers E of the model, and their heads A.
    shared_layers : one set of weights for all layers.
    """

    edges: Tensor
    present: Tensor  # [M, N]

    def __init__(
        self,
        signals: Mapping[str, Vectors],
        mode: str,
        n_layers: int,
        n_heads: int,
        n_bins: int = N_BINS,
        shared_layers: bool = False,
    ) -> None:
        super().__init__()
        self.signals, self.mode, self.n_bins = list(signals), mode, n_bins
        self.n_layers, self.n_heads, self.shared_layers = n_layers, n_heads, shared_layers
        # The item tokenizer and the features have files of their own; a checkpoint holds what training learned.
        self.register_buffer("present", torch.stack([signal.present for signal in signals.values()]), persistent=False)
        for index, signal in enumerate(signals.values()):
            self.register_buffer(f"vectors_{index}", signal.rows, persistent=False)
        n_signals, n_outputs = len(signals), n_heads * (1 if shared_layers else n_layers)
        if mode == "undiscretised":
            self.weight = nn.Parameter(torch.zeros(2 * n_signals + 1, n_outputs))
        else:
            self.weight = nn.Parameter(torch.zeros(n_signals, n_bins + 2, n_outputs))  # [M, Q, E * A]
            self.register_buffer("edges", torch.zeros(n_signals, n_bins - 1))

    @classmethod
    def from_dataset(
        cls, config: Any, dataset: Any, n_layers: int, n_heads: int, max_length: int
    ) -> "SimilarityAttention | None":
        """Make it from the settings; none where `similarity_attention` is off or there is nothing to compare.

        Compared are quantised vectors of the semantic IDs, or with `codes: none` the raw features. The bucket edges are
        measured from the data set's `train_sequences`, in windows of `max_length` items; without them they come with
        the weights.
        """
        mode, wanted, catalogue = config["similarity_attention"], config["similarity_signals"], dataset.catalogue
        raw = config["codes"] == "none"
        if mode == "off" or (catalogue.features if raw else catalogue.semantic_ids) is None:
            return None
        signals = catalogue.content if raw else catalogue.quantised
        unknown = [name for name in wanted or () if name not in signals]
        if unknown:
            raise InputError(
                f"similarity_signals: found {unknown[0]!r}, expected some of {', '.join(signals) or 'none'}; leave the "
                "key out to compare all of them"
            )
        chosen = {name: signal for name, signal in signals.items() if wanted is None or name in wanted}
        if not chosen:
            return None
        similarity = cls(chosen, mode, n_layers, n_heads, shared_layers=config["similarity_shared_layers"])
        sequences = dataset.train_sequences
        if sequences is not None and mode != "undiscretised":
            similarity.fit_edges(*sample_pairs(sequences.offsets, sequences.items, max_length - 1, config["seed"]))
        return similarity

    @property
    def vectors(self) -> list[Tensor]:
        """One [N, C] matrix of unit vectors per signal."""
        return [self.get_buffer(f"vectors_{index}") for index in range(len(self.signals))]

    def fit_edges(self, left: Tensor, right: Tensor) -> None:
        """Set the quantile edges from pairs of item ids, `left` and `right` [n]; pairs of one item do not count."""
        levels = torch.arange(1, self.n_bins, dtype=torch.float64) / self.n_bins
        for signal, (vectors, present) in enumerate(zip(self.vectors, self.present, strict=True)):
            kept = present[left] & present[right] & (left != right)
            # Pair by pair in double precision: the edges must not depend on how other pairs are batched.
            cosine = (vectors[left[kept]].double() * vectors[right[kept]].double()).sum(-1)
            if len(cosine):
                # Quantised vectors have few different cosines, and a quantile often is one of them: the edge is put
                # below it, where no rounding error of a batch can carry a pair across.
                self.edges[signal] = (torch.quantile(cosine, levels.to(cosine.device)) - ROUNDING).float()

    def forward(self, item_seq: Tensor) -> list[Tensor]:
        """Return the biases [B, A, T, T] of all E layers for histories [B, T].

        Entry [.., a, b] is for position a attending to position b. Ids beyond the catalogue, such as BERT4Rec's mask
        token, count as items without any signal.
        """
        items = torch.where(item_seq < self.present.shape[1], item_seq, 0)
        if self.mode == "undiscretised":
            biases = self._linear_biases(items)
        else:
            biases = _summed_weights(self.weight, self.buckets(items))
        layers = [layer.transpose(0, 1) for layer in biases.unflatten(0, (-1, self.n_heads)).unbind(0)]
        return layers * self.n_layers if self.shared_layers else layers

    def buckets(self, items: Tensor) -> Tensor:
        """Return the buckets [M, B, T, T] of all pairs of items of histories [B, T]."""
        same = items.unsqueeze(-1) == items.unsqueeze(-2)  # [B, T, T]
        result = []
        for (cosine, both), edges in zip(self._pairs(items), self.edges, strict=True):
            bucket = torch.bucketize(cosine, edges, right=True)
            result.append(bucket.masked_fill_(same, self.n_bins).masked_fill_(~both, self.n_bins + 1))
        return torch.stack(result)

    def _pairs(self, items: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cosine [B, T, T] of all pairs of items [B, T] in each signal, and whether both items have it."""
        result = []
        for vectors, present in zip(self.vectors, self.present, strict=True):
            rows, known = functional.embedding(items, vectors), present[items]  # [B, T, C], [B, T]
            result.append((rows @ rows.transpose(-1, -2), known.unsqueeze(-1) & known.unsqueeze(-2)))
        return result

    def _linear_biases(self, items: Tensor) -> Tensor:
        """Weighted sum of the cosines and flags of the pairs, [E * A, B, T, T]."""
        same = (items.unsqueeze(-1) == items.unsqueeze(-2)) & (items != 0).unsqueeze(-1)
        pairs = self._pairs(items)
        cosines, flags = [cosine * (both & ~same) for cosine, both in pairs], [*(~both for _, both in pairs), same]
        inputs = torch.stack([*cosines, *(flag.to(cosines[0]) for flag in flags)], dim=1)  # [B, 2 M + 1, T, T]
        # One product per history: the gradient of a single long one adds up in an order that threads decide.
        weights = self.weight.T.expand(items.shape[0], -1, -1)
        return torch.bmm(weights, inputs.flatten(2)).transpose(0, 1).unflatten(2, items.shape[1:] * 2)


def _summed_weights(weight: Tensor, buckets: Tensor) -> Tensor:
    """Sum over the signals of `weight[signal, bucket]`: of weights [M, Q, R] at buckets [M, ...], [R, ...].

    Signals are looked up together: their buckets make one joint bucket, one digit of it each, and a table holds the
    sums of the weights. With three signals, 128 histories of 50 items and a gradient, that takes 20 ms instead of the
    33 ms of a look-up for each, in a training step of 175 ms (one core).
    """
    n_buckets = weight.shape[1]
    at_once = max(int(math.log(MAX_TABLE) / math.log(n_buckets)), 1)
    parts = []
    for some_buckets, some_weights in zip(buckets.split(at_once), weight.split(at_once), strict=True):
        joint, table = some_buckets[0], some_weights[0].T  # [...], [R, Q]
        for bucket, more in zip(some_buckets[1:], some_weights[1:], strict=True):
            joint = joint * n_buckets + bucket
            table = (table.unsqueeze(2) + more.T.unsqueeze(1)).flatten(1)  # [R, Q * Q], [R, Q * Q * Q]
        parts.append(_look_up(table, joint, sort=table.is_cuda))
    return sum(parts[1:], parts[0])


def _look_up(table: Tensor, index: Tensor, sort: bool) -> Tensor:
    """Columns [R, ...] of a table [R, n] by index [...]; the gradient is the same each time, on any number of threads.

    On a CPU, `gather` adds up each row's gradient in order, many times faster than `embedding` does. On a GPU it adds
    in any order, and `embedding`, which can `sort` the index first, has to do it.
    """
    if sort:
        return functional.embedding(index, table.T).movedim(-1, 0)
    return table.gather(1, index.view(1, -1).expand(len(table), -1)).unflatten(1, index.shape)


def sample_pairs(offsets: np.ndarray, items: np.ndarray, max_distance: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw at most `N_PAIRS` pairs of items that stand at most `max_distance` apart in one training sequence."""
    lengths = np.diff(offsets)
    position = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    earlier = np.minimum(position, max_distance)  # how many partners each item has before it
    usable = np.flatnonzero(earlier)
    if not len(usable):
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    generator = np.random.default_rng(seed)
    chosen = generator.choice(usable, size=min(N_PAIRS, int(earlier.sum())), p=earlier[usable] / earlier.sum())
    partner = chosen - 1 - (generator.random(len(chosen)) * earlier[chosen]).astype(np.int64)
    return torch.from_numpy(items[partner]), torch.from_numpy(items[chosen])
