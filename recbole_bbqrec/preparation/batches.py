"""Reviews by the batch: Polars reads the rows that are plainly well-formed, the readers' own rules decide on the rest.

A row is plain if no rule could read it in another way: JSON that every parser takes for the same, names of ASCII
letters and digits, short numbers. Nearly all rows of real files are. Every other row goes, with its line, to a function
of its reader that salvages, counts or names it, so that each rule stands in one place.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TextIO

import polars as pl

from .raw import REVIEWS, UNDECODABLE, Review

_LINES = 1 << 15  # lines that are read at once
_BYTES = 1 << 20  # the same where Python reads them, as characters

# JSON as RFC 8259 has it, but for what is left to the exact rules: escapes in keys, lists within lists, and objects
# within the record, unless a colon or blank in each of their keys shows that it is none of those looked for.
_TEXT = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_SCALAR = rf"(?:{_TEXT}|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null)"
_KEY = r'"[^"\\\x00-\x1f]*"'
_INNER_KEY = r'"[^"\\\x00-\x1f]*[: ][^"\\\x00-\x1f]*"'


def _several(part: str) -> str:
    return rf"[ \t]*(?:{part}[ \t]*(?:,[ \t]*{part}[ \t]*)*)?"


def _object(key: str, value: str) -> str:
    return rf"\{{{_several(rf'{key}[ ]*:[ ]*{value}')}\}}"


_VALUE = rf"(?:{_SCALAR}|\[{_several(_SCALAR)}\]|{_object(_INNER_KEY, _SCALAR)})"
_RECORD = f"^{_object(_KEY, _VALUE)}$"
_CELL = r'("[^"\\\x00-\x1f]*"|(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,6})?)'

_TOKEN = "^[0-9A-Za-z_-]{1,64}$"
_RATING = r"^[0-9]{1,9}(?:\.[0-9]{1,6})?$"


def read_lines(
    path: str | os.PathLike,
    file: TextIO,
    plain: Callable[[pl.Series], pl.DataFrame],
    exact: Callable[[int, str], Review | None],
) -> Iterator[pl.DataFrame]:
    """Yield the reviews of a text file with one record a line, in frames, in file order.

    Parameters
    ----------
    file : `path`, open at its start. It is read from the line on where Polars finds bytes that are not UTF-8, or a
        carriage return within a line.
    plain : gives one row for each line, with something null in it where the line is not plain.
    exact : gives the review of a line that is not plain, and whose number (from 1) comes first; None where it is none.
    """
    done = 0
    with contextlib.suppress(pl.exceptions.ComputeError):
        for frame in pl.scan_lines(os.fspath(path), glob=False).collect_batches(chunk_size=_LINES):
            lines = frame.to_series()
            if lines.str.contains("\r", literal=True).any():
                break
            yield merged(done + 1, lines, plain, exact)
            done += len(lines)
        else:
            return
    for _ in islice(file, done):
        pass
    while taken := file.readlines(_BYTES):
        yield merged(done + 1, taken, plain, exact)
        done += len(taken)


def merged(
    start: int,
    lines: pl.Series | list[str],
    plain: Callable[[pl.Series], pl.DataFrame],
    exact: Callable[[int, str], Review | None],
) -> pl.DataFrame:
    """Return the reviews of some lines, the first of which has the number `start`; see `read_lines`."""
    if isinstance(lines, list):
        if is_undecodable("".join(lines)):
            reviews = (exact(number, line) for number, line in enumerate(lines, start))
            return pl.DataFrame([review for review in reviews if review], schema=REVIEWS, orient="row")
        lines = pl.Series(lines).str.strip_chars_end("\r\n")
    found = plain(lines)
    complete = found.select(pl.all_horizontal(pl.all().is_not_null())).to_series()
    if complete.all():
        return found
    others = ((at, exact(start + at, lines[at])) for at in (~complete).arg_true())
    rows = [(at, *review) for at, review in others if review]
    merged = [
        found.with_row_index("at").filter(complete),
        pl.DataFrame(rows, {"at": pl.UInt32, **REVIEWS}, orient="row"),
    ]
    return pl.concat(merged).sort("at").drop("at")


def is_undecodable(text: str) -> bool:
    """Return whether some bytes of `text` were no text."""
    return not text.isascii() and bool(UNDECODABLE.search(text))


def json_cells(lines: pl.Series, keys: Mapping[str, str]) -> pl.DataFrame:
    """Return the values of `keys` (field of `Review` -> key) as texts, null where a line is not plain."""
    line, names = pl.col("line"), {field: pl.escape_regex(key) for field, key in keys.items()}
    any_key = "|".join(names.values())
    once = line.str.count_matches(f'"(?:{any_key})" *:') == len(keys)
    plain = pl.DataFrame({"line": lines}).select(pl.when(line.str.contains(_RECORD) & once).then(line))
    return plain.select(
        line.str.extract(f'"{name}" *: *{_CELL}[ \t]*[,}}]').str.strip_chars('"').alias(field)
        for field, name in names.items()
    )


def typed(cells: pl.DataFrame, time: pl.Expr) -> pl.DataFrame:
    """Return `cells`, texts in columns called as the fields of `Review`, as a frame of reviews.

    Where a user, item or rating is not plain, or `time` gives none, something in the row is null.
    """
    user, item = (pl.when(pl.col(name).str.contains(_TOKEN)).then(pl.col(name)) for name in ("user", "item"))
    rating = pl.when(pl.col("rating").str.contains(_RATING)).then(pl.col("rating"))
    rating = rating.cast(pl.Float64, strict=False) if "rating" in cells.columns else pl.lit(float("nan"))
    return cells.select(user, item, rating.alias("rating"), time.alias("time"))


def digits(limit: int) -> pl.Expr:
    """Return the column `time` as integers, null where it is none of at most `limit` digits."""
    time = pl.col("time")
    return pl.when(time.str.contains(rf"^[0-9]{{1,{limit}}}$")).then(time).cast(pl.Int64, strict=False)
