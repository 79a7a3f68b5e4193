"""TIGER: an encoder reads the semantic IDs of a history code by code, a decoder spells the next item's ID.

Rajput et al., *Recommender Systems with Generative Retrieval*, NeurIPS 2023, arXiv 2305.05065. The codes are those of
an RQ-VAE over the items' content; they come with the data set. What departs from the paper: docs/baselines.md.

Shapes: B histories, T items of the longest, N items (row 0 = padding), P codes of an ID, n targets, H hidden width.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .attention import LayerSettings, TransformerLayer, causal_mask, initialise
from .cpu_speed import Dropout
from .decoding import Pairs
from .generator import CodeDecoder
from .padding import trim
from .protocol import FirstStage, RankingModel


class TIGER(RankingModel):
    """Encoder over the codes of the history, decoder of the next item's codes, beam search inside the catalogue's trie.

    With `causal_encoder` no code of the encoder reads codes of later items. One pass over a sequence then serves the
    target after each of its items, which is what makes training affordable without a GPU. Without it, as in the paper,
    every target has a pass of its own over the items before it, in which all codes read each other.

    Parameters
    ----------
    config : settings, see properties/model/TIGER.yaml.
    dataset : its `catalogue`.

    Raises
    ------
    InputError : there are no codes.
    """

    code_ids: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        ids = dataset.catalogue.semantic_ids
        if ids is None:
            raise InputError(
                "TIGER: found no semantic IDs, expected those of all items; set --attach_semantic_ids=True and "
                "--codes=learned"
            )
        self.causal, self.beam_size = config["causal_encoder"], config["beam_size"]
        self.is_beam_search = self.beam_size > 0  # with a beam of 0 every item gets its exact likelihood
        if config["count_collisions"]:
            known = dataset.catalogue
            ids = replace(ids, codes=counted(ids.codes, known.tokens, ids.codebook_size, known.n_trained))
        # Not `n_heads`, which has to divide `hidden_size`. The eps is that of T5X, which the paper is implemented in.
        given = {"n_heads": config["heads"], "head_size": config["head_size"], "eps": 1e-6}
        layer = replace(LayerSettings.from_config(config), **given)
        self.n_codes = ids.codes.shape[1]
        # The IDs have files of their own; a checkpoint holds what training learned. "No code" is one embedding.
        self.register_buffer("code_ids", ids.code_ids, persistent=False)  # [N, P]
        self.code_embedding = nn.Embedding(ids.n_code_ids, layer.hidden_size)
        self.position_embedding = nn.Embedding(self.max_seq_length, layer.hidden_size)
        self.dropout = Dropout(layer.dropout)
        self.layers = nn.ModuleList(TransformerLayer(replace(layer, fused=False)) for _ in range(config["n_layers"]))
        self.final_norm = nn.LayerNorm(layer.hidden_size, eps=layer.eps)
        self.decoder = CodeDecoder(ids, config["n_decoder_layers"], layer)
        self.apply(initialise)

    def forward(self, item_seq: Tensor) -> Tensor:
        """Encode histories [B, T] (0 pads on the right) into states [B, T * P, H] of codes, meaningless at padding."""
        n_items, visible = item_seq.shape[1], self._real(item_seq).unsqueeze(1)  # [B, 1, T * P]
        if self.causal:
            visible = causal_mask(n_items, item_seq.device, self.n_codes, self.n_codes)  # [T * P, T * P]
        places = self.position_embedding.weight[:n_items].unsqueeze(1)  # [T, 1, H]
        codes = self.code_embedding(self.code_ids[item_seq])  # [B, T, P, H]
        hidden = self.dropout(codes + places).flatten(1, 2)  # [B, T * P, H]
        for layer in self.layers:
            hidden = layer(hidden, visible)
        return self.final_norm(hidden)

    def _real(self, item_seq: Tensor) -> Tensor:
        """Which codes [B, T * P] belong to items."""
        return (item_seq != 0).repeat_interleave(self.n_codes, dim=1)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Mean over the targets of the cross-entropy of their codes, summed over the codes.

        `interaction` comes from `WindowDataLoader`: `item_id_list` and `target_list`, both [B, T].
        """
        item_seq, targets = interaction[self.ITEM_SEQ], interaction["target_list"]
        if self.causal:
            return self.decoder.sequence_loss(self.forward(item_seq), targets)
        row, last = targets.nonzero(as_tuple=True)
        before = torch.arange(item_seq.shape[1], device=item_seq.device) <= last.unsqueeze(1)
        histories = item_seq[row] * before  # [n, T]
        visible, wanted = self._real(histories).unsqueeze(1), targets[row, last].unsqueeze(1)
        return self.decoder.loss(self.forward(histories), visible, wanted)

    def first_stage(
        self, histories: Tensor, candidates: Tensor | None = None, excluded: Pairs | None = None, shared: Any = None
    ) -> FirstStage:
        """As `RankingModel.first_stage`: log-probabilities, of `candidates` alone where there are any."""
        trimmed = trim(histories, (histories != 0).sum(1))
        states, real = self.forward(trimmed), self._real(trimmed)
        return FirstStage(self.decoder.score(states, real, self.beam_size, excluded, candidates))


def counted(codes: Tensor, tokens: Sequence[str], codebook_size: int, n_trained: int | None = None) -> Tensor:
    """Make the last code of IDs [N, P] a number that tells apart items of equal earlier codes (section 3.1).

    Items of equal earlier codes are numbered from 0 in the order of their `tokens`, those from row `n_trained` on after
    the others, which keep their numbers; more than K of them are an error.
    """
    result, used, new = codes.clone(), Counter(), len(codes) if n_trained is None else n_trained
    for item in sorted(range(1, len(codes)), key=lambda item: (item >= new, tokens[item])):
        prefix = tuple(codes[item, :-1].tolist())
        result[item, -1] = used[prefix]
        used[prefix] += 1
    if int(result.max()) >= codebook_size:
        raise InputError(
            f"count_collisions: {int(result.max()) + 1} items have equal codes but for the last one, of which there are"
            f" {codebook_size}; raise sid_levels or sid_codebook_size, or set count_collisions to False"
        )
    return result
