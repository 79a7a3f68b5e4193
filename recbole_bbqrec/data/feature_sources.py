"""Where the features of a modality come from, and everything they depend on.

A modality (`modalities.MODALITIES`) has an encoder and a source: columns of the .item file, a folder of images, or a
file of vectors, which stands in the encoder's place. Columns become a text as a plain list of their names, or by a
template such as `{title}[ by {brand}][, in {tags}]`.
"""

import functools
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import storage
from ..errors import InputError
from ..modalities import MODALITIES
from ..preparation import atomic, counted, encoders, images, vectors

# Encoders without a model; all others read vectors or are transformers models.
COUNTED = {"tfidf": counted.tfidf, "codes": counted.codes}


def modalities(config: Any) -> dict[str, str]:
    """Return the encoders by modality of a configuration or a mapping; modalities without one are left out."""
    found = {name: _given(config, f"{name}_encoder") for name in MODALITIES}
    return {name: encoder for name, encoder in found.items() if encoder is not None}


def image_folder(config: Any) -> Path | None:
    """Return the folder whose images a run reads; none where it reads no images, or has them as vectors or codes."""
    reads = any(_kind(config, name) == "images" for name in modalities(config))
    return _below(config, config["image_folder"]) if reads and config["attach_item_features"] else None


def item_file(config: Any) -> Path:
    """Return where the .item file is, whether it exists or not."""
    return _below(config, f"{config['dataset']}.item")


def _given(config: Any, key: str) -> Any:
    value = config[key] if key in config else None  # noqa: SIM401 (RecBole's Config has no `get`)
    return None if value in ("", "~") else value  # `~` comes as it is from settings that were not read as YAML


def _below(config: Any, path: str) -> Path:
    return Path(config["data_path"]) / Path(path).expanduser()


def _kind(config: Any, name: str) -> str:
    encoder = modalities(config)[name]
    if Path(encoder).suffix in vectors.SUFFIXES:
        return "vectors"
    return "images" if encoder not in COUNTED and _given(config, f"{name}_folder") else "columns"


class Template(NamedTuple):
    """How cells become a text: parts of words and columns in turn, words first, and whether each is optional."""

    parts: list[tuple[list[str], bool]]

    @property
    def columns(self) -> list[str]:
        """Names of the columns, each once, in the order they are met."""
        return list(dict.fromkeys(name for pieces, _ in self.parts for name in pieces[1::2]))

    def fill(self, cells: Mapping[str, str]) -> str:
        """Return the text of an item with these cells, blanks joined; "" where no cell that is shown says anything."""
        shown = [pieces for pieces, optional in self.parts if not optional or all(map(cells.get, pieces[1::2]))]
        if not any(cells[name] for pieces in shown for name in pieces[1::2]):
            return ""
        text = "".join(cells[piece] if at % 2 else piece for pieces in shown for at, piece in enumerate(pieces))
        return " ".join(text.split())


def template_of(config: Any, name: str) -> Template:
    """Return what a modality's `<name>_fields` says: names of columns, or a template, which holds a `{`."""
    fields = _given(config, f"{name}_fields") or []
    if not isinstance(fields, str) or "{" not in fields:
        names = fields.split() if isinstance(fields, str) else fields
        return Template([([piece for column in names for piece in (" ", str(column))] + [""], False)])
    parts = []
    for at, part in enumerate(re.split(r"\[([^][]*)\]", fields)):  # what stood in brackets has the odd places
        pieces, found = re.split(r"\{([^{}]*)\}", part), ""
        if wrong := re.search(r"[][{}]", "".join(pieces[::2])):
            found = f"a {wrong[0]} without its other half, or brackets and braces within one another"
        elif "" in pieces[1::2]:
            found = "{} without the name of a column"
        elif at % 2 and len(pieces) == 1:
            found = f"[{part}] without a column"
        if found:
            expected = "columns as {title}, and parts that go when one of their columns is blank as [ by {brand}]"
            raise InputError(f"{name}_fields: found {found} in {fields!r}, expected {expected}; correct the template")
        parts.append((pieces, at % 2 == 1))
    return Template(parts)


def read_texts(config: Any, tokens: list[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Read the .item file, once for all modalities `names` that are made from its columns: name -> a text per token.

    A text is "" where nothing is known of the item; of several rows of an item the first one counts.
    """
    made = {name: template_of(config, name) for name in names if _kind(config, name) == "columns"}
    if not made:
        return {}
    file, item = item_file(config), config["ITEM_ID_FIELD"]
    for name, template in made.items():
        if not template.columns:
            source = f"{name}_fields" + (f" or {name}_folder" if MODALITIES[name].folder else "")
            raise InputError(f"{source}: found nothing for {name}_encoder; name columns of {file}")
        if not file.is_file():
            asked = f"{name}_fields asks for its columns {' '.join(template.columns)}"
            raise InputError(f"{file}: no such file, but {asked}; add the file, or set {name}_encoder to ~")
    columns = dict.fromkeys(column for template in made.values() for column in template.columns)
    how = (config["field_separator"], config["encoding"] or "utf-8", config["seq_separator"])
    table, _ = atomic.read_atomic(file, [item, *columns], *how)
    first = as_texts(table).drop_duplicates(item).set_index(item, drop=False)
    if repeated := len(table) - len(first):
        logging.getLogger().warning(f"{file}: {repeated} rows repeat an item and are left out")
    if unlisted := len(set(tokens) - set(first.index)):
        logging.getLogger().warning(f"{file}: {unlisted} items have no row")
    return fill(config, first.reindex(tokens, fill_value=""), made)


def unused_texts(config: Any) -> list[str]:
    """Return the text columns of the .item file that a run without any encoder leaves unused.

    A file that is missing or broken has none: the run does not need it.
    """
    if modalities(config):
        return []
    try:
        types = atomic.read_header(item_file(config), config["field_separator"], config["encoding"] or "utf-8")
    except (InputError, OSError):
        return []
    return [name for name, kind in types.items() if kind == "token_seq"]


def as_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of a table as texts; "" where there is none."""
    return table.map(lambda cell: cell if isinstance(cell, str) else "" if pd.isna(cell) else f"{cell:.15g}")


def fill(config: Any, table: pd.DataFrame, made: Mapping[str, Template]) -> dict[str, list[str]]:
    """Return by modality the texts that templates make of the rows of a table of texts."""
    separator = config["seq_separator"]
    cells = table.map(lambda cell: cell.replace(separator, " ").strip())
    words = cells.map(without_underscores)
    rows = {name: cells if modalities(config)[name] == "codes" else words for name in made}
    return {name: [template.fill(row) for row in rows[name].to_dict("records")] for name, template in made.items()}


def without_underscores(cell: str) -> str:
    """Return a cell as it is read: in category tokens `_` stands for a blank; in codes it is part of the name."""
    return cell.replace("_", " ").strip()


@dataclass(frozen=True)
class Source:
    """One modality of N items, ready to be encoded."""

    about: dict[str, Any]  # `modality`, `encoder` and `fields` as they were given, and the name of the `source`
    place: Path  # file or folder it is read from
    remedy: str  # what should be there
    tokens: list[str]  # N, sorted
    hashes: Tensor  # int64 [N], of what each item is encoded from; 0 for items that have nothing
    method: dict[str, Any]  # how it is encoded: all that the result depends on but the items
    encode: Callable[[Path], encoders.Encoded]  # does it; keeps parts of what takes long in a folder

    @property
    def available(self) -> int:
        """Number of items that have something to encode."""
        return int(self.hashes.count_nonzero())

    @property
    def model_is_missing(self) -> bool:
        """Whether the model is still to be downloaded, so that `inputs` is not what it will be."""
        return self.method.get("model", "") is None

    @functools.cached_property
    def inputs(self) -> str:
        """Fingerprint of all that the result depends on."""
        return storage.fingerprint(self.method, self.tokens, self.hashes)


def gather(
    name: str,
    config: Any,
    texts: dict[str, list[str]],
    tokens: list[str],
    download: bool = True,
    unfitted: Collection[str] = (),
) -> Source:
    """Read the source of one modality for the sorted item `tokens` and bind its encoder to it.

    `texts` are from `read_texts`, of this modality among others; `download` fetches a model that is only on the hub.
    An encoder that learns something from the items learns nothing from those `unfitted`.
    """
    kind, encoder, fields = _kind(config, name), modalities(config)[name], None
    beside = _below(config, encoder)
    found = str(beside) if encoder not in COUNTED and beside.exists() else encoder
    rows: list[Any]
    if kind == "vectors":
        place, remedy = Path(found), "it must hold the vectors of this data set's items"
        known, matrix = vectors.read_vectors(place)
        vector = dict(zip(known, matrix.numpy(), strict=True))
        rows = [vector.get(token) for token in tokens]
    elif kind == "images":
        place = _below(config, config[f"{name}_folder"])
        remedy = f"images must be called <item token>{', '.join(images.SUFFIXES)}, and be readable"
        files = images.images_by_token(place)
        rows = [files.get(token) for token in tokens]
    else:
        place, rows, fields = item_file(config), texts[name], _given(config, f"{name}_fields")
        remedy = f"the columns {fields} must have values for this data set's items"
    fitted = np.array([token not in unfitted for token in tokens])
    method, encode = _encoder(kind, found, config, rows, download, fitted)
    method["code"] = storage.source_fingerprint(__name__)
    about = {"modality": name, "encoder": encoder, "fields": fields, "source": place.name}
    hashes = torch.tensor([_hash(row) for row in rows], dtype=torch.int64)
    return Source(about, place, remedy, tokens, hashes, method, encode)


def _hash(row: Any) -> int:
    """Hash of a text, an array, or the content of an image: a copied folder keeps its features."""
    if row is None or (isinstance(row, str) and not row):
        return 0
    try:
        digest = storage.fingerprint(row)
    except OSError:  # the encoder says which and why
        digest = storage.fingerprint("not readable")
    return int.from_bytes(bytes.fromhex(digest), "big", signed=True)


def _encoder(
    kind: str, encoder: str, config: Any, rows: list[Any], download: bool, fitted: np.ndarray
) -> tuple[dict[str, Any], Callable[[Path], encoders.Encoded]]:
    """Return what the encoding of rows depends on beside them, and the function that does it."""
    if kind == "vectors":
        return {"method": "vectors"}, lambda _: encoders.given(rows)
    if encoder in COUNTED:
        learn, dim, seed = COUNTED[encoder], config["feature_dim"], config["seed"]
        method = {"method": encoder, "feature_dim": dim, "seed": seed}
        if not fitted.all():
            method["fitted"] = storage.fingerprint(fitted)
        method["versions"] = _versions("scikit-learn", "scipy", "numpy")
        return method, lambda _: learn(rows, dim, seed, fitted)
    model, size, device = encoders.model_folder(encoder, download), config["encode_batch_size"], config["device"]
    method = {"method": "transformers", "model": encoders.model_fingerprint(model) if model else None}
    # Batch size and device decide how sums are rounded, the half precision of a GPU does so visibly.
    method |= {"encode_batch_size": size, "device": torch.device(device).type}
    method["versions"] = _versions("transformers", "tokenizers", "torch", "torchvision", "pillow", "numpy")
    how: dict[str, Any] = {"folder": model, "device": device, "batch_size": size}
    if kind == "images":
        return method, lambda parts: encoders.transformers_image(rows, **how, parts=parts)
    how["max_tokens"] = method["max_text_tokens"] = config["max_text_tokens"]
    return method, lambda parts: encoders.transformers_text(rows, **how, parts=parts)


def _versions(*packages: str) -> dict[str, str | None]:
    return {name: next((found.version for found in metadata.distributions(name=name)), None) for name in packages}
