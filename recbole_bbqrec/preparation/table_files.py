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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import polars as pl

from ..errors import InputError
from .bad_rows import AS_UTF8, NOT_UTF8, Bad, BadRows
from .raw import Review, frames, is_undecodable, json_cells, merged, open_text, read_lines

FORMATS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
"""Endings that are read, in any case."""

_BYTES = 1 << 20  # of a file with separators that are read at once, as characters
_LINES_OF_A_CELL = 500  # a quote that is not closed within as many lines was never meant to open a cell
_KEYS_FROM = 1000  # JSON lines have no header: these many are looked through for column names
_BATCH = 8192  # rows of a Parquet file that are unpacked at once

Columns = Mapping[str, str]  # field -> name of its column
Make = Callable[[dict[str, Any]], Any]  # takes field -> value (None where missing), raises `Bad` for a bad row
Exact = Callable[[int, Any], Any]  # takes the line and the raw form of a row, gives None where it is blank or bad
Plain = Callable[[pl.DataFrame], pl.DataFrame]  # takes texts, one column a field; leaves nulls to the exact rules


class Table:
    """An open table; it is read once, by `records` or by `frames`, in the order of the file."""

    names: list[str]
    """Names of the columns as they stand in the file, stripped of blanks."""
    inner: Sequence[str] = ()
    """Further names, `a.b` of what is called `b` in the objects of the column `a`; `records` and `frames` take them."""

    def records(self, columns: Columns, make: Make, bad: BadRows) -> Iterator[Any]:
        """Yield what `make` makes of every row; rows that cannot be used go to `bad`.

        Lines count from 1 as an editor shows them, a row of several lines by its first; in Parquet they are rows.
        """
        yield from filter(None, itertools.starmap(self._exact(columns, make, bad), self._rows(columns.values())))

    def frames(self, columns: Columns, make: Make, bad: BadRows, plain: Plain) -> Iterator[pl.DataFrame]:
        """Yield the reviews that `plain` makes, and `make` of the rows that are not plain, in frames; see `records`."""
        return self._frames(columns, self._exact(columns, make, bad), plain)

    def _frames(self, columns: Columns, exact: Exact, plain: Plain) -> Iterator[pl.DataFrame]:
        return frames(filter(None, itertools.starmap(exact, self._rows(columns.values()))))

    def _exact(self, columns: Columns, make: Make, bad: BadRows) -> Exact:
        def made(raw: Any) -> Any:
            cells = self._cells(raw)
            bad.blank += cells is None
            return None if cells is None else make({field: _value(cells, name) for field, name in columns.items()})

        return lambda line, raw: bad.made(line, made, raw)

    def _rows(self, columns: Collection[str]) -> Iterator[tuple[int, Any]]:
        """Yield the line and the raw form of every row; `columns` are needed of it."""
        raise NotImplementedError

    def _cells(self, raw: Any) -> Mapping[str, Any] | None:
        """Return column -> value, in CSV and TSV as text; None where the row is blank."""
        raise NotImplementedError


def _value(cells: Mapping[str, Any], name: str) -> Any:
    """Return what a row has in the column `name`, one of `names` or `inner`; None where it has nothing."""
    if name in cells or "." not in name:
        return cells.get(name)
    outer = (key for key, value in cells.items() if isinstance(value, Mapping) and name.startswith(f"{key}."))
    return next((_value(cells[key], name[len(key) + 1 :]) for key in outer), None)


def _inner(cells: Mapping[str, Any]) -> Iterator[str]:
    objects = [("", cells)]
    for above, found in objects:
        yield from (above + key for key in found if above)
        objects += [(f"{above}{key}.", value) for key, value in found.items() if isinstance(value, Mapping)]


@contextmanager
def open_table(path: str | os.PathLike) -> Iterator[Table]:
    """Open a table; a file that is missing, empty, damaged or of another format is an `InputError`, also within."""
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
            raise InputError(f"{path}, line {self._number}: the header is {NOT_UTF8}; {AS_UTF8}")
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

    def _rows(self, columns: Collection[str]) -> Iterator[tuple[int, str]]:
        while self._number < self._last and (first := next(self, None)) is not None:
            yield self._number, first

    def _frames(self, columns: Columns, exact: Exact, plain: Plain) -> Iterator[pl.DataFrame]:
        """Yield the reviews; where quotes do more than enclose a plain cell, rows are read one by one."""
        width, mark = len(self.names), self._separator
        cell = rf'(?:"[^"{mark}\r\n]{{0,9999}}"|[^"{mark}\r\n]*)'
        plainly_quoted = re.compile(rf"{cell}(?:{mark}{cell})*[\r\n]*")
        cells = pl.col("line").str.replace_all('"', "", literal=True).str.split(mark)
        whole = [
            pl.when(cells.list.len() == width).then(cells.list.get(self.names.index(name), null_on_oob=True)).alias(to)
            for to, name in columns.items()
        ]
        while taken := [*self._again, *self._file.readlines(_BYTES)]:
            self._again.clear()
            start, self._number = self._number + 1, self._number + len(taken)
            if any('"' in line for line in taken) and not all(map(plainly_quoted.fullmatch, taken)):
                self._last = self._number
                self._put_back(taken)
                yield from super()._frames(columns, exact, plain)
            else:
                yield merged(start, taken, lambda lines: plain(pl.DataFrame({"line": lines}).select(whole)), exact)

    def _cells(self, raw: str) -> dict[str, str] | None:
        cells = self._record(raw)
        if any(map(is_undecodable, cells)):
            raise Bad(NOT_UTF8, self._separator.join(cells))
        if not "".join(cells).strip('\r\n \t"' + self._separator):
            return None
        if len(cells) != len(self.names):
            raise Bad(f"{len(cells)} columns instead of {len(self.names)}", self._separator.join(cells))
        return dict(zip(self.names, cells, strict=True))

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
        keys, inner = dict[str, None](), dict[str, None]()
        for line in itertools.islice(file, _KEYS_FROM):
            with suppress(Bad):
                cells = self._cells(line) or {}
                keys, inner = keys | dict.fromkeys(cells), inner | dict.fromkeys(_inner(cells))
        self.names, self.inner = list(keys), [name for name in inner if name not in keys]
        if not self.names:
            raise InputError(f"{path}: no JSON object in the first {_KEYS_FROM} lines, expected one a line")
        file.seek(0)

    def _rows(self, columns: Collection[str]) -> Iterator[tuple[int, str]]:
        return enumerate(self._file, start=1)

    def _frames(self, columns: Columns, exact: Exact, plain: Plain) -> Iterator[pl.DataFrame]:
        def without_mark(line: int, text: str) -> Review | None:
            return exact(line, text.removeprefix("\ufeff") if line == 1 else text)

        return read_lines(self._path, self._file, lambda lines: plain(json_cells(lines, columns)), without_mark)

    def _cells(self, raw: str) -> dict[str, Any] | None:
        if not raw.strip():
            return None
        if is_undecodable(raw):
            raise Bad(NOT_UTF8, raw)
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError):
            raise Bad("not JSON", raw) from None
        if not isinstance(row, dict):
            raise Bad("not a JSON object", raw)
        return row


class _Parquet(Table):
    """A Parquet file; its values have types of their own, so that rows are read one by one."""

    def __init__(self, path: str | os.PathLike):
        try:
            from pyarrow import ArrowException, parquet, types
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
        self.names, fields, inner = list(self._file.schema_arrow.names), list(self._file.schema_arrow), []
        while fields := [part for field in fields if types.is_struct(field.type) for part in field.flatten()]:
            inner += [field.name for field in fields]
        self.inner = [name for name in inner if name not in self.names]

    def _rows(self, columns: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        row = 0
        try:
            for batch in self._file.iter_batches(_BATCH, columns=sorted(set(columns))):
                for cells in zip(*map(_values, batch.columns), strict=True):
                    row += 1
                    yield row, dict(zip(batch.schema.names, cells, strict=True))
        except (OSError, ValueError, OverflowError) as error:
            place = f"{self._path}, after row {row}"
            raise InputError(f"{place}: the Parquet file is damaged ({error}); copy or export it again") from error

    def _cells(self, raw: dict[str, Any]) -> dict[str, Any]:
        return raw


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast("binary").to_pylist()  # the text is then decoded cell by cell, and bad rows are named
