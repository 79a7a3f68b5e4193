"""The Amazon reviews of 2014, 2018 and 2023 (McAuley lab, UCSD), as published: one record a line.

- 2014: reviews in JSON (`reviewerID`, `asin`, `overall`, `unixReviewTime`), items as Python literals (`imUrl`,
  `categories` as a list of paths);
- 2018: the same names, all in JSON; items with `category`, `imageURLHighRes` and `imageURL` as lists;
- 2023: `user_id`, `parent_asin`, `rating`, `timestamp` in milliseconds; items with `store` and `images` (`hi_res`,
  `large`, `thumb`).

Sources: R. He and J. McAuley, *Ups and Downs*, WWW 2016; J. Ni, J. Li and J. McAuley, EMNLP 2019; Y. Hou et al., 2024.
"""

import ast
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from . import raw
from .raw import Item, Review, as_rating, as_time, as_token

_REVIEW_KEYS = {
    "2014": ("reviewerID", "asin", "overall", "unixReviewTime"),
    "2018": ("reviewerID", "asin", "overall", "unixReviewTime"),
    "2023": ("user_id", "parent_asin", "rating", "timestamp"),
}
VARIANTS = tuple(_REVIEW_KEYS)

_PRICE = re.compile(r"\s*(?:from\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)(?:\s*-\s*\$?\s*\d[\d,]*(?:\.\d+)?)?\s*")
"""A price in dollars, or a range of them, whose lower end counts."""


def reviews(path: str | os.PathLike, release: str, dirt: Counter[str]) -> Iterator[pl.DataFrame]:
    """Yield the reviews of one file in frames, in file order.

    Times are Unix seconds, in release 2023 milliseconds. Lines that are no record and reviews without a user, an item
    or a time are left out and counted; one without a rating has the rating NaN.
    """
    keys = dict(zip(Review._fields, _REVIEW_KEYS[release], strict=True))

    def exact(number: int, line: str) -> Review | None:
        if (record := _record(line, _decode, "review", dirt)) is None:
            return None
        values = {field: record.get(key) for field, key in keys.items()}
        user, item, time = as_token(values["user"]), as_token(values["item"]), as_time(values["time"])
        if not user or not item or time is None:
            dirt[f"reviews without {'a user' if not user else 'an item' if not item else 'a time'}"] += 1
            return None
        rating = as_rating(values["rating"])
        dirt["reviews without a rating, kept"] += rating != rating
        return Review(user, item, rating, time)

    with raw.open_text(path, "\n", *raw.REMEDIES) as file:
        yield from raw.read_lines(
            path, file, lambda lines: raw.typed(raw.json_cells(lines, keys), raw.digits(15)), exact
        )


def items(path: str | os.PathLike, release: str, dirt: Counter[str]) -> Iterator[Item]:
    """Yield the items of one metadata file in file order; lines that are no record or name no item are counted."""
    parse = _parse_literal if release == "2014" else _decode
    token_key = "parent_asin" if release == "2023" else "asin"
    with raw.open_text(path, "\n", *raw.REMEDIES) as file:
        for line in file:
            record = _record(line, parse, "item", dirt)
            if record is None:
                continue
            if token := as_token(record.get(token_key)):
                yield _item(token, record, release, dirt)
            else:
                dirt["items without a name (asin)"] += 1


def _record(line: str, parse: Callable[[str], Any], what: str, dirt: Counter[str]) -> dict[str, Any] | None:
    """Return the record of a line; None where there is none, which is counted unless the line is blank."""
    if raw.is_undecodable(line):
        dirt["lines with bytes that are not UTF-8"] += 1
        line = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    line = line.strip("\r\n\t \ufeff")
    if not line:
        return None
    try:
        record = parse(line)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that both parsers raise
        record = None
    if isinstance(record, dict):
        return record
    dirt[f"{what} lines that cannot be read"] += 1
    return None


_decode = json.JSONDecoder(strict=False).decode  # raw tabs and the like within a text are dirt that `clean` mends


_STRING = re.compile(r"""'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*"|['"\\]""")  # or what belongs to none
_SPELT_OTHERWISE = {'"': r"\"", r"\'": "'", r"\x": r"\u00", r"\/": r"\\/"}


def _parse_literal(line: str) -> Any:
    """Return the value of a Python literal, three times as fast as `ast.literal_eval` and without running it.

    Its strings are respelt as JSON, which is quick to read. What that does not cover (tuples, None, prefixed strings,
    rare escapes) is left to `ast.literal_eval`.
    """

    def respelt(found: re.Match[str]) -> str:
        if len(found[0]) == 1:
            raise ValueError("a string that does not end, or a backslash outside")
        text = found[0][1:-1]
        if "\\" in text or '"' in text:
            text = re.sub(r'\\.|"', lambda part: _SPELT_OTHERWISE.get(part[0], part[0]), text)
        return f'"{text}"'

    try:
        return _decode(_STRING.sub(respelt, line))
    except ValueError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about escapes that mean nothing, which it keeps as they are
            return ast.literal_eval(line)


def _item(token: str, record: dict[str, Any], release: str, dirt: Counter[str]) -> Item:
    title, price = _text(record.get("title")), _text(record.get("price"))
    if "getTime" in title:  # known of release 2018: some titles are a piece of the page's script
        dirt["items with a script for a title"] += 1
        title = ""
    found = _PRICE.fullmatch(price)
    dirt["items with an unreadable price"] += not found and bool(price.strip())
    paths = _several(record.get("category" if release == "2018" else "categories"))  # of 2014; names in later releases
    return Item(
        token=token,
        title=title,
        brand=_text(record.get("store" if release == "2023" else "brand")),
        categories=list(dict.fromkeys(filter(None, (_text(name) for path in paths for name in _several(path))))),
        description=_text(record.get("description")),
        price=found[1].replace(",", "") if found else "",
        image_url=next(filter(None, map(_text, _images(record, release))), ""),
    )


def _images(record: dict[str, Any], release: str) -> Iterator[Any]:
    """Yield the addresses of an item's images, of the first image in its largest size first."""
    if release == "2014":
        yield record.get("imUrl")
    elif release == "2018":
        for key in ("imageURLHighRes", "imageURL"):
            yield from _several(record.get(key))
    else:
        images = record.get("images")
        for image in images if isinstance(images, list) else []:
            yield from map(image.get, ("hi_res", "large", "thumb")) if isinstance(image, dict) else ()


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    """Return a field as text: lists joined by blanks, "" for what is no text."""
    if isinstance(value, list):
        return " ".join(filter(None, map(_text, value)))
    return str(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""
