"""Where the features of a modality come from, and everything they depend on.

A modality is a name, a source (columns of the .item file, a folder of images, or a file of vectors) and an encoder;
texts and images go the same way.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from .. import storage
from ..errors import InputError
from ..preparation import atomic, encoders, images, templates, vectors
from ..preparation.encoding_parts import Encoded, Parts


class Modality(NamedTuple):
    """One modality as the configuration describes it; `fields` and `folder` are its two possible sources.

    The fields are columns, or one template that names them (see `preparation.templates`).
    """

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
                if isinstance(value, str):
                    value = [value.strip()] if "{" in value else value.split()
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


def image_folder(config: Any) -> Path | None:
    """Return the folder whose images a run reads; none where it reads no images, or has them as vectors or codes."""
    if not config["attach_item_features"]:
        return None
    for modality in FeatureSettings.from_config(config).modalities():
        ready = modality.encoder in ("tfidf", "codes") or Path(modality.encoder).suffix in vectors.SUFFIXES
        if modality.folder is not None and not ready:
            return Path(config["data_path"]) / Path(modality.folder).expanduser()
    return None


@dataclass(frozen=True)
class Source:
    """One modality of N items, ready to be encoded.

    Attributes
    ----------
    modality : what the configuration says, without fields that are not read.
    place : file or folder it is read from; `remedy` says what should be there.
    tokens : the N item tokens, sorted.
    digests : what each item is encoded from, as 16 hex digits; "" for items that have nothing.
    method : how it is encoded, as plain data: all but the items that the result depends on.
    encode : does it; parts of what takes long are kept on the way.
    model_is_here : False where the model has to be downloaded first, which leaves `method` incomplete.
    """

    modality: Modality
    place: Path
    remedy: str
    tokens: list[str]
    digests: list[str]
    method: Mapping[str, Any]
    encode: Callable[[Parts | None], Encoded]
    model_is_here: bool = True

    @property
    def available(self) -> int:
        """Number of items that have something to encode."""
        return sum(map(bool, self.digests))

    @functools.cached_property
    def inputs(self) -> str:
        """Fingerprint of all that the result depends on."""
        return storage.fingerprint(self.method, self.tokens, self.digests)

    @property
    def hashes(self) -> Tensor:
        """The digests as int64 [N]; 0 for items that have nothing."""
        numbers = [int.from_bytes(bytes.fromhex(digest), "big", signed=True) for digest in self.digests]
        return torch.tensor(numbers, dtype=torch.int64)

    @property
    def about(self) -> dict[str, Any]:
        """What a reader of the features wants to know, names as they were given."""
        given = {"encoder": self.modality.encoder, "fields": " ".join(self.modality.fields) or None}
        return {"modality": self.modality.name, **given, "source": self.place.name, **self.method}


def gather(
    modality: Modality,
    item_file: Path,
    tokens: list[str],
    settings: FeatureSettings,
    device: torch.device,
    download: bool = True,
) -> Source:
    """Read the source of one modality for the sorted item `tokens` and bind its encoder to it.

    Without `download` nothing is fetched: a model that is only on the hub is marked as such in the result.
    """
    folder = item_file.parent
    if Path(modality.encoder).suffix in vectors.SUFFIXES:
        return _vector_source(modality._replace(fields=()), Path(_beside(folder, modality.encoder)), tokens)
    model = functools.partial(_model, modality, folder, settings, device, download)
    if modality.encoder in ("tfidf", "codes") or modality.folder is None:
        return _column_source(modality, item_file, tokens, settings, model)
    place = folder / Path(modality.folder).expanduser()
    return _image_source(modality._replace(fields=()), place, tokens, model)


def _vector_source(modality: Modality, file: Path, tokens: list[str]) -> Source:
    known, matrix = vectors.read_vectors(file)
    row = {token: at for at, token in enumerate(known)}
    source = torch.tensor([row.get(token, -1) for token in tokens], dtype=torch.long)
    found = source >= 0
    digests = [storage.fingerprint(matrix[at]) if at >= 0 else "" for at in source.tolist()]

    def encode(parts: Parts | None) -> Encoded:
        result = matrix.new_zeros(len(tokens), matrix.shape[1])
        result[found] = matrix[source[found]]
        return Encoded(result, found, {})

    method = {"method": "vectors", "code": storage.source_fingerprint(__name__)}
    remedy = "it must hold the vectors of this data set's items"
    return Source(modality, file, remedy, tokens, digests, method, encode)


def _image_source(modality: Modality, folder: Path, tokens: list[str], model: Callable[[], "_Model"]) -> Source:
    files = images.images_by_token(folder)
    paths = [files.get(token) for token in tokens]
    method, options, is_here = model()
    # Images count by content: a copied or restored folder keeps its features, an exchanged image never does.
    digests = [_file_digest(path) if path else "" for path in paths]
    remedy = f"images must be called <item token>{', '.join(images.SUFFIXES)}, and be readable"

    def encode(parts: Parts | None) -> Encoded:
        return encoders.transformers_image(paths, **options, parts=parts)

    return Source(modality, folder, remedy, tokens, digests, method, encode, is_here)


def _file_digest(path: Path) -> str:
    try:
        return storage.fingerprint(path)
    except OSError:  # the encoder says which and why
        return storage.fingerprint("not readable")


def _column_source(
    modality: Modality, item_file: Path, tokens: list[str], settings: FeatureSettings, model: Callable[[], "_Model"]
) -> Source:
    rows, columns = _texts(modality, item_file, tokens, settings)
    digests = [storage.fingerprint(row) if row else "" for row in rows]
    remedy = f"the columns {' '.join(columns)} must have values for this data set's items"
    if modality.encoder in ("tfidf", "codes"):
        options: dict[str, Any] = {"dim": settings.feature_dim, "seed": settings.seed}
        method: dict[str, Any] = {"method": modality.encoder, "feature_dim": settings.feature_dim}
        method |= {
            "seed": settings.seed,
            "code": storage.source_fingerprint(__name__),
            "versions": _versions("scikit-learn", "scipy", "numpy"),
        }
        encoder = getattr(encoders, modality.encoder)
        return Source(modality, item_file, remedy, tokens, digests, method, lambda parts: encoder(rows, **options))
    method, options, is_here = model()
    method, options["max_tokens"] = {**method, "max_text_tokens": settings.max_text_tokens}, settings.max_text_tokens

    def encode(parts: Parts | None) -> Encoded:
        return encoders.transformers_text(rows, **options, parts=parts)

    return Source(modality, item_file, remedy, tokens, digests, method, encode, is_here)


def _texts(
    modality: Modality, file: Path, tokens: list[str], settings: FeatureSettings
) -> tuple[list[str], tuple[str, ...]]:
    """Return one text per item made from the modality's columns, "" where there is none, and the columns."""
    key = f"{modality.name}_fields"
    if not modality.fields:
        source = f"{key} or {modality.name}_folder" if modality.name == "image" else key
        raise InputError(
            f"{source}: found nothing for {modality.name}_encoder {modality.encoder}; name columns of {file}"
        )
    template = templates.parse(key, modality.fields)
    if not file.is_file():
        raise InputError(
            f"{file}: no such file, but {key} asks for its columns {' '.join(template.columns)}; add the file, or set "
            f"{modality.name}_encoder to ~"
        )
    named = [settings.item_id_field, *template.columns]
    frame, _ = atomic.read_atomic(file, named, settings.field_separator, settings.encoding, settings.seq_separator)

    def clean(cell: str) -> str:
        # In category tokens `_` stands for a blank; in codes it is part of the name.
        text = cell.replace(settings.seq_separator, " ")
        return " ".join((text if modality.encoder == "codes" else text.replace("_", " ")).split())

    cells = zip(*([clean(cell) for cell in _as_text(frame[name])] for name in template.columns), strict=True)
    by_item: dict[str, str] = {}
    items = _as_text(frame[settings.item_id_field])
    for item, values in zip(items, cells, strict=True):
        if item not in by_item:
            by_item[item] = template.fill(dict(zip(template.columns, values, strict=True)))
    unlisted = sum(token not in by_item for token in tokens)
    repeated = len(items) - len(by_item)
    for count, what in ((repeated, "rows repeat an item and are left out"), (unlisted, "items have no row")):
        if count:
            logging.getLogger().warning(f"{file}: {count} {what}")
    return [by_item.get(token, "") for token in tokens], template.columns


def _as_text(column: pd.Series) -> list[str]:
    if column.dtype == object:
        return column.tolist()
    return ["" if pd.isna(number) else f"{number:.15g}" for number in column]


class _Model(NamedTuple):
    """A transformers model: what its features depend on, the encoder's arguments, whether it is on this machine."""

    method: dict[str, Any]
    options: dict[str, Any]
    is_here: bool


def _model(modality: Modality, folder: Path, settings: FeatureSettings, device: torch.device, download: bool) -> _Model:
    name = str(_beside(folder, modality.encoder))
    place = encoders.model_folder(name) if download else encoders.local_model(name)
    files = itertools.chain.from_iterable(sorted(place.glob(kind)) for kind in encoders.MODEL_FILES) if place else ()
    # Batch size and device decide how sums are rounded, the half precision of a GPU does so visibly.
    method = {
        "method": "transformers",
        "model": storage.fingerprint({path.name: path for path in files}) if place else None,
        "encode_batch_size": settings.encode_batch_size,
        "device": device.type,
        "code": storage.source_fingerprint(__name__),
        "versions": _versions("transformers", "tokenizers", "torch", "torchvision", "pillow", "numpy"),
    }
    options = {"model": str(place or name), "batch_size": settings.encode_batch_size, "device": device}
    return _Model(method, options, place is not None)


def _beside(folder: Path, name: str) -> Path | str:
    """Return `name` below the data set's folder where it exists there, else as it is."""
    path = Path(name).expanduser()
    return folder / path if not path.is_absolute() and (folder / path).exists() else name


def _versions(*packages: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
