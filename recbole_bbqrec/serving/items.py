"""What people read of items: the cells of the data set's .item file, a title among them, and image files.

Shapes: N items.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import storage
from ..data.feature_sources import as_texts, item_file, modalities, template_of, without_underscores
from ..errors import InputError
from ..preparation import atomic, images

KIND = "items"
IMAGES = "images"
"""Name of the folder of images beside a data set's files, and of that in a bundle."""
TITLES = ("title", "name", "movie_title")
"""Columns that hold titles where present; else one whose name ends in `title`, else the first that the run's texts are
made of."""
_COLUMN = "column."


@dataclass(frozen=True)
class Items:
    """Cells of N items by column, in the order of `tokens`, and the names of their image files.

    `title` names the column of titles, "" where none is one. Files are looked for in `folders`, the first that has one.
    """

    tokens: Sequence[str]
    columns: dict[str, list[str]] = field(default_factory=dict)
    title: str = ""
    images: dict[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()

    @property
    def titles(self) -> list[str]:
        """A title for each item, "" where there is none."""
        return self.columns.get(self.title) or [""] * len(self.tokens)

    def image_file(self, token: str) -> Path | None:
        """Image file of an item where it is still there: never one outside `folders`, whatever a name says."""
        name = self.images.get(token, "")
        if Path(name).suffix.lower() not in images.SUFFIXES:
            return None
        found = ((folder.resolve(), (folder / name).resolve()) for folder in self.folders)
        return next((path for folder, path in found if path.is_file() and path.is_relative_to(folder)), None)

    def joined(self, later: "Items") -> "Items":
        """Return these items and later ones behind them; cells of columns that one lacks are blank.

        Image files are those of both by name, in the folders of the later ones.
        """
        parts = (self, later)
        columns = {
            name: [cell for part in parts for cell in part.columns.get(name, [""] * len(part.tokens))]
            for name in dict.fromkeys((*self.columns, *later.columns))
        }
        tokens, files = [*self.tokens, *later.tokens], {**self.images, **later.images}
        return Items(tokens, columns, self.title or later.title, files, later.folders)

    def save(self, path: Path) -> None:
        """Write everything to one file; image files stay where they are."""
        parts = {_COLUMN + name: cells for name, cells in self.columns.items()} | {IMAGES: self.images}
        tensors = {
            name: torch.tensor(list(json.dumps(part).encode()), dtype=torch.uint8) for name, part in parts.items()
        }
        header = {"title": self.title, "columns": [*self.columns], "folders": [str(folder) for folder in self.folders]}
        storage.save(path, KIND, tensors, header)

    @classmethod
    def load(cls, path: Path, tokens: Sequence[str]) -> "Items":
        """Read what `save` wrote of these items; nothing is known of them where there is no file."""
        if not path.is_file():
            return cls(tokens)
        tensors, header = storage.load(path, KIND)
        try:
            names = json.loads(bytes(tensors[IMAGES].numpy()))
            columns = {name: json.loads(bytes(tensors[_COLUMN + name].numpy())) for name in header["columns"]}
            folders = (path.parent / IMAGES, *map(Path, header["folders"]))
            title = header["title"]
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: an items file without {error}; run again, or copy the folder again") from error
        if any(len(cells) != len(tokens) for cells in columns.values()):
            raise InputError(f"{path}: its columns are not of {len(tokens)} items; run again, or copy the folder again")
        return cls(tokens, columns, title, names, folders)


def items_of(config: Any, tokens: Sequence[str]) -> Items:
    """Return what the files of a run's data set tell people of its items; unreadable ones are logged and left out."""
    try:
        columns = _columns(config, tokens)
    except InputError as error:
        logging.getLogger().warning(f"no titles in the bundle: {error}")
        columns = {}
    folder = item_file(config).parent / Path(config["image_folder"] or IMAGES).expanduser()
    if not folder.is_dir():
        return Items(tokens, columns, title_of(config, columns))
    known = set(tokens)
    names = {token: path.name for token, path in images.images_by_token(folder).items() if token in known}
    return Items(tokens, columns, title_of(config, columns), names, (folder.resolve(),))


def title_of(config: Any, columns: Sequence[str] | dict[str, Any]) -> str:
    """Name of the column that holds titles, see `TITLES`; "" where none does."""
    ending = [name for name in columns if name.endswith(TITLES[0])]
    texts = template_of(config, "text").columns if modalities(config).get("text") not in (None, "codes") else []
    return next((name for name in (*TITLES, *ending, *texts) if name in columns), "")


def _columns(config: Any, tokens: Sequence[str]) -> dict[str, list[str]]:
    """Columns of the .item file by name, in the order of `tokens`; none where there is no file."""
    file, item = item_file(config), config["ITEM_ID_FIELD"]
    if not file.is_file():
        return {}
    how = config["field_separator"], config["encoding"] or "utf-8"
    names = [name for name, kind in atomic.read_header(file, *how).items() if name != item and kind != "float_seq"]
    table, _ = atomic.read_atomic(file, [item, *names], *how, config["seq_separator"])
    known = as_texts(table).drop_duplicates(item).set_index(item).reindex(tokens, fill_value="")
    blank = config["seq_separator"]
    return {name: [readable(cell.replace(blank, " ")) for cell in known[name]] for name in names}


def readable(cell: str) -> str:
    """Return a cell as one line of text."""
    return " ".join(without_underscores(cell).split())
