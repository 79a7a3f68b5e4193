"""How alike the items of a history are, as attention reads it: cosine of every pair -> a learned bias.

The paper's semantics re-weight attention and leave the sequence model as it is; this module is that part, for whatever
model has attention layers. What is compared comes from `signals`.

Shapes: B histories, T items of the longest, N items (row 0 = padding), S signals, C width of a signal's vectors, Q
buckets, E attention layers, A heads, P = T * (T + 1) / 2 pairs of a history.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..errors import InputError
from .signals import SignalVectors, sample_pairs, signal_vectors

MODES = ("additive", "multiplicative", "undiscretised", "off")
"""Values of `similarity_attention`."""

ROUNDING = 1e-5
"""How far bucket edges stay below the cosines they were measured from."""

MAX_TABLE = 8192
"""Most joint buckets of several signals in one table of biases, which is made anew in every step."""


class SimilarityAttention(nn.Module):
    """Biases of attention scores, learned for the similarity of the items of a history; all zero at the start.

    `additive` and `multiplicative` discretise the cosine of two items (they differ in how the bias enters, see
    `attention.reweight`): buckets 0 .. n_bins - 1 are quantiles over pairs of items that stand in one training
    sequence; bucket n_bins means the same item, n_bins + 1 that one of the two lacks the signal. Every bucket has a
    weight per signal, layer and head. `undiscretised` is the control for it, and additive: instead of the buckets one
    weight times the cosine, one where an item lacks the signal, and one, common to all signals, for the same item.

    Parameters
    ----------
    items : the items' signals.
    mode : additive | multiplicative | undiscretised.
    n_layers, n_heads : attention layers E of the model, and their heads A.
    n_bins : number of quantile buckets.
    shared_layers : one set of weights for all layers.
    """

    edges: torch.Tensor

    def __init__(
        self,
        items: SignalVectors,
        mode: str,
        n_layers: int,
        n_heads: int,
        n_bins: int = 16,
        shared_layers: bool = False,
    ) -> None:
        super().__init__()
        self.items, self.mode, self.n_bins = items, mode, n_bins
        self.n_layers, self.n_heads, self.shared_layers = n_layers, n_heads, shared_layers
        n_signals, n_outputs = len(items.signals), n_heads * (1 if shared_layers else n_layers)
        if mode == "undiscretised":
            self.weight = nn.Parameter(torch.zeros(2 * n_signals + 1, n_outputs))
        else:
            self.weight = nn.Parameter(torch.zeros(n_signals, self.n_buckets, n_outputs))
            self.register_buffer("edges", torch.zeros(n_signals, n_bins - 1))

    @classmethod
    def from_dataset(
        cls, config: Any, dataset: Any, n_layers: int, n_heads: int, max_length: int
    ) -> "SimilarityAttention | None":
        """Make it from the settings and from what a data set knows of its items.

        Parameters
        ----------
        config : reads `similarity_attention`, `n_similarity_bins`, `similarity_signals`, `similarity_shared_layers`,
            `codes` and `seed`.
        dataset : its `catalogue`; `train_sequences`, from which the bucket edges are measured, or none where they come
            with the weights.
        max_length : longest history that the model reads.

        Returns
        -------
        None where `similarity_attention` is off or there is nothing to compare.

        Raises
        ------
        InputError : an unknown mode or signal.
        """
        mode = config["similarity_attention"]
        if mode not in MODES:
            raise InputError(f"similarity_attention: found {mode!r}, expected one of {', '.join(MODES)}")
        items = signal_vectors(config, dataset.catalogue) if mode != "off" else None
        if items is None:
            return None
        shared = bool(config["similarity_shared_layers"])
        similarity = cls(items, mode, n_layers, n_heads, config["n_similarity_bins"], shared)
        sequences = dataset.train_sequences
        if sequences is not None and mode != "undiscretised":
            similarity.fit_edges(*sample_pairs(sequences.offsets, sequences.items, max_length - 1, config["seed"]))
        return similarity

    @property
    def n_buckets(self) -> int:
        """Number Q of buckets of a signal."""
        return self.n_bins + 2

    def fit_edges(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Set the quantile edges from pairs of item ids, `left` and `right` [n]; pairs of one item do not count."""
        levels = torch.arange(1, self.n_bins, dtype=torch.float64) / self.n_bins
        for signal, (vectors, present) in enumerate(zip(self.items.vectors, self.items.present, strict=True)):
            kept = present[left] & present[right] & (left != right)
            # Pair by pair in double precision: the edges must not depend on how other pairs are batched.
            cosine = (vectors[left[kept]].double() * vectors[right[kept]].double()).sum(-1)
            if len(cosine):
                # Quantised vectors have few different cosines, and a quantile often is one of them: the edge is put
                # below it, where no rounding error of a batch can carry a pair across.
                self.edges[signal] = (torch.quantile(cosine, levels.to(cosine.device)) - ROUNDING).float()

    def forward(self, item_seq: torch.Tensor) -> list[torch.Tensor]:
        """Return the biases [B, A, T, T] of all E layers for histories [B, T].

        Entry [.., a, b] is for position a attending to position b, and equals entry [.., b, a]. Ids beyond the
        catalogue count as items without any signal.
        """
        items = self.items.in_catalogue(item_seq)
        biases = self._linear_biases(items) if self.mode == "undiscretised" else self._bucket_biases(items)
        layers = [layer.transpose(0, 1) for layer in biases.unflatten(0, (-1, self.n_heads)).unbind(0)]
        return layers * self.n_layers if self.shared_layers else layers

    def buckets(self, items: torch.Tensor) -> torch.Tensor:
        """Return the buckets [S, B, P] of all pairs of positions (a, b), b <= a, of histories [B, T].

        Pairs are ordered by a, then by b: (0, 0), (1, 0), (1, 1), (2, 0) ..
        """
        later, earlier = torch.tril_indices(items.shape[1], items.shape[1], device=items.device)
        same = items.index_select(1, later) == items.index_select(1, earlier)
        result = []
        for vectors, present, edges in zip(self.items.vectors, self.items.present, self.edges, strict=True):
            cosine = _cosines(vectors, items).flatten(1).index_select(1, later * items.shape[1] + earlier)
            known = present[items]
            both = known.index_select(1, later) & known.index_select(1, earlier)
            bucket = torch.bucketize(cosine, edges, right=True)
            result.append(bucket.masked_fill_(same, self.n_bins).masked_fill_(~both, self.n_bins + 1))
        return torch.stack(result)

    def _bucket_biases(self, items: torch.Tensor) -> torch.Tensor:
        """Sum over the signals of the weights of the pairs' buckets, [E * A, B, T, T].

        Signals are taken together: their buckets make one joint bucket, and one table holds the sums of the weights.
        Looking up once instead of once per signal is most of what this part costs in training.
        """
        at_once = max(int(np.log(MAX_TABLE) / np.log(self.n_buckets)), 1)
        pair = _pair_numbers(items.shape[1], items.device).expand(len(items), -1)
        parts = []
        for buckets, weights in zip(self.buckets(items).split(at_once), self.weight.split(at_once), strict=True):
            joint, table = buckets[0], weights[0].T  # [B, P], [E * A, Q]
            for bucket, weight in zip(buckets[1:], weights[1:], strict=True):
                joint = joint * self.n_buckets + bucket
                table = (table.unsqueeze(2) + weight.T.unsqueeze(1)).flatten(1)  # [E * A, Q * Q], [.., Q * Q * Q]
            parts.append(_look_up(table, joint.gather(1, pair), table.is_cuda))  # [E * A, B, T * T]
        return sum(parts[1:], parts[0]).unflatten(2, items.shape[1:] * 2)

    def _linear_biases(self, items: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the cosines and flags of the pairs, [E * A, B, T, T]."""
        same = (items.unsqueeze(-1) == items.unsqueeze(-2)) & (items != 0).unsqueeze(-1)
        cosines, missing = [], []
        for vectors, present in zip(self.items.vectors, self.items.present, strict=True):
            known = present[items]
            both = known.unsqueeze(-1) & known.unsqueeze(-2)
            cosines.append(_cosines(vectors, items) * (both & ~same))
            missing.append(~both)
        inputs = torch.stack([*cosines, *missing, same], dim=1)  # [B, 2 S + 1, T, T]
        # One product per history: the gradient of a single long one adds up in an order that threads decide.
        weights = self.weight.T.expand(len(items), -1, -1)
        return torch.bmm(weights, inputs.flatten(2)).transpose(0, 1).unflatten(2, items.shape[1:] * 2)


def _cosines(vectors: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Cosines [B, T, T] of the unit vectors [N, C] of all pairs of items [B, T]."""
    rows = functional.embedding(items, vectors)
    return rows @ rows.transpose(-1, -2)


def _pair_numbers(length: int, device: torch.device) -> torch.Tensor:
    """Where in the order of `buckets` the pair of positions (a, b) stands, in either order; [1, T * T]."""
    position = torch.arange(length, device=device)
    later, earlier = torch.maximum(position, position.unsqueeze(1)), torch.minimum(position, position.unsqueeze(1))
    return (later * (later + 1) // 2 + earlier).view(1, -1)


def _look_up(table: torch.Tensor, index: torch.Tensor, sorts: bool) -> torch.Tensor:
    """Columns [R, ...] of a table [R, n] by index [...]; the gradient is the same each time, on any number of threads.

    On a CPU, `gather` adds up each row's gradient in order, many times faster than `embedding` does. On a GPU it adds
    in any order, and `embedding`, which sorts the index first, has to do it.
    """
    if sorts:
        return functional.embedding(index, table.T).movedim(-1, 0)
    return table.gather(1, index.view(1, -1).expand(len(table), -1)).unflatten(1, index.shape)
