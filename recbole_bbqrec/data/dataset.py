"""The hook: RecBole's sequential data set, with item features and semantic codes attached."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction, cat_interactions
from recbole.utils import FeatureSource, FeatureType

from .. import compat
from ..errors import InputError
from ..model.catalogue import Catalogue, SemanticIds
from ..preparation.atomic import read_atomic
from .features import build_item_features
from .semantic_ids import fit_semantic_ids
from .sequences import Sequences, training_sequences

SEMANTIC_ID = "semantic_id"
"""Name of the item feature that holds an item's codes."""


class MultiModalSequentialDataset(SequentialDataset):
    """RecBole's `SequentialDataset` whose items have features and semantic IDs.

    Features are joined by item token once RecBole has filtered and renumbered the items; semantic codes are learned
    once `build` has made the training split, from that split alone.

    Attributes
    ----------
    catalogue : what is known of the items by item id: features where `attach_item_features` is set, semantic IDs once
        built where `attach_semantic_ids` is. The codes are also the item feature `semantic_id` (`token_seq`), so that
        RecBole's feature-aware models can take them.
    train_sequences : training part of every user's sequence, once built.
    tokenizer_file : where the tokenizer that gave the codes is kept.
    seconds : what `features` and `tokenizer` took when they were made; none where that is not known.
    """

    catalogue: Catalogue
    train_sequences: Sequences | None = None
    tokenizer_file: Path | None = None

    def __init__(self, config: Any) -> None:
        for key in ("save_dataset", "save_dataloaders"):
            if config[key]:
                raise InputError(f"{key}: this data set is not pickled, it is cached by fingerprint; drop the key")
        self.seconds: dict[str, float | None] = {"features": 0.0, "tokenizer": 0.0}
        with compat.lengths_by_element():
            super().__init__(config)
        tokens = [str(token) for token in self.field2id_token[self.iid_field]]
        self.catalogue = Catalogue(tokens)
        # Whether the model needs to know how alike items are, by their codes or by their features.
        compares = bool(config["attach_semantic_ids"]) or config["similarity_attention"] != "off"
        self._needs_codes = compares and config["codes"] != "none"
        if config["attach_item_features"] or compares:
            features, self.seconds["features"] = build_item_features(config, tokens[1:], self.cache_dir)
            self.catalogue = Catalogue(tokens, features.reindex(tokens))

    @property
    def cache_dir(self) -> Path:
        """Folder of this data set's features and tokenizers."""
        root = self.config["cache_dir"] or Path(self.config["checkpoint_dir"]) / "cache"
        return Path(root) / self.dataset_name

    def save(self) -> None:
        """Refuse RecBole's pickle."""
        raise InputError("this data set is not pickled: features and codes are cached by fingerprint in cache_dir")

    # Reading and filtering, where RecBole's own steps stumble over pandas 3 or over a broken file.

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        load_col, unload_col = self._get_load_and_unload_col(source)
        if load_col == set():
            return None
        separator, encoding = self.config["field_separator"], self.config["encoding"] or "utf-8"
        frame, types = read_atomic(Path(filepath), load_col and sorted(load_col), separator, encoding)
        unwanted = set(unload_col or ()) & types.keys()
        frame, types = frame.drop(columns=list(unwanted)), {k: v for k, v in types.items() if k not in unwanted}
        for field, name in types.items():
            kind = FeatureType(name)
            if isinstance(source, FeatureSource) or source != "link":
                self.field2source[field], self.field2type[field] = source, kind
                if kind in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
                    self.field2bucketnum[field] = 2
            if kind in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ):
                read, mark = float if kind == FeatureType.FLOAT_SEQ else str, self.config["seq_separator"]
                rows = [np.array([read(part) for part in text.split(mark) if part]) for text in frame[field]]
                longest = max((len(row) for row in rows), default=0)
                self.field2seqlen[field] = min((self.config["seq_len"] or {}).get(field, longest), longest)
                frame[field] = [row[: self.field2seqlen[field]] for row in rows]
            else:
                self.field2seqlen[field] = 1
                if kind == FeatureType.TOKEN:
                    frame[field] = frame[field].astype(object).where(frame[field] != "", np.nan)
        if source == FeatureSource.INTERACTION:
            self._check_interactions(filepath, frame, types)
        return frame

    def _check_interactions(self, path: str, frame: pd.DataFrame, types: dict[str, str]) -> None:
        for key, kind in (("USER_ID_FIELD", "token"), ("ITEM_ID_FIELD", "token"), ("TIME_FIELD", "float")):
            field = self.config[key]
            if types.get(field) != kind:
                found = f"{field}:{types[field]}" if field in types else f"no column {field} among {', '.join(types)}"
                raise InputError(
                    f"{path}, line 1: found {found}, expected {field}:{kind}; mend the header, name the column with "
                    f"--{key}=..., or add it to load_col"
                )
            blank = np.flatnonzero(frame[field].isna())
            if len(blank):
                raise InputError(
                    f"{path}, line {blank[0] + 2}: found a blank {field}, expected a value in every row of an "
                    f"interaction file ({len(blank)} are blank); fill it in or delete the line"
                )

    def _data_filtering(self) -> None:
        try:
            super()._data_filtering()
        except ValueError as error:  # RecBole raises it when nothing is left
            raise InputError(
                f"{self.dataset_name}: filtering failed ({error}); loosen or mend user_inter_num_interval, "
                "item_inter_num_interval or val_interval"
            ) from error
        if self.config["shuffle_ties"] is not None:
            # RecBole sorts by time with a stable sort, so the order made here decides among equal times.
            shuffled = self.inter_feat.sample(frac=1, random_state=self.config["shuffle_ties"])
            self.inter_feat = shuffled.reset_index(drop=True)
        # Times go by their rank where RecBole's float32 would merge them (Unix time: steps of 128 s).
        times = self.inter_feat[self.time_field].to_numpy()
        if times.size and len(np.unique(times.astype(np.float32))) < len(np.unique(times)):
            self.inter_feat[self.time_field] = np.unique(times, return_inverse=True)[1].astype(np.float64)
            self.logger.info(f"{self.time_field}: replaced by its rank, float32 would merge different times")

    def _fill_nan(self) -> None:
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in list(feat):
                kind = self.field2type[field]
                if kind == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0)
                elif kind == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
                else:
                    empty = np.array([], dtype=np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64)
                    feat[field] = [empty if isinstance(value, float) else value for value in feat[field]]

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        with warnings.catch_warnings():
            # Columns of pandas 3 are read-only views; RecBole reorders them into new tensors next and writes to none.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return super()._dataframe_to_interaction(data)

    def get_preload_weight(self, field: str) -> np.ndarray:
        """As RecBole's, in single precision: KSR multiplies the vectors with its weights as they are."""
        return super().get_preload_weight(field).astype(np.float32)

    # What is attached.

    def build(self) -> list[Any]:
        """Split as RecBole does, then learn the codes from the training split and attach them to all splits."""
        splits = super().build()
        if self.config["train_on"] == "all":
            splits = _all_in_training(splits)
        sequences, catalogue = training_sequences(splits[0]), self.catalogue
        if self._needs_codes:
            ids, self.tokenizer_file, seconds = fit_semantic_ids(self.config, catalogue, sequences, self.cache_dir)
            catalogue = replace(catalogue, semantic_ids=ids)
            self.seconds |= seconds
        for split in (self, *splits):
            split.train_sequences, split.catalogue = sequences, catalogue
            if catalogue.semantic_ids is not None:
                split._attach_codes(catalogue.semantic_ids)
        return splits

    def _attach_codes(self, ids: SemanticIds) -> None:
        width = ids.codes.shape[1]
        names = [f"c{position}_{code}" for position in range(width) for code in range(ids.codebook_size)]
        tokens = ["[PAD]", *names]  # of all code ids
        columns = {} if self.item_feat is None else dict(self.item_feat.interaction)
        columns.setdefault(self.iid_field, torch.arange(self.item_num))
        self.item_feat = Interaction({**columns, SEMANTIC_ID: ids.code_ids})
        self.field2source[self.iid_field] = FeatureSource.ITEM_ID
        self.field2id_token[SEMANTIC_ID] = np.array(tokens)
        self.field2token_id[SEMANTIC_ID] = {token: index for index, token in enumerate(tokens)}
        self.set_field_property(SEMANTIC_ID, FeatureType.TOKEN_SEQ, FeatureSource.ITEM, width)


def _all_in_training(splits: list[Any]) -> list[Any]:
    """Move all rows of a split to its training part; the other parts stay, without any."""
    joined = cat_interactions([part.inter_feat for part in splits])
    return [splits[0].copy(joined), *(part.copy(part.inter_feat[[]]) for part in splits[1:])]
