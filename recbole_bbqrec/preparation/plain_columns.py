"""Columns of an atomic file by an engine (Polars), where lines are plain; `atomic` has the exact rules for the rest.

Plain is a file in UTF-8 whose lines all have as many cells as the header, end in a line feed alone, and hold finite
numbers where the header says so. Nothing is guessed: whatever else there may be is left to the exact rules.
"""

import codecs
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

CHUNK = 1 << 22
"""Bytes that are looked at together."""
_LINE_FEED = ord("\n")


def first_line(path: str | os.PathLike[str], encoding: str) -> str | None:
    """Return the first line of a file in UTF-8; none if the encoding is another, or it is blank or cannot be read."""
    try:
        if codecs.lookup(encoding).name != "utf-8":
            return None
        with open(path, "rb") as file:
            line = file.readline().decode("utf-8").removesuffix("\n").removesuffix("\r").removeprefix("\ufeff")
    except (OSError, LookupError, UnicodeDecodeError):
        return None
    return line if line.strip() else None


def read_plain(
    path: str | os.PathLike[str], header: Mapping[str, str], wanted: Mapping[str, str], separator: str, coded: bool
) -> dict[str, pd.Series | list[str]] | None:
    """Return the `wanted` columns of a file with a `header`, both name -> type; none where a line is not plain.

    Numbers are float64, NaN where blank. Texts are lists, or where tokens are to be `coded` categories, those in the
    order in which they are met.
    """
    n_records = _count(path, len(header), separator) if wanted and len(header) > 1 else None
    if n_records is None:
        return None
    places = [list(header).index(name) for name in wanted]
    kinds = {"float": pl.Float64, **({"token": pl.Categorical} if coded else {})}
    schema = {str(at): kinds.get(kind, pl.String) for at, kind in enumerate(header.values())}
    try:
        how: dict[str, Any] = {"has_header": False, "skip_lines": 1, "separator": separator, "quote_char": None}
        table = pl.read_csv(os.fspath(path), columns=places, schema=schema, n_rows=n_records, **how)
    except pl.exceptions.PolarsError:
        return None
    if table.height != n_records:
        return None
    found: dict[str, pd.Series | list[str]] = {}
    for name, at in zip(wanted, places, strict=True):
        column = table.drop_in_place(str(at))
        if header[name] == "float":
            if not column.is_finite().all():  # blank cells do not count
                return None
            found[name] = pd.Series(column.to_numpy().astype(np.float64))
        elif column.dtype == pl.String:
            found[name] = column.fill_null("").to_list()
        else:
            found[name] = _categories(column)
    return found


def coded_tokens(values: list[str]) -> pd.Series:
    """Return texts as `read_plain` gives coded tokens."""
    codes, met = pd.factorize(np.array(values, dtype=object))
    return _series(codes, met)


def _categories(column: pl.Series) -> pd.Series:
    physical = column.to_physical().fill_null(np.iinfo(np.uint32).max)
    codes, met = pd.factorize(physical.to_numpy())
    first = np.empty(len(met), np.int64)  # where each is met first
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    tokens = column.gather(first).cast(pl.String).fill_null("").to_list()
    return _series(codes, np.array(tokens, dtype=object))


def _series(codes: np.ndarray, tokens: np.ndarray) -> pd.Series:
    categories = pd.Index(tokens, dtype=object)
    return pd.Series(pd.Categorical.from_codes(codes.astype(np.int32), categories=categories))


def _count(path: str | os.PathLike[str], n_columns: int, separator: str) -> int | None:
    """Count the records; none where a line has other than `n_columns` cells, or the bytes are not plain."""
    if len(separator) != 1 or not separator.isascii() or separator in "\r\n":
        return None
    raw = np.memmap(path, np.uint8, "r")
    end = len(raw)
    while end and raw[end - 1] == _LINE_FEED:
        end -= 1
    mark, at, decoder = ord(separator), 0, codecs.getincrementaldecoder("utf-8")()
    records = raw[:CHUNK].tobytes().find(b"\n") + 1
    if codecs.BOM_UTF8 in (raw[:3].tobytes(), raw[records : records + 3].tobytes()):  # the engine drops the latter
        return None
    for begin in range(0, end, CHUNK):
        part = raw[begin : min(begin + CHUNK, end)]
        text = part.tobytes()
        try:
            decoder.decode(text)
        except UnicodeDecodeError:
            return None
        marks = part[(part == mark) | (part == _LINE_FEED)]
        is_last = np.arange(at, at + len(marks)) % n_columns == n_columns - 1
        if b"\r" in text or not np.array_equal(marks == _LINE_FEED, is_last):
            return None
        at += len(marks)
    n_lines, rest = divmod(at + 1, n_columns)
    return None if rest or n_lines < 2 or decoder.getstate()[0] else n_lines - 1
