"""What all raw files are read into: reviews in Polars frames and items one by one, with every kind of dirt counted.

Readers take a `Counter` and add to it under a reason in plain words ("reviews without a time"). They drop nothing
without counting it.

Polars reads the rows that are plain: no rule could read them in another way. Plain rows are JSON that every parser
reads alike, with names of ASCII letters and digits and short numbers, as nearly all rows of real files are. Every other
row goes, with its line, to a function of its reader that salvages, counts or names it, so that each rule stands in one
place.
"""

import contextlib
import gzip
import html
import io
import math
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, TextIO

import polars as pl

from ..errors import InputError

REVIEWS = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "time": pl.Int64}
"""Columns of a frame of reviews, the fields of `Review`."""

_BATCH = 1 << 16  # reviews of a frame that is made from single ones
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


class Review(NamedTuple):
    """One interaction; the names of user and item are never blank."""

    user: str
    item: str
    rating: float
    """NaN where the source has none."""
    time: int
    """Larger is later; the unit is that of the source."""


class Item(NamedTuple):
    """What a source says of one item, "" and [] where it says nothing; texts are as they came, `clean` mends them."""

    token: str
    title: str
    brand: str
    categories: list[str]
    description: str
    price: str
    image_url: str
    year: str = ""
    """Year of release, of films."""


REMEDIES = ("fetch it, or give its folder with --raw_dir", "expected a whole file, remove it and fetch it again")
"""What to do about a raw file that is not there, and about one that is damaged, see `open_text`."""

CALLED = {field: field.replace("_", " ") for field in ("user", "item", "time", "rating", *Item._fields)}
CALLED["token"] = "item id"
"""Field of a review or an item -> what people call it."""

COLUMN_FLAGS = {field: f"--{called.replace(' ', '-')}-column" for field, called in CALLED.items()}
"""Field of a review or an item -> flag that names its column in a table."""

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
UNDECODABLE = re.compile("[\ud800-\udfff]")
"""What stands for bytes that are no text; a lone half of a character, which JSON can spell, is no text either."""
_BLANKS = re.compile("[\\s\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")


def frames(reviews: Iterable[Review]) -> Iterator[pl.DataFrame]:
    """Yield single reviews in frames, in their order."""
    rest = iter(reviews)
    while batch := list(islice(rest, _BATCH)):
        yield pl.DataFrame(batch, schema=REVIEWS, orient="row")


def clean(text: str, dirt: Counter[str]) -> str:
    """Return `text` as one line that any atomic file can hold; quotes and all other characters stay.

    HTML entities are resolved once, runs of blanks, tabs, line ends and control characters become one blank, and
    characters that UTF-8 cannot spell (half a surrogate pair) become U+FFFD.
    """
    if "&" in text:
        plain = html.unescape(text)
        dirt["item texts with HTML entities"] += plain != text
        text = plain
    undecodable = UNDECODABLE.search(text)
    dirt["item texts with control characters, tabs or line ends"] += bool(undecodable or CONTROL.search(text))
    if undecodable:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _BLANKS.sub(" ", text).strip()


def is_undecodable(text: str) -> bool:
    """Return whether some bytes of `text` were no text."""
    return not text.isascii() and bool(UNDECODABLE.search(text))


def as_token(value: Any) -> str:
    """Return a user or item name as text, "" where `value` is none: no text or integer, blank, or not on one line."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or CONTROL.search(value) or UNDECODABLE.search(value):
        return ""
    return value.strip()


def as_rating(value: Any) -> float:
    """Return a rating as a number, NaN where `value` is none."""
    number = _number(float, value)
    return number if math.isfinite(number) else math.nan


def as_time(value: Any) -> int | None:
    """Return a time as an integer, None where `value` is none; atomic files hold times as float64, so up to 2^53."""
    time = _number(int, value)
    return time if abs(time) <= 1 << 53 else None


def _number(kind: Callable[[Any], Any], value: Any) -> Any:
    with contextlib.suppress(ValueError, OverflowError, TypeError):
        return math.nan if isinstance(value, bool) else kind(value)
    return math.nan


@contextlib.contextmanager
def open_text(path: str | os.PathLike, newline: str, missing: str, damaged: str) -> Iterator[TextIO]:
    """Open a text file, packed or not (its first bytes tell); bytes that are no text come as `UNDECODABLE`.

    `missing` and `damaged` say in the error, within the block too, what to do when it is not there or cannot be read.
    """
    try:
        with open(path, "rb") as probe:
            opener: Any = gzip.open if probe.read(2) == b"\x1f\x8b" else open
        with opener(path, "rb") as file:
            utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")  # what spreadsheets call "Unicode text"
        encoding = "utf-16" if utf16 else "utf-8-sig"
        with opener(path, "rt", encoding=encoding, errors="surrogateescape", newline=newline) as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {missing}") from None
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); {damaged}") from error


@contextlib.contextmanager
def open_member(path: str | os.PathLike, member: str, encoding: str = "utf-8") -> Iterator[TextIO]:
    """Open a text file of a zip archive, called `member` there or within further folders; faults are `InputError`s."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found = next((name for name in names if name == member or name.endswith(f"/{member}")), None)
            if found is None:
                raise InputError(f"{path}: found no {member} in the archive; fetch the archive of this set again")
            with archive.open(found) as file:
                yield io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {REMEDIES[0]}") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read to its end ({error}); expected a whole zip archive, remove it and fetch it again"
        ) from error


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
    yield from in_blocks(done + 1, file, plain, exact)


def in_blocks(
    start: int,
    file: TextIO,
    plain: Callable[[pl.Series], pl.DataFrame],
    exact: Callable[[int, str], Review | None],
) -> Iterator[pl.DataFrame]:
    """As `read_lines`, of a file that Python reads, such as one in an archive; its next line has the number `start`."""
    while taken := file.readlines(_BYTES):
        yield merged(start, taken, plain, exact)
        start += len(taken)


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
    exactly = pl.DataFrame(rows, {"at": pl.UInt32, **REVIEWS}, orient="row")
    return pl.concat([found.with_row_index("at").filter(complete), exactly]).sort("at").drop("at")


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
    """Return `cells`, texts in columns called as the fields of `Review`, as reviews; what is not plain becomes null."""
    user, item = (pl.when(pl.col(name).str.contains(_TOKEN)).then(pl.col(name)) for name in ("user", "item"))
    rating = pl.when(pl.col("rating").str.contains(_RATING)).then(pl.col("rating"))
    rating = rating.cast(pl.Float64, strict=False) if "rating" in cells.columns else pl.lit(float("nan"))
    return cells.select(user, item, rating.alias("rating"), time.alias("time"))


def digits(limit: int) -> pl.Expr:
    """Return the column `time` as integers, null where it is none of at most `limit` digits."""
    time = pl.col("time")
    return pl.when(time.str.contains(rf"^[0-9]{{1,{limit}}}$")).then(time).cast(pl.Int64, strict=False)
