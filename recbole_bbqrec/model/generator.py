"""Generative scoring: a decoder spells the semantic ID of the next item, code by code (TIGER, arXiv 2305.05065).

Shapes: B histories, T items of the longest, N items (row 0 = padding), P positions of an ID, K codes per position,
S = K + 1 symbols (the codes, then "no code"), W prefixes of a history, p of their positions, A heads, D width of one
(H / A unless told otherwise), H hidden width.
"""

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from .attention import feed_forward
from .decoding import Pairs, Trie, beam_search, exact_likelihood
from .dropout import Dropout

KeysValues = tuple[torch.Tensor, torch.Tensor]

ENTRIES = 2**22
"""Numbers in the largest intermediate table; histories are scored in chunks that stay below it."""


def up_to_own_item(n_items: int, n_states: int, device: torch.device) -> torch.Tensor:
    """States [1, T, T * n] that each of T items may read: the n of every item up to its own."""
    return torch.ones(1, n_items, n_items, dtype=torch.bool, device=device).tril().repeat_interleave(n_states, dim=2)


class PrefixAttention(nn.Module):
    """Multi-head attention of a prefix's positions over the ones before them."""

    def __init__(self, hidden_size: int, n_heads: int, dropout: float, head_size: int | None = None) -> None:
        super().__init__()
        self.n_heads, width = n_heads, n_heads * head_size if head_size else hidden_size
        self.query_key_value = nn.Linear(hidden_size, 3 * width)
        self.output = nn.Linear(width, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: torch.Tensor, past: KeysValues | None) -> tuple[torch.Tensor, KeysValues]:
        """Map new positions [B, W, p, H] to [B, W, p, H].

        `past` are the keys and values [B, W, A, positions, D] of the positions before them; returned with the new ones
        behind them.
        """
        query, key, value = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(2, 3)  # [B, W, A, p, D]
            for part in self.query_key_value(hidden).chunk(3, dim=-1)
        )
        if past is not None:
            key, value = torch.cat([past[0], key], dim=-2), torch.cat([past[1], value], dim=-2)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        new, known = scores.shape[-2:]
        future = torch.ones(new, known, dtype=torch.bool, device=hidden.device).triu(1 + known - new)
        weights = self.dropout(scores.masked_fill(future, -torch.inf).softmax(dim=-1))
        return self.output((weights @ value).transpose(2, 3).flatten(-2)), (key, value)


class HistoryAttention(nn.Module):
    """Multi-head attention of prefixes over the encoder's states of their history."""

    def __init__(self, hidden_size: int, n_heads: int, dropout: float, head_size: int | None = None) -> None:
        super().__init__()
        self.n_heads, width = n_heads, n_heads * head_size if head_size else hidden_size
        self.query = nn.Linear(hidden_size, width)
        self.key_value = nn.Linear(hidden_size, 2 * width)
        self.output = nn.Linear(width, hidden_size)
        self.dropout = Dropout(dropout)

    def keys_values(self, memory: torch.Tensor) -> KeysValues:
        """Keys and values [B, A, T, D] of the states [B, T, H], the same for all prefixes of a history."""
        key, value = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.key_value(memory).chunk(2, dim=-1)
        )
        return key, value

    def forward(self, hidden: torch.Tensor, memory: KeysValues, visible: torch.Tensor) -> torch.Tensor:
        """Map [B, W, p, H] to [B, W, p, H]; `visible` [B, W, T] are the states that a prefix may read."""
        shape = hidden.shape[1:3]
        query = self.query(hidden).flatten(1, 2).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # [B, A, W * p, D]
        scores = query @ memory[0].transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores.unflatten(2, shape).masked_fill(~visible[:, None, :, None], -torch.inf)  # [B, A, W, p, T]
        mixed = self.dropout(scores.softmax(dim=-1)).flatten(2, 3) @ memory[1]
        return self.output(mixed.transpose(1, 2).flatten(-2)).unflatten(1, shape)


class DecoderLayer(nn.Module):
    """Pre-norm transformer decoder layer with GELU."""

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        n_heads: int,
        dropout: float,
        attn_dropout: float,
        eps: float,
        head_size: int | None = None,
    ) -> None:
        super().__init__()
        self.prefix_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.prefix_attention = PrefixAttention(hidden_size, n_heads, attn_dropout, head_size)
        self.history_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.history_attention = HistoryAttention(hidden_size, n_heads, attn_dropout, head_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward = feed_forward(hidden_size, inner_size, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self, hidden: torch.Tensor, past: KeysValues | None, memory: KeysValues, visible: torch.Tensor
    ) -> tuple[torch.Tensor, KeysValues]:
        """Map [B, W, p, H] to [B, W, p, H], and return the prefixes' keys and values."""
        attended, keys_values = self.prefix_attention(self.prefix_norm(hidden), past)
        hidden = hidden + self.dropout(attended)
        hidden = hidden + self.dropout(self.history_attention(self.history_norm(hidden), memory, visible))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden))), keys_values


class CodeDecoder(nn.Module):
    """Autoregressive decoder of semantic IDs over the states of a sequence encoder.

    p(item | history) is the product of p(code | codes before it, history) over the positions of its ID. In scoring,
    exact and by beam alike, each factor is normalised over the codes that the trie of the catalogue allows after the
    prefix, so the probabilities of all items sum to 1. Normalised over all symbols instead, much of the mass would be
    lost to strings that are no item, an item alone below its prefix would still pay for every further code, and every
    one of these codes would have to be decoded.

    In training each factor is normalised over all S symbols of its position, so that every code of every target
    teaches, be it the only one the trie allows there or not. This loss bounds the negative log-likelihood of the items
    from above: what it counts for strings outside the trie can only come on top.

    Parameters
    ----------
    codes : [N, P] ID of each item; row 0 is padding, -1 = the item lacks this code.
    codebook_size : number K of codes per position.
    head_size : width D of an attention head; none = H / A.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        codebook_size: int,
        hidden_size: int,
        inner_size: int,
        n_heads: int,
        n_layers: int,
        dropout: float,
        attn_dropout: float,
        eps: float,
        head_size: int | None = None,
    ) -> None:
        super().__init__()
        self.trie = Trie(codes, codebook_size)
        n_positions, n_symbols = self.trie.depth, self.trie.n_symbols
        # Token 0 starts; those of the last position are never read. "No code" is a token of each position, unlike in
        # `code_ids`: with one for all, the decoder could not tell how far a prefix of missing codes has come.
        self.token_embedding = nn.Embedding(1 + (n_positions - 1) * n_symbols, hidden_size)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(hidden_size, inner_size, n_heads, dropout, attn_dropout, eps, head_size)
            for _ in range(n_layers)
        )
        self.final_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.heads = nn.ModuleList(nn.Linear(hidden_size, n_symbols) for _ in range(n_positions))

    def loss(self, memory: torch.Tensor, mask: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of one target per history: summed over its codes, the codes before each code given.

        Parameters
        ----------
        memory : [B, T, H] states of the encoder.
        mask : [B, T] which of them are real; at least one a history.
        items : [B] item ids of the targets.
        """
        return self._loss(memory, mask.unsqueeze(1), items.unsqueeze(1))

    def sequence_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean of `loss` over all targets of right-padded sequences, each reading the states up to its own.

        Parameters
        ----------
        states : [B, T, H] states of the encoder, or [B, T * n, H] where every item has n of them.
        targets : [B, T] item id that follows each item; 0 = none.
        """
        length = targets.shape[1]
        visible = up_to_own_item(length, states.shape[1] // length, states.device)
        return self._loss(states, visible, targets)

    def _loss(self, memory: torch.Tensor, visible: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Loss of the targets `items` [B, W], 0 = none; `visible` [B, W, T] are the states each may read."""
        symbols = self.trie.item_symbols[items]  # [B, W, P]
        offset = 1 + torch.arange(self.trie.depth - 1, device=items.device) * self.trie.n_symbols
        tokens = functional.pad(symbols[..., :-1] + offset, (1, 0))
        hidden = self.dropout(self.token_embedding(tokens))  # [B, W, P, H]
        for layer, keys_values in zip(self.layers, self._keys_values(memory), strict=True):
            hidden, _ = layer(hidden, None, keys_values, visible)
        wanted = items > 0
        hidden, symbols = self.final_norm(hidden[wanted]), symbols[wanted]  # [n, P, H], [n, P]
        return torch.stack(
            [
                functional.cross_entropy(head(state), symbol)
                for head, state, symbol in zip(self.heads, hidden.unbind(1), symbols.unbind(1), strict=True)
            ]
        ).sum()

    @torch.no_grad()
    def likelihood(self, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Exact log-probability [B, N] of every item after each history; minus infinity for padding.

        Takes time for every prefix that more than one item shares, so it is for small catalogues.

        Parameters
        ----------
        memory, mask : as in `loss`.
        """
        parts = [
            exact_likelihood(self.trie, _Readers(self, memory[rows], mask[rows]))
            for rows in self._chunks(len(memory), self.trie.widest)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def search(
        self, memory: torch.Tensor, mask: torch.Tensor, beam_size: int, excluded: Pairs | None = None
    ) -> torch.Tensor:
        """Log-probability [B, N] of the items a beam search finds; minus infinity for all others.

        Parameters
        ----------
        memory, mask : as in `loss`.
        beam_size : prefixes kept per history and position.
        excluded : (history, item) pairs that may not come out and take no place in the beam.
        """
        parts = []
        for rows in self._chunks(len(memory), beam_size):
            readers, left_out = _Readers(self, memory[rows], mask[rows]), None
            if excluded is not None:
                here = (excluded[0] >= rows.start) & (excluded[0] < rows.stop)
                left_out = excluded[0][here] - rows.start, excluded[1][here]
            parts.append(beam_search(self.trie, readers, len(memory[rows]), beam_size, left_out))
        return torch.cat(parts)

    def _keys_values(self, memory: torch.Tensor) -> list[KeysValues]:
        """Each layer's keys and values of the encoder's states [B, T, H]."""
        return [cast(DecoderLayer, layer).history_attention.keys_values(memory) for layer in self.layers]

    def _chunks(self, n_rows: int, n_prefixes: int) -> list[slice]:
        """Cut the histories so that a chunk's tables of prefixes stay small."""
        size = max(1, ENTRIES // (n_prefixes * self.trie.n_symbols))
        return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)] or [slice(0, 0)]


class _Readers:
    """`Advance` of a `CodeDecoder` over some histories; its state are each layer's keys and values of the prefixes.

    As long as prefixes have nothing of a history in them, one row stands for all: in an exact walk the first layer
    attends over the codes before once for all histories.
    """

    def __init__(self, decoder: CodeDecoder, memory: torch.Tensor, mask: torch.Tensor) -> None:
        self.decoder = decoder
        self.memories = decoder._keys_values(memory)
        self.visible = mask.unsqueeze(1)

    def __call__(
        self, state: list[KeysValues] | None, parents: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, list[KeysValues]]:
        hidden = self.decoder.dropout(self.decoder.token_embedding(tokens)).unsqueeze(2)  # [B, W, 1, H]
        longer: list[KeysValues] = []
        for index, (layer, memory) in enumerate(zip(self.decoder.layers, self.memories, strict=True)):
            past = None if state is None else tuple(_continued(part, parents) for part in state[index])
            hidden, keys_values = layer(hidden, past, memory, self.visible)
            longer.append(keys_values)
        position = longer[0][0].shape[-2] - 1
        logits = self.decoder.heads[position](self.decoder.final_norm(hidden.squeeze(2)))
        return logits, longer


def _continued(past: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """Rows of `past` [B, W, ...] for the prefixes that continue them; `parents` [B, W] or, for all alike, [1, W]."""
    if len(parents) == 1:
        return past[:, parents[0]]
    rows = torch.arange(len(parents), device=parents.device).unsqueeze(1)
    return past[rows, parents]
