"""The Amazon reviews of 2014, 2018 and 2023 (McAuley lab, UCSD), as published: one record a line.

- 2014: reviews in JSON (`reviewerID`, `asin`, `overall`, `unixReviewTime`), items as Python literals (`imUrl`,
  `categories` as a list of paths);
- 2018: the same names, all in JSON; items with `category`, `imageURLHighRes` and `imageURL` as lists;
- 2023: `user_id`, `parent_asin`, `rating`, `timestamp` in milliseconds; items with `store` and `images` (`hi_res`,
  `large`, `thumb`).

Sources: R. He and J. McAuley, *Ups and Downs*, WWW 2016; J. Ni, J. Li and J. McAuley, EMNLP 2019; Y. Hou et al., 2024.
"""

import ast
import contextlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import polars as pl

from ..errors import InputError
from .batches import digits, is_undecodable, json_cells, read_lines, typed
from .raw import Item, Review, as_rating, as_time, as_token, open_text

_REVIEW_KEYS = {
    "2014": ("reviewerID", "asin", "overall", "unixReviewTime"),
    "2018": ("reviewerID", "asin", "overall", "unixReviewTime"),
    "2023": ("user_id", "parent_asin", "rating", "timestamp"),
}
RELEASES = tuple(_REVIEW_KEYS)


def reviews(path: str | os.PathLike, release: str, dirt: Counter[str]) -> Iterator[pl.DataFrame]:
    """Yield the reviews of one file in frames, in file order.

    Times are Unix seconds, in release 2023 milliseconds. Lines that are no record and reviews without a user, an item
    or a time are left out and counted; one without a rating has the rating NaN.
    """
    keys = dict(zip(Review._fields, _REVIEW_KEYS[_known(release)], strict=True))

    def exact(number: int, line: str) -> Review | None:
        record = _record(line, _decode, "review", dirt)
        return None if record is None else _review(record, keys, dirt)

    with _open(path) as file:
        yield from read_lines(path, file, lambda lines: typed(json_cells(lines, keys), digits(15)), exact)


def items(path: str | os.PathLike, release: str, dirt: Counter[str]) -> Iterator[Item]:
    """Yield the items of one metadata file in file order; lines that are no record or name no item are counted."""
    parse = _parse_literal if _known(release) == "2014" else _decode
    token_key = "parent_asin" if release == "2023" else "asin"
    with _open(path) as file:
        for line in file:
            record = _record(line, parse, "item", dirt)
            if record is None:
                continue
            if token := as_token(record.get(token_key)):
                yield _item(token, record, release, dirt)
            else:
                dirt["items without a name (asin)"] += 1


def _known(release: str) -> str:
    if release not in RELEASES:
        raise InputError(f"release: found {release!r}, expected one of {', '.join(RELEASES)} (the year, as text)")
    return release


def _open(path: str | os.PathLike) -> contextlib.AbstractContextManager[TextIO]:
    missing = "fetch it, or give its folder with --raw_dir"
    return open_text(path, "\n", missing, "expected a whole file, remove it and fetch it again")


def _record(line: str, parse: Callable[[str], Any], what: str, dirt: Counter[str]) -> dict[str, Any] | None:
    """Return the record of a line; None where there is none, which is counted unless the line is blank."""
    if is_undecodable(line):
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


def _review(record: dict[str, Any], keys: dict[str, str], dirt: Counter[str]) -> Review | None:
    user, item = as_token(record.get(keys["user"])), as_token(record.get(keys["item"]))
    rating, time = as_rating(record.get(keys["rating"])), as_time(record.get(keys["time"]))
    if not user or not item:
        dirt[f"reviews without {'a user' if not user else 'an item'}"] += 1
    elif time is None:
        dirt["reviews without a time"] += 1
    else:
        dirt["reviews without a rating, kept"] += rating != rating
        return Review(user, item, rating, time)
    return None


_decode = json.JSONDecoder(strict=False).decode  # raw tabs and the like within a text are dirt that `clean` mends


def _parse_literal(line: str) -> Any:
    """Return the value of a Python literal, several times as fast as `ast.literal_eval` and without running it.

    Its strings are respelt as JSON, which is quick to read. What that does not cover (tuples, None, prefixed strings,
    rare escapes) is left to `ast.literal_eval`.
    """
    try:
        return _decode(_as_json(line))
    except ValueError:
        return _evaluate(line)


# Escapes that JSON spells otherwise and the control character that stands for each until the quotes are done. The
# first must come first: it pairs the backslashes.
_ESCAPES = (("\\\\", "\x00", "\\\\"), ("\\'", "\x01", "'"), ('\\"', "\x02", '\\"'), ("\\x", "\x03", "\\u00"))


def _as_json(line: str) -> str:
    """Return a literal of dicts, lists, numbers and strings with the strings in the spelling of JSON."""
    escaped = "\\" in line
    if escaped:
        if any(sign in line for _, sign, _ in _ESCAPES):
            raise ValueError("a control character that is needed here")
        for python, sign, _ in _ESCAPES:
            line = line.replace(python, sign)
        if "\\/" in line:
            raise ValueError("an escape of JSON that Python has not")
    line = _requoted(line)
    if escaped:
        for _, sign, json_ in _ESCAPES:
            line = line.replace(sign, json_)
    return line


def _requoted(line: str) -> str:
    """Return a line without escaped quotes with double quotes around all its strings."""
    if '"' not in line:
        return line.replace("'", '"')
    pieces: list[str] = []
    in_double = in_single = False
    for piece in line.split('"'):
        if in_double:  # the text of a string; the quote after it ends it
            pieces += piece, '"'
            in_double = False
            continue
        in_single ^= bool(piece.count("'") % 2)
        in_double = not in_single
        pieces += piece.replace("'", '"'), '"' if in_double else '\\"'
    return "".join(pieces[:-1])


def _evaluate(literal: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns about escapes that mean nothing, which it keeps as they are
        return ast.literal_eval(literal)


def _item(token: str, record: dict[str, Any], release: str, dirt: Counter[str]) -> Item:
    title = _text(record.get("title"))
    if "getTime" in title:  # known of release 2018: some titles are a piece of the page's script
        dirt["items with a script for a title"] += 1
        title = ""
    found = record.get("price")
    price = _price(found)
    dirt["items with an unreadable price"] += not price and bool(_text(found).strip())
    return Item(
        token=token,
        title=title,
        brand=_text(record.get("store" if release == "2023" else "brand")),
        categories=_categories(record.get("category" if release == "2018" else "categories")),
        description=_text(record.get("description")),
        price=price,
        image_url=_image_url(record, release),
    )


def _text(value: Any) -> str:
    """Return a field as text: lists joined by blanks, "" for what is no text."""
    if isinstance(value, list):
        return " ".join(filter(None, map(_text, value)))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


_PRICE = re.compile(r"\s*(?:from\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)(?:\s*-\s*\$?\s*\d[\d,]*(?:\.\d+)?)?\s*")


def _price(value: Any) -> str:
    """Return a price in dollars as digits, of a range its lower end, "" where there is none."""
    found = _PRICE.fullmatch(_text(value))
    return found[1].replace(",", "") if found else ""


def _categories(value: Any) -> list[str]:
    """Return the categories of an item, each once, in the order met; those of 2014 come as several paths."""
    found: dict[str, None] = {}
    for entry in value if isinstance(value, list) else [value]:
        found.update(dict.fromkeys(map(_text, entry if isinstance(entry, list) else [entry])))
    return list(filter(None, found))


def _image_url(record: dict[str, Any], release: str) -> str:
    """Return the address of the item's first image, in the largest size there is."""
    if release == "2014":
        return _text(record.get("imUrl"))
    if release == "2018":
        return next(filter(None, (_first(record.get(key)) for key in ("imageURLHighRes", "imageURL"))), "")
    images = record.get("images")
    for image in images if isinstance(images, list) else []:
        sizes = image if isinstance(image, dict) else {}
        if url := next(filter(None, (_text(sizes.get(size)) for size in ("hi_res", "large", "thumb"))), ""):
            return url
    return ""


def _first(value: Any) -> str:
    return next(filter(None, map(_text, value)), "") if isinstance(value, list) else _text(value)
