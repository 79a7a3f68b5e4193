"""Anyone's own tables and images to a data set: `bbqrec prepare <Name> --from interactions.csv --items items.csv`."""

import contextlib
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ..errors import InputError
from .atomic import read_atomic
from .bad_rows import AS_UTF8, NOT_UTF8, BadRows, write_bad_rows
from .build import build
from .images import images_by_token
from .raw import CALLED, COLUMN_FLAGS, Item, Review
from .table_files import open_table
from .tables import ITEM_COLUMNS, REVIEW_COLUMNS, find_columns, read_items, read_reviews

TEXTS = ("title", "brand", "categories", "description")
"""Fields that say what an item is."""

FEW = 200
"""Users below which the report says that metrics will hardly tell models apart."""

LIKELY = np.datetime64("1990"), np.datetime64("2100")
"""Times outside of these may be row numbers, or dates such as 20240131 read as seconds."""

OF_ITEMS = ("records of an item met before", "items left with a record but no title")
"""Kinds of dirt counted by `build` that the report mentions."""


def prepare_own(
    name: str,
    interactions: str | os.PathLike,
    items: str | os.PathLike | None,
    folder: str | Path,
    *,
    images: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad: str = "skip",
    user_core: int = 5,
    item_core: int = 5,
    shuffle_ties: int | None = None,
) -> dict[str, Any]:
    """Write the data set `<folder>/<name>` from tables; the folder appears whole or not at all.

    Parameters
    ----------
    interactions, items : tables, see `tables`; without `items` nothing is known about the items.
    images : folder with `<item token>.jpg` (.jpeg, .png, .webp), copied to `<folder>/<name>/images`.
    columns : `user`, `item`, `time`, `rating` (of the interactions), `token`, `title`, ... (of the items) -> name of
        the column; the others are guessed.
    on_bad : `skip` leaves bad rows out and lists them in `<folder>/<name>.bad_rows.tsv`, `error` stops at the first.
    user_core, item_core, shuffle_ties : see `build.build`.

    Returns
    -------
    report : that of `build.build`, with `folder` (of the data set), `columns` (used and unused ones of each
        table), `bad_rows` (a line about each), `bad_rows_file` (path or None), `described` and `pictured` (number of
        items with a text, and with an image), `unlisted` (items that the table of items lacks), `unsold` (items of the
        table without enough interactions), `astray` (names of images that belong to no item).

    Raises
    ------
    InputError : see `tables.read_reviews` and `build.build`; or there is no folder of images.
    """
    given = dict(columns or {})
    of_reviews = {field: given.pop(field) for field in Review._fields if field in given}
    found = [find_columns(interactions, REVIEW_COLUMNS, of_reviews)]
    if items is not None:
        with open_table(items) as table:
            if "token" not in given and of_reviews.get("item") in table.names:
                given["token"] = of_reviews["item"]  # both tables call it the same
        found.append(find_columns(items, ITEM_COLUMNS, given))
    elif given:
        raise InputError(f"--item-id-column: found the column {sorted(given.values())[0]}, expected --items with it")
    pictures = images_by_token(Path(images)) if images is not None and Path(images).is_dir() else {}
    if images is not None and not pictures:
        what = "holds no image" if Path(images).is_dir() else "is no folder"
        raise InputError(f"--images: {images} {what}, expected one with <item id>.jpg, .png or .webp; correct the path")
    bad = [BadRows(path, on_bad) for path in (interactions, items) if path is not None]
    listed = Path(folder) / f"{name}.bad_rows.tsv"
    met, described = set[str](), set[str]()

    @contextlib.contextmanager
    def listing(dirt: Counter[str], rows: BadRows) -> Iterator[None]:
        try:
            yield
        finally:  # a data set never stands without the list of what it lacks, nor a refusal of all rows without it
            write_bad_rows(listed, bad)
        dirt.update({f"bad rows of {rows.path.name}, {reason}": count for reason, count in rows.counts.items()})

    def reviews(dirt: Counter[str]) -> Iterator[pl.DataFrame]:
        with listing(dirt, bad[0]):
            yield from read_reviews(found[0][0], bad[0])

    def texts(dirt: Counter[str]) -> Iterator[Item]:
        if items is None:
            return
        with listing(dirt, bad[1]):
            for item in read_items(found[1][0], bad[1]):
                met.add(item.token)
                if any((item.title, item.brand, item.categories, item.description)):
                    described.add(item.token)
                yield item

    def copy_pictures(place: Path) -> None:
        (place / "images").mkdir()
        for path in pictures.values():
            shutil.copyfile(path, place / "images" / path.name)

    add = copy_pictures if pictures else None
    report = build(name, reviews, texts, folder, user_core, item_core, shuffle_ties, add=add)
    place = Path(folder) / name
    tokens = set(read_atomic(place / f"{name}.item", ["item_id"])[0]["item_id"])
    return {
        **report,
        "folder": str(place),
        "columns": [
            {"path": str(rows.path), "used": used, "unused": unused}
            for rows, (used, unused) in zip(bad, found, strict=True)
        ],
        "bad_rows": [rows.summary() for rows in bad],
        "bad_rows_file": str(listed) if listed.is_file() else None,
        "described": len(tokens & described),
        "pictured": len(tokens & set(pictures)),
        "unlisted": [] if items is None else sorted(tokens - met),
        "unsold": sorted(met - tokens),
        "astray": sorted(path.name for token, path in pictures.items() if token not in tokens),
    }


def describe(report: Mapping[str, Any]) -> str:
    """Return the report of `prepare_own` as lines to read, the last of them the command that goes on from there."""
    counts = report["counts"]
    lines = [f"{report['folder']}: " + ", ".join(f"{count} {what}" for what, count in counts.items())]
    for columns, rows in zip(report["columns"], report["bad_rows"], strict=True):
        used = ", ".join(f"{CALLED[field]} is {column}" for field, column in columns["used"].items())
        unused = f"; not used: {', '.join(columns['unused'])}" if columns["unused"] else ""
        lines += [rows, f"{columns['path']}: {used}{unused}"]
    lines.append(_times(report["times"]))
    lines.append(f"of {counts['items']} items {report['described']} have a text, {report['pictured']} have an image")
    if report["astray"]:
        some = f"{len(report['astray'])}, such as {', '.join(report['astray'][:3])}"
        lines.append(f"images that match no remaining item: {some}; names are compared letter by letter")
    titled = any("title" in columns["used"] for columns in report["columns"])
    lines += [f"{report['dirt'][reason]} {reason}" for reason in OF_ITEMS[: 1 + titled] if reason in report["dirt"]]
    lines += _matches(report)
    lines += [f"left out: {count} {reason}" for reason, count in report["dropped"].items()]
    for path in (Path(columns["path"]) for columns in report["columns"]):
        if f"bad rows of {path.name}, {NOT_UTF8}" in report["dirt"]:
            lines.append(f"to keep all rows of {path}, {AS_UTF8}, move {report['folder']} away and prepare it again")
    if report["bad_rows_file"]:
        lines.append(f"bad rows are listed in {report['bad_rows_file']}")
    if counts["users"] < FEW:
        lines.append(f"{counts['users']} users are few: the figures of a run will say little")
    texts = {field for columns in report["columns"] for field in columns["used"]}
    chosen = " ".join(field for field in TEXTS if field in texts)
    if len(report["columns"]) > 1 and not chosen:
        flags = ", ".join(COLUMN_FLAGS[field] for field in TEXTS)
        lines.append(f"no column is known to hold texts of the items: name one with {flags}")
    features = {"text_fields": chosen, "text_encoder": "tfidf"} if report["described"] else {}
    lines.append(f"next: {run_command(Path(report['folder']), features)}")
    if report["pictured"]:
        lines.append("to use the images add --image_folder=images --image_encoder=<a transformers vision model>")
    return "\n".join(lines)


def _times(times: Mapping[str, int]) -> str:
    """Return the line on the times: what was read wrong shows there."""
    first, last = (np.datetime64(times[end], "ms") for end in ("first", "last"))
    ends = " to ".join(str(time.astype("datetime64[m]")).replace("T", " ") for time in (first, last))
    odd = "" if LIKELY[0] <= first and last < LIKELY[1] else "; if these should be dates, format them as YYYY-MM-DD"
    return f"times: {ends} UTC{odd}"


def _matches(report: Mapping[str, Any]) -> list[str]:
    """Return lines on the items that only one of the two tables has."""
    interactions, *others = [columns["path"] for columns in report["columns"]]
    unlisted, unsold = report["unlisted"], report["unsold"]
    if len(unlisted) == report["counts"]["items"]:
        theirs = f"{interactions} has {unlisted[0]!r}, {others[0]} has {unsold[0]!r}"
        return [f"the item ids of both tables do not match: {theirs}; write them alike and prepare the data set again"]
    lines = []
    if unlisted:
        lines.append(f"items with interactions that {others[0]} lacks: {len(unlisted)}, such as {unlisted[0]}")
    if unsold:
        lines.append(f"left out: {len(unsold)} items of {others[0]} with no or too few interactions")
    return lines


def run_command(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return the command that trains on the data set in `folder`, its YAML file saying what `settings` do not."""
    command = f"bbqrec train --model=BBQRec --dataset={shlex.quote(folder.name)}"
    command += f" --data_path={shlex.quote(str(folder.parent))}" if str(folder.parent) != "dataset" else ""
    return command + "".join(f" --{key}={shlex.quote(str(value))}" for key, value in settings.items())
