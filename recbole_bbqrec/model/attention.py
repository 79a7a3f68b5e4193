"""A causal transformer whose attention takes a similarity bias; the bias itself comes from `similarity`.

Shapes: B sequences, T items of the longest, A attention heads, H hidden width.
"""

import math

import torch
from torch import nn

from .dropout import Dropout


def reweight(scores: torch.Tensor, bias: torch.Tensor, mode: str) -> torch.Tensor:
    """Let a bias [B, A, T, T] into attention scores QK'/sqrt(d), before their softmax.

    Parameters
    ----------
    mode : `multiplicative`: scores * (1 + bias); any other: scores + bias. A bias of zero changes nothing in either.
    """
    return scores * (1 + bias) if mode == "multiplicative" else scores + bias


class CausalSelfAttention(nn.Module):
    """Multi-head attention over earlier items, with an optional similarity bias.

    Parameters
    ----------
    mode : how the bias enters, see `reweight`.
    """

    def __init__(self, hidden_size: int, n_heads: int, dropout: float, mode: str = "additive") -> None:
        super().__init__()
        self.n_heads = n_heads
        self.mode = mode
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

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
            scores = reweight(scores, bias, self.mode)
        length = hidden.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
        weights = self.dropout(scores.masked_fill(future, -torch.inf).softmax(dim=-1))
        return self.output((weights @ value).transpose(1, 2).flatten(-2))


def feed_forward(hidden_size: int, inner_size: int, dropout: float) -> nn.Sequential:
    """Two linear layers with a GELU and dropout between them, [..., H] to [..., H]."""
    return nn.Sequential(
        nn.Linear(hidden_size, inner_size), nn.GELU(), Dropout(dropout), nn.Linear(inner_size, hidden_size)
    )


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
        self.feed_forward = feed_forward(hidden_size, inner_size, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Map [B, T, H] to [B, T, H]."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), bias))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
