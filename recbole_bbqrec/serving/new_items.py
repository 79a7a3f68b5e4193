"""New items for a trained model: rows of a table to features, codes and titles, by what was fitted before.

The encoders that made the features of training travel with the bundle, those of a `transformers` model by its name or
folder. Nothing is fitted here: terms, weights, dimensions and codebooks are those of the items that training knew.

Shapes: n new items, F width of a modality's features.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import schema, storage
from ..data.feature_sources import COUNTED, as_texts, fill, template_of
from ..data.features import read_encoder
from ..errors import InputError
from ..model.catalogue import PADDING, Catalogue, ItemFeatures
from ..preparation import encoders, images
from ..preparation.atomic import nearest
from ..preparation.counted import Counted
from ..tokenizer.fit import Encoded
from ..tokenizer.registry import load as load_tokenizer
from .calls import tokens_of
from .items import IMAGES, Items, readable, title_of

KIND, ENCODERS = "encoders", "encoders.safetensors"
FEATURES, CODES, ITEMS = "features.safetensors", "codes.safetensors", "items.safetensors"
IMAGE, VECTORS = "image", "vectors"
"""Columns beside those of the .item file: an image's file, and vectors by modality that stand in for an encoder's."""


class NewItems(NamedTuple):
    """What is known of new items; `images` are their files by token."""

    features: ItemFeatures
    encoded: Encoded | None
    items: Items
    images: dict[str, Path]


def save_encoders(path: Path, files: Mapping[str, Path], folder: Path) -> None:
    """Keep what the encoders of a run have learned, by modality from its files of features; `folder` is the data set's.

    Models in a folder are found again by its full path.
    """
    headers, tensors = {}, {}
    for name, file in files.items():
        header, learned = read_encoder(file)
        beside = folder / Path(header["encoder"]).expanduser()
        place = str(beside.resolve()) if header["method"] == "transformers" and beside.exists() else None
        headers[name] = {**{key: header.get(key) for key in _KEPT}, "place": place}
        tensors |= {f"{name}.{part}": value for part, value in learned.items()}
    storage.save(path, KIND, tensors, headers)


_KEPT = ("encoder", "fields", "method", "model", "encode_batch_size", "max_text_tokens")


def read(given: Any, settings: Any, known: Catalogue, folder: Path, title: str) -> NewItems:
    """Return what a table says of new items.

    Parameters
    ----------
    given : a frame, or the path of a CSV file, with a row for each item: its token, the columns that the run's texts
        are made of, and any others of the .item file. `image` names an image's file; relative ones begin at the CSV
        file. `vectors` holds mappings (in a CSV file as JSON) of modality -> F numbers, in place of what an encoder
        would make.
    settings, known : the run's settings, and the catalogue so far.
    folder : the bundle's.
    title : the column of titles so far, "" where there is none.

    Raises
    ------
    InputError : the model cannot rank new items; a row is of no new item, stands twice, or says nothing that the
        model's features are made of.
    """
    if not schema.ranks_new_items(settings):
        why = f"{settings['model']} scores the items that it was trained with, no others"
        raise InputError(f"new items: {why}; train a model with features, such as BBQRec or UniSRec")
    if schema.has_codes(settings) and settings["codes"] in ("random", "shuffled"):
        raise InputError(f"new items: found codes={settings['codes']}, which say nothing of an item; learn them")
    table, beside = _table(given)
    tokens = _tokens(table, settings, known)
    files = _images(table, tokens, beside)
    cells = _texts(table, settings)
    given = _Rows(settings, known, folder, cells, files, _vectors(table, tokens, known))
    features = given.features(tokens)
    columns = {name: [readable(cell) for cell in cells[name]] for name in cells}
    names = {token: images.file_stem(token) + path.suffix.lower() for token, path in files.items()}
    return NewItems(
        features,
        _codes(features, settings, known, folder),
        Items(tokens, columns, title if title in columns else title_of(settings, columns), names),
        files,
    )


def _table(given: Any) -> tuple[pd.DataFrame, Path]:
    """The rows, and the folder that paths of images begin at."""
    if isinstance(given, pd.DataFrame):
        return given.reset_index(drop=True), Path()
    if not isinstance(given, str | Path):
        raise InputError(f"new items: found {type(given).__name__}, expected a frame or the path of a CSV file")
    path = Path(given)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV file with a row for each new item")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig"), path.parent
    except (OSError, ValueError) as error:  # of pandas' parser too
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: no table that can be read ({why}); save it as CSV UTF-8 with a header") from error


def _tokens(table: pd.DataFrame, settings: Any, known: Catalogue) -> list[str]:
    column = settings["ITEM_ID_FIELD"]
    if column not in table:
        raise InputError(f"new items: found no column {column}; {nearest(column, map(str, table.columns))}")
    if not len(table):
        raise InputError("new items: found no row, expected one for each item")
    tokens, taken = tokens_of(table[column], (), column), set(known.tokens)
    for row, token in enumerate(tokens):
        found = f"new items: row {row + 1}, {column} {token!r}"
        if not token.strip() or token != token.strip() or not token.isprintable() or token == PADDING:
            raise InputError(f"{found} is no item token; expected a name without blanks around it or line ends")
        if token in taken:
            again = "is in the catalogue already" if token in known.tokens else "stands in the table twice"
            raise InputError(f"{found} {again}; leave it out")
        taken.add(token)
    return tokens


def _images(table: pd.DataFrame, tokens: list[str], beside: Path) -> dict[str, Path]:
    if IMAGE not in table:
        return {}
    cells = as_texts(table[[IMAGE]].map(lambda cell: str(cell) if isinstance(cell, Path) else cell))[IMAGE]
    files = {token: beside / cell for token, cell in zip(tokens, cells, strict=True) if cell}
    for token, path in files.items():
        if not path.is_file() or path.suffix.lower() not in images.SUFFIXES:
            expected = f"an image file ({', '.join(images.SUFFIXES)})"
            raise InputError(
                f"new items: image of {token!r}: found {str(path)!r}, expected {expected}; correct the path"
            )
    return files


def _texts(table: pd.DataFrame, settings: Any) -> pd.DataFrame:
    """All further columns as texts; an `InputError` where a cell is neither a text nor a number."""
    others = table.drop(columns=[settings["ITEM_ID_FIELD"], IMAGE, VECTORS], errors="ignore")
    for name in others:
        for row, cell in enumerate(others[name]):
            if not isinstance(cell, str | int | float | np.number) and not (np.ndim(cell) == 0 and pd.isna(cell)):
                raise InputError(f"new items: row {row + 1}, {name}: found {type(cell).__name__}, expected a text")
    return as_texts(others.rename(columns=str))


def _vectors(table: pd.DataFrame, tokens: list[str], known: Catalogue) -> dict[str, dict[int, Tensor]]:
    """By modality the vectors of rows that bring them."""
    found: dict[str, dict[int, Tensor]] = {name: {} for name in known.modalities}
    widths = {name: matrix.shape[1] for name, matrix in (known.features.matrices if known.features else {}).items()}
    for row, cell in enumerate(table.get(VECTORS, ())):
        if not isinstance(cell, Mapping) and (not np.ndim(cell) and (pd.isna(cell) or cell == "")):
            continue
        where = f"new items: vectors of {tokens[row]!r}"
        expected = f"for each of {', '.join(widths)} so many finite numbers: {', '.join(map(str, widths.values()))}"
        try:
            by_name = json.loads(cell) if isinstance(cell, str) else cell
            made = {name: torch.as_tensor(np.asarray(part, np.float32)) for name, part in dict(by_name).items()}
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{where}: found {str(cell)[:40]!r}, expected a mapping, {expected}") from error
        for name, vector in made.items():
            if name not in widths or vector.shape != (widths[name],) or not torch.isfinite(vector).all():
                raise InputError(f"{where}: found {name} of shape {list(vector.shape)}, expected {expected}")
            found[name][row] = vector
    return found


@dataclass(frozen=True)
class _Rows:
    """All that is given of new items, and what makes features of it."""

    settings: Any
    known: Catalogue
    folder: Path
    cells: pd.DataFrame
    files: dict[str, Path]
    vectors: dict[str, dict[int, Tensor]]

    @cached_property
    def encoders(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `save_encoders` has kept; nothing where an earlier version wrote the folder."""
        path = self.folder / ENCODERS
        return storage.load(path, KIND) if path.is_file() else ({}, {})

    def features(self, tokens: list[str]) -> ItemFeatures:
        found = ItemFeatures(tokens)
        for name, vectors in self.vectors.items():
            assert self.known.features is not None
            matrix = torch.zeros(len(tokens), self.known.features.matrices[name].shape[1])
            present = torch.zeros(len(tokens), dtype=torch.bool)
            if rows := [row for row in range(len(tokens)) if row not in vectors]:
                matrix[rows], present[rows] = self._encode(name, [tokens[row] for row in rows], rows)
            for row, vector in vectors.items():
                matrix[row], present[row] = vector, True
            found.matrices[name], found.present[name] = matrix, present
        nothing = ~torch.stack([*found.present.values(), torch.zeros(len(tokens), dtype=torch.bool)]).any(0)
        if nothing.any():
            asked = ", ".join(self.known.modalities)
            why = f"nothing that says something to this model's features ({asked}): known words, an image, or vectors"
            raise InputError(f"new items: found of {tokens[int(nothing.int().argmax())]!r} {why}; fill in its row")
        return found

    def _encode(self, name: str, tokens: list[str], rows: list[int]) -> tuple[Tensor, Tensor]:
        """Features and their presence for some rows, by the encoder that made those of training."""
        learned, about = self.encoders[0], self.encoders[1].get(name)
        if about is None:
            why = "its encoder is not in this folder, which an earlier version wrote"
            raise InputError(f"new items: {name}: {why}; give {VECTORS}, or run the training's command again")
        n_rows = len(rows)
        if about["method"] == "vectors":
            width = self.known.features.matrices[name].shape[1]  # pyright: ignore[reportOptionalMemberAccess]
            return torch.zeros(n_rows, width), torch.zeros(n_rows, dtype=torch.bool)
        if about["fields"] is None:
            how = {"batch_size": about["encode_batch_size"], "device": self.settings["device"]}
            files = [self.files.get(token) for token in tokens]
            return encoders.transformers_image(files, self._model(name, about), **how)[:2]
        template = template_of(self.settings, name)
        if missing := [column for column in template.columns if column not in self.cells]:
            expected = f"the columns of {name}_fields ({' '.join(template.columns)})"
            there = nearest(missing[0], self.cells.columns)
            raise InputError(f"new items: found no column {missing[0]}, expected {expected}; {there}")
        texts = fill(self.settings, self.cells.iloc[rows][template.columns], {name: template})[name]
        if about["method"] in COUNTED:
            state = {part: learned[f"{name}.{part}"] for part in Counted.PARTS if f"{name}.{part}" in learned}
            return Counted.restore(about["method"], state).encode(texts)
        how = {"batch_size": about["encode_batch_size"], "device": self.settings["device"]}
        return encoders.transformers_text(texts, self._model(name, about), about["max_text_tokens"], **how)[:2]

    def _model(self, name: str, about: dict[str, Any]) -> Path:
        """Folder of the transformers model, which must be the one that made the features of training."""
        place = about["place"] if about["place"] and Path(about["place"]).is_dir() else about["encoder"]
        folder = encoders.model_folder(place)
        if folder is None or encoders.model_fingerprint(folder) != about["model"]:
            why = f"found another model at {place} than the one that made the features of training"
            raise InputError(f"new items: {name}: {why}; put the old one back, or give {VECTORS}")
        return folder


def _codes(features: ItemFeatures, settings: Any, known: Catalogue, folder: Path) -> Encoded | None:
    """IDs by the frozen tokenizer; each its own where the model decodes IDs."""
    ids = known.semantic_ids
    if ids is None:
        return None
    tokenizer = load_tokenizer(folder / "tokenizer.safetensors")
    return tokenizer.encode(
        features.matrices,
        features.present,
        unique=schema.decodes(settings),
        taken=ids.codes[known.n_trained :] if known.n_trained is not None else None,
    )


def _added(known: Catalogue) -> tuple[ItemFeatures, Encoded | None]:
    """Features and IDs of the items of a catalogue that training does not know."""
    start = len(known.tokens) if known.n_trained is None else known.n_trained
    tokens, ids = known.tokens[start:], known.semantic_ids
    features = (known.features or ItemFeatures(known.tokens)).reindex(tokens)
    encoded = None if ids is None else Encoded(ids.codes[start:], ids.vectors[:, start:], ids.present[:, start:])
    return features, encoded


def write(place: Path, known: Catalogue, items: Items, files: Mapping[str, Path]) -> None:
    """Fill the folder of a generation: all items of a catalogue that training does not know, their images copied."""
    features, encoded = _added(known)
    features.save(place / FEATURES, {})
    if encoded is not None:
        storage.save(place / CODES, "codes", encoded._asdict(), {})
    for token, path in files.items():
        (place / IMAGES).mkdir(exist_ok=True)
        shutil.copyfile(path, place / IMAGES / items.images[token])
    items.save(place / ITEMS)


def load(place: Path, known: Catalogue) -> tuple[Catalogue, Items]:
    """Return the catalogue grown by what `write` has written, and what people read of the new items."""
    features = ItemFeatures.load(place / FEATURES)
    codes = place / CODES
    encoded = Encoded(**storage.load(codes, "codes")[0]) if known.semantic_ids is not None else None
    return known.grown(features, encoded), Items.load(place / ITEMS, features.tokens)
