"""Tables as people keep them, row by row: CSV, TSV, JSON lines and Parquet, chosen by the file's ending.

A file is never held in memory as a whole. A row that cannot be read is handed to `BadRows` with its line and the
reason, and the rows after it are read as if it were not there.
"""

import contextlib
import csv
import gzip
import itertools
import json
import os
import re
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError
from .bad_rows import BadRows

FORMATS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
"""Endings that are read, in any case."""

NOT_UTF8 = "not UTF-8 text"
UNDECODABLE = re.compile("[\ud800-\udfff]")
"""What stands for bytes that are no text; a lone half of a character, which JSON can spell, is no text either."""

_LINES_OF_A_CELL = 500  # a quote that is not closed within as many lines was never meant to open a cell
_KEYS_FROM = 1000  # JSON lines have no header: these many are looked through for column names
_BATCH = 8192  # rows of a Parquet file that are unpacked at once


def header(path: str | os.PathLike) -> list[str]:
    """Return the names of the columns as they stand in the file, stripped of blanks.

    Raises
    ------
    InputError : the file is missing, empty, damaged or of another format.
    """
    kind = _kind(path)
    if kind == ".parquet":
        return list(_parquet(path).schema_arrow.names)
    with _open_text(path) as file:
        if kind != ".jsonl":
            return _head(path, _Lines(file), kind)[0]
        lines = itertools.islice(file, _KEYS_FROM)
        keys = {key: None for row in map(_json_object, lines) if isinstance(row, dict) for key in row}
    if not keys:
        raise InputError(f"{path}: no JSON object in the first {_KEYS_FROM} lines, expected one a line")
    return list(keys)


def read_rows(path: str | os.PathLike, columns: Sequence[int], bad: BadRows) -> Iterator[tuple[int, list[Any]]]:
    """Yield `(line, values)` of every readable row; the others go to `bad`.

    Parameters
    ----------
    columns : positions in `header(path)` of the values that are wanted, in the order wanted.

    Returns
    -------
    Lines count from 1 as an editor shows them, a row of several lines by its first; in Parquet they are rows. Values of
    CSV and TSV are `str`, others what the file holds, `None` where a value is missing.
    """
    kind = _kind(path)
    bad.start(path)
    if kind == ".parquet":
        yield from _parquet_rows(path, columns)
    elif kind == ".jsonl":
        yield from _json_rows(path, columns, bad)
    else:
        yield from _separated_rows(path, columns, bad, kind)


def _kind(path: str | os.PathLike) -> str:
    """Return the format, as an ending without `.gz`."""
    name = Path(path).name.lower()
    kind = next((ending for ending in FORMATS if name.endswith(ending)), None)
    if kind is None:
        hint = "; save the sheet as CSV UTF-8" if name.endswith((".xlsx", ".xls", ".ods")) else ""
        raise InputError(f"{path}: found the ending {Path(path).suffix!r}, expected one of {', '.join(FORMATS)}{hint}")
    return kind.removesuffix(".gz")


@contextlib.contextmanager
def _open_text(path: str | os.PathLike) -> Iterator[TextIO]:
    """Open a text file, packed or not; bytes that are no text come as the characters of `UNDECODABLE`."""
    opener: Any = gzip.open if str(path).lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")  # what spreadsheets call "Unicode text"
        encoding = "utf-16" if utf16 else "utf-8-sig"
        with opener(path, "rt", encoding=encoding, errors="surrogateescape", newline="") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; correct the path") from None
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); copy or export the file again") from error


class _Lines:
    """The lines of a file, numbered, some of which may be put back."""

    def __init__(self, file: Iterator[str]):
        self._file, self._again, self.number = file, deque[str](), 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._file)
        self.number += 1
        return line

    def put_back(self, lines: Sequence[str]) -> None:
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)


class _Unreadable(Exception):
    """A row that is no row of the table; its text is the reason."""


def _head(path: str | os.PathLike, lines: _Lines, kind: str) -> tuple[list[str], str]:
    """Read the header line: the names, and the character that separates cells."""
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: the file is empty, expected a header line with the names of the columns")
    if "\0" in first or UNDECODABLE.search(first):
        raise InputError(f"{path}, line {lines.number}: the header is {NOT_UTF8}; save the file as CSV UTF-8")
    separator = "\t"
    if kind == ".csv":
        named = re.fullmatch(r"sep=([,;\t])\s*", first)  # Excel's own way to name it, a line before the header
        first = next(lines, "") if named else first
        # Spreadsheets take ; where the comma is the decimal sign. The first of equals counts, so the comma does.
        widths = {mark: len(next(csv.reader([first], delimiter=mark), ())) for mark in ",;\t"}
        separator = named.group(1) if named else max(widths, key=lambda mark: widths[mark])
    try:
        return [cell.strip() for cell in _record(first, lines, separator)], separator
    except _Unreadable as error:
        raise InputError(f"{path}, line {lines.number}: the header is unreadable, {error}; mend the line") from None


def _separated_rows(
    path: str | os.PathLike, columns: Sequence[int], bad: BadRows, kind: str
) -> Iterator[tuple[int, list[str]]]:
    with _open_text(path) as file:
        lines = _Lines(file)
        names, separator = _head(path, lines, kind)
        blank = '\r\n \t"' + separator
        for first in lines:
            line = lines.number
            try:
                cells = _record(first, lines, separator)
            except _Unreadable as error:
                bad.add(line, str(error), first)
                continue
            text = "".join(cells)
            if not text.isascii() and UNDECODABLE.search(text):
                bad.add(line, NOT_UTF8, separator.join(cells))
            elif not text.strip(blank):
                bad.blank += 1
            elif len(cells) != len(names):
                bad.add(line, f"{len(cells)} columns instead of {len(names)}", separator.join(cells))
            else:
                yield line, [cells[at] for at in columns]


def _record(first: str, lines: _Lines, separator: str) -> list[str]:
    """Return the cells of the row that begins with the line `first`; quoted cells may reach over several lines."""
    plain = first.rstrip("\r\n").split(separator)
    if '"' not in first:
        return plain
    taken: list[str] = []

    def feed() -> Iterator[str]:
        yield first
        for line in itertools.islice(lines, _LINES_OF_A_CELL):
            taken.append(line)
            yield line

    try:
        cells = next(csv.reader(feed(), delimiter=separator, strict=True))
    except csv.Error as error:
        lines.put_back(taken)
        if separator == "\t":  # many programs write TSV without quotes of its own: there a quote is a character
            return plain
        never = "unexpected end of data" in str(error)
        raise _Unreadable("a quote is never closed" if never else f"wrong quotes, {error}") from None
    if separator == "\t" and taken and any("\t" in cell and {*"\r\n"} & {*cell} for cell in cells):
        lines.put_back(taken)  # two such characters, rows apart, with whole rows between them
        return plain
    return cells


def _json_object(line: str) -> dict[str, Any] | str | None:
    """Return the object of a line, the reason why there is none, or None where the line is blank."""
    if not line.strip():
        return None
    if UNDECODABLE.search(line):
        return NOT_UTF8
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return row if isinstance(row, dict) else "not a JSON object"


def _json_rows(path: str | os.PathLike, columns: Sequence[int], bad: BadRows) -> Iterator[tuple[int, list[Any]]]:
    names = header(path)
    wanted = [names[at] for at in columns]
    with _open_text(path) as file:
        for line, text in enumerate(file, start=1):
            row = _json_object(text)
            if row is None:
                bad.blank += 1
            elif isinstance(row, str):
                bad.add(line, row, text)
            else:
                yield line, [row.get(name) for name in wanted]


def _parquet(path: str | os.PathLike) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; pip install 'recbole-bbqrec[parquet]'"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; correct the path") from None
    except (OSError, ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}); copy or export it again") from error


def _parquet_rows(path: str | os.PathLike, columns: Sequence[int]) -> Iterator[tuple[int, list[Any]]]:
    file = _parquet(path)
    names = file.schema_arrow.names
    wanted = [names[at] for at in columns]
    row = 0
    try:
        for batch in file.iter_batches(_BATCH, columns=sorted(set(wanted))):
            for values in zip(*(_values(batch.column(name)) for name in wanted), strict=True):
                row += 1
                yield row, list(values)
    except (OSError, ValueError, OverflowError) as error:
        place = f"{path}, after row {row}"
        raise InputError(f"{place}: the Parquet file is damaged ({error}); copy or export it again") from error


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast("binary").to_pylist()  # the text is then decoded cell by cell, and bad rows are named
