"""KuaiRec 2.0 (Kuaishou, USTC): how far users watched short videos, with captions and categories.

- `KuaiRec.zip` with `big_matrix.csv` and `small_matrix.csv`: `user_id,video_id,play_duration,video_duration,time,date,
  timestamp,watch_ratio`; `timestamp` in seconds with a fraction, blank in a part of the small matrix; `watch_ratio`,
  played over whole length, is the rating;
- `kuairec_caption_category.csv`: quoted where a cell holds commas or line ends; `UNKNOWN` where nothing is known, tags
  as `[one,two]`, categories on three levels.

C. Gao et al., *KuaiRec: A Fully-observed Dataset and Insights for Evaluating Recommender Systems*, CIKM 2022.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ..errors import InputError
from .bad_rows import Bad, BadRows
from .raw import Item, Review, as_rating, as_time, as_token, in_blocks, open_member
from .table_files import open_table

VARIANTS = ("big_matrix", "small_matrix")

_COLUMNS = {"user": "user_id", "item": "video_id", "rating": "watch_ratio", "time": "timestamp"}
_TEXTS = {"token": "video_id", "title": "caption", "description": "manual_cover_text", "tags": "topic_tag"}
_LEVELS = tuple(f"{level}_level_category_name" for level in ("first", "second", "third"))
_UNKNOWN = ("", "UNKNOWN", "[]")
_NAME, _NUMBER = r"^[0-9]{1,18}$", r"^[0-9]{1,12}(?:\.[0-9]{1,17})?$"


def reviews(path: str | os.PathLike, matrix: str, dirt: Counter[str]) -> Iterator[pl.DataFrame]:
    """Yield what users watched in frames, in file order; times are milliseconds. Broken lines are counted."""
    with open_member(path, f"{matrix}.csv") as file:
        names = file.readline().strip("\ufeff\r\n").split(",")
        if missing := [name for name in _COLUMNS.values() if name not in names]:
            raise InputError(f"{path}: found no column {missing[0]} in {matrix}.csv, expected that of KuaiRec 2.0")
        places = {field: names.index(name) for field, name in _COLUMNS.items()}

        def exact(_: int, line: str) -> Review | None:
            cells = line.rstrip("\r\n").split(",")
            if len(cells) != len(names):
                dirt["review lines that cannot be read"] += bool(line.strip())
                return None
            user, item = as_token(cells[places["user"]]), as_token(cells[places["item"]])
            seconds = as_rating(cells[places["time"]])
            time = as_time(round(seconds * 1000)) if seconds == seconds else None
            if not user or not item or time is None:
                dirt[f"reviews without {'a user' if not user else 'an item' if not item else 'a time'}"] += 1
                return None
            return Review(user, item, as_rating(cells[places["rating"]]), time)

        yield from in_blocks(2, file, lambda lines: _plain(lines, places, len(names)), exact)


def _plain(lines: pl.Series, places: dict[str, int], width: int) -> pl.DataFrame:
    cells = pl.col("line").str.split(",")
    whole = pl.when(cells.list.len() == width).then(cells)
    found = pl.DataFrame({"line": lines}).select(
        whole.list.get(at, null_on_oob=True).alias(field) for field, at in places.items()
    )

    def only(field: str, pattern: str) -> pl.Expr:
        return pl.when(pl.col(field).str.contains(pattern)).then(pl.col(field))

    numbers = {field: only(field, _NUMBER).cast(pl.Float64, strict=False) for field in ("rating", "time")}
    time = (numbers["time"] * 1000).round().cast(pl.Int64, strict=False)
    return found.select(only("user", _NAME), only("item", _NAME), numbers["rating"], time)


def items(path: str | os.PathLike, matrix: str, dirt: Counter[str]) -> Iterator[Item]:
    """Yield the videos: caption as title, the text on the cover as description, tags behind the names of categories."""
    columns, bad = {**_TEXTS, **{name: name for name in _LEVELS}}, BadRows(Path(path), "skip")
    with open_table(path) as table:
        if missing := [name for name in columns.values() if name not in table.names]:
            raise InputError(f"{path}: found no column {missing[0]}, expected the file of captions of KuaiRec 2.0")
        yield from table.records(columns, _item, bad)
    dirt.update({f"item lines, {reason}": count for reason, count in bad.counts.items()})


def _item(cells: dict[str, Any]) -> Item:
    texts = {field: "" if text.strip() in _UNKNOWN else text.strip() for field, text in cells.items()}
    if not texts["token"].isdigit():
        raise Bad("video_id: not a number", texts["token"])
    tags = texts["tags"].strip("[]").split(",")
    categories = list(dict.fromkeys(filter(None, map(str.strip, [*(texts[name] for name in _LEVELS), *tags]))))
    return Item(texts["token"], texts["title"], "", categories, texts["description"], "", "")
