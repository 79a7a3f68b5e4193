"""The hook: RecBole's sequential data set, with item features and semantic codes attached."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.interaction import cat_interactions
from recbole.utils import FeatureSource, FeatureType, ModelType

from .. import distributed
from ..errors import InputError
from ..model.catalogue import Catalogue, SemanticIds
from .code_fields import add_item_columns, attach_code_fields, number_tokens
from .code_graph import CodeGraphDataset
from .cold_items import apart, cold_tokens, with_cold_items
from .features import build_item_features
from .loading import LoadedDataset
from .semantic_ids import fit_semantic_ids
from .sequences import Sequences, training_sequences

SEMANTIC_ID = "semantic_id"
"""Name of the item feature that holds an item's codes."""


class MultiModalSequentialDataset(LoadedDataset):
    """RecBole's `SequentialDataset` whose items have features and semantic IDs.

    Features are joined by item token once RecBole has filtered and renumbered the items; semantic codes are learned
    once `build` has made the training split, from that split alone.

    Attributes
    ----------
    catalogue : what is known of the items by item id: features where `attach_item_features` is set, semantic IDs once
        built where `attach_semantic_ids` is. The codes are also the item feature `semantic_id` (`token_seq`), so that
        RecBole's feature-aware models can take them.
    train_sequences : training part of every user's sequence, once built; of labelled rows the positive ones.
    feature_files : where the features of each modality are kept, with what their encoder has learned.
    tokenizer_file : where the tokenizer that gave the codes is kept.
    is_ordered : whether the order of a user's rows says something. The tokenizer reads it then.
    n_cold : number of items that training does not know (`cold_items`), the last ones by id. Once built, the training
        part has the catalogue without them; RecBole's rows stay whole, as they say what users had seen.
    seconds : what `features` and `tokenizer` took when they were made; none where that is not known.
    """

    catalogue: Catalogue
    train_sequences: Sequences | None = None
    tokenizer_file: Path | None = None
    is_ordered, n_cold = True, 0

    def __init__(self, config: Any) -> None:
        for key in ("save_dataset", "save_dataloaders"):
            if config[key]:
                raise InputError(f"{key}: this data set is not pickled, it is cached by fingerprint; drop the key")
        self.seconds: dict[str, float | None] = {"features": 0.0, "tokenizer": 0.0}
        self.feature_files: dict[str, Path] = {}
        super().__init__(config)
        tokens = [str(token) for token in self.field2id_token[self.iid_field]]
        self.catalogue = Catalogue(tokens)
        unfitted = {*tokens[len(tokens) - self.n_cold :]}
        # Whether the model needs to know how alike items are, by their codes or by their features.
        compares = bool(config["attach_semantic_ids"]) or config["similarity_attention"] != "off" or self._shows_codes
        semantics = config["item_semantics"] or ()
        self._needs_codes = (compares or "codes" in semantics) and config["codes"] != "none"
        # Codes that only the model's item tables read are no column of its batches.
        self._attaches_codes = compares
        if config["attach_item_features"] or compares or semantics:
            with distributed.main_first():
                built = build_item_features(config, tokens[1:], self.cache_dir, unfitted)
            self.seconds["features"], self.feature_files = built.seconds, built.files
            self.catalogue = Catalogue(tokens, built.features.reindex(tokens))

    @property
    def _shows_codes(self) -> bool:
        """Whether one of RecBole's models reads the codes in a form of their own."""
        fields = self.config["code_fields"] and self.config["MODEL_TYPE"] == ModelType.CONTEXT
        return bool(fields) or isinstance(self, CodeGraphDataset)

    @property
    def cache_dir(self) -> Path:
        """Folder of this data set's features and tokenizers."""
        root = self.config["cache_dir"] or Path(self.config["checkpoint_dir"]) / "cache"
        return Path(root) / self.dataset_name

    def save(self) -> None:
        """Refuse RecBole's pickle."""
        raise InputError("this data set is not pickled: features and codes are cached by fingerprint in cache_dir")

    def build(self) -> list[Any]:
        """Split as RecBole does, then learn the codes from the training split and attach them to all splits."""
        splits = super().build()
        if self.config["train_on"] == "all":
            splits = _all_in_training(splits)
        sequences, catalogue, cold = training_sequences(splits[0].positive()), self.catalogue, None
        if self.n_cold:
            catalogue, cold = apart(catalogue, self.n_cold)
            sequences = sequences.only(sequences.items < len(catalogue.tokens))
        if self._needs_codes:
            with distributed.main_first():
                given = self.config, catalogue, sequences, self.cache_dir, self.is_ordered
                ids, self.tokenizer_file, seconds = fit_semantic_ids(*given)
            distributed.broadcast((ids.codes, ids.vectors))  # the same, even if another machine had to learn them again
            catalogue = replace(catalogue, semantic_ids=ids)
            self.seconds |= seconds
        whole = with_cold_items(self.config, catalogue, cold, self.tokenizer_file) if cold else catalogue
        for split, known in zip((self, *splits), (catalogue, catalogue, whole, whole), strict=True):
            split.train_sequences, split.catalogue = sequences, known
            if cold:
                split.num = split._num_of_known
            if known.semantic_ids is not None and self._attaches_codes:
                split._attach_codes(known.semantic_ids)
        return splits

    def _num_of_known(self, field: str) -> int:
        """Stands in for RecBole's `num` where items are held out: there are as many items as the catalogue has."""
        return len(self.catalogue.tokens) if field == self.iid_field else type(self).num(self, field)

    def _get_remap_list(self, field_list: np.ndarray) -> list[Any]:
        """Have RecBole number cold items behind all others."""
        found, share = super()._get_remap_list(field_list), self.config["cold_items"]
        if not share or self.iid_field not in field_list:
            return found
        tokens = {str(token) for feat, field, _ in found for token in feat[field].unique()}
        cold = cold_tokens([*tokens], share)
        self.n_cold = len(cold)
        known = pd.DataFrame({self.iid_field: sorted(tokens - cold)}, dtype=object)
        return [(known, self.iid_field, FeatureType.TOKEN), *found]

    def _attach_codes(self, ids: SemanticIds) -> None:
        """Show RecBole's models the codes in the forms that the run asks for, else as the column `semantic_id`."""
        if isinstance(self, CodeGraphDataset):
            self.attach_graph(ids, self.config["code_levels"])
        elif self._shows_codes:
            attach_code_fields(self, ids, self.config["code_fields"], self.config["code_levels"])
        else:
            width = ids.codes.shape[1]
            names = [f"c{position}_{code}" for position in range(width) for code in range(ids.codebook_size)]
            number_tokens(self, SEMANTIC_ID, ["[PAD]", *names])  # of all code ids
            self.set_field_property(SEMANTIC_ID, FeatureType.TOKEN_SEQ, FeatureSource.ITEM, width)
            add_item_columns(self, {SEMANTIC_ID: ids.code_ids})


class PrefixDataset(MultiModalSequentialDataset):
    """The data set of RecBole's own models: the lists of all rows stand in `inter_feat`, as RecBole makes them."""

    makes_prefixes = True


def _all_in_training(splits: list[Any]) -> list[Any]:
    """Move all rows of a split to its training part; the other parts stay, without any."""
    start, stop = (np.concatenate([getattr(part.histories, end) for part in splits]) for end in ("start", "stop"))
    everything, *rest = (part.copy(part.inter_feat[[]]) for part in splits)
    for part in rest:
        part.histories = part.histories[:0]
    everything.inter_feat = cat_interactions([part.inter_feat for part in splits])
    everything.histories = replace(everything.histories, start=start, stop=stop)
    return [everything, *rest]
