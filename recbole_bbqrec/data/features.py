"""Item features: one matrix per modality, keyed by item token, computed once and kept by fingerprint.

Everything is computed over the item tokens in sorted order, so that a feature depends on tokens and contents, never on
the ids that RecBole gives.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import storage
from ..errors import InputError
from ..model.catalogue import PADDING, ItemFeatures
from ..preparation.encoding_parts import Parts
from .feature_sources import FeatureSettings, Source, gather

__all__ = ["FeatureSettings", "ItemFeatures", "build_item_features", "cache_file", "parts_of", "read_cached"]


def build_item_features(
    item_file: Path,
    item_tokens: Sequence[str],
    settings: FeatureSettings,
    cache_dir: Path,
    device: str | torch.device = "cpu",
) -> tuple[ItemFeatures, float]:
    """Compute the features of `item_tokens`, or read them from `cache_dir`.

    Parameters
    ----------
    item_file : the data set's .item file; image folders and vector files are looked for beside it.
    item_tokens : the items; their order does not matter, `[PAD]` is left out.
    cache_dir : one file per modality and state of its inputs, `features-<modality>-<fingerprint>.safetensors`.

    Returns
    -------
    features : rows in sorted order of the tokens.
    seconds : time spent on encoding; 0 where everything was read from the cache.

    Raises
    ------
    InputError : a file, column or model that the settings name is missing or broken, or no item has the modality.
    """
    tokens = sorted({str(token) for token in item_tokens} - {PADDING})
    result, seconds = ItemFeatures(tokens), 0.0
    for modality in settings.modalities():
        source = gather(modality, Path(item_file), tokens, settings, torch.device(device))
        file = cache_file(Path(cache_dir), source)
        parts = parts_of(file, source)
        one = read_cached(file, source)
        if one is None:
            started = time.perf_counter()
            one, notes = _encode(source, parts)
            seconds += time.perf_counter() - started
            one.save(file, _header(source, one, notes), {modality.name: source.hashes})
        else:
            logging.getLogger().info(f"{modality.name} features: read from {file}")
        parts.drop()
        _report(modality.name, one)
        result.matrices |= one.matrices
        result.present |= one.present
    return result, seconds


def cache_file(cache_dir: Path, source: Source) -> Path:
    """Return where the features of a source are kept; whether it exists or not."""
    return cache_dir / f"features-{source.modality.name}-{source.inputs}.safetensors"


def parts_of(file: Path, source: Source) -> Parts:
    """Return what an interrupted encoding left on the way to `file`."""
    return Parts(file.with_suffix(".parts"), source.inputs)


def read_cached(file: Path, source: Source) -> ItemFeatures | None:
    """Return the features of a source as `file` holds them, `None` where it does not exist or cannot be trusted."""
    if not file.is_file():
        return None
    name = source.modality.name
    try:
        tensors, header = storage.load(file, "features")
        features = ItemFeatures._from_file(file, tensors, header)
        good = features.tokens == source.tokens and features.modalities == [name]
        good = good and header["inputs"] == source.inputs
        good = good and header["content"] == _content(features, tensors[f"hash.{name}"])
    except (InputError, KeyError, ValueError):
        good = False
    if not good:
        logging.getLogger().warning(f"{file}: a damaged file of item features; they are computed again")
    return features if good else None


def _header(source: Source, features: ItemFeatures, notes: Mapping[str, Any]) -> dict[str, Any]:
    counts = {"items": len(features.tokens), "present": int(features.present[source.modality.name].sum())}
    about = {**source.about, **counts, **notes, "inputs": source.inputs}
    return {**about, "content": _content(features, source.hashes)}


def _content(features: ItemFeatures, hashes: Tensor) -> str:
    """Fingerprint of what a features file holds, so that damage inside it is seen as well."""
    return storage.fingerprint(features.tokens, features.matrices, features.present, hashes)


def _encode(source: Source, parts: Parts) -> tuple[ItemFeatures, dict[str, Any]]:
    name = source.modality.name
    nothing = f"{source.place}: none of the {len(source.tokens)} items has {name} features; {source.remedy}"
    if not source.available:
        raise InputError(nothing)
    matrix, known, notes = source.encode(parts)
    if not known.any():
        raise InputError(nothing)
    return ItemFeatures(source.tokens, {name: matrix}, {name: known}), notes


def _report(name: str, features: ItemFeatures) -> None:
    present, width = features.present[name], features.matrices[name].shape[1]
    missing = int((~present).sum())
    share = 100 * missing / len(present)
    logging.getLogger().info(
        f"{name} features: {len(present)} items x {width}, {missing} items ({share:.1f} %) have none"
    )
