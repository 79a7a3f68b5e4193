"""BBQRec: a causal transformer whose attention is re-weighted by behaviour-bound semantics (arXiv 2504.06636).

Shapes: B histories, T items of the longest, N items (row 0 = padding), n targets, H hidden width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn
from torch.nn import functional

from ..tokenizer.fit import Encoded
from ..tokenizer.semantic_ids import number_codes
from .attention import SimilarityBias, SimilarityBuckets, TransformerLayer, sample_pairs
from .item_table import ItemTable
from .padding import trim


class BBQRec(SequentialRecommender):
    """Sequence model over semantic IDs learned from behaviour, scored densely over all items.

    Where the paper's parts are: `SimilarityBuckets`, `SimilarityBias` and `TransformerLayer` hold the
    similarity-enhanced attention; the behaviour-bound codes and vectors come from the item tokenizer with the data set;
    `ItemTable` turns codes, features and IDs into item representations.

    Parameters
    ----------
    config : settings, see properties/model/BBQRec.yaml.
    dataset : what the catalogue knows: `num(field)`, `item_features`, `semantic_ids` and, for a model that is still to
        be trained, `train_sequences`.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.score_function, self.temperature = config["score_function"], config["temperature"]
        self.n_negatives = config["n_negatives"]
        self.codebook_size = dataset.semantic_ids.codebook_size if dataset.semantic_ids is not None else 0
        self.item_table = _item_table(config, dataset, self.n_items)
        self.position_embedding = nn.Embedding(self.max_seq_length, config["hidden_size"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.layers = nn.ModuleList(
            TransformerLayer(
                config["hidden_size"],
                config["inner_size"],
                config["n_heads"],
                config["hidden_dropout_prob"],
                config["attn_dropout_prob"],
                config["layer_norm_eps"],
                config["similarity_attention"],
            )
            for _ in range(config["n_layers"])
        )
        self.final_norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.buckets, self.similarity_bias = None, None
        self.apply(lambda module: _initialise(module, config["initializer_range"]))
        if config["similarity_attention"] != "off" and dataset.semantic_ids is not None:
            self._add_similarity(config, dataset)

    def _add_similarity(self, config: Any, dataset: Any) -> None:
        ids = dataset.semantic_ids
        self.buckets = SimilarityBuckets(ids.vectors, ids.present, config["n_similarity_bins"])
        self.similarity_bias = SimilarityBias(
            len(ids.signals), self.buckets.n_buckets, config["n_layers"], config["n_heads"]
        )
        if dataset.train_sequences is not None:
            sequences = dataset.train_sequences
            pairs = sample_pairs(sequences.offsets, sequences.items, self.max_seq_length - 1, config["seed"])
            self.buckets.fit_edges(*pairs)

    def forward(self, item_seq: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Encode histories [B, T] (0 pads on the right) into hidden states [B, T, H].

        `rows` [B, T, H] are the items' representations where the caller has them already. The state at a position knows
        the items up to it; states at padding mean nothing.
        """
        if rows is None:
            rows = self._rows(item_seq)
        hidden = self.dropout(rows + self.position_embedding.weight[: item_seq.shape[1]])
        biases: Any = [None] * len(self.layers)
        if self.buckets is not None and self.similarity_bias is not None:
            biases = self.similarity_bias(self.buckets(item_seq))
        for layer, bias in zip(self.layers, biases, strict=True):
            hidden = layer(hidden, bias)
        return self.final_norm(hidden)

    def _rows(self, items: torch.Tensor) -> torch.Tensor:
        """Item representations [..., H]; each item is computed once, however often it occurs."""
        unique, place = torch.unique(items, return_inverse=True)
        return functional.embedding(place, self.item_table(unique))

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """Cross-entropy at every position that has a target, over all items or over shared uniform negatives.

        `interaction` comes from `WindowDataLoader`: `item_id_list` and `target_list`, both [B, T].
        """
        item_seq, targets = interaction[self.ITEM_SEQ], interaction["target_list"]
        wanted = targets > 0
        if self.n_negatives == 0:
            table = self.item_table(torch.arange(self.n_items, device=item_seq.device))
            hidden = self.forward(item_seq, functional.embedding(item_seq, table))[wanted]  # [n, H]
            logits = self._similarity(hidden, table)
            logits[:, 0] = -torch.inf  # padding is no candidate
            return functional.cross_entropy(logits, targets[wanted])
        negatives = torch.randint(1, self.n_items, (self.n_negatives,), device=item_seq.device)
        unique, place = torch.unique(torch.cat([item_seq.flatten(), targets[wanted], negatives]), return_inverse=True)
        table = self.item_table(unique)
        shown, target_place, negative_place = place.split([item_seq.numel(), int(wanted.sum()), self.n_negatives])
        # Rows are picked by `embedding`: the gradient of plain indexing adds up in an order that threads decide.
        shown_rows, target_rows, negative_rows = (
            functional.embedding(part, table) for part in (shown.view_as(item_seq), target_place, negative_place)
        )
        hidden = self.forward(item_seq, shown_rows)[wanted]
        positive = self._similarity(hidden.unsqueeze(1), target_rows.unsqueeze(1)).squeeze(1)  # [n, 1]
        negative = self._similarity(hidden, negative_rows)  # [n, n_negatives]
        # A negative that happens to be the target would pull against it.
        negative = negative.masked_fill(targets[wanted].unsqueeze(1) == negatives, -torch.inf)
        return (torch.cat([positive, negative], dim=1).logsumexp(dim=1) - positive.squeeze(1)).mean()

    def _similarity(self, hidden: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Scores [..., n, m] of hidden states [..., n, H] against item rows [..., m, H]."""
        if self.score_function == "cosine":
            hidden, table = functional.normalize(hidden, dim=-1) / self.temperature, functional.normalize(table, dim=-1)
        return hidden @ table.transpose(-1, -2)

    def score(self, histories: torch.Tensor, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """Score items as the next one after histories [B, T] (0 pads on the right, none is empty).

        Parameters
        ----------
        candidates : item ids [m]; none = all N, padding included.

        Returns
        -------
        [B, m] or [B, N].
        """
        lengths = (histories != 0).sum(1)
        hidden = self.forward(trim(histories, lengths))  # [B, T, H]
        hidden = hidden[torch.arange(len(histories), device=histories.device), lengths - 1]
        if candidates is None:
            candidates = torch.arange(self.item_table.n_items, device=histories.device)
        return self._similarity(hidden, self.item_table(candidates))

    @torch.no_grad()
    def append_items(
        self,
        encoded: Encoded | None = None,
        features: Mapping[str, torch.Tensor] | None = None,
        present: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Add items the model was not trained with; from then on they are scored and may stand in histories.

        Parameters
        ----------
        encoded : their IDs from the item tokenizer's `encode`, where the model uses codes.
        features, present : modality -> [n, F] features, and [n] whether an item has them (all where left out).

        Returns
        -------
        [n] their item ids.
        """
        if encoded is None and not features:
            raise ValueError("new items need codes or features: they have no ID embedding")
        n_new = len(encoded.codes) if encoded is not None else len(next(iter((features or {}).values())))
        numbers = number_codes(encoded.codes, self.codebook_size) if encoded is not None else None
        if self.buckets is not None:
            self.buckets.append(n_new, encoded)
        self.n_items += n_new
        return self.item_table.append(n_new, numbers, features, present)

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B, N] of all items, as RecBole asks for them."""
        return self.score(interaction[self.ITEM_SEQ])

    def predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B] of one item per history, as RecBole asks for them."""
        unique, place = torch.unique(interaction[self.ITEM_ID], return_inverse=True)
        return self.score(interaction[self.ITEM_SEQ], unique).gather(1, place.unsqueeze(1)).squeeze(1)


def _item_table(config: Any, dataset: Any, n_items: int) -> ItemTable:
    ids = dataset.semantic_ids if config["use_code_embedding"] else None
    features = dataset.item_features if config["use_features"] else None
    return ItemTable(
        n_items,
        config["hidden_size"],
        use_id=config["use_item_id"],
        code_ids=ids.code_ids if ids is not None else None,
        n_code_ids=ids.n_code_ids if ids is not None else 1,
        features=features.matrices if features is not None else None,
        present=features.present if features is not None else None,
        id_dropout=config["id_dropout_prob"],
    )


def _initialise(module: nn.Module, deviation: float) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
