"""BBQRec: a causal transformer whose attention is re-weighted by behaviour-bound semantics (arXiv 2504.06636).

How a hidden state ranks items, `scoring`: `dense` by its similarity with item representations, `codes` by parallel
heads over the codes of the ID, `joint` by both, `generate` by decoding the ID code by code, as the paper does.

Shapes: B histories, T items of the longest, N items (row 0 = padding), n targets, H hidden width.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn
from torch.nn import functional

from ..errors import InputError
from .attention import TransformerLayer
from .candidates import CandidateSimilarity
from .code_heads import CodeHeads
from .dropout import Dropout
from .generator import CodeDecoder
from .item_table import ItemTable
from .padding import trim
from .protocol import Pairs, Ranker
from .sampled_softmax import sampled_cross_entropy
from .similarity import SimilarityAttention


class BBQRec(SequentialRecommender, Ranker):
    """Sequence model over semantic IDs learned from behaviour, exact over all items.

    Where the paper's parts are: `SimilarityAttention` and `TransformerLayer` hold the similarity-enhanced attention;
    the behaviour-bound codes and vectors come from the item tokenizer with the data set; `CodeDecoder` decodes IDs.
    `ItemTable` turns codes, features and IDs into item representations, `CandidateSimilarity` is fitted by the trainer
    once everything else is.

    Parameters
    ----------
    config : settings, see properties/model/BBQRec.yaml.
    dataset : its `catalogue`, `num(field)` and, for a model that is still to be trained, `train_sequences`.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.scoring, self.code_weight = config["scoring"], config["code_weight"]
        self.score_function, self.temperature = config["score_function"], config["temperature"]
        self.n_negatives, self.beam_size = config["n_negatives"], config["beam_size"]
        catalogue = dataset.catalogue
        ids = catalogue.semantic_ids
        if ids is None and self.scoring in ("codes", "generate"):
            raise InputError(
                f"scoring: found {self.scoring}, but there are no codes; set --codes=learned, or --scoring=dense"
            )
        self.item_table = ItemTable(config, catalogue, self._projection(config))
        self.position_embedding = nn.Embedding(self.max_seq_length, config["hidden_size"])
        self.dropout = Dropout(config["hidden_dropout_prob"])
        self.layers = nn.ModuleList(
            TransformerLayer(**_layer_settings(config), mode=config["similarity_attention"])
            for _ in range(config["n_layers"])
        )
        self.final_norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.apply(lambda module: _initialise(module, config["initializer_range"]))
        # What scores comes after that: the encoder starts from the same weights however it is to be scored.
        self.code_heads, self.decoder = None, None
        if ids is not None and self.scoring in ("codes", "joint"):
            self.code_heads = CodeHeads(ids, config["hidden_size"])
        if ids is not None and self.scoring == "generate":
            self.decoder = CodeDecoder(
                ids.codes, ids.codebook_size, n_layers=config["n_decoder_layers"], **_layer_settings(config)
            )
        for part in (self.code_heads, self.decoder):
            if part is not None:
                part.apply(lambda module: _initialise(module, config["initializer_range"]))
        self.similarity = SimilarityAttention.from_dataset(
            config, dataset, config["n_layers"], config["n_heads"], self.max_seq_length
        )
        self.candidates: CandidateSimilarity | None = None
        """Set by the trainer, or read from the run's folder; not part of what training learns."""
        self._kept_rows: torch.Tensor | None = None

    def _projection(self, config: Any) -> Callable[[int, int], nn.Module]:
        """What makes projections of features into item representations, from the two widths."""
        return nn.Linear

    @property
    def finds_some(self) -> bool:
        """Whether items may go without a score (minus infinity): those beyond the beam of `generate`."""
        return self.decoder is not None and self.beam_size > 0

    def forward(self, item_seq: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Encode histories [B, T] (0 pads on the right) into hidden states [B, T, H].

        `rows` [B, T, H] are the items' representations where the caller has them already. The state at a position knows
        the items up to it; states at padding mean nothing.
        """
        if rows is None:
            rows = self._rows(item_seq)
        hidden = self.dropout(rows + self.position_embedding.weight[: item_seq.shape[1]])
        biases = [None] * len(self.layers) if self.similarity is None else self.similarity(item_seq)
        for layer, bias in zip(self.layers, biases, strict=True):
            hidden = layer(hidden, bias)
        return self.final_norm(hidden)

    def _rows(self, items: torch.Tensor) -> torch.Tensor:
        """Item representations [..., H]; each item is computed once, however often it occurs."""
        unique, place = torch.unique(items, return_inverse=True)
        return functional.embedding(place, self.item_table(unique))

    def calculate_loss(self, interaction: Any) -> torch.Tensor:
        """Loss at every position that has a target: of the dense score, the codes, both, or the decoded ID.

        `interaction` comes from `WindowDataLoader`: `item_id_list` and `target_list`, both [B, T].
        """
        item_seq, targets = interaction[self.ITEM_SEQ], interaction["target_list"]
        if self.decoder is not None:
            return self.decoder.sequence_loss(self.forward(item_seq), targets)
        wanted = targets > 0
        if self.scoring == "codes":
            return self._code_loss(self.forward(item_seq)[wanted], targets[wanted])
        hidden, loss = (self._full_loss if self.n_negatives == 0 else self._sampled_loss)(item_seq, targets, wanted)
        if self.code_heads is not None:
            loss = loss + self.code_weight * self._code_loss(hidden, targets[wanted])
        return loss

    def _code_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert self.code_heads is not None
        return self.code_heads.loss(hidden, targets)

    def _full_loss(self, item_seq: torch.Tensor, targets: torch.Tensor, wanted: torch.Tensor) -> Pairs:
        """Hidden states [n, H] that have a target, and their cross-entropy over all items."""
        table = self.item_table(torch.arange(self.n_items, device=item_seq.device))
        hidden = self.forward(item_seq, functional.embedding(item_seq, table))[wanted]  # [n, H]
        logits = self._scaled(hidden) @ self._scaled_items(table).T
        logits[:, 0] = -torch.inf  # padding is no candidate
        return hidden, functional.cross_entropy(logits, targets[wanted])

    def _sampled_loss(self, item_seq: torch.Tensor, targets: torch.Tensor, wanted: torch.Tensor) -> Pairs:
        """As `_full_loss`, over the target and uniform negatives that all targets share."""
        negatives = torch.randint(1, self.n_items, (self.n_negatives,), device=item_seq.device)
        unique, place = torch.unique(torch.cat([item_seq.flatten(), targets[wanted], negatives]), return_inverse=True)
        table = self.item_table(unique)
        shown, target_place, negative_place = place.split([item_seq.numel(), int(wanted.sum()), self.n_negatives])
        # Rows are picked by `embedding`: the gradient of plain indexing adds up in an order that threads decide.
        shown_rows, target_rows, negative_rows = (
            functional.embedding(part, table) for part in (shown.view_as(item_seq), target_place, negative_place)
        )
        hidden = self.forward(item_seq, shown_rows)[wanted]
        states = self._scaled(hidden)
        targeted, others = (self._scaled_items(rows) for rows in (target_rows, negative_rows))
        positive = (states * targeted).sum(-1)
        # A negative that happens to be the target would pull against it.
        return hidden, sampled_cross_entropy(states, others, positive, targets[wanted].unsqueeze(1) == negatives)

    def _scaled(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [n, H] whose dot products with `_scaled_items` are scores."""
        return functional.normalize(hidden, dim=-1) / self.temperature if self.score_function == "cosine" else hidden

    def _scaled_items(self, rows: torch.Tensor) -> torch.Tensor:
        """Item rows [m, H] in the form that `_scaled` is multiplied with."""
        return functional.normalize(rows, dim=-1) if self.score_function == "cosine" else rows

    def score(
        self, histories: torch.Tensor, candidates: torch.Tensor | None = None, excluded: Pairs | None = None
    ) -> torch.Tensor:
        """Score items as the next one after histories [B, T] (0 pads on the right, none is empty).

        Parameters
        ----------
        candidates : item ids [m]; none = all N, padding included.
        excluded : (history, item) pairs that need no score; a beam search does not spend its places on them.

        Returns
        -------
        [B, m] or [B, N]; minus infinity for what a beam search has not found.
        """
        scores = self.encoder_score(histories, candidates, excluded)
        if self.candidates is None:
            return scores
        if candidates is None:
            return self.candidates(scores, histories)
        return self.candidates(self.encoder_score(histories), histories)[:, candidates]

    def encoder_score(
        self, histories: torch.Tensor, candidates: torch.Tensor | None = None, excluded: Pairs | None = None
    ) -> torch.Tensor:
        """As `score`, without candidate similarity."""
        lengths = (histories != 0).sum(1)
        trimmed = trim(histories, lengths)
        hidden = self.forward(trimmed)  # [B, T, H]
        if self.decoder is not None:
            return self._decoded(hidden, trimmed != 0, candidates, excluded)
        hidden = hidden[torch.arange(len(histories), device=histories.device), lengths - 1]
        rows = self._kept_rows if candidates is None else None
        return self._states(hidden) @ (self._scored_rows(candidates) if rows is None else rows).T

    def _states(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [n, H] in the form [n, W] whose products with `_scored_rows` are the encoder's scores."""
        if self.code_heads is None:
            return self._scaled(hidden)
        codes = self.code_heads.states(hidden)
        if self.scoring == "codes":
            return codes
        return torch.cat([self._scaled(hidden), self.code_weight * codes], dim=1)

    def _scored_rows(self, items: torch.Tensor | None) -> torch.Tensor:
        """Rows [m, W] of items [m], none = all [N, W]; see `_states`."""
        if items is None:
            items = torch.arange(self.item_table.n_items, device=self.position_embedding.weight.device)
        if self.code_heads is None:
            return self._scaled_items(self.item_table(items))
        codes = self.code_heads.rows(items)
        if self.scoring == "codes":
            return codes
        return torch.cat([self._scaled_items(self.item_table(items)), codes], dim=1)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Compute the rows of all items once for all scores asked for within the block; nothing may change them."""
        with self.item_table.kept(), torch.no_grad():
            self._kept_rows = self._scored_rows(None) if self.decoder is None else None
            try:
                yield
            finally:
                self._kept_rows = None

    def _decoded(
        self, hidden: torch.Tensor, mask: torch.Tensor, candidates: torch.Tensor | None, excluded: Pairs | None
    ) -> torch.Tensor:
        """log p of IDs, by beam search or, with a beam of 0, exactly; padding has no score."""
        assert self.decoder is not None
        if self.finds_some:
            scores = self.decoder.search(hidden, mask, self.beam_size, excluded)
        else:
            scores = self.decoder.likelihood(hidden, mask)
        return scores if candidates is None else scores[:, candidates]

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B, N] of all items, as RecBole asks for them."""
        return self.score(interaction[self.ITEM_SEQ])

    def predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B] of one item per history, as RecBole asks for them."""
        unique, place = torch.unique(interaction[self.ITEM_ID], return_inverse=True)
        return self.score(interaction[self.ITEM_SEQ], unique).gather(1, place.unsqueeze(1)).squeeze(1)


def _layer_settings(config: Any) -> dict[str, Any]:
    """Widths and dropouts, the same for the layers of the encoder and of the decoder."""
    return {
        "hidden_size": config["hidden_size"],
        "inner_size": config["inner_size"],
        "n_heads": config["n_heads"],
        "dropout": config["hidden_dropout_prob"],
        "attn_dropout": config["attn_dropout_prob"],
        "eps": config["layer_norm_eps"],
    }


def _initialise(module: nn.Module, deviation: float) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
