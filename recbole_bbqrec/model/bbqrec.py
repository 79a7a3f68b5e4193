"""BBQRec: a causal transformer whose attention is re-weighted by behaviour-bound semantics (arXiv 2504.06636).

How a hidden state ranks items, `scoring`: `dense` by its similarity with item representations, `codes` by parallel
heads over the codes of the ID, `joint` by both, `generate` by decoding the ID code by code, as the paper does.

Shapes: B histories, T items of the longest, N items (row 0 = padding), n targets, m negatives or items to be scored, P
positions of an ID, K codes per position, H hidden width.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import distributed
from ..errors import InputError
from .attention import LayerSettings, TransformerLayer, causal_mask, initialise
from .batch_items import LARGE, different, draw_negatives
from .catalogue import SemanticIds
from .cpu_speed import Dropout, sampled_cross_entropy
from .decoding import Pairs
from .generator import CodeDecoder
from .item_table import ItemTable
from .padding import trim
from .protocol import FirstStage, Products, RankingModel
from .similarity import SimilarityAttention


class Shared(NamedTuple):
    """What the scores of all histories share."""

    rows: Tensor  # [N, H] item representations
    keys: Tensor | None  # [N, W] the items as `BBQRec._key` gives them; none where IDs are decoded


class BBQRec(RankingModel):
    """Sequence model over semantic IDs learned from behaviour, exact over all items.

    Where the paper's parts are: `SimilarityAttention` and `TransformerLayer` hold the similarity-enhanced attention;
    the behaviour-bound codes and vectors come from the item tokenizer with the data set; `CodeDecoder` decodes IDs.
    `ItemTable` turns codes, features and IDs into item representations.

    Parameters
    ----------
    config : settings, see properties/model/BBQRec.yaml.
    dataset : its `catalogue`, `num(field)` and, for a model that is still to be trained, `train_sequences`.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.scoring = config["scoring"]
        self.code_weight = 1.0 if self.scoring == "codes" else config["code_weight"]
        self.cosine, self.temperature = config["score_function"] == "cosine", config["temperature"]
        self.n_negatives, self.beam_size = config["n_negatives"], config["beam_size"]
        self.is_beam_search = self.scoring == "generate" and self.beam_size > 0  # 0: exact likelihood of every item
        layer, n_layers = LayerSettings.from_config(config), config["n_layers"]
        catalogue = dataset.catalogue
        if config["n_identity_codes"] and catalogue.semantic_ids is not None and self.scoring != "generate":
            ids = catalogue.semantic_ids.with_identity(catalogue.tokens, config["n_identity_codes"])
            catalogue = replace(catalogue, semantic_ids=ids)
        ids = catalogue.semantic_ids
        if ids is None and self.scoring in ("codes", "generate"):
            raise InputError(
                f"scoring: found {self.scoring}, but there are no codes; set --codes=learned, or --scoring=dense"
            )

        self.item_table = ItemTable(config, catalogue, self._projection(config))
        self.position_embedding = nn.Embedding(self.max_seq_length, layer.hidden_size)
        self.dropout = Dropout(layer.dropout)
        self.layers = nn.ModuleList(TransformerLayer(layer, config["similarity_attention"]) for _ in range(n_layers))
        self.final_norm = nn.LayerNorm(layer.hidden_size, eps=layer.eps)
        self.apply(initialise)
        # What scores is built after that: the encoder starts from the same weights however items are scored.
        self.code_heads, self.decoder = None, None
        if ids is not None and self.scoring in ("codes", "joint"):
            self.code_heads = CodeHeads(ids, layer.hidden_size).apply(initialise)
        elif ids is not None and self.scoring == "generate":
            self.decoder = CodeDecoder(ids, config["n_decoder_layers"], layer).apply(initialise)
        sizes = n_layers, layer.n_heads, self.max_seq_length
        self.similarity = SimilarityAttention.from_dataset(config, dataset, *sizes)

    def _projection(self, config: Any) -> Callable[[int, int], nn.Module]:
        """What makes projections of features into item representations, from the two widths."""
        return nn.Linear

    @property
    def large_table(self) -> nn.Embedding | None:
        """As `RankingModel.large_table`: the ID embeddings of a large catalogue, unless all items are scored."""
        reads_all = self.n_negatives == 0 and self.scoring in ("joint", "dense")
        return None if reads_all or self.n_items < LARGE else self.item_table.id_embedding

    def forward(self, item_seq: Tensor, rows: Tensor | None = None) -> Tensor:
        """Encode histories [B, T] (0 pads on the right) into hidden states [B, T, H].

        `rows` [B, T, H] are the items' representations where the caller has them already. The state at a position knows
        the items up to it; states at padding mean nothing.
        """
        if rows is None:  # each item is computed once, however often it occurs
            unique, place = different(item_seq.flatten())
            rows = functional.embedding(place.view_as(item_seq), self.item_table(unique))
        hidden = self.dropout(rows + self.position_embedding.weight[: item_seq.shape[1]])
        visible = causal_mask(item_seq.shape[1], item_seq.device)  # [T, T]
        biases = [None] * len(self.layers) if self.similarity is None else self.similarity(item_seq)
        for layer, bias in zip(self.layers, biases, strict=True):
            hidden = layer(hidden, visible, bias)
        return self.final_norm(hidden)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Loss at every position that has a target: of the dense score, the codes, both, or the decoded ID.

        `interaction` comes from `WindowDataLoader`: `item_id_list` and `target_list`, both [B, T], and `target_place`
        [n], where in the flattened list there are targets.
        """
        item_seq, targets = interaction[self.ITEM_SEQ], interaction["target_list"]
        if self.decoder is not None:
            return self.decoder.sequence_loss(self.forward(item_seq), targets)
        wanted, targets = interaction["target_place"], targets.flatten()
        targets = targets[wanted]  # [n]
        if self.code_heads is not None and self.scoring == "codes":
            return self.code_heads.loss(self.forward(item_seq).flatten(0, 1)[wanted], targets)
        hidden, loss = (self._sampled_loss if self.n_negatives else self._full_loss)(item_seq, wanted, targets)
        if self.code_heads is not None:
            loss = loss + self.code_weight * self.code_heads.loss(hidden, targets)
        return loss

    def _full_loss(self, item_seq: Tensor, wanted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [n, H] that have a target, and their cross-entropy over all items."""
        table = self.item_table(self._all_items())  # [N, H]
        hidden = self.forward(item_seq, functional.embedding(item_seq, table)).flatten(0, 1)[wanted]  # [n, H]
        logits = self._dense_query(hidden) @ self._dense_key(table).T  # [n, N]
        logits[:, 0] = -torch.inf  # padding is no candidate
        return hidden, functional.cross_entropy(logits, targets)

    def _sampled_loss(self, item_seq: Tensor, wanted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `_full_loss`, estimated from uniform negatives, all different, that all targets share.

        Each stands for as many items as it was drawn from, so the loss is as large for few negatives as for many.
        """
        with distributed.joint_draws():
            negatives = draw_negatives(self.n_items, self.n_negatives, item_seq.device)
        stands_for = math.log((self.n_items - 1) / len(negatives))
        unique, place = different(torch.cat([item_seq.flatten(), targets, negatives]))
        table = self.item_table(unique)
        shown, target_place, negative_place = place.split([item_seq.numel(), len(targets), len(negatives)])
        # Rows are picked by `embedding`: the gradient of plain indexing adds up in an order that threads decide.
        shown_rows, target_rows, negative_rows = (  # [B, T, H], [n, H], [m, H]
            functional.embedding(part, table) for part in (shown.view_as(item_seq), target_place, negative_place)
        )
        hidden = self.forward(item_seq, shown_rows).flatten(0, 1)[wanted]  # [n, H]
        query = self._dense_query(hidden)
        # What all negatives would gain, the target loses instead: the softmax is the same.
        positive = (query * self._dense_key(target_rows)).sum(-1) - stands_for  # [n]
        accidental = targets.unsqueeze(1) == negatives  # [n, m] a target drawn as its own negative
        return hidden, sampled_cross_entropy(query, self._dense_key(negative_rows), positive, accidental)

    def shared(self) -> Shared:
        """As `Ranker.shared`."""
        items = self._all_items()
        rows = self.item_table(items)
        return Shared(rows, None if self.decoder is not None else self._key(items, rows))

    def first_stage(
        self,
        histories: Tensor,
        candidates: Tensor | None = None,
        excluded: Pairs | None = None,
        shared: Shared | None = None,
    ) -> FirstStage:
        """As `RankingModel.first_stage`; where IDs are decoded, scores of `candidates` alone."""
        rows, keys = self.shared() if shared is None else shared
        trimmed = trim(histories, (histories != 0).sum(1))
        if self.decoder is not None:
            hidden = self.forward(trimmed, functional.embedding(trimmed, rows))  # [B, T, H]
            return FirstStage(self.decoder.score(hidden, trimmed != 0, self.beam_size, excluded, candidates))
        last = self._last(trimmed, rows)
        keys = cast(Tensor, keys)
        scores = self._query(last) @ keys.T
        if self.code_heads is None:
            return FirstStage(scores)
        states = self.code_heads.states(last)  # [B, H + 2]
        code_keys = keys[:, -states.shape[1] :]  # see `_key`
        return FirstStage(scores, lambda items: torch.einsum("bh,bch->bc", states, code_keys[items]))

    def first_products(self, histories: Tensor, shared: Shared | None = None) -> Products | None:
        """As `RankingModel.first_products`; where IDs are decoded there are none."""
        rows, keys = self.shared() if shared is None else shared
        if keys is None:
            return None
        return Products(self.query(trim(histories, (histories != 0).sum(1)), rows), keys)

    def query(self, histories: Tensor, rows: Tensor) -> Tensor:
        """Histories [B, T] as vectors [B, W]: their products with the keys are the scores.

        `rows` and keys are those of `Shared`, which has no keys where IDs are decoded.
        """
        return self._query(self._last(histories, rows))

    def _last(self, histories: Tensor, rows: Tensor) -> Tensor:
        """Hidden states [B, H] at the last items of histories [B, T], with representations `rows` [N, H] of items."""
        hidden = self.forward(histories, functional.embedding(histories, rows))
        return hidden[torch.arange(histories.shape[0], device=histories.device), (histories != 0).sum(1) - 1]

    def _all_items(self) -> Tensor:
        return torch.arange(self.n_items, device=self.position_embedding.weight.device)

    def _query(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, H] in the form [n, W] whose dot products with `_key` are scores."""
        parts = [self._dense_query(hidden)] if self.scoring != "codes" else []
        if self.code_heads is not None:
            parts.append(self.code_weight * self.code_heads.states(hidden))
        return torch.cat(parts, dim=1)

    def _key(self, items: Tensor, rows: Tensor) -> Tensor:
        """Items [m] with representations [m, H], in the form [m, W] that `_query` is multiplied with."""
        parts = [self._dense_key(rows)] if self.scoring != "codes" else []
        if self.code_heads is not None:
            parts.append(self.code_heads.rows(items))
        return torch.cat(parts, dim=1)

    def _dense_query(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, H] whose dot products with `_dense_key` are the scores of `dense`."""
        return functional.normalize(hidden, dim=-1) / self.temperature if self.cosine else hidden

    def _dense_key(self, rows: Tensor) -> Tensor:
        """Item representations [m, H] in the form that `_dense_query` is multiplied with."""
        return functional.normalize(rows, dim=-1) if self.cosine else rows


class CodeHeads(nn.Module):
    """log p(item | state) as the sum over the positions of log p(symbol | state), see `SemanticIds.symbols`."""

    symbols: Tensor

    def __init__(self, ids: SemanticIds, hidden_size: int) -> None:
        super().__init__()
        self.n_positions = ids.codes.shape[1]
        self.heads = nn.Linear(hidden_size, self.n_positions * (ids.codebook_size + 1))
        self.register_buffer("symbols", ids.symbols, persistent=False)  # the IDs have a file of their own

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits of every symbol [n, P, K + 1]."""
        return self.heads(hidden).unflatten(-1, (self.n_positions, -1))

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean over targets [n] of the cross-entropy of their codes, summed over the positions; `hidden` [n, H]."""
        log_p = self._logits(hidden).log_softmax(dim=-1)
        return -log_p.flatten(1).gather(1, self.symbols[targets]).sum(1).mean()

    def states(self, hidden: Tensor) -> Tensor:
        """Query side [n, H + 2] of the scores: `states(hidden) @ rows(items).T` is log p [n, m].

        A logit of an ID is linear in the state, and what turns the logits of all positions into log p is one number per
        state: the heads are a dense score whose item vectors are sums over the codes.
        """
        totals = self._logits(hidden).logsumexp(dim=-1).sum(-1, keepdim=True)
        return torch.cat([hidden, torch.ones_like(totals), -totals], dim=-1)

    def rows(self, items: Tensor) -> Tensor:
        """Item side [m, H + 2] of the scores, for items [m]."""
        weights = torch.cat([self.heads.weight, self.heads.bias.unsqueeze(1)], dim=1)
        summed = functional.embedding_bag(self.symbols[items], weights, mode="sum")
        return torch.cat([summed, torch.ones_like(summed[:, :1])], dim=1)
