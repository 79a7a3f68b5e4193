"""New items for a trained model: rows of a table to features, codes and titles, by what was fitted before.

The encoders that made the features of training travel with the bundle, those of a `transformers` model by its name or
folder. Nothing is fitted here: terms, weights, dimensions and codebooks are those of the items that training knew.

Shapes: n new items, F width of a modality's features.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import schema, storage
from ..data.feature_sources import COUNTED, fill, template_of
from ..data.features import read_encoder
from ..errors import InputError, listed
from ..model.catalogue import Catalogue, ItemFeatures
from ..preparation import encoders, images
from ..preparation.counted import Counted
from ..tokenizer.fit import Encoded
from ..tokenizer.registry import load as load_tokenizer
from .folder import ENCODERS, FEATURES, ITEMS, TOKENIZER
from .items import IMAGES, Items, readable, title_of
from .new_rows import VECTORS, Rows, read_rows

KIND = "encoders"
CODES = "codes.safetensors"


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
    given : a frame, the path of a file (as `table_files.open_table` reads it), or a list of mappings, which may differ
        in their columns. It has a row for each item: its token, the columns that the run's texts are made of, and any
        others of the .item file. `image` names an image's file; relative ones begin at the table's folder. It is a file
        of this machine: a table that came over a network must not have that column. `vectors` holds mappings (in a CSV
        file as JSON) of modality -> F numbers, in place of what an encoder would make.
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
    rows = read_rows(given, settings, known)
    features = _Encoding(settings, known, folder, rows).features()
    columns = {str(name): [readable(cell) for cell in rows.cells[name]] for name in rows.cells}
    names = {token: images.file_stem(token) + path.suffix.lower() for token, path in rows.files.items()}
    title = title if title in columns else title_of(settings, columns)
    encoded = _codes(features, settings, known, folder)
    return NewItems(features, encoded, Items(rows.tokens, columns, title, names), rows.files)


@dataclass(frozen=True)
class _Encoding:
    """Makes features of the rows of new items."""

    settings: Any
    known: Catalogue
    folder: Path
    rows: Rows

    @cached_property
    def encoders(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `save_encoders` has kept; nothing where the folder has no such file."""
        path = self.folder / ENCODERS
        return storage.load(path, KIND) if path.is_file() else ({}, {})

    def features(self) -> ItemFeatures:
        """Features of all rows; an `InputError` where they say nothing of one."""
        tokens, given = self.rows.tokens, self.rows.vectors
        found, known = ItemFeatures(tokens), self.known.features or ItemFeatures([])
        nothing = torch.ones(len(tokens), dtype=torch.bool)
        for name, of_known in known.matrices.items():
            matrix, present = torch.zeros(len(tokens), of_known.shape[1]), torch.zeros(len(tokens), dtype=torch.bool)
            others = torch.tensor([row for row in range(len(tokens)) if row not in given[name]], dtype=torch.long)
            if len(others):
                made, has = self._encode(name, others.tolist())
                present[others] = has
                if has.any():  # where none has, the matrix has no width either
                    matrix[others[has]] = made[has]
            for row, vector in given[name].items():
                matrix[row], present[row] = vector, True
            found.matrices[name], found.present[name] = matrix, present
            nothing &= ~present
        if nothing.any():
            columns = {name: template_of(self.settings, name).columns for name in known.matrices}
            asked = ", ".join(f"{name} of {' '.join(of)}" if of else name for name, of in columns.items())
            why = f"nothing that this model's features can use ({asked}): known words, an image, or vectors"
            raise InputError(f"new items: found of {tokens[int(nothing.int().argmax())]!r} {why}; fill in its row")
        return found

    def _encode(self, name: str, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Features of rows and whether they have any, by the encoder that made those of training."""
        learned, about = self.encoders[0], self.encoders[1].get(name)
        if about is None:
            why = "its encoder is not in this folder"
            raise InputError(f"new items: {name}: {why}; give {VECTORS}, or run the training's command again")
        none = torch.zeros(len(rows), 0), torch.zeros(len(rows), dtype=torch.bool)
        how = {"batch_size": about["encode_batch_size"], "device": self.settings["device"]}
        if about["method"] == "vectors":
            return none
        if about["fields"] is None:
            files = [self.rows.files.get(self.rows.tokens[row]) for row in rows]
            return encoders.transformers_image(files, self._model(name, about), **how)[:2] if any(files) else none
        texts = self._texts(name, rows)
        if about["method"] in COUNTED:
            state = {part: learned[f"{name}.{part}"] for part in Counted.PARTS if f"{name}.{part}" in learned}
            return Counted.restore(about["method"], state).encode(texts)
        model = self._model(name, about)
        return encoders.transformers_text(texts, model, about["max_text_tokens"], **how)[:2] if any(texts) else none

    def _texts(self, name: str, rows: list[int]) -> list[str]:
        """Texts of a modality for rows, as the run made them of its .item file."""
        template, cells = template_of(self.settings, name), self.rows.cells
        if missing := [column for column in template.columns if column not in cells]:
            expected = f"the columns of {name}_fields ({' '.join(template.columns)})"
            there = f"{listed(missing[0], cells.columns)}; add it, blank where nothing is known"
            raise InputError(f"new items: found no column {missing[0]}, expected {expected}; {there}")
        return fill(self.settings, cells.iloc[rows][template.columns], {name: template})[name]

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
    tokenizer = load_tokenizer(folder / TOKENIZER)
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
