"""From training sequences to semantic IDs by item id, through a cache that notices every change."""

import inspect
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import storage
from ..errors import InputError
from ..tokenizer.base import ItemTokenizer
from ..tokenizer.registry import TOKENIZERS
from ..tokenizer.registry import load as load_tokenizer
from ..tokenizer.report_card import report_card, report_card_table, write_report_card
from ..tokenizer.semantic_ids import number_codes
from .features import ItemFeatures
from .sequences import Sequences

PREFIX = "sid_"
"""Settings `sid_x` are the arguments `x` of the item tokenizer; their defaults are those of `BehaviorBindTokenizer`."""

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
) -> tuple[SemanticIds, Path, dict[str, float]]:
    """Learn the item tokenizer on the training sequences, or read it from the cache.

    The tokenizer sees items in the order of their tokens and users in the order of theirs, so its result depends on
    neither RecBole's numbering nor on anything outside the training split.

    Parameters
    ----------
    item_tokens : tokens by item id, `[PAD]` first.
    sequences : training sequences of item ids.

    Returns
    -------
    The IDs by item id, the tokenizer's file, and the seconds of the `tokenizer` and of its `report card`.
    """
    started = time.perf_counter()
    canonical = sorted(item_tokens[1:])
    place = {token: index for index, token in enumerate(canonical)}
    order = np.array([-1] + [place[token] for token in item_tokens[1:]])
    aligned = features.reindex(canonical) if features is not None else None
    canonical_sequences = Sequences(sequences.offsets, order[sequences.items])
    fitted, path = _cached_tokenizer(
        config["tokenizer"], _settings(config), aligned, canonical_sequences, len(canonical), cache_dir
    )
    learned_at = time.perf_counter()
    if config["report_card"]:
        _report(fitted, aligned, canonical_sequences, path)
    seconds = {"tokenizer": learned_at - started, "report card": time.perf_counter() - learned_at}
    learned = SemanticIds(
        fitted.codes_, fitted.vectors_, fitted.present_, list(fitted.signals_), fitted.codebooks_.shape[1]
    )
    return _by_item_id(CONTROLS[config["codes"]](learned, config["seed"]), torch.from_numpy(order)), path, seconds


def _settings(config: Any) -> dict[str, Any]:
    """Arguments of the configured tokenizer; it takes those of the keys `sid_x` that it knows."""
    known = inspect.signature(TOKENIZERS[config["tokenizer"]]).parameters
    names = [key for key in config.final_config_dict if key.startswith(PREFIX)]
    settings = {key.removeprefix(PREFIX): config[key] for key in names if key.removeprefix(PREFIX) in known}
    return {**settings, "seed": config["seed"], "device": str(config["device"]), "progress": config["show_progress"]}


def _cached_tokenizer(
    name: str,
    settings: Mapping[str, Any],
    features: ItemFeatures | None,
    sequences: Sequences,
    n_items: int,
    cache_dir: Path,
) -> tuple[ItemTokenizer, Path]:
    matrices, present = _given(features)
    learned_from = {key: value for key, value in settings.items() if key not in RUN_KEYS}
    source = storage.source_fingerprint(TOKENIZERS[name].__module__)
    key = storage.fingerprint(
        name, learned_from, matrices, present, sequences.offsets, sequences.items, n_items, source, torch.__version__
    )
    path = cache_dir / f"tokenizer-{key}.safetensors"
    logger = logging.getLogger()
    if path.is_file():
        try:
            fitted = load_tokenizer(path)
            logger.info(f"semantic IDs: read from {path}")
            return fitted, path
        except InputError as error:
            logger.warning(f"{error}; learning the semantic IDs again")
    fitted = TOKENIZERS[name](**settings)
    fitted.fit(matrices, present, (sequences.offsets, sequences.items), n_items)
    fitted.save(path)
    logger.info(f"semantic IDs: learned and kept in {path}")
    return fitted, path


def _given(features: ItemFeatures | None) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return (features.matrices, features.present) if features is not None else ({}, {})


def _report(fitted: ItemTokenizer, features: ItemFeatures | None, sequences: Sequences, path: Path) -> None:
    """Write the ID report card beside the tokenizer's file, once, and show it."""
    stem, logger = path.with_suffix(""), logging.getLogger()
    if not stem.with_suffix(".json").is_file():
        logger.info("ID report card: measuring the codes (--report_card=False leaves it out)")
        card = report_card(fitted, *_given(features), (sequences.offsets, sequences.items))
        write_report_card(card, stem)
        logger.info("\n" + report_card_table(card))
        for warning in card["warnings"]:
            logger.warning(f"semantic IDs: {warning}")
    logger.info(f"ID report card: {stem.with_suffix('.json')} and .png")


def _learned(ids: SemanticIds, seed: int) -> SemanticIds:
    return ids


def _shuffled(ids: SemanticIds, seed: int) -> SemanticIds:
    """Control: every item gets the codes and the vectors of some other item, both together."""
    other = torch.randperm(len(ids.codes), generator=torch.Generator().manual_seed(seed))
    return replace(ids, codes=ids.codes[other], vectors=ids.vectors[:, other], present=ids.present[:, other])


def _random(ids: SemanticIds, seed: int) -> SemanticIds:
    """Control: every item gets random codes, each item its own, and random vectors stand for the codes."""
    generator = torch.Generator().manual_seed(seed)
    n_items, width = ids.codes.shape
    size, levels = ids.codebook_size, width // len(ids.signals)
    # Different numbers written with codes as digits: no two items get the same ID. No item lacks a signal.
    n_digits = max(level for level in range(1, levels + 1) if level == 1 or size**level < 2**62)
    numbers = torch.from_numpy(np.random.default_rng(seed).choice(size**n_digits, n_items, replace=False))
    codes = torch.randint(size, (n_items, width), generator=generator)
    codes[:, -n_digits:] = torch.stack([numbers // size**place % size for place in range(n_digits)], dim=1)
    codebooks = torch.randn(width, size, ids.vectors.shape[-1], generator=generator)
    parts = torch.stack([book[code] for book, code in zip(codebooks, codes.T, strict=True)])  # [P, N, C]
    vectors = parts.unflatten(0, (len(ids.signals), levels)).sum(1)
    return replace(ids, codes=codes, vectors=vectors, present=torch.ones_like(ids.present))


CONTROLS = {"learned": _learned, "shuffled": _shuffled, "random": _random}
"""What the key `codes` does to the IDs; `none` does without any."""


def _by_item_id(ids: SemanticIds, order: torch.Tensor) -> SemanticIds:
    """Put rows in the order of item ids and add the padding row."""
    rows = order[1:]
    codes = torch.cat([torch.full((1, ids.codes.shape[1]), -1), ids.codes[rows]])
    vectors = torch.cat([torch.zeros_like(ids.vectors[:, :1]), ids.vectors[:, rows]], dim=1)
    present = torch.cat([torch.zeros_like(ids.present[:, :1]), ids.present[:, rows]], dim=1)
    return replace(ids, codes=codes, vectors=vectors, present=present)
