"""Tables as people keep them: CSV, TSV, JSON lines and Parquet, chosen by the file's ending.

A file is never held in memory as a whole. A row that cannot be read is handed to `BadRows` with its line and the
reason, and the rows after it are read as if it were not there.
"""

import csv
import itertools
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import polars as pl

from ..errors import InputError
from .bad_rows import Bad, BadRows
from .batches import is_undecodable, json_cells, merged, read_lines
from .raw import Review, frames, open_text

FORMATS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
"""Endings that are read, in any case."""

NOT_UTF8 = "not UTF-8 text"

_BYTES = 1 << 20  # of a file with separators that are read at once, as characters
_LINES_OF_A_CELL = 500  # a quote that is not closed within as many lines was never meant to open a cell
_KEYS_FROM = 1000  # JSON lines have no header: these many are looked through for column names
_BATCH = 8192  # rows of a Parquet file that are unpacked at once


Plain = Callable[[pl.DataFrame], pl.DataFrame]
Exact = Callable[[Sequence[Any]], Review]


class Table:
    """An open table; it is read once, by `rows` or by `frames`."""

    names: list[str]
    """Names of the columns as they stand in the file, stripped of blanks."""

    def rows(self, columns: Sequence[int], bad: BadRows) -> Iterator[tuple[int, list[Any]]]:
        """Yield `(line, values)` of every readable row, with the values of `columns`; the others go to `bad`.

        Lines count from 1 as an editor shows them, a row of several lines by its first; in Parquet they are rows.
        Values of CSV and TSV are `str`, others what the file holds, `None` where a value is missing.
        """
        raise NotImplementedError

    def frames(self, places: Mapping[str, int], bad: BadRows, plain: Plain, exact: Exact) -> Iterator[pl.DataFrame]:
        """Yield the reviews in frames, in the order of the file.

        Parameters
        ----------
        places : field of `Review` -> position of its column.
        plain : makes a frame of reviews of the texts of these fields; a row with a null in it is left to `exact`.
        exact : makes a review of the values of a row, as `rows` gives them, or raises `Bad`.
        """
        rows = self.rows(list(places.values()), bad)
        yield from frames(filter(None, (bad.made(line, exact, values) for line, values in rows)))


@contextmanager
def open_table(path: str | os.PathLike) -> Iterator[Table]:
    """Open a table.

    Raises
    ------
    InputError : the file is missing, empty, damaged or of another format; also within the block.
    """
    name = Path(path).name.lower()
    kind = next((ending for ending in FORMATS if name.endswith(ending)), None)
    if kind is None:
        hint = "; save the sheet as CSV UTF-8" if name.endswith((".xlsx", ".xls", ".ods")) else ""
        raise InputError(f"{path}: found the ending {Path(path).suffix!r}, expected one of {', '.join(FORMATS)}{hint}")
    if kind == ".parquet":
        yield _Parquet(path)
        return
    with open_text(path, "", "correct the path", "copy or export the file again") as file:
        if kind.startswith(".jsonl"):
            yield _JsonLines(path, file)
        else:
            yield _Separated(path, file, kind.removesuffix(".gz"))


class _Separated(Table):
    """A file of cells with separators, open behind its header: the lines, numbered, some of which may be put back."""

    def __init__(self, path: str | os.PathLike, file: TextIO, kind: str):
        self._file, self._again, self._number = file, deque[str](), 0
        self._last = math.inf  # line up to which `rows` begins a row
        first = next((line for line in self if line.strip()), None)
        if first is None:
            raise InputError(f"{path}: the file is empty, expected a header line with the names of the columns")
        if "\0" in first or is_undecodable(first):
            raise InputError(f"{path}, line {self._number}: the header is {NOT_UTF8}; save the file as CSV UTF-8")
        self._separator = "\t"
        if kind == ".csv":
            named = re.fullmatch(r"sep=([,;\t])\s*", first)  # Excel's own way to name it, a line before the header
            first = next(self, "") if named else first
            # Spreadsheets take ; where the comma is the decimal sign. The first of equals counts, so the comma does.
            widths = {mark: len(next(csv.reader([first], delimiter=mark), ())) for mark in ",;\t"}
            self._separator = named.group(1) if named else max(widths, key=lambda mark: widths[mark])
        try:
            self.names = [cell.strip() for cell in self._record(first)]
        except Bad as error:
            raise InputError(f"{path}, line {self._number}: the header is unreadable, {error}; mend the line") from None

    def __iter__(self) -> "_Separated":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._file)
        self._number += 1
        return line

    def _put_back(self, lines: Sequence[str]) -> None:
        self._again.extendleft(reversed(lines))
        self._number -= len(lines)

    def rows(self, columns: Sequence[int], bad: BadRows) -> Iterator[tuple[int, list[str]]]:
        while self._number < self._last and (first := next(self, None)) is not None:
            line = self._number
            if cells := bad.made(line, self._cells, first, bad):
                yield line, [cells[at] for at in columns]

    def frames(self, places: Mapping[str, int], bad: BadRows, plain: Plain, exact: Exact) -> Iterator[pl.DataFrame]:
        """Yield the reviews; see `Table`. Where quotes do more than enclose a plain cell, rows are read one by one."""
        columns, width, mark = list(places.values()), len(self.names), self._separator
        cell = rf'(?:"[^"{mark}\r\n]{{0,9999}}"|[^"{mark}\r\n]*)'
        plainly_quoted = re.compile(rf"{cell}(?:{mark}{cell})*[\r\n]*")
        cells = pl.col("line").str.replace_all('"', "", literal=True).str.split(mark)
        whole = [
            pl.when(cells.list.len() == width).then(cells.list.get(at, null_on_oob=True)).alias(to)
            for to, at in places.items()
        ]

        def made(line: int, text: str) -> Review | None:
            cells = bad.made(line, self._cells, text, bad)
            return bad.made(line, exact, [cells[at] for at in columns]) if cells else None

        while taken := [*self._again, *self._file.readlines(_BYTES)]:
            self._again.clear()
            start, self._number = self._number + 1, self._number + len(taken)
            if any('"' in line for line in taken) and not all(map(plainly_quoted.fullmatch, taken)):
                self._last = self._number
                self._put_back(taken)
                yield from super().frames(places, bad, plain, exact)
            else:
                yield merged(start, taken, lambda lines: plain(pl.DataFrame({"line": lines}).select(whole)), made)

    def _cells(self, first: str, bad: BadRows) -> list[str]:
        """Return the cells of the row that begins with the line `first`, [] where it is blank."""
        cells = self._record(first)
        if any(map(is_undecodable, cells)):
            raise Bad(NOT_UTF8, self._separator.join(cells))
        if not "".join(cells).strip('\r\n \t"' + self._separator):
            bad.blank += 1
            return []
        if len(cells) != len(self.names):
            raise Bad(f"{len(cells)} columns instead of {len(self.names)}", self._separator.join(cells))
        return cells

    def _record(self, first: str) -> list[str]:
        """Return the cells of the row that begins with the line `first`; quoted cells may reach over several lines."""
        plain = first.rstrip("\r\n").split(self._separator)
        if '"' not in first:
            return plain
        taken: list[str] = []

        def feed() -> Iterator[str]:
            yield first
            for line in itertools.islice(self, _LINES_OF_A_CELL):
                taken.append(line)
                yield line

        try:
            cells = next(csv.reader(feed(), delimiter=self._separator, strict=True))
        except csv.Error as error:
            self._put_back(taken)
            if self._separator == "\t":  # many programs write TSV without quotes of its own: a quote is a character
                return plain
            never = "unexpected end of data" in str(error)
            raise Bad("a quote is never closed" if never else f"wrong quotes, {error}", first) from None
        if self._separator == "\t" and taken and any("\t" in cell and {*"\r\n"} & {*cell} for cell in cells):
            self._put_back(taken)  # two such characters, rows apart, with whole rows between them
            return plain
        return cells


class _JsonLines(Table):
    """A file with one JSON object a line."""

    def __init__(self, path: str | os.PathLike, file: TextIO):
        self._path, self._file = path, file
        keys: dict[str, None] = {}
        for line in itertools.islice(file, _KEYS_FROM):
            with suppress(Bad):
                keys |= dict.fromkeys(_json_object(line))
        self.names = list(keys)
        if not self.names:
            raise InputError(f"{path}: no JSON object in the first {_KEYS_FROM} lines, expected one a line")
        file.seek(0)

    def rows(self, columns: Sequence[int], bad: BadRows) -> Iterator[tuple[int, list[Any]]]:
        for line, text in enumerate(self._file, start=1):
            if values := bad.made(line, self._values, text, columns, bad):
                yield line, values

    def frames(self, places: Mapping[str, int], bad: BadRows, plain: Plain, exact: Exact) -> Iterator[pl.DataFrame]:
        columns, keys = list(places.values()), {field: self.names[at] for field, at in places.items()}

        def made(line: int, text: str) -> Review | None:
            text = text.removeprefix("\ufeff") if line == 1 else text
            values = bad.made(line, self._values, text, columns, bad)
            return bad.made(line, exact, values) if values else None

        return read_lines(self._path, self._file, lambda lines: plain(json_cells(lines, keys)), made)

    def _values(self, text: str, columns: Sequence[int], bad: BadRows) -> list[Any]:
        """Return the values of a line, [] where it is blank."""
        if not text.strip():
            bad.blank += 1
            return []
        row = _json_object(text)
        return [row.get(self.names[at]) for at in columns]


def _json_object(line: str) -> dict[str, Any]:
    if is_undecodable(line):
        raise Bad(NOT_UTF8, line)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise Bad("not JSON", line) from None
    if not isinstance(row, dict):
        raise Bad("not a JSON object", line)
    return row


class _Parquet(Table):
    """A Parquet file; its values have types of their own, so that rows are read one by one."""

    def __init__(self, path: str | os.PathLike):
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise InputError(
                f"{path}: reading Parquet needs pyarrow, which is not installed; pip install 'recbole-bbqrec[parquet]'"
            ) from error
        self._path = path
        try:
            self._file = parquet.ParquetFile(path)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; correct the path") from None
        except (OSError, ArrowException) as error:
            raise InputError(f"{path}: not a readable Parquet file ({error}); copy or export it again") from error
        self.names = list(self._file.schema_arrow.names)

    def rows(self, columns: Sequence[int], bad: BadRows) -> Iterator[tuple[int, list[Any]]]:
        wanted, row = [self.names[at] for at in columns], 0
        try:
            for batch in self._file.iter_batches(_BATCH, columns=sorted(set(wanted))):
                for values in zip(*(_values(batch.column(name)) for name in wanted), strict=True):
                    row += 1
                    yield row, list(values)
        except (OSError, ValueError, OverflowError) as error:
            place = f"{self._path}, after row {row}"
            raise InputError(f"{place}: the Parquet file is damaged ({error}); copy or export it again") from error


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast("binary").to_pylist()  # the text is then decoded cell by cell, and bad rows are named
