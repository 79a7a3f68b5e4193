"""Rows that cannot be used: each named with its line and the reason, all of them counted, none lost unseen."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import InputError
from ..storage import replacing

NOT_UTF8 = "not UTF-8 text"
"""Reason of a row whose bytes are no text."""

AS_UTF8 = "save the file as UTF-8 (in a spreadsheet: CSV UTF-8; in a terminal: iconv -f windows-1252 -t utf-8)"
"""What to do about it."""

_KEPT = 100_000  # bad rows listed one by one; beyond that they are counted, so that a bad file cannot fill the memory

_Made = TypeVar("_Made")


class Bad(Exception):
    """What makes a row unusable: `reason` and the text of the cell or row."""

    def __init__(self, reason: str, text: str):
        super().__init__(reason)
        self.reason, self.text = reason, text


class BadRow(NamedTuple):
    """A row that was left out: its line (in Parquet its row, from 1), why, and the cell or row it is about."""

    line: int
    reason: str
    text: str


class BadRows:
    """What was wrong with the rows of one file.

    Parameters
    ----------
    path : the file.
    on_bad : `skip` leaves bad rows out and lists them; `error` makes the first one an `InputError`.

    Attributes
    ----------
    rows : the first 100,000 bad rows, and the first for each reason; `counts` has all of them, by their reason.
    good, blank : number of rows that could be used, and of blank ones, which are no data and never an error.
    """

    def __init__(self, path: str | os.PathLike, on_bad: str = "skip"):
        if on_bad not in ("skip", "error"):
            raise InputError(f"--on-bad: found {on_bad!r}, expected skip or error")
        self.path, self.on_bad, self.good, self.blank = Path(path), on_bad, 0, 0
        self.rows: list[BadRow] = []
        self.counts: Counter[str] = Counter()
        self._unit = "row" if self.path.suffix.lower() == ".parquet" else "line"

    def made(self, line: int, make: Callable[..., _Made], *arguments: Any) -> _Made | None:
        """Return what `make` makes of a row; None, and one bad row more, where it raises `Bad`."""
        try:
            return make(*arguments)
        except Bad as error:
            found = _excerpt(error.text)
            if self.on_bad == "error":
                raise InputError(
                    f"{self.path}, {self._unit} {line}: {error.reason}, found {found!r}; mend the row, or leave such "
                    "rows out with --on-bad=skip"
                ) from None
            self.counts[error.reason] += 1
            if len(self.rows) < _KEPT or self.counts[error.reason] == 1:
                self.rows.append(BadRow(line, error.reason, found))
            return None

    def refuse_none(self, flags: Mapping[str, str]) -> None:
        """Raise an `InputError` where no row was good; `flags` name columns, by the word that a reason begins with."""
        if self.good:
            return
        if not self.counts:
            raise InputError(f"{self.path}: found no row below the first line, which has the names; export it again")
        reason = self.counts.most_common(1)[0][0]
        what, has_digits = reason.partition(":")[0], any(map(str.isdigit, self._first(reason).text))
        how = "mend the file"
        if reason == NOT_UTF8:
            how = AS_UTF8
        elif what in flags and not has_digits:  # blanks and words: another column may have been meant
            how += f", or name the right column with {flags[what]}"
        elif what == "time":
            how = "format that column as YYYY-MM-DD"
        raise InputError(f"no row can be used; {self.summary()}; {how}")

    def summary(self) -> str:
        """Return one line: how many rows of the file are used, and how many are not for which reason, with examples."""
        reasons = []
        for reason, count in sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0])):
            first = self._first(reason)
            found = f": '{_excerpt(first.text, 40)}'" if first.text else ""
            reasons.append(f"{count} {reason}, first in {self._unit} {first.line}{found}")
        text = f"{self.path}: {self.good} rows used, {self.counts.total()} bad"
        text += f" ({'; '.join(reasons)})" if reasons else ""
        return text + (f", {self.blank} blank" if self.blank else "")

    def _first(self, reason: str) -> BadRow:
        return next(row for row in self.rows if row.reason == reason)


def write_bad_rows(path: str | os.PathLike, files: Collection[BadRows]) -> None:
    """Write the bad rows of `files` as a table; where there are none, a table that an earlier run left is removed."""
    if not any(bad.counts for bad in files):
        Path(path).unlink(missing_ok=True)
        return
    lines = ["file\tline\treason\tfound"]
    for bad in files:
        lines += ["\t".join(map(str, (bad.path, *row))) for row in bad.rows]
        more = bad.counts.total() - len(bad.rows)
        lines += [f"{bad.path}\t\tand {more} more, which are only counted\t"] if more else []
    with replacing(path) as temporary:
        Path(temporary).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _excerpt(text: str, limit: int = 100) -> str:
    """Return the beginning of `text` as one line that can be written anywhere."""
    text = text.strip()
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    plain = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", plain)  # the byte that could not be decoded
