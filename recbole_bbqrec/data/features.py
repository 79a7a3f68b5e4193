"""Item features: one matrix per modality, keyed by item token, computed once and kept by fingerprint.

Everything is computed over the item tokens in sorted order, so that a feature depends on tokens and contents, never on
the ids that RecBole gives.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import storage
from ..errors import InputError
from .feature_sources import Source, gather, modalities, read_texts

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


def build_item_features(config: Any, item_tokens: Sequence[str], cache_dir: Path) -> tuple[ItemFeatures, float]:
    """Return the features of the items, rows in sorted order of their tokens, and the seconds spent on encoding.

    What `cache_dir` holds is read: one file per modality and state of its inputs, see `cache_file`.

    Raises
    ------
    InputError : a file, column or model that the settings name is missing or broken, or no item has the modality.
    """
    tokens = sorted({str(token) for token in item_tokens} - {PADDING})
    result, seconds = ItemFeatures(tokens), 0.0
    texts = read_texts(config, tokens, modalities(config))
    for name in modalities(config):
        source = gather(name, config, texts, tokens)
        file = cache_file(cache_dir, source)
        if cached := read_file(file, source.inputs):
            found = cached[0]
            logging.getLogger().info(f"{name} features: read from {file}")
        else:
            started = time.perf_counter()
            found = _encode(source, file)
            seconds += time.perf_counter() - started
        shutil.rmtree(file.with_suffix(".parts"), ignore_errors=True)
        width, missing = found.matrices[name].shape[1], int((~found.present[name]).sum())
        logging.getLogger().info(
            f"{name} features: {len(tokens)} items x {width}, {missing} items ({100 * missing / len(tokens):.1f} %) "
            "have none"
        )
        result.matrices |= found.matrices
        result.present |= found.present
    return result, seconds


def cache_file(cache_dir: Path, source: Source) -> Path:
    """Return where the features of a source are kept, whether it exists or not.

    What an interrupted encoding left is in the folder of the same name with the ending `.parts`.
    """
    return cache_dir / f"features-{source.about['modality']}-{source.inputs}.safetensors"


def read_file(file: Path, inputs: str | None = None) -> tuple[ItemFeatures, dict[str, Any], Tensor] | None:
    """Return the features of one modality that a file holds, its header, and the hash of what each item was made from.

    `None` stands for a file that is not there, is damaged, or, where `inputs` are given, was made from others.
    """
    try:
        tensors, header = storage.load(file, "features")
        features = ItemFeatures._from_file(file, tensors, header)
        hashes = tensors[f"hash.{header['modality']}"]
        if header["content"] == _content(features, hashes) and inputs in (None, header["inputs"]):
            return features, header, hashes
    except (InputError, KeyError):
        pass
    if inputs and file.is_file():
        logging.getLogger().warning(f"{file}: a damaged file of item features; they are computed again")
    return None


def _content(features: ItemFeatures, hashes: Tensor) -> str:
    """Fingerprint of what a features file holds, so that damage inside it is seen as well."""
    return storage.fingerprint(features.tokens, features.matrices, features.present, hashes)


def _encode(source: Source, file: Path) -> ItemFeatures:
    """Compute the features of a source and keep them in `file`."""
    name = source.about["modality"]
    nothing = f"{source.place}: none of the {len(source.tokens)} items has {name} features; {source.remedy}"
    if not source.available:
        raise InputError(nothing)
    matrix, known, notes = source.encode(file.with_suffix(".parts"))
    if not known.any():
        raise InputError(nothing)
    features = ItemFeatures(source.tokens, {name: matrix}, {name: known})
    header = {**source.about, **source.method, **notes, "inputs": source.inputs}
    header |= {"items": len(known), "present": int(known.sum()), "content": _content(features, source.hashes)}
    features.save(file, header, {name: source.hashes})
    return features
