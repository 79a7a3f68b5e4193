"""Reading RecBole's atomic files: a typed header, then one record a line.

There are no quoting rules and no words for "missing": a title may begin with a quote and a token may be called `NA`.
No line is skipped, padded or merged with another; what does not fit is an error that names its line.
"""

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InputError, listed
from . import plain_columns

TYPES = ("token", "token_seq", "float", "float_seq")
"""The field types RecBole knows."""


def read_atomic(
    path: str | os.PathLike,
    fields: Iterable[str] | None = None,
    field_separator: str = "\t",
    encoding: str = "utf-8",
    seq_separator: str = " ",
    coded: bool = False,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read one atomic file.

    Parameters
    ----------
    path : the file; its first line is `name:type` per column.
    fields : names of the columns to read; None reads all. They come in the order of the file, whatever is asked first.
    field_separator, encoding, seq_separator : as in RecBole's configuration; a byte-order mark is dropped.
    coded : whether `token` columns come as categories, in the order in which they are met; a blank is none of them.

    Returns
    -------
    frame : `token`, `token_seq` and `float_seq` columns as `str` objects ("" where blank, never NaN), `float` columns
        as float64 (NaN where blank), one row per line.
    types : field -> type, for the columns of `frame`.

    Raises
    ------
    InputError : the file, its header or one of its lines is not as it should be. Blank lines at the very end are
        let pass, elsewhere they are errors.
    """
    if not field_separator or not seq_separator:
        raise InputError(f"{path}: field_separator or seq_separator is empty, expected a character such as a tab")
    header = read_header(path, field_separator, encoding)
    wanted = list(header if fields is None else fields)
    if missing := [field for field in wanted if field not in header]:
        raise InputError(
            f"{path}, line 1: expected the field {missing[0]}, which is not in the header "
            f"({listed(missing[0], header)}); correct the name in the configuration or add the column"
        )
    types = {name: kind for name, kind in header.items() if name in wanted}
    found = None
    if plain_columns.first_line(path, encoding) is not None:
        found = plain_columns.read_plain(path, header, types, field_separator, coded)
    n_rows, columns = _by_line(path, header, types, field_separator, encoding) if found is None else (None, found)
    data = {name: _series(path, name, types[name], columns.pop(name), seq_separator, coded) for name in types}
    n_rows = len(next(iter(data.values()))) if n_rows is None else n_rows
    return pd.DataFrame(data, index=pd.RangeIndex(n_rows), columns=pd.Index(list(types), dtype=object)), types


def _by_line(
    path: str | os.PathLike, header: dict[str, str], types: dict[str, str], field_separator: str, encoding: str
) -> tuple[int, dict[str, Any]]:
    """Return the number of records and the columns of a file by the exact rules; the line that breaks one is named."""
    lines = _lines(path, field_separator, encoding)
    while len(header) > 1 and len(lines) > 1 and not lines[-1]:
        lines.pop()
    columns: dict[str, list[str]] = {name: [] for name in types}
    places = [(columns[name], at) for at, name in enumerate(header) if name in types]
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split(field_separator)
        if len(cells) != len(header):
            raise _wrong_width(f"{path}, line {number}", cells, list(header), field_separator)
        for column, at in places:
            column.append(cells[at])
    return len(lines) - 1, columns


def read_header(path: str | os.PathLike, field_separator: str = "\t", encoding: str = "utf-8") -> dict[str, str]:
    """Return field -> type of one atomic file, in its order; parameters and errors are those of `read_atomic`."""
    line = plain_columns.first_line(path, encoding)
    return _header(path, _lines(path, field_separator, encoding)[0] if line is None else line, field_separator)


def _lines(path: str | os.PathLike, separator: str, encoding: str) -> list[str]:
    """Return the lines without their ends; the header is the first."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check data_path and dataset, or prepare the data set first") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected an atomic file") from error
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise InputError(f"{path}: unknown encoding {encoding!r}; set encoding to a name such as utf-8") from None
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = before[before.rfind(b"\n") + 1 :].count(separator.encode()) + 1
        raise InputError(
            f"{path}, line {line}, column {column}: found byte 0x{raw[error.start]:02x}, expected {encoding} text; "
            f"save the file as {encoding} or set encoding to what it is"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.strip():
        raise InputError(f"{path}: the file is empty, expected a header line of name:type; prepare the data set again")
    return text.removesuffix("\n").split("\n")


def _header(path: str | os.PathLike, line: str, separator: str) -> dict[str, str]:
    """Return field -> type."""
    types: dict[str, str] = {}
    remedy = f"write the header as name:type, separated by {separator!r}, with a type out of {', '.join(TYPES)}"
    for column, cell in enumerate(line.split(separator), start=1):
        place = f"{path}, line 1, column {column}"
        name, colon, kind = cell.partition(":")
        if not name.strip() or not colon:
            raise InputError(f"{place}: found {_short(cell)}, expected name:type; {remedy}")
        if kind not in TYPES:
            raise InputError(f"{place}, field {name}: found the unknown type {_short(kind)}; {remedy}")
        if name in types:
            first = list(types).index(name) + 1
            raise InputError(
                f"{place}: found the field {name} again, expected every name once (it is also column {first}); rename "
                "or remove one of them"
            )
        types[name] = kind
    return types


def _wrong_width(place: str, cells: list[str], names: list[str], separator: str) -> InputError:
    if cells == [""]:
        return InputError(f"{place}: found a blank line, expected {len(names)} columns; remove the line")
    few = len(cells) < len(names)
    which = f"{names[len(cells)]} is missing" if few else f"{_short(cells[len(names)])} is one too many"
    return InputError(
        f"{place}: found {len(cells)} columns, expected {len(names)} separated by {separator!r} ({which}); mend the "
        "line (a value must hold neither the separator nor a line end)"
    )


def _series(
    path: str | os.PathLike, name: str, kind: str, values: pd.Series | list[str], seq_separator: str, coded: bool
) -> pd.Series:
    """Return one column; what should be a number must be one."""
    if coded and kind == "token":
        tokens = plain_columns.coded_tokens(values) if isinstance(values, list) else values
        return tokens.cat.remove_categories([""]) if "" in tokens.cat.categories else tokens
    if isinstance(values, pd.Series):
        return values
    # `object` on purpose: what pandas makes of a list of str differs between its versions 2 and 3.
    series, bad = pd.Series(values, dtype=object), []
    if kind == "float":
        series = pd.Series(np.fromiter(map(_number, values), dtype=np.float64, count=len(values)))
        bad = [(int(at), values[at]) for at in np.flatnonzero(series.isna()) if values[at].strip()]
    elif kind == "float_seq":
        parts = ((at, part) for at, value in enumerate(values) for part in value.split(seq_separator))
        bad = [(at, part) for at, part in parts if part and math.isnan(_number(part))]
    if bad:
        at, found = bad[0]
        raise InputError(
            f"{path}, line {at + 2}, field {name}: found {_short(found)}, expected a finite number as the header says "
            f"{name}:{kind}; mend the value, leave it blank, or declare the field as {kind.replace('float', 'token')}"
        )
    return series


def _number(text: str) -> float:
    """Return the finite number that `text` spells, NaN where there is none.

    Python's `float` also reads `1_000`, `nan` and digits of other scripts, none of which RecBole's pandas would.
    """
    if "_" in text or not text.isascii():
        return math.nan
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _short(text: str) -> str:
    """Return `text` as it may stand in a one-line message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
