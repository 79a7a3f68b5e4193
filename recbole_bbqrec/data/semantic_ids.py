"""From training sequences to semantic IDs by item id, through a cache that notices every change."""

import inspect
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import storage
from ..errors import InputError
from ..model.catalogue import Catalogue, SemanticIds
from ..run_log import DETAIL
from ..tokenizer import memory
from ..tokenizer.base import ItemTokenizer
from ..tokenizer.registry import TOKENIZERS
from ..tokenizer.registry import load as load_tokenizer
from ..tokenizer.report_card import NOT_ASKED, report_card, report_card_table, with_rqvae, write_report_card
from .sequences import Sequences

PREFIX = "sid_"
"""Settings `sid_x` are the arguments `x` of the item tokenizer; their defaults are those of `BehaviorBindTokenizer`."""

Features = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""Matrices and presence by modality, as tokenizers take them."""


def fit_semantic_ids(
    config: Any, catalogue: Catalogue, sequences: Sequences, cache_dir: Path, in_order: bool = True
) -> tuple[SemanticIds, Path, dict[str, float]]:
    """Learn the item tokenizer on the training sequences, or read it from the cache.

    The tokenizer sees items and users in the order of their tokens, so its result depends neither on RecBole's
    numbering nor on anything outside the training split, nor, where sequences are not `in_order`, on the order of their
    items in time. Returns the IDs by item id, the tokenizer's file, and the seconds that the `tokenizer` and its
    `report card` took when they were made.
    """
    place, features, by_token = _by_token(catalogue, sequences)
    fitted, path = _cached_tokenizer(config, features, by_token, len(place), cache_dir, in_order)
    measured = _report(fitted, features, by_token, path) if config["report_card"] else 0.0
    seconds = {"tokenizer": fitted.seconds_, "report card": measured}
    names, size = list(fitted.signals_), fitted.codebooks_.shape[1]
    learned = SemanticIds(fitted.codes_, fitted.vectors_, fitted.present_, names, size)
    ids = CONTROLS[config["codes"]](learned, config["seed"])
    # By item id, the padding row first.
    codes = torch.cat([ids.codes.new_full((1, ids.codes.shape[1]), -1), ids.codes[place]])
    vectors, present = (
        torch.cat([torch.zeros_like(part[:, :1]), part[:, place]], dim=1) for part in (ids.vectors, ids.present)
    )
    return replace(ids, codes=codes, vectors=vectors, present=present), path, seconds


def compared_card(catalogue: Catalogue, sequences: Sequences, path: Path) -> dict[str, Any]:
    """Return the report card of a tokenizer's file with an RQ-VAE for comparison, which is fitted once and kept.

    Catalogue and sequences are those that the tokenizer was fitted on.
    """
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if card["rqvae"] == {"skipped": NOT_ASKED}:
        _, features, by_token = _by_token(catalogue, sequences)
        card = with_rqvae(card, load_tokenizer(path), *features, (by_token.offsets, by_token.items))
        write_report_card(card, path.with_suffix(""))
    return card


def _by_token(catalogue: Catalogue, sequences: Sequences) -> tuple[torch.Tensor, Features, Sequences]:
    """What a tokenizer is given, items in the order of their tokens; and the place there of item ids 1, 2, .."""
    tokens = catalogue.tokens
    order = torch.tensor(sorted(range(1, len(tokens)), key=tokens.__getitem__))  # item ids by token
    place = torch.argsort(order)
    known = catalogue.features
    parts = (known.matrices, known.present) if known is not None else ({}, {})
    matrices, present = ({name: rows[order] for name, rows in part.items()} for part in parts)
    return place, (matrices, present), Sequences(sequences.offsets, place.numpy()[sequences.items - 1])


def _cached_tokenizer(
    config: Any, features: Features, sequences: Sequences, n_items: int, cache_dir: Path, in_order: bool
) -> tuple[ItemTokenizer, Path]:
    name, logger = config["tokenizer"], logging.getLogger()
    kind, given = TOKENIZERS[name], config.final_config_dict
    names = inspect.signature(kind).parameters
    settings = {name: given[PREFIX + name] for name in names if PREFIX + name in given}
    settings |= {"seed": config["seed"], "device": str(config["device"])}
    if not in_order:
        settings["in_order"] = False
    source = storage.source_fingerprint(kind.__module__)
    key = storage.fingerprint(
        name, settings, *features, sequences.offsets, sequences.items, n_items, source, torch.__version__
    )
    path = cache_dir / f"tokenizer-{key}.safetensors"
    if path.is_file():
        try:
            fitted = load_tokenizer(path)
            logger.info(f"semantic IDs: read from {path}")
            memory.count_growth(fitted.peak_memory_mib_)
            return fitted, path
        except InputError as error:
            logger.warning(f"{error}; learning the semantic IDs again")
    fitted = kind(**settings, progress=config["show_progress"])
    fitted.fit(*features, (sequences.offsets, sequences.items), n_items)
    fitted.save(path)
    logger.info(f"semantic IDs: learned and kept in {path}")
    return fitted, path


def _report(fitted: ItemTokenizer, features: Features, sequences: Sequences, path: Path) -> float | None:
    """Write the ID report card beside the tokenizer's file, once, and show it; returns the seconds of measuring it."""
    stem, logger = path.with_suffix(""), logging.getLogger()
    if (file := stem.with_suffix(".json")).is_file():
        card = json.loads(file.read_text(encoding="utf-8"))
        memory.count_growth(card["cost"].get("card_peak_memory_mib"))
    else:
        card = report_card(fitted, *features, (sequences.offsets, sequences.items))
        write_report_card(card, stem)
        logger.info("\n" + report_card_table(card), extra=DETAIL)
        for warning in card["warnings"]:
            logger.warning(f"semantic IDs: {warning}")
    logger.info(f"ID report card: {file} and .png")
    return card["cost"].get("card_seconds")


def _shuffled(ids: SemanticIds, seed: int) -> SemanticIds:
    """Control: every item gets the codes and the vectors of some other item, both together."""
    other = torch.randperm(len(ids.codes), generator=torch.Generator().manual_seed(seed))
    return replace(ids, codes=ids.codes[other], vectors=ids.vectors[:, other], present=ids.present[:, other])


def _random(ids: SemanticIds, seed: int) -> SemanticIds:
    """Control: every item gets random codes, each item its own, and random vectors stand for the codes."""
    generator = torch.Generator().manual_seed(seed)
    n_items, width = ids.codes.shape
    size, levels = ids.codebook_size, width // len(ids.signals)
    # Different numbers written with codes as digits: no two items get the same ID. The digits are the codes of the last
    # signal, and as many before it as the number of items takes. No item lacks a signal.
    enough = (level for level in range(1, width + 1) if level <= levels or size ** (level - 1) < n_items)
    n_digits = max(level for level in enough if level == 1 or size**level < 2**62)
    numbers = torch.from_numpy(np.random.default_rng(seed).choice(size**n_digits, n_items, replace=False))
    codes = torch.randint(size, (n_items, width), generator=generator)
    codes[:, -n_digits:] = torch.stack([numbers // size**place % size for place in range(n_digits)], dim=1)
    codebooks = torch.randn(width, size, ids.vectors.shape[-1], generator=generator)
    parts = torch.stack([book[code] for book, code in zip(codebooks, codes.T, strict=True)])  # [P, N, C]
    vectors = parts.unflatten(0, (len(ids.signals), levels)).sum(1)
    return replace(ids, codes=codes, vectors=vectors, present=torch.ones_like(ids.present))


CONTROLS = {"learned": lambda ids, seed: ids, "shuffled": _shuffled, "random": _random}
"""What the key `codes` does to the IDs; `none` does without any."""
