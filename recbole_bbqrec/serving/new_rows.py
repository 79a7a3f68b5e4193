"""Tables of new items: read and checked, every fault one line that names the row.

Shapes: F width of a modality's features.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_scalar
from torch import Tensor

from ..data.feature_sources import as_texts, template_of
from ..errors import InputError, listed
from ..model.catalogue import PADDING, Catalogue
from ..preparation import images
from ..preparation.bad_rows import AS_UTF8, NOT_UTF8, BadRows
from ..preparation.raw import clean
from ..preparation.table_files import open_table
from ..preparation.tables import ITEM_COLUMNS, cell_text, likely
from .calls import tokens_of

IMAGE, VECTORS = "image", "vectors"
"""Columns beside those of the .item file: an image's file, and vectors by modality that stand in for an encoder's."""


class Rows(NamedTuple):
    """New items as a table has them.

    Attributes
    ----------
    tokens : of the items, none of which is in the catalogue.
    cells : all other columns as texts, "" where there is none.
    files : image files by token.
    vectors : modality -> number of a row -> [F], of rows that bring vectors.
    """

    tokens: list[str]
    cells: pd.DataFrame
    files: dict[str, Path]
    vectors: dict[str, dict[int, Tensor]]


def read_rows(given: Any, settings: Any, known: Catalogue) -> Rows:
    """Return the rows of a frame, file or list, see `new_items.read`, which are of items that `known` lacks."""
    needed = _needed(settings, known)
    if isinstance(given, list) and all(isinstance(row, Mapping) for row in given):
        table, beside = _of_mappings(given, needed), Path()
    else:
        table, beside = _table(given)
        table = table.rename(columns=_usual(table, needed))
    tokens = _tokens(table, settings, known)
    return Rows(tokens, _texts(table, settings), _images(table, tokens, beside), _vectors(table, tokens, known))


def _table(given: Any) -> tuple[pd.DataFrame, Path]:
    """The rows, and the folder that paths of images begin at."""
    if isinstance(given, pd.DataFrame):
        _differ(given.columns, "new items")
        return given.reset_index(drop=True), Path()
    if not isinstance(given, str | Path):
        raise InputError(f"new items: found {type(given).__name__}, expected a frame or the path of a CSV file")
    path = Path(given)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a CSV file with a row for each new item")
    bad = BadRows(path)
    with open_table(path) as table:
        names = [name for name in table.names if name]
        _differ(names, str(path))
        rows = list(table.records({name: name for name in names}, _plain, bad))
    if bad.rows:
        line, reason, found = bad.rows[0]
        mend = AS_UTF8 if reason == NOT_UTF8 else "mend the row, or save it as CSV UTF-8 with a header"
        raise InputError(f"{path}: no table that can be read (line {line}: {reason}, found {found!r}); {mend}")
    return pd.DataFrame(rows, columns=names, dtype=object), path.parent


def _differ(names: Iterable[Any], place: str) -> None:
    """Refuse two columns of one name."""
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise InputError(f"{place}: found two columns {twice[0]}, expected names that differ; rename one")


def _plain(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return cells of a file as texts, numbers, lists and objects too, as `bbqrec prepare` has them; vectors stay."""
    return {name: cell if name == VECTORS else cell_text(cell) for name, cell in cells.items()}


def _of_mappings(items: list[Mapping[str, Any]], needed: Mapping[str, str]) -> pd.DataFrame:
    """Items that each have columns of their own as a frame with all that a run needs, "" where an item has none."""
    rows = []
    for item in items:
        called = _usual(item, needed)
        rows.append({called.get(name, name): cell for name, cell in item.items()})
    blank = dict.fromkeys(chain(needed, *rows), "")
    return pd.DataFrame([{**blank, **row} for row in rows])


def _needed(settings: Any, known: Catalogue) -> dict[str, str]:
    """Columns that a run needs, and the field of `ITEM_COLUMNS` that has other names for each."""
    columns = [column for name in known.modalities for column in template_of(settings, name).columns]
    return {settings["ITEM_ID_FIELD"]: "token"} | {column: column for column in columns}


def _usual(names: Iterable[Any], needed: Mapping[str, str]) -> dict[str, str]:
    """Return name -> column for those of the names that are a usual synonym of a needed column that is missing."""
    there, called = list(map(str, names)), {}
    for column, field in needed.items():
        found = [] if column in there else likely(ITEM_COLUMNS.get(field, ()), there)
        if len(found) == 1:
            called[found[0]] = column
    return called


def _tokens(table: pd.DataFrame, settings: Any, known: Catalogue) -> list[str]:
    column = settings["ITEM_ID_FIELD"]
    if column not in table:
        there = listed(column, map(str, table.columns))
        raise InputError(f"new items: found no column {column}; rename the one with the item ids, {there}")
    if not len(table):
        raise InputError("new items: found no row, expected one for each item")
    tokens, taken = tokens_of(table[column], (), column), set(known.tokens)
    for row, token in enumerate(tokens):
        found = f"new items: row {row + 1}, {column} {token!r}"
        if not token.strip() or token != token.strip() or not token.isprintable() or token == PADDING:
            raise InputError(f"{found} is no item token; expected a name without blanks around it or line ends")
        if token in taken:
            again = "is in the catalogue already" if token in known.tokens else "is in the table twice"
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
    """All further columns as texts, clean as in an .item file; a cell of neither text nor number is an `InputError`."""
    others = table.drop(columns=[settings["ITEM_ID_FIELD"], IMAGE, VECTORS], errors="ignore")
    for name in others:
        for row, cell in enumerate(others[name]):
            if not isinstance(cell, str | int | float | np.number) and not (is_scalar(cell) and pd.isna(cell)):
                raise InputError(f"new items: row {row + 1}, {name}: found {type(cell).__name__}, expected a text")
    dirt: Counter[str] = Counter()  # which nobody asks for
    return as_texts(others.rename(columns=str)).map(lambda cell: clean(cell, dirt))


def _vectors(table: pd.DataFrame, tokens: list[str], known: Catalogue) -> dict[str, dict[int, Tensor]]:
    """By modality the vectors of rows that bring them, by row."""
    found: dict[str, dict[int, Tensor]] = {name: {} for name in known.modalities}
    widths = {name: matrix.shape[1] for name, matrix in (known.features.matrices if known.features else {}).items()}
    for row, cell in enumerate(table.get(VECTORS, ())):
        if is_scalar(cell) and (pd.isna(cell) or cell == ""):
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
