"""Transformer layers: attention with an optional similarity bias, keys and values of earlier calls, and a memory.

Shapes: L positions that read, S positions that are read, A attention heads, D width of one (H / A unless set), H hidden
width; `...` stands for sequences, or for sequences and their prefixes.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .cpu_speed import Dropout

KeysValues = tuple[Tensor, Tensor]  # keys and values [..., A, S, D] of positions
DEVIATION = 0.02  # standard deviation of the initial weights; BERT's, as in RecBole's transformers


@dataclass(frozen=True)
class LayerSettings:
    """Sizes and dropouts of a transformer layer."""

    hidden_size: int  # width H
    inner_size: int  # width inside the feed-forward part
    n_heads: int  # number A of attention heads
    dropout: float  # of what the parts of a layer add
    attn_dropout: float  # of attention weights
    eps: float = 1e-12  # added to the variance in layer norms; BERT's, as in RecBole's SASRec
    head_size: int | None = None  # width D of a head; none = H / A
    fused: bool = True  # whether self-attention makes query, key and value in one product; it rounds differently

    @classmethod
    def from_config(cls, config: Any) -> "LayerSettings":
        """Read the first five from the settings."""
        keys = "hidden_size", "inner_size", "n_heads", "hidden_dropout_prob", "attn_dropout_prob"
        return cls(*(config[key] for key in keys))


def initialise(module: nn.Module) -> None:
    """Draw the weights of linear layers and embeddings from a normal distribution; biases and padding are zero."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=DEVIATION)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def causal_mask(n_items: int, device: torch.device, n_readers: int = 1, n_read: int = 1) -> Tensor:
    """Mask of what positions may read, up to their own item's; an item has `n_readers` that read, `n_read` to read."""
    mask = torch.ones(n_items, n_items, dtype=torch.bool, device=device).tril()
    return mask.repeat_interleave(n_readers, dim=0).repeat_interleave(n_read, dim=1)


def reweight(scores: Tensor, bias: Tensor, mode: str) -> Tensor:
    """Let a bias [..., A, L, S] into attention scores QK'/sqrt(d), before their softmax; zero changes nothing."""
    return scores * (1 + bias) if mode == "multiplicative" else scores + bias


class Attention(nn.Module):
    """Multi-head attention, of positions over each other or over a memory; `mode` as in `reweight`."""

    def __init__(self, settings: LayerSettings, mode: str = "additive") -> None:
        super().__init__()
        self.n_heads, self.mode, self.fused = settings.n_heads, mode, settings.fused
        width = settings.n_heads * settings.head_size if settings.head_size else settings.hidden_size
        self.query_key_value = nn.Linear(settings.hidden_size, 3 * width)
        self.output = nn.Linear(width, settings.hidden_size)
        self.dropout = Dropout(settings.attn_dropout)

    def forward(
        self, hidden: Tensor, visible: Tensor | None, bias: Tensor | None = None, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Let positions read each other: map [..., L, H] to [..., L, H].

        `visible` [..., L, S] says which positions each may read, none = all; `bias` is [..., A, L, S]. Keys and values
        of the positions before these, `past`, are returned with those of these behind them.
        """
        parts = [(0, 3)] if self.fused else [(0, 1), (1, 3)]
        query, key, value = (part for bounds in parts for part in self._project(hidden, *bounds))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=-2), torch.cat([past[1], value], dim=-2)
        return self._attend(query, key, value, visible, bias), (key, value)

    def read(self, hidden: Tensor, memory: KeysValues, visible: Tensor) -> Tensor:
        """Let positions [..., L, H] read others, whose `keys_values` are `memory`; `visible` as in `forward`."""
        (query,) = self._project(hidden, 0, 1)
        return self._attend(query, *memory, visible)

    def keys_values(self, hidden: Tensor) -> KeysValues:
        """Return the keys and values of positions [..., S, H]."""
        key, value = self._project(hidden, 1, 3)
        return key, value

    def _project(self, hidden: Tensor, first: int, end: int) -> list[Tensor]:
        """Parts `first` to `end` of query, key and value, [..., A, L, D] each."""
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        rows = slice(first * len(bias) // 3, end * len(bias) // 3)
        parts = functional.linear(hidden, weight[rows], bias[rows]).chunk(end - first, dim=-1)  # [..., L, A * D] each
        return [part.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2) for part in parts]

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        # Written out on a CPU: with and without a bias the same operations run, so a bias of zero is the plain
        # transformer to the last bit, and at these lengths torch's fused attention is not faster there.
        if bias is None and query.device.type != "cpu":
            seen = None if visible is None else visible.unsqueeze(-3)
            dropped = self.dropout.p if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(query, key, value, seen, dropped)
            return self.output(mixed.transpose(-3, -2).flatten(-2))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # [..., A, L, S]
        if bias is not None:
            scores = reweight(scores, bias, self.mode)
        if visible is not None:
            scores = scores.masked_fill(~visible.unsqueeze(-3), -torch.inf)
        mixed = self.dropout(scores.softmax(dim=-1)) @ value  # [..., A, L, D]
        return self.output(mixed.transpose(-3, -2).flatten(-2))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer with GELU; where it `reads_memory`, positions also read an encoder's states."""

    def __init__(self, settings: LayerSettings, mode: str = "additive", reads_memory: bool = False) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, settings.hidden_size, eps=settings.eps)
        self.attention_norm, self.attention = norm(), Attention(settings, mode)
        if reads_memory:
            self.memory_norm, self.memory_attention = norm(), Attention(settings)
        self.feed_forward_norm = norm()
        self.feed_forward = nn.Sequential(
            nn.Linear(settings.hidden_size, settings.inner_size),
            nn.GELU(),
            Dropout(settings.dropout),
            nn.Linear(settings.inner_size, settings.hidden_size),
        )
        self.dropout = Dropout(settings.dropout)

    def forward(self, hidden: Tensor, visible: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map [B, L, H] to [B, L, H]; `visible` and `bias` as in `Attention.forward`."""
        attended, _ = self.attention(self.attention_norm(hidden), visible, bias)
        return self._feed_forward(hidden + self.dropout(attended))

    def decode(
        self, hidden: Tensor, visible: Tensor | None, past: KeysValues | None, memory: KeysValues, read: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Map L positions of W prefixes of each sequence, [B, W, L, H], to [B, W, L, H].

        `visible` and `past` are as in `Attention.forward`; keys and values are returned beside the result. `memory` has
        keys and values [B, A, S, D] of the encoder's states, the same for all prefixes of a sequence; `read` [B, W * L,
        S] says which of them each position may read; B and W * L may be 1.
        """
        attended, keys_values = self.attention(self.attention_norm(hidden), visible, past=past)
        hidden = hidden + self.dropout(attended)
        # The prefixes of a sequence stand side by side here: one product with its memory for all of them.
        found = self.memory_attention.read(self.memory_norm(hidden).flatten(1, 2), memory, read)
        return self._feed_forward(hidden + self.dropout(found.unflatten(1, hidden.shape[1:3]))), keys_values

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
