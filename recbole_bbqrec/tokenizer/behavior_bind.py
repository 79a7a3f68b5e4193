"""The network of stage 1: behaviour signals, bound by one quantiser (paper: dual-aligned quantisation).

Shapes: B items, M modalities, S signals (the modalities, then the ID if used), G chains of codes (S, or 1 where the
signals are fused), L levels, D code width, R sequences, T items of the longest.
"""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from .residual_quantizer import ResidualQuantizer

ID_SIGNAL, FUSED_SIGNAL = "id", "fused"
MODES = ("chained", "concat", "fused")
HIDDEN, HIDDEN_SPECIFIC = 256, 512
"""Width of the hidden layers of the behaviour encoders, and of what makes and reads the specific part: with 256 there
the error of the rebuilt features was half as large again (Beauty, .184 against .122).
"""
WHITENING_RATE, WHITENING_FLOOR = 0.1, 1e-3
"""Share of the newest batch in the moving averages, as of batch normalisation; and the least variance that is scaled
up, so that batches of fewer items than dimensions have a covariance to divide by."""
HEADS = 2
MAX_LENGTH = 20
"""Longest history the sequence encoder reads: it has to learn which items follow each other, not to rank them."""
CHUNK = 4096
"""Items of a catalogue that pass the network at once."""


class Catalogue(NamedTuple):
    """Items: M standardised feature matrices [B, D_m], and which items have them [M, B]."""

    features: list[torch.Tensor]
    known: torch.Tensor

    def rows(self, rows: torch.Tensor) -> "Catalogue":
        """Some of the items."""
        return Catalogue([matrix[rows] for matrix in self.features], self.known[:, rows])


class Bound(NamedTuple):
    """Quantised signals of items.

    What each chain quantised [G, B, D] and its quantised form [G, B, D], zero where the signal is missing; its codes
    [G, B, L], -1 where it is missing; codebook and commitment loss, mean over the chains.
    """

    inputs: torch.Tensor
    vectors: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor


class Split(NamedTuple):
    """What the features of a modality are split into.

    The specific part [B, D]; the features [B, D_m] as the behaviour part alone explains them; and as both parts rebuild
    them.
    """

    specific: torch.Tensor
    explained: torch.Tensor
    decoded: torch.Tensor


class BehaviorBind(nn.Module):
    """Encoders, item table, shared quantiser, decoders of both parts and of the behaviour part alone, sequence encoder.

    Parameters
    ----------
    feature_dims : modality -> width of its features; may be empty.
    n_items : rows of the learnable item table z_ID; 0 leaves the ID signal out.
    quantizer : quantiser of all signals.
    mode : `chained`: each signal is quantised together with what the signal before it left over; `concat`: each alone;
        `fused`: their mean, once.
    """

    def __init__(self, feature_dims: Mapping[str, int], n_items: int, quantizer: ResidualQuantizer, mode: str) -> None:
        super().__init__()
        dim = quantizer.codebooks.shape[-1]
        self.mode = mode
        self.quantizer = quantizer
        signals = [*feature_dims, *([ID_SIGNAL] if n_items else [])]
        self.chains = [FUSED_SIGNAL] if mode == "fused" else signals
        # Modalities are numbered here: torch allows no dots in the names of submodules.
        self.specific = nn.ModuleList(
            nn.Sequential(mlp(width, HIDDEN_SPECIFIC, dim), Whitening(dim)) for width in feature_dims.values()
        )
        self.behavior = nn.ModuleList(mlp(width, HIDDEN, dim) for width in feature_dims.values())
        self.explained = nn.ModuleList(mlp(dim, HIDDEN_SPECIFIC, width) for width in feature_dims.values())
        self.decoders = nn.ModuleList(mlp(2 * dim, HIDDEN_SPECIFIC, width) for width in feature_dims.values())
        self.item_table = nn.Parameter(torch.randn(n_items, dim) * 0.02) if n_items else None
        self.sequence = SequenceEncoder(dim)

    def id_rows(self, items: torch.Tensor) -> torch.Tensor | None:
        """Rows [B, D] of the item table, if there is one."""
        return None if self.item_table is None else functional.embedding(items, self.item_table)

    def signals(self, features: list[torch.Tensor], known: torch.Tensor, id_rows: torch.Tensor | None) -> torch.Tensor:
        """Behaviour signals [S, B, D] before quantisation, each of unit length, so that one set of codes fits all.

        Standardised features and `known` as in `Catalogue`; `id_rows` [B, D] of the item table, if there is one.
        """
        parts = [encoder(x) for encoder, x in zip(self.behavior, features, strict=True)]
        rows = functional.normalize(torch.stack(parts if id_rows is None else [*parts, id_rows]), dim=-1)
        return rows * self.signals_known(known).unsqueeze(-1)

    def signals_known(self, known: torch.Tensor) -> torch.Tensor:
        """Which signals [S, B] an item has, from `known` [M, B]: the ID signal, where it is used, every item has."""
        return known if self.item_table is None else torch.cat([known, known.new_ones(1, known.shape[1])])

    def chains_known(self, known: torch.Tensor) -> torch.Tensor:
        """Which chains [G, B] an item has, from `known` [M, B]."""
        signals = self.signals_known(known)
        return signals.any(0, keepdim=True) if self.mode == "fused" else signals

    def bind(self, signals: torch.Tensor, known: torch.Tensor) -> Bound:
        """Quantise signals [S, B, D] by the chosen mode; `known` [M, B]."""
        signals, known = self._inputs(signals, known), self.chains_known(known)
        leftover = torch.zeros_like(signals[0])
        inputs, vectors, codes, loss = [], [], [], signals.new_zeros(())
        for chain, (signal, has) in enumerate(zip(signals, known, strict=True)):
            mask = has.unsqueeze(-1)
            x = signal + leftover
            quantized = self.quantizer.quantize(x, has, chain)
            if self.mode == "chained":
                # A missing modality drops out of the chain: what was left over passes it by. It is passed on as a
                # constant, or a signal would learn to leave what suits the next one.
                leftover = torch.where(mask, x - quantized.vectors, leftover).detach()
            inputs.append(x * mask)
            vectors.append(quantized.vectors * mask)
            codes.append(quantized.codes.masked_fill(~mask, -1))
            loss = loss + quantized.loss / len(signals)
        return Bound(torch.stack(inputs), torch.stack(vectors), torch.stack(codes), loss)

    @torch.no_grad()
    def all_signals(self, catalogue: Catalogue, items: torch.Tensor | None = None) -> torch.Tensor:
        """Signals [S, N, D] of the items that the network was made for, or of some of them."""
        rows = torch.arange(catalogue.known.shape[1], device=catalogue.known.device) if items is None else items
        parts = [self.signals(*catalogue.rows(part), self.id_rows(part)) for part in rows.split(CHUNK)]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def bind_all(self, signals: torch.Tensor, known: torch.Tensor) -> Bound:
        """As `bind`, for a whole catalogue, and with codes in the last chain for items without any signal; no loss."""
        chunks = zip(signals.split(CHUNK, dim=1), known.split(CHUNK, dim=1), strict=True)
        parts = zip(*(self.bind(*chunk)[:3] for chunk in chunks), strict=True)
        inputs, vectors, codes = (torch.cat(part, dim=1) for part in parts)
        bare = ~self.chains_known(known).any(0)
        codes[-1, bare] = self.quantizer.quantize(inputs[-1, bare], chain=len(codes) - 1).codes
        return Bound(inputs, vectors, codes, inputs.new_zeros(()))

    def unbound(self, signals: torch.Tensor, known: torch.Tensor) -> Bound:
        """As `bind`, without quantising: what the network learns from before its codebooks start."""
        signals = self._inputs(signals, known)
        codes = torch.full((*signals.shape[:2], self.quantizer.levels), -1, device=signals.device)
        return Bound(signals, signals, codes, signals.new_zeros(()))

    def _inputs(self, signals: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """What enters the chains [G, B, D]: the signals, or the mean of those an item has."""
        if self.mode != "fused":
            return signals
        return signals.sum(0, keepdim=True) / self.signals_known(known).sum(0).clamp(min=1).unsqueeze(-1)

    def split(self, modality: int, x: torch.Tensor, behavior: torch.Tensor) -> Split:
        """Take features [B, D_m] of a modality apart, given its behaviour part [B, D] before quantisation.

        The specific part encodes what the behaviour part does not explain. That rest has mean zero whatever the
        behaviour part is, so no linear map of it tells of behaviour; what else does, a probe finds (`losses.Probe`).
        """
        explained = self.explained[modality](behavior)
        # Held constant: learning from its own error alone, it stays the mean of the features given the behaviour part.
        constant = explained.detach()
        specific = self.specific[modality](x - constant)
        rest = self.decoders[modality](torch.cat([specific, behavior], dim=-1))
        return Split(specific, explained, constant + rest)


class Whitening(nn.Module):
    """Rows [B, D] of unit variance and without correlation: over the batch in training, by moving averages after it.

    With unit variance alone, all dimensions came to vary along one direction, from which a probe learns nothing and
    under which a decoder still finds what it needs.
    """

    mean: torch.Tensor
    covariance: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Centre the rows, and multiply them by the inverse of the covariance's Cholesky factor."""
        mean, covariance = self.mean, self.covariance
        if self.training:
            mean = rows.mean(0)
            covariance = (rows - mean).T @ (rows - mean) / len(rows)
            self.mean.lerp_(mean.detach(), WHITENING_RATE)
            self.covariance.lerp_(covariance.detach(), WHITENING_RATE)
        floor = WHITENING_FLOOR * torch.eye(len(mean), device=rows.device)
        factor = torch.linalg.cholesky_ex(covariance + floor).L  # the floor makes it positive: no check to wait for
        return torch.linalg.solve_triangular(factor, (rows - mean).T, upper=False).T


class SequenceEncoder(nn.Module):
    """One causal transformer layer over quantised items: [R, T, D] -> [R, T, D], row t knows items 0 .. t.

    One layer, because its only task is to tell the codebooks which items follow each other.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(MAX_LENGTH, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), *mlp(dim, 2 * dim, dim))
        self.dropout = nn.Dropout(0.1)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Encode; padding stands at the right, where the causal mask keeps it from every real position."""
        hidden = self.dropout(items + self.positions[: items.shape[1]])
        parts = self.query_key_value(self.norm(hidden)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts  # each [R, heads, T, D / heads]
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.mlp(hidden))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers from each width to the next, with GELU between them."""
    layers: list[nn.Module] = []
    for width, out in itertools.pairwise(widths):
        layers += [nn.Linear(width, out), nn.GELU()]
    return nn.Sequential(*layers[:-1])
