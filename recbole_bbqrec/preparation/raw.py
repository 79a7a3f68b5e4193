"""What all raw files are read into: reviews and items, one by one, with every kind of dirt counted.

Readers take a `Counter` and add to it under a reason in plain words ("reviews without a time"). They drop nothing
without counting it.
"""

import gzip
import html
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import InputError


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


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")
_BLANKS = re.compile("[\\s\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


COLUMN_FLAGS = {
    "user": "--user-column",
    "item": "--item-column",
    "time": "--time-column",
    "rating": "--rating-column",
    "token": "--item-id-column",
    "title": "--title-column",
    "brand": "--brand-column",
    "categories": "--categories-column",
    "description": "--description-column",
    "price": "--price-column",
    "image_url": "--image-url-column",
    "year": "--year-column",
}
"""Field of a review or an item (`token` is an item's name) -> flag that names its column in a table."""


def clean(text: str, dirt: Counter[str]) -> str:
    """Return `text` as one line that any atomic file can hold; quotes and all other characters stay.

    HTML entities are resolved once, runs of blanks, tabs, line ends and control characters become one blank, and
    characters that UTF-8 cannot spell (half a surrogate pair) become U+FFFD.
    """
    if "&" in text:
        plain = html.unescape(text)
        dirt["item texts with HTML entities"] += plain != text
        text = plain
    if _CONTROL.search(text):
        dirt["item texts with control characters, tabs or line ends"] += 1
        if _SURROGATE.search(text):
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _BLANKS.sub(" ", text).strip()


def as_token(value: Any) -> str:
    """Return a user or item name as text, "" where `value` is none: no text or integer, blank, or not on one line."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or _CONTROL.search(value):
        return ""
    return value.strip()


def as_rating(value: Any) -> float:
    """Return a rating as a number, NaN where `value` is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def as_time(value: Any) -> int | None:
    """Return a time as an integer, None where `value` is none; atomic files hold times as float64, so up to 2^53."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        time = int(value)
    except (ValueError, OverflowError):
        return None
    return time if abs(time) <= 1 << 53 else None


def lines(path: str | os.PathLike, dirt: Counter[str]) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, gzip or plain (its first bytes tell), blank lines left out.

    Raises
    ------
    InputError : the file is missing, unreadable, damaged or cut off.
    """
    try:
        with open(path, "rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            for raw in file:
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError:
                    dirt["lines with bytes that are not UTF-8"] += 1
                    line = raw.decode("utf-8", "replace")
                if line := line.strip("\r\n\t \ufeff"):
                    yield line
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; fetch it, or give its folder with --raw_dir") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read to its end ({error}); expected a whole file, remove it and fetch it again"
        ) from error
