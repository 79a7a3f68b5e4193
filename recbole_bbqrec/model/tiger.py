"""TIGER: an encoder reads the semantic IDs of a history code by code, a decoder spells the next item's ID.

Rajput et al., *Recommender Systems with Generative Retrieval*, NeurIPS 2023, arXiv 2305.05065. The codes are those of
an RQ-VAE over the items' content; they come with the data set. What departs from the paper: docs/baselines.md.

Shapes: B histories, T items of the longest, N items (row 0 = padding), P codes of an ID, n targets, H hidden width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn

from ..errors import InputError
from .attention import feed_forward
from .catalogue import SemanticIds
from .decoding import Pairs
from .dropout import Dropout
from .generator import CodeDecoder, HistoryAttention, up_to_own_item
from .padding import trim
from .protocol import Ranker


class CodeTable(nn.Module):
    """Items as embeddings of their codes, one for each code: the item table of a model that reads IDs.

    "No code" is one embedding at all positions.

    Parameters
    ----------
    ids : codes of all items.
    hidden_size : width H.
    """

    code_ids: torch.Tensor

    def __init__(self, ids: SemanticIds, hidden_size: int) -> None:
        super().__init__()
        # The IDs have files of their own; a checkpoint holds what training learned.
        self.register_buffer("code_ids", ids.code_ids, persistent=False)
        self.embedding = nn.Embedding(ids.n_code_ids, hidden_size)

    @property
    def n_codes(self) -> int:
        """Number P of codes of an ID."""
        return self.code_ids.shape[1]

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [..., P, H] of the codes of item ids [...]."""
        return self.embedding(self.code_ids[items])


class CodeEncoderLayer(nn.Module):
    """Pre-norm transformer layer with GELU in which the codes of a history read each other."""

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        n_heads: int,
        dropout: float,
        attn_dropout: float,
        eps: float,
        head_size: int,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.attention = HistoryAttention(hidden_size, n_heads, attn_dropout, head_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.feed_forward = feed_forward(hidden_size, inner_size, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Map [B, T, P, H] to [B, T, P, H]; `visible` [B, T, T * P], B or T may be 1: codes that an item's may read."""
        normed = self.attention_norm(hidden)
        codes = self.attention.keys_values(normed.flatten(1, 2))
        hidden = hidden + self.dropout(self.attention(normed, codes, visible))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class TIGER(SequentialRecommender, Ranker):
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
    InputError : there are no codes, or `heads` or `head_size` is not a positive number.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        ids = dataset.catalogue.semantic_ids
        if ids is None:
            raise InputError(
                "TIGER: found no semantic IDs, expected those of all items; set --attach_semantic_ids=True and "
                "--codes=learned"
            )
        for key in ("heads", "head_size"):
            if not isinstance(config[key], int) or config[key] < 1:
                raise InputError(f"{key}: found {config[key]!r}, expected a whole number above 0")
        self.causal, self.beam_size = bool(config["causal_encoder"]), config["beam_size"]
        if config["count_collisions"]:
            ids = replace(ids, codes=counted(ids.codes, dataset.catalogue.tokens, ids.codebook_size))
        layer: dict[str, Any] = {
            "hidden_size": config["hidden_size"],
            "inner_size": config["inner_size"],
            "n_heads": config["heads"],
            "head_size": config["head_size"],
            "dropout": config["hidden_dropout_prob"],
            "attn_dropout": config["attn_dropout_prob"],
            "eps": config["layer_norm_eps"],
        }
        self.item_table = CodeTable(ids, config["hidden_size"])
        self.position_embedding = nn.Embedding(self.max_seq_length, config["hidden_size"])
        self.dropout = Dropout(config["hidden_dropout_prob"])
        self.layers = nn.ModuleList(CodeEncoderLayer(**layer) for _ in range(config["n_layers"]))
        self.final_norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.decoder = CodeDecoder(ids.codes, ids.codebook_size, n_layers=config["n_decoder_layers"], **layer)
        self.apply(lambda module: _initialise(module, config["initializer_range"]))

    @property
    def finds_some(self) -> bool:
        """Whether items may go without a score (minus infinity): those beyond the beam."""
        return self.beam_size > 0

    def forward(self, item_seq: torch.Tensor) -> torch.Tensor:
        """Encode histories [B, T] (0 pads on the right) into the states [B, T * P, H] of their codes.

        States of padding mean nothing.
        """
        n_items = item_seq.shape[1]
        if self.causal:
            visible = up_to_own_item(n_items, self.item_table.n_codes, item_seq.device)  # [1, T, T * P]
        else:
            visible = self._real(item_seq).unsqueeze(1)  # [B, 1, T * P]
        places = self.position_embedding.weight[:n_items].unsqueeze(1)
        hidden = self.dropout(self.item_table(item_seq) + places)  # [B, T, P, H]
        for layer in self.layers:
            hidden = layer(hidden, visible)
        return self.final_norm(hidden).flatten(1, 2)

    def _real(self, item_seq: torch.Tensor) -> torch.Tensor:
        """Which codes [B, T * P] belong to items."""
        return (item_seq != 0).repeat_interleave(self.item_table.n_codes, dim=1)

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """Mean over the targets of the cross-entropy of their codes, summed over the codes.

        `interaction` comes from `WindowDataLoader`: `item_id_list` and `target_list`, both [B, T].
        """
        item_seq, targets = interaction[self.ITEM_SEQ], interaction["target_list"]
        if self.causal:
            return self.decoder.sequence_loss(self.forward(item_seq), targets)
        row, last = targets.nonzero(as_tuple=True)
        before = torch.arange(item_seq.shape[1], device=item_seq.device) <= last.unsqueeze(1)
        histories = item_seq[row] * before  # [n, T]
        return self.decoder.loss(self.forward(histories), self._real(histories), targets[row, last])

    def score(
        self, histories: torch.Tensor, candidates: torch.Tensor | None = None, excluded: Pairs | None = None
    ) -> torch.Tensor:
        """Log-probability of items as the next one after histories [B, T] (0 pads on the right, none is empty).

        Parameters
        ----------
        candidates : item ids [m]; none = all N, padding included.
        excluded : (history, item) pairs that need no score; the beam does not spend its places on them.

        Returns
        -------
        [B, m] or [B, N]; minus infinity for what the beam has not found.
        """
        trimmed = trim(histories, (histories != 0).sum(1))
        states, real = self.forward(trimmed), self._real(trimmed)
        if self.finds_some:
            scores = self.decoder.search(states, real, self.beam_size, excluded)
        else:
            scores = self.decoder.likelihood(states, real)
        return scores if candidates is None else scores[:, candidates]

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B, N] of all items, as RecBole asks for them."""
        return self.score(interaction[self.ITEM_SEQ])

    def predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B] of one item per history, as RecBole asks for them."""
        return self.score(interaction[self.ITEM_SEQ]).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


def counted(codes: torch.Tensor, tokens: Sequence[str], codebook_size: int) -> torch.Tensor:
    """Make the last code of each ID a number that tells apart items of equal earlier codes (section 3.1 of the paper).

    Items of equal earlier codes are numbered from 0 in the order of their tokens.

    Parameters
    ----------
    codes : [N, P] IDs, row 0 is padding.
    tokens : item tokens by item id, `[PAD]` first.
    codebook_size : number K of codes per position.

    Raises
    ------
    InputError : more than K items have equal earlier codes.
    """
    result, used = codes.clone(), {}
    for item in sorted(range(1, len(codes)), key=lambda item: tokens[item]):
        prefix = tuple(codes[item, :-1].tolist())
        result[item, -1] = used[prefix] = used.get(prefix, -1) + 1
    if int(result.max()) >= codebook_size:
        raise InputError(
            f"count_collisions: {int(result.max()) + 1} items have equal codes but for the last one, of which there are"
            f" {codebook_size}; raise sid_levels or sid_codebook_size, or set count_collisions to False"
        )
    return result


def _initialise(module: nn.Module, deviation: float) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=deviation)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
