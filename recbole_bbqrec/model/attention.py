"""Similarity-enhanced self-attention (paper: semantics re-weight attention and leave the sequence model as it is).

Shapes: B sequences, T items of the longest, A attention heads, E layers, S signals, Q buckets, C width of a quantised
vector, H hidden width.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..tokenizer.fit import Encoded

N_PAIRS = 200_000
"""Training pairs from which bucket edges are measured."""


ROUNDING = 1e-5
"""How far bucket edges stay below the cosines they were measured from."""


class SimilarityBuckets(nn.Module):
    """Discretised cosine of the quantised vectors of two items, per signal.

    Buckets 0 .. n_bins - 1 are quantiles of the cosine over pairs of items that stand in one training sequence; bucket
    n_bins means the same item, n_bins + 1 that one of the two lacks the signal.

    Parameters
    ----------
    vectors : [S, N, C] quantised vectors by item id.
    present : [S, N] whether an item has the signal.
    n_bins : number of quantile buckets.
    """

    vectors: torch.Tensor
    present: torch.Tensor
    edges: torch.Tensor

    def __init__(self, vectors: torch.Tensor, present: torch.Tensor, n_bins: int) -> None:
        super().__init__()
        self.n_bins = n_bins
        # The vectors belong to the item tokenizer, which is kept on its own; only the edges are learned here.
        self.register_buffer("vectors", functional.normalize(vectors, dim=-1), persistent=False)
        self.register_buffer("present", present, persistent=False)
        self.register_buffer("edges", torch.zeros(len(vectors), n_bins - 1))

    @property
    def n_buckets(self) -> int:
        """Number Q of buckets of a signal."""
        return self.n_bins + 2

    def fit_edges(self, left: torch.Tensor, right: torch.Tensor) -> None:
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

    def append(self, n_new: int, encoded: Encoded | None) -> None:
        """Add `n_new` items with the vectors of their IDs; without IDs they lack every signal."""
        shape = (len(self.vectors), n_new)
        vectors = self.vectors.new_zeros(*shape, self.vectors.shape[-1]) if encoded is None else encoded.vectors
        present = self.present.new_zeros(shape) if encoded is None else encoded.present
        self.vectors = torch.cat([self.vectors, functional.normalize(vectors.to(self.vectors), dim=-1)], dim=1)
        self.present = torch.cat([self.present, present.to(self.present)], dim=1)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return the buckets [S, B, T, T] of all pairs of a sequence; `items` [B, T]."""
        same = items.unsqueeze(-1) == items.unsqueeze(-2)  # [B, T, T]
        buckets = []
        for vectors, present, edges in zip(self.vectors, self.present, self.edges, strict=True):
            rows, known = vectors[items], present[items]  # [B, T, C], [B, T]
            bucket = torch.bucketize(rows @ rows.transpose(-1, -2), edges, right=True)
            bucket = bucket.masked_fill(same, self.n_bins)
            missing = ~(known.unsqueeze(-1) & known.unsqueeze(-2))
            buckets.append(bucket.masked_fill(missing, self.n_bins + 1))
        return torch.stack(buckets)


def sample_pairs(
    offsets: np.ndarray, items: np.ndarray, max_distance: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pairs of items that stand at most `max_distance` apart in one training sequence.

    Returns
    -------
    Two tensors [n] of item ids, n at most `N_PAIRS`; the same for the same sequences and seed.
    """
    lengths = np.diff(offsets)
    position = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    earlier = np.minimum(position, max_distance)  # how many partners each item has before it
    usable = np.flatnonzero(earlier)
    if not len(usable):
        empty = torch.zeros(0, dtype=torch.long)
        return empty, empty
    generator = np.random.default_rng(seed)
    chosen = generator.choice(usable, size=min(N_PAIRS, int(earlier.sum())), p=earlier[usable] / earlier.sum())
    partner = chosen - 1 - (generator.random(len(chosen)) * earlier[chosen]).astype(np.int64)
    return torch.from_numpy(items[partner]), torch.from_numpy(items[chosen])


class SimilarityBias(nn.Module):
    """A learned weight per signal, bucket, layer and head, summed over the signals; all zero at the start."""

    def __init__(self, n_signals: int, n_buckets: int, n_layers: int, n_heads: int) -> None:
        super().__init__()
        self.n_layers = n_layers
        self.weight = nn.Parameter(torch.zeros(n_signals, n_buckets, n_layers * n_heads))

    def forward(self, buckets: torch.Tensor) -> torch.Tensor:
        """Turn buckets [S, B, T, T] into biases [E, B, A, T, T]."""
        bias = sum(functional.embedding(bucket, weight) for bucket, weight in zip(buckets, self.weight, strict=True))
        return bias.unflatten(-1, (self.n_layers, -1)).permute(3, 0, 4, 1, 2)  # type: ignore[union-attr]


class CausalSelfAttention(nn.Module):
    """Multi-head attention over earlier items, with an optional similarity bias.

    Parameters
    ----------
    mode : `additive`: softmax(QK'/sqrt(d) + bias); `multiplicative`: softmax(QK'/sqrt(d) * (1 + bias)).
    """

    def __init__(self, hidden_size: int, n_heads: int, dropout: float, mode: str = "additive") -> None:
        super().__init__()
        self.n_heads = n_heads
        self.mode = mode
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Map [B, T, H] to [B, T, H]; `bias` [B, A, T, T] or none."""
        query, key, value = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [B, A, T, H / A]
            for part in self.query_key_value(hidden).chunk(3, dim=-1)
        )
        # Written out instead of torch's fused attention: with and without a bias the same operations run, so a bias of
        # zero is the plain transformer to the last bit, and at these lengths the fused form is not faster.
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if bias is not None:
            scores = scores + bias if self.mode == "additive" else scores * (1 + bias)
        length = hidden.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        weights = self.dropout(scores.masked_fill(future, -torch.inf).softmax(dim=-1))
        return self.output((weights @ value).transpose(1, 2).flatten(-2))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer with GELU."""

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        n_heads: int,
        dropout: float,
        attn_dropout: float,
        eps: float,
        mode: str,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.attention = CausalSelfAttention(hidden_size, n_heads, attn_dropout, mode)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, inner_size), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Map [B, T, H] to [B, T, H]."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), bias))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
