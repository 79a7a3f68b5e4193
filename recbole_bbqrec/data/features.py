"""Item features: one matrix per modality, keyed by item token, computed once and kept by fingerprint.

Everything is computed over the item tokens in sorted order, so that a feature depends on tokens and contents, never on
the ids that RecBole gives.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import storage
from ..errors import InputError
from ..preparation.encoding_parts import Parts
from .feature_sources import FeatureSettings, Source, gather

__all__ = ["PADDING", "FeatureSettings", "ItemFeatures", "build_item_features", "cache_file", "parts_of", "read_cached"]

PADDING = "[PAD]"
"""RecBole's name of item id 0, which is no item."""


@dataclass
class ItemFeatures:
    """Features of N items.

    Attributes
    ----------
    tokens : item tokens, in the order of the rows.
    matrices : modality -> float32 [N, D]; rows of items that lack it are zero.
    present : modality -> bool [N], whether the item has it.
    """

    tokens: list[str]
    matrices: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in the order they were configured."""
        return list(self.matrices)

    def reindex(self, tokens: Sequence[str]) -> "ItemFeatures":
        """Return the rows of `tokens` in their order; `[PAD]` and unknown tokens get zeros and are not present."""
        row = {token: at for at, token in enumerate(self.tokens) if token != PADDING}
        source = torch.tensor([row.get(token, -1) for token in tokens], dtype=torch.long)
        found = source >= 0
        matrices, present = {}, {}
        for name, matrix in self.matrices.items():
            present[name], matrices[name] = found.clone(), matrix.new_zeros(len(source), matrix.shape[1])
            present[name][found] = self.present[name][source[found]]
            matrices[name][found] = matrix[source[found]]
        return ItemFeatures([str(token) for token in tokens], matrices, present)

    def save(
        self, path: str | os.PathLike, header: Mapping[str, Any], hashes: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write everything to one file; `header` is plain data that goes with it, as are hashes: modality -> int64 [N]
        of what each item was encoded from."""
        # Tokens are a tensor because a safetensors header is limited in size and a catalogue is not.
        tensors = {"tokens": torch.tensor(list(json.dumps(self.tokens).encode()), dtype=torch.uint8)}
        for name in self.modalities:
            tensors |= {f"matrix.{name}": self.matrices[name], f"present.{name}": self.present[name]}
        tensors |= {f"hash.{name}": numbers for name, numbers in (hashes or {}).items()}
        storage.save(path, "features", tensors, {**header, "modalities": self.modalities})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ItemFeatures":
        """Read what `save` wrote."""
        return cls._from_file(path, *storage.load(path, "features"))

    @classmethod
    def _from_file(cls, path: str | os.PathLike, tensors: dict[str, Tensor], header: dict[str, Any]) -> "ItemFeatures":
        try:
            tokens = json.loads(bytes(tensors["tokens"].numpy()))
            matrices = {name: tensors[f"matrix.{name}"] for name in header["modalities"]}
            present = {name: tensors[f"present.{name}"] for name in header["modalities"]}
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: a features file without {error}; delete it and run again") from error
        if any(len(part) != len(tokens) for part in (*matrices.values(), *present.values())):
            raise InputError(f"{path}: its tokens and rows differ in number; delete it and run again")
        return cls(tokens, matrices, present)


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
