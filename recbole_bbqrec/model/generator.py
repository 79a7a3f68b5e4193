"""Generative scoring: a decoder spells the semantic ID of the next item, code by code (TIGER, arXiv 2305.05065).

Shapes: B histories, T items of the longest, M states of the encoder (T, or T * n where items have n each), N items (row
0 = padding), P positions of an ID, K codes per position, S = K + 1 symbols (the codes, then "no code"), W prefixes of a
history, H hidden width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import KeysValues, LayerSettings, TransformerLayer, causal_mask
from .catalogue import SemanticIds
from .cpu_speed import Dropout
from .decoding import Advance, Pairs, Trie, beam_search, exact_likelihood

ENTRIES = 2**22  # numbers in the largest table of an exact walk; histories are scored in chunks that stay below it


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
    """

    def __init__(self, ids: SemanticIds, n_layers: int, layer: LayerSettings) -> None:
        super().__init__()
        self.trie = Trie(ids)
        n_positions, n_symbols = self.trie.depth, self.trie.n_symbols
        # Token 0 starts; those of the last position are never read. "No code" is a token of each position, unlike in
        # `code_ids`: with one for all, the decoder could not tell how far a prefix of missing codes has come.
        self.token_embedding = nn.Embedding(1 + (n_positions - 1) * n_symbols, layer.hidden_size)
        self.dropout = Dropout(layer.dropout)
        self.layers = nn.ModuleList(TransformerLayer(layer, reads_memory=True) for _ in range(n_layers))
        self.final_norm = nn.LayerNorm(layer.hidden_size, eps=layer.eps)
        self.heads = nn.ModuleList(nn.Linear(layer.hidden_size, n_symbols) for _ in range(n_positions))

    def sequence_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Mean of `loss` over targets [B, T] of right-padded sequences, 0 = none, each reading states up to its own.

        The encoder's states [B, M, H] are the same number for each item.
        """
        length = targets.shape[1]
        visible = causal_mask(length, states.device, self.trie.depth, states.shape[1] // length)
        return self.loss(states, visible.unsqueeze(0), targets)

    def loss(self, memory: Tensor, visible: Tensor, items: Tensor) -> Tensor:
        """Mean cross-entropy of the targets: summed over the codes of an ID, the codes before each code given.

        Codes may read what is `visible` [B, W * P, M] of the encoder's states, `memory` [B, M, H]; [B, 1, M] for all
        codes alike. Targets are `items` [B, W], 0 = none.
        """
        symbols = self.trie.item_symbols[items]  # [B, W, P]
        tokens = functional.pad(symbols[..., :-1] + 1, (1, 0))
        hidden = self.dropout(self.token_embedding(tokens))  # [B, W, P, H]
        earlier = causal_mask(self.trie.depth, items.device)
        for layer, keys_values in zip(self.layers, self._keys_values(memory), strict=True):
            hidden, _ = cast(TransformerLayer, layer).decode(hidden, earlier, None, keys_values, visible)
        wanted = items > 0
        hidden, symbols = self.final_norm(hidden[wanted]), symbols[wanted] % self.trie.n_symbols  # [n, P, H], [n, P]
        losses = [
            functional.cross_entropy(head(state), symbol)
            for head, state, symbol in zip(self.heads, hidden.unbind(1), symbols.unbind(1), strict=True)
        ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def score(
        self,
        memory: Tensor,
        mask: Tensor,
        beam_size: int = 0,
        excluded: Pairs | None = None,
        candidates: Tensor | None = None,
    ) -> Tensor:
        """Log-probability [B, N] of items after each history; minus infinity for padding and what is not found.

        Of the encoder's states, `memory` [B, M, H], those in `mask` [B, M] are real; at least one a history. With a
        `beam_size` of 0 it is the exact likelihood of every item, which takes time for every prefix that more than one
        item shares, so it is for small catalogues; `excluded` then means nothing. Given `candidates` [m], it is their
        exact likelihood and no other item's, whatever the `beam_size`.
        """
        if beam_size and candidates is None:
            return beam_search(self.trie, self._advance(memory, mask), len(memory), beam_size, excluded)
        # Histories are cut so that a chunk's tables of all prefixes of one length stay small.
        size = max(1, ENTRIES // (self.trie.widest * self.trie.n_symbols))
        parts = zip(memory.split(size), mask.split(size), strict=True)
        return torch.cat([exact_likelihood(self.trie, self._advance(*part), candidates) for part in parts])

    def _keys_values(self, memory: Tensor) -> list[KeysValues]:
        """Each layer's keys and values of the encoder's states [B, M, H]."""
        return [cast(TransformerLayer, layer).memory_attention.keys_values(memory) for layer in self.layers]

    def _advance(self, memory: Tensor, mask: Tensor) -> Advance:
        """Return what decodes prefixes of some histories; its state are each layer's keys and values of the prefixes.

        As long as prefixes have nothing of a history in them, one row stands for all: in an exact walk the first layer
        attends over the codes before once for all histories.
        """
        memories, visible = self._keys_values(memory), mask.unsqueeze(1)  # [B, 1, M]

        def advance(state: list[KeysValues] | None, parents: Tensor, tokens: Tensor) -> tuple[Tensor, list[KeysValues]]:
            hidden = self.dropout(self.token_embedding(tokens)).unsqueeze(2)  # [B, W, 1, H]
            longer: list[KeysValues] = []
            for layer, past, memory in zip(self.layers, state or [None] * len(memories), memories, strict=True):
                if past is not None:
                    rows = torch.arange(len(past[0]), device=parents.device).unsqueeze(1)
                    past = past[0][rows, parents], past[1][rows, parents]
                hidden, keys_values = cast(TransformerLayer, layer).decode(hidden, None, past, memory, visible)
                longer.append(keys_values)
            position = longer[0][0].shape[-2] - 1
            return self.heads[position](self.final_norm(hidden.squeeze(2))), longer

        return advance
