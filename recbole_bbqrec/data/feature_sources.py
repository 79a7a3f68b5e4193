"""Where the features of a modality come from, and everything they depend on.

A modality is a name, a source (columns of the .item file, a folder of images, or a file of vectors) and an encoder;
texts and images go the same way.
"""

import functools
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from .. import preparation, storage
from ..errors import InputError
from ..preparation import encoders, images, vectors
from ..preparation.atomic import read_atomic


class Modality(NamedTuple):
    """One modality as the configuration describes it; `fields` and `folder` are its two possible sources."""

    name: str
    encoder: str
    fields: tuple[str, ...]
    folder: str | None


@dataclass(frozen=True)
class FeatureSettings:
    """What item features are made from; the names are those of the configuration keys, in lower case."""

    text_fields: tuple[str, ...] = ()
    text_encoder: str | None = None
    image_fields: tuple[str, ...] = ()
    image_folder: str | None = None
    image_encoder: str | None = None
    feature_dim: int = 256
    encode_batch_size: int = 32
    max_text_tokens: int = 128
    item_id_field: str = "item_id"
    field_separator: str = "\t"
    seq_separator: str = " "
    encoding: str = "utf-8"
    seed: int = 2020

    @classmethod
    def from_config(cls, config: Any) -> "FeatureSettings":
        """Read the settings from a configuration or a mapping; keys that are absent or `None` keep their default."""
        found: dict[str, Any] = {}
        for name, default in vars(cls()).items():
            key = "ITEM_ID_FIELD" if name == "item_id_field" else name
            value = config[key] if key in config else None  # noqa: SIM401 (RecBole's Config has no `get`)
            if isinstance(default, tuple):
                value = value.split() if isinstance(value, str) else value
                found[name] = tuple(map(str, value or ()))
            elif isinstance(default, int):
                found[name] = default if value is None else _whole_number(key, value, least=0 if name == "seed" else 1)
            elif name.endswith(("_encoder", "_folder")):
                # `~` reaches us as it is where a shell's command line is not read as YAML.
                found[name] = None if value in (None, "", "~") else str(value)
            else:
                found[name] = str(value) if value else default
        return cls(**found)

    def modalities(self) -> list[Modality]:
        """Return the modalities that have an encoder."""
        text = Modality("text", self.text_encoder or "", self.text_fields, None)
        image = Modality("image", self.image_encoder or "", self.image_fields, self.image_folder)
        return [modality for modality in (text, image) if modality.encoder]


def _whole_number(key: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{key}: found {value!r}, expected a whole number of at least {least}; correct the setting")
    return value


@dataclass(frozen=True)
class Source:
    """One modality, ready to be encoded.

    Attributes
    ----------
    inputs : all that the result depends on; files as paths, which a fingerprint takes by content.
    place : file or folder it is read from, for messages; `remedy` says what should be there.
    available : number of items that have something to encode.
    encode : gives `(matrix, known)`, see `preparation.encoders`.
    """

    name: str
    inputs: Mapping[str, Any]
    place: Path
    remedy: str
    available: int
    encode: Callable[[], tuple[Tensor, Tensor]]


def gather(
    modality: Modality, item_file: Path, tokens: list[str], settings: FeatureSettings, device: torch.device
) -> Source:
    """Read the source of one modality for the sorted item `tokens` and bind its encoder to it."""
    folder = item_file.parent
    if Path(modality.encoder).suffix in vectors.SUFFIXES:
        return _vector_source(modality, Path(_beside(folder, modality.encoder)), tokens)
    if modality.encoder in ("tfidf", "codes") or modality.folder is None:
        return _column_source(modality, item_file, tokens, settings, device)
    return _image_source(modality, folder / Path(modality.folder).expanduser(), tokens, settings, device)


def _vector_source(modality: Modality, file: Path, tokens: list[str]) -> Source:
    known, matrix = vectors.read_vectors(file)
    inputs = {"tokens": tokens, "code": _code(), "files": {path.name: path for path in vectors.files_of(file)}}
    row = {token: at for at, token in enumerate(known)}
    source = torch.tensor([row.get(token, -1) for token in tokens], dtype=torch.long)
    found = source >= 0

    def encode() -> tuple[Tensor, Tensor]:
        result = matrix.new_zeros(len(tokens), matrix.shape[1])
        result[found] = matrix[source[found]]
        return result, found

    remedy = "it must hold the vectors of this data set's items"
    return Source(modality.name, inputs, file, remedy, int(found.sum()), encode)


def _image_source(
    modality: Modality, folder: Path, tokens: list[str], settings: FeatureSettings, device: torch.device
) -> Source:
    files = images.images_by_token(folder)
    paths = [files.get(token) for token in tokens]
    inputs, options = _model(modality, folder.parent, settings, device)
    # Images count by content: a copied or restored folder keeps its features, an exchanged image never does.
    inputs |= {"tokens": tokens, "images": {token: files[token] for token in tokens if token in files}}
    encode = functools.partial(encoders.transformers_image, paths, **options)
    remedy = f"images must be called <item token>{', '.join(images.SUFFIXES)}, and be readable"
    return Source(modality.name, inputs, folder, remedy, len(inputs["images"]), encode)


def _column_source(
    modality: Modality, item_file: Path, tokens: list[str], settings: FeatureSettings, device: torch.device
) -> Source:
    rows = _columns(modality, item_file, tokens, settings)
    inputs: dict[str, Any] = {"tokens": tokens, "rows": rows, "code": _code()}
    if modality.encoder in ("tfidf", "codes"):
        options = {"dim": settings.feature_dim, "seed": settings.seed}
        inputs |= {"encoder": modality.encoder, **options, "versions": _versions("scikit-learn", "scipy", "numpy")}
        encode = functools.partial(getattr(encoders, modality.encoder), rows, **options)
    else:
        described, options = _model(modality, item_file.parent, settings, device)
        inputs |= {**described, "max_tokens": settings.max_text_tokens}
        encode = functools.partial(encoders.transformers_text, rows, **options, max_tokens=settings.max_text_tokens)
    remedy = f"the columns {' '.join(modality.fields)} must have values for this data set's items"
    return Source(modality.name, inputs, item_file, remedy, sum(map(bool, rows)), encode)


def _columns(modality: Modality, file: Path, tokens: list[str], settings: FeatureSettings) -> list[str]:
    """Return the modality's columns of the .item file as one string per item, "" where there is none."""
    key = f"{modality.name}_fields"
    if not modality.fields:
        source = f"{key} or {modality.name}_folder" if modality.name == "image" else key
        raise InputError(
            f"{source}: found nothing for {modality.name}_encoder {modality.encoder}; name columns of {file}"
        )
    if not file.is_file():
        raise InputError(
            f"{file}: no such file, but {key} asks for its columns {' '.join(modality.fields)}; add the file, or set "
            f"{modality.name}_encoder to ~"
        )
    frame, _ = read_atomic(
        file,
        [settings.item_id_field, *modality.fields],
        settings.field_separator,
        settings.encoding,
        settings.seq_separator,
    )
    is_code, repeated = modality.encoder == "codes", 0
    by_item: dict[str, str] = {}
    columns = [_as_text(frame[name]) for name in (settings.item_id_field, *modality.fields)]
    for item, *values in zip(*columns, strict=True):
        if item in by_item:
            repeated += 1
            continue
        text = " ".join(values).replace(settings.seq_separator, " ")
        # In category tokens `_` stands for a blank; in codes it is part of the name.
        by_item[item] = " ".join((text if is_code else text.replace("_", " ")).split())
    unlisted = sum(token not in by_item for token in tokens)
    for count, what in ((repeated, "rows repeat an item and are left out"), (unlisted, "items have no row")):
        if count:
            logging.getLogger().warning(f"{file}: {count} {what}")
    return [by_item.get(token, "") for token in tokens]


def _as_text(column: pd.Series) -> list[str]:
    if column.dtype == object:
        return column.tolist()
    return ["" if pd.isna(number) else f"{number:.15g}" for number in column]


def _model(
    modality: Modality, folder: Path, settings: FeatureSettings, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what features of a transformers model depend on, and the encoder's arguments."""
    model = encoders.model_folder(str(_beside(folder, modality.encoder)))
    # Batch size and device decide how sums are rounded, the half precision of a GPU does so visibly.
    inputs = {
        "code": _code(),
        "encoder": {path.name: path for pattern in encoders.MODEL_FILES for path in sorted(model.glob(pattern))},
        "batch_size": settings.encode_batch_size,
        "device": device.type,
        "versions": _versions("transformers", "tokenizers", "torch", "torchvision", "pillow", "numpy"),
    }
    return inputs, {"model": str(model), "batch_size": settings.encode_batch_size, "device": device}


def _beside(folder: Path, name: str) -> Path | str:
    """Return `name` below the data set's folder where it exists there, else as it is."""
    path = Path(name).expanduser()
    return folder / path if not path.is_absolute() and (folder / path).exists() else name


@functools.cache
def _code() -> str:
    return storage.source_fingerprint(preparation, sys.modules[__name__])


def _versions(*packages: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
