"""What all raw files are read into: reviews and items, with every kind of dirt counted.

Readers take a `Counter` and add to it under a reason in plain words ("reviews without a time"). They drop nothing
without counting it. Reviews come in batches, as Polars frames; items come one by one.
"""

import contextlib
import gzip
import html
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TextIO

import polars as pl

from ..errors import InputError

REVIEWS = {"user": pl.String, "item": pl.String, "rating": pl.Float64, "time": pl.Int64}
"""Columns of a frame of reviews, the fields of `Review`."""

_BATCH = 1 << 16  # reviews of a frame that is made from single ones


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


COLUMN_FLAGS = {
    field: f"--{'item-id' if field == 'token' else field.replace('_', '-')}-column"
    for field in ("user", "item", "time", "rating", *Item._fields)
}
"""Field of a review or an item (`token` is an item's name) -> flag that names its column in a table."""

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
    return number if number is not None and math.isfinite(number) else math.nan


def as_time(value: Any) -> int | None:
    """Return a time as an integer, None where `value` is none; atomic files hold times as float64, so up to 2^53."""
    time = _number(int, value)
    return time if time is not None and abs(time) <= 1 << 53 else None


def _number(kind: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return None


@contextlib.contextmanager
def open_text(path: str | os.PathLike, newline: str, missing: str, damaged: str) -> Iterator[TextIO]:
    """Open a text file, packed or not (its first bytes tell); bytes that are no text come as `UNDECODABLE`.

    Parameters
    ----------
    newline : as of `open`.
    missing, damaged : what to do when the file is not there or cannot be read, for the error.

    Raises
    ------
    InputError : within the block too, when a read fails or the file is damaged or cut off.
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
