"""Anyone's own tables as reviews and items: which column is which, and what a cell means.

Spreadsheets and databases spell one thing in many ways; the rules are here, one function for each kind of cell. What no
rule covers is a bad row, reported and left out, never guessed at.
"""

import ast
import contextlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import polars as pl

from ..errors import InputError, listed
from .bad_rows import NOT_UTF8, Bad, BadRows
from .raw import CALLED, COLUMN_FLAGS, CONTROL, Item, Review, digits, is_undecodable, typed
from .table_files import open_table

_ITEM_IDS = ("item_id", "item", "iid", "parent_asin", "asin", "movie_id", "product_id", "product", "article_id")
_ITEM_IDS += ("article", "sku", "book_id", "isbn", "track_id", "song_id", "video_id", "business_id", "listing_id")
_OTHER_ITEM_IDS = ("artikel_id", "artikelnummer", "artikelnr", "artikel", "produkt_id", "produktnummer", "produkt")
_OTHER_ITEM_IDS += ("id_produit", "produit_id", "produit", "id_article")  # German and French names come last

REVIEW_COLUMNS: dict[str, tuple[str, ...]] = {
    "user": (
        *("user_id", "user", "uid", "customer_id", "customer", "reviewer_id", "visitor_id", "member_id"),
        *("kunden_id", "kundennummer", "kundennr", "kunde", "nutzer_id", "nutzer", "benutzer_id", "benutzer"),
        *("id_client", "client_id", "client", "id_utilisateur", "utilisateur"),
    ),
    "item": (*_ITEM_IDS, *_OTHER_ITEM_IDS),
    "time": (
        *("timestamp", "time", "unix_review_time", "datetime", "date", "created_at", "event_time", "order_date"),
        *("zeitstempel", "zeitpunkt", "zeit", "datum", "bestelldatum", "kaufdatum"),
        *("horodatage", "date_commande", "date_achat"),
    ),
    "rating": ("rating", "ratings", "overall", "stars", "score", "bewertung", "sterne"),
}
"""Field of a review -> names by which its column is known, the likeliest first. All but the rating are needed."""

ITEM_COLUMNS: dict[str, tuple[str, ...]] = {
    "token": (*_ITEM_IDS, "id", "token", *_OTHER_ITEM_IDS),
    "title": (
        *("title", "name", "item_name", "product_name", "movie_title", "item_title", "product_title"),
        *("titel", "bezeichnung", "artikelname", "produktname", "titre", "nom"),
    ),
    "brand": ("brand", "store", "manufacturer", "maker", "author", "artist", "marke", "hersteller", "marque"),
    "categories": (
        *("categories", "category", "genres", "genre", "tags", "class"),
        *("kategorien", "kategorie", "catégorie"),
    ),
    "description": ("description", "descriptions", "desc", "overview", "summary", "plot", "text", "beschreibung"),
    "price": ("price", "preis", "prix"),
    "image_url": ("image_url", "image", "images", "img_url", "im_url", "image_link", "poster", "bild_url", "bild"),
    "year": ("year", "release_year", "jahr", "année"),
}
"""Field of an item -> names by which its column is known, the likeliest first. The token alone is needed."""

_NEEDED = {"user", "item", "time", "token"}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_UNITS = tuple((Decimal(10) ** size, Decimal(10) ** (14 - size)) for size in (11, 14, 17, 20))
"""Size below which a time has a unit, and the factor that turns it into milliseconds."""
_EXACT = 1 << 53  # larger floats are not exact, so they are no names
_WHOLE = re.compile(r"\A(-?\d+)[.,]0+\Z")  # a column with gaps turns 1234 into 1234.0
_ROUNDED = re.compile(r"-?\d([.,]\d+)?E\+\d+", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(\d+([.,]\d*)?|[.,]\d+)(e[-+]?\d{1,4})?", re.IGNORECASE | re.ASCII)
_DATE = re.compile(
    r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})"
    r"(?:(?:T|,? )\s*(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d+))?)?\s*(Z|UTC|[-+]\d{2}(?::?\d{2})?)?)?",
    re.IGNORECASE | re.ASCII,
)
_DAY_FIRST = re.compile(r"\A(\d{1,2})\.(\d{1,2})\.(\d{4})(?!\d)", re.ASCII)  # dots everywhere, as in 31.01.2024


def find_columns(
    path: str | os.PathLike, known: Mapping[str, tuple[str, ...]], given: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Find which column of a file is used as what (field -> name), and the names of the columns that are not used.

    Columns that are `given` (field -> name) count before guesses by `known`, REVIEW_COLUMNS or ITEM_COLUMNS.
    """
    with open_table(path) as table:
        names, inner = table.names, table.inner
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"{path}: there is no field {unknown[0]!r} ({listed(unknown[0], known)}); correct its name")
    used, missing = dict[str, str](), dict[str, str]()
    for field, guesses in known.items():
        if field in given:
            found = [name for name in (*names, *inner) if name == given[field].strip()]
        else:
            found = likely(guesses, names)
        if len(found) > 1:
            both, how = " and ".join(found), f"name the right one with {COLUMN_FLAGS[field]}"
            how = how if len(set(found)) > 1 else "rename all but the right one"
            raise InputError(f"{path}: {both} may both be the {CALLED[field]}; {how}")
        if found:
            used[field] = found[0]
        elif field in given or field in _NEEDED:
            missing[field] = given.get(field) or guesses[0]
    if missing:
        wanted = ", ".join(
            f"the {CALLED[field]} ({'expected' if field in given else 'such as'} {name})"
            for field, name in missing.items()
        )
        asked = "" if len(missing) > 1 else min(missing.values())
        within = [name for name in inner if name.split(".")[0] == asked.split(".")[0]]
        near = listed(asked, within if within and "." in asked else filter(None, names))
        how = f"name {'them' if len(missing) > 1 else 'it'} with {', '.join(COLUMN_FLAGS[field] for field in missing)}"
        raise InputError(f"{path}: found no column for {wanted} in the first line ({near}); {how}")
    read = [f"{name}." for name in used.values()]
    return used, [name for name in names if name and not any(column.startswith(f"{name}.") for column in read)]


def likely(guesses: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return those of `names` that spell the first of the `guesses` that any of them spells."""
    plain = [_plain_name(name) for name in names]
    key = next((key for key in map(_plain_name, guesses) if key in plain), None)
    return [name for name, spelt in zip(names, plain, strict=True) if spelt == key]


def read_reviews(columns: Mapping[str, str], bad: BadRows) -> Iterator[pl.DataFrame]:
    """Yield the interactions of the table `bad.path` in frames, in its order; rows that cannot be used go to `bad`.

    Times become milliseconds since 1970. Without a rating column, or where its cell is blank, the rating is NaN. A file
    of which no row can be used is an `InputError`; for `columns` see `find_columns`.
    """

    def review(cells: dict[str, Any]) -> Review:
        user, item = _identifier("user", cells["user"]), _identifier("item", cells["item"])
        return Review(user, item, _rating(cells.get("rating")), milliseconds(cells["time"]))

    with open_table(bad.path) as table:
        for frame in table.frames(columns, review, bad, lambda cells: typed(cells, _plain_milliseconds(cells["time"]))):
            bad.good += len(frame)
            yield frame
    bad.refuse_none(COLUMN_FLAGS)


def read_items(columns: Mapping[str, str], bad: BadRows) -> Iterator[Item]:
    """Yield the items of the table `bad.path` in its order; rows that cannot be used go to `bad`.

    Texts are as they came but for blanks around them. Categories are a list: that of the file, one written as JSON or
    in Python, or the parts between `|`, `>`, `;` or `,`. Of several images the first counts.
    """

    def item(cells: dict[str, Any]) -> Item:
        texts = {field: cell_text(cells.get(field)) for field in ("title", "brand", "description", "price")}
        token, categories = _identifier("item", cells["token"]), _parts(cells.get("categories"))
        image_url = next(iter(_parts(cells.get("image_url"), split=False)), "")
        year = _WHOLE.sub(r"\1", cell_text(cells.get("year")))
        return Item(token, **texts, categories=categories, image_url=image_url, year=year)

    with open_table(bad.path) as table:
        for found in table.records(columns, item, bad):
            bad.good += 1
            yield found
    bad.refuse_none({"item": COLUMN_FLAGS["token"]})


def _plain_name(name: str) -> str:
    """Return a column name without what spellings differ in: `User ID`, `userId` and RecBole's `user_id:token`.

    Accents do not count: they may be characters of their own, and are left out with all that is no letter or digit.
    """
    name = unicodedata.normalize("NFKD", re.sub(r":(token|float)(_seq)?$", "", name.strip()))
    return re.sub(r"[\W_]+", "", name).lower()


def cell_text(value: Any) -> str:
    """Return a cell as text: "" where there is none, whole numbers without `.0`, lists with blanks between."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, map(cell_text, value)))
    text = str(value).strip()
    if is_undecodable(text):
        raise Bad(NOT_UTF8, text)
    return text


def _identifier(what: str, value: Any) -> str:
    """Return the name of a user or an item, as text."""
    if isinstance(value, (bool, list, tuple, Mapping)):
        raise Bad(f"{what}: not one name", str(value))
    text = cell_text(value)
    if not text:
        raise Bad(f"{what}: blank", "")
    if CONTROL.search(text):
        raise Bad(f"{what}: a tab, line end or control character inside", text)
    if _ROUNDED.fullmatch(text):  # 1.23457E+12 may have been several names
        raise Bad(f"{what}: a number that a spreadsheet has rounded (export the column as text)", text)
    return _WHOLE.sub(r"\1", text)


def _number(text: str) -> Decimal | None:
    """Return the number that `text` spells, with a decimal point or comma; None where it spells none."""
    return Decimal(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None


def _rating(value: Any) -> float:
    text = cell_text(value)
    number = _number(text)
    rating = math.nan if number is None else float(number)
    if text and not math.isfinite(rating):
        raise Bad("rating: not a number", text)
    return rating


def milliseconds(value: Any) -> int:
    """Return a time as milliseconds since 1970.

    Numbers are seconds, milliseconds, microseconds or nanoseconds, by their size: as seconds, 1e11 lies in the year
    5138. Dates are year first, or day first with dots; without a zone they are UTC. Counters (1, 2, 3) count as seconds
    and keep their order.
    """
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    if isinstance(value, date):
        return (value - _EPOCH.date()).days * 86_400_000
    text = cell_text(value)
    if not text:
        raise Bad("time: blank", "")
    if (number := _number(text)) is not None:
        for limit, factor in _UNITS:
            if abs(number) < limit:
                return math.floor(number * factor)
    elif found := _DATE.fullmatch(_DAY_FIRST.sub(r"\3-\2-\1", text)):
        try:
            return _date_time(found)
        except (ValueError, OverflowError):  # the 31st of February
            pass
    raise Bad("time: neither a number of seconds nor a date like 2024-01-31 12:30", text)


def _plain_milliseconds(times: pl.Series) -> pl.Expr:
    """Return the column `time`, which is `times`, as `milliseconds` does, null for all but digits and common dates."""
    whole = digits(18)
    scaled = pl.when(whole < 10**11).then(whole * 1000).when(whole < 10**14).then(whole)
    scaled = scaled.when(whole < 10**17).then(whole // 1000).otherwise(whole // 10**6)
    if not times.str.contains("-", literal=True).any():
        return scaled
    text = pl.col("time").str.replace("T", " ", literal=True)
    date = text.str.contains("^[12][0-9]{3}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-5][0-9](:[0-5][0-9])?)?$")
    filled = pl.when(date).then(text + pl.lit("0000-00-00 00:00:00").str.slice(text.str.len_bytes()))
    moment = filled.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ms", strict=False).dt.epoch("ms")
    return pl.coalesce(scaled, moment)


def _date_time(found: re.Match[str]) -> int:
    year, _, month, day, hour, minute, second, fraction, zone = found.groups()
    offset = timedelta()
    if zone and zone[0] in "+-":
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:].lstrip(":") or 0)) * (-1 if zone[0] == "-" else 1)
    numbers = [int(part or 0) for part in (year, month, day, hour, minute, second, f"{fraction or '0':0<6.6}")]
    return (datetime(*numbers, tzinfo=timezone(offset)) - _EPOCH) // timedelta(milliseconds=1)


def _parts(value: Any, split: bool = True) -> list[str]:
    """Return the parts of a cell that may hold several: a list, one spelt in JSON or Python, or a text with marks."""
    if isinstance(value, str) and value.strip().startswith("["):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                value = parse(value.strip())
                break
    if isinstance(value, (list, tuple)):
        return list(filter(None, map(cell_text, _flat(value))))
    text = cell_text(value)
    mark = next((mark for mark in "|>;," if mark in text), None) if split else None
    return list(filter(None, map(str.strip, text.split(mark) if mark else [text])))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the members of lists within lists: Amazon's categories are paths."""
    for value in values:
        yield from _flat(value) if isinstance(value, (list, tuple)) else (value,)
