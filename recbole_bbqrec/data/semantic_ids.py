"""From training sequences to semantic IDs by item id, through a cache that notices every change."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import storage, tokenizer
from ..errors import InputError
from ..tokenizer.fit import BehaviorBindTokenizer
from ..tokenizer.semantic_ids import number_codes
from .features import ItemFeatures
from .sequences import Sequences

PREFIX = "sid_"
"""Settings `sid_x` are the arguments `x` of `BehaviorBindTokenizer`."""

# Not part of what a tokenizer learns from: how it is run.
RUN_KEYS = ("progress",)


@dataclass(frozen=True)
class SemanticIds:
    """Codes and quantised behaviour vectors of all items, row = item id, row 0 = padding.

    Attributes
    ----------
    codes : [N, P] code at each of the P positions of the ID; -1 where a signal is missing, and in row 0.
    vectors : [S, N, C] quantised behaviour vector of each signal; zero where missing.
    present : [S, N] whether the item has the signal.
    signals : names of the S signals.
    codebook_size : number K of codes at every position.
    """

    codes: torch.Tensor
    vectors: torch.Tensor
    present: torch.Tensor
    signals: list[str]
    codebook_size: int

    @property
    def n_code_ids(self) -> int:
        """Number of different values in `code_ids`."""
        return 1 + self.codes.shape[1] * self.codebook_size

    @property
    def code_ids(self) -> torch.Tensor:
        """[N, P] codes numbered over all positions, `1 + position * K + code`; 0 where there is none."""
        return number_codes(self.codes, self.codebook_size)

    def as_tokens(self) -> tuple[list[str], torch.Tensor]:
        """Return the names of all code ids, `[PAD]` first, and `code_ids`: a RecBole `token_seq` field."""
        width = self.codes.shape[1]
        names = [f"c{position}_{code}" for position in range(width) for code in range(self.codebook_size)]
        return ["[PAD]", *names], self.code_ids

    def save(self, path: Path) -> None:
        """Write everything to `path`."""
        tensors = {"codes": self.codes, "vectors": self.vectors, "present": self.present}
        storage.save(path, "semantic_ids", tensors, {"signals": self.signals, "codebook_size": self.codebook_size})

    @classmethod
    def load(cls, path: Path) -> "SemanticIds":
        """Read what `save` wrote."""
        tensors, header = storage.load(path, "semantic_ids")
        return cls(**tensors, **header)


def fit_semantic_ids(
    config: Any, item_tokens: list[str], features: ItemFeatures | None, sequences: Sequences, cache_dir: Path
) -> tuple[SemanticIds, Path]:
    """Learn the item tokenizer on the training sequences, or read it from the cache.

    The tokenizer sees items in the order of their tokens and users in the order of theirs, so its result depends on
    neither RecBole's numbering nor on anything outside the training split.

    Parameters
    ----------
    item_tokens : tokens by item id, `[PAD]` first.
    sequences : training sequences of item ids.

    Returns
    -------
    The IDs by item id, and the tokenizer's file.
    """
    canonical = sorted(item_tokens[1:])
    place = {token: index for index, token in enumerate(canonical)}
    order = np.array([-1] + [place[token] for token in item_tokens[1:]])
    aligned = features.reindex(canonical) if features is not None else None
    fitted, path = _cached_tokenizer(
        _settings(config), aligned, Sequences(sequences.offsets, order[sequences.items]), len(canonical), cache_dir
    )
    return _by_item_id(fitted, torch.from_numpy(order)), path


def _settings(config: Any) -> dict[str, Any]:
    names = [key for key in config.final_config_dict if key.startswith(PREFIX)]
    settings = {key.removeprefix(PREFIX): config[key] for key in names}
    return {**settings, "seed": config["seed"], "device": str(config["device"]), "progress": config["show_progress"]}


def _cached_tokenizer(
    settings: Mapping[str, Any], features: ItemFeatures | None, sequences: Sequences, n_items: int, cache_dir: Path
) -> tuple[BehaviorBindTokenizer, Path]:
    matrices = features.matrices if features is not None else {}
    present = features.present if features is not None else {}
    learned_from = {key: value for key, value in settings.items() if key not in RUN_KEYS}
    source = storage.source_fingerprint(tokenizer)
    key = storage.fingerprint(
        learned_from, matrices, present, sequences.offsets, sequences.items, n_items, source, torch.__version__
    )
    path = cache_dir / f"tokenizer-{key}.safetensors"
    logger = logging.getLogger()
    if path.is_file():
        try:
            fitted = BehaviorBindTokenizer.load(path)
            logger.info(f"semantic IDs: read from {path}")
            return fitted, path
        except InputError as error:
            logger.warning(f"{error}; learning the semantic IDs again")
    fitted = BehaviorBindTokenizer(**settings)
    fitted.fit(matrices, present, (sequences.offsets, sequences.items), n_items)
    fitted.save(path)
    logger.info(f"semantic IDs: learned and kept in {path}")
    return fitted, path


def _by_item_id(fitted: BehaviorBindTokenizer, order: torch.Tensor) -> SemanticIds:
    """Put the tokenizer's rows in the order of item ids and add the padding row."""
    rows = order[1:]
    width, size = fitted.codes_.shape[1], fitted.codebooks_.shape[1]
    codes = torch.cat([torch.full((1, width), -1), fitted.codes_[rows]])
    vectors = torch.cat([torch.zeros_like(fitted.vectors_[:, :1]), fitted.vectors_[:, rows]], dim=1)
    present = torch.cat([torch.zeros_like(fitted.present_[:, :1]), fitted.present_[:, rows]], dim=1)
    return SemanticIds(codes, vectors, present, list(fitted.signals_), size)
