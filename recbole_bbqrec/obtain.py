"""Public data sets by their name: fetched, built, and their images fetched."""

import contextlib
import difflib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError
from .preparation.atomic import read_atomic
from .preparation.image_download import ImageReport, fetch_images
from .preparation.own_data import run_command
from .preparation.public import PublicSet, describe, prepare_public
from .settings import public_sets, public_source

TEXTS = "title brand categories"
"""Columns of the .item files made from public files that say what an item is."""

ADDRESSES = "image_url"
"""Column of an .item file with the address of an item's image."""


def public_set(name: str) -> PublicSet:
    """Return the public data set `name`, such as `Sports` or `Amazon2018-Video_Games`.

    Raises
    ------
    InputError : no YAML file says where it comes from.
    """
    found = public_source(name)
    if found is None:
        raise InputError(f"{name}: {_unknown(name)}; your own tables: bbqrec prepare {name} --from interactions.csv")
    return PublicSet.from_description(name, found)


def _unknown(name: str) -> str:
    """What is known instead of `name`: a category by its bare name, a name that is near, or all names."""
    wanted, families = name.lower(), [known for known in public_sets() if "categories" in (public_source(known) or {})]
    named = [
        f"{family}-{category}"
        for family in families
        for category in (public_source(family) or {})["categories"]
        if category.lower() == wanted
    ]
    if named:
        return f"found the name of a category, expected one of {', '.join(named)}"
    spelt = {known.lower(): known for known in public_sets()}
    if near := difflib.get_close_matches(wanted, spelt, n=1):
        return f"not known, did you mean {spelt[near[0]]}?"
    known = [f"{known}-<Category>" if known in families else known for known in public_sets()]
    return f"not known, expected one of {', '.join(known)}"


def obtain(name: str, folder: Path, **options: Any) -> str:
    """Fetch and build the public data set `name` in `folder`; return what there is to say about it.

    Parameters
    ----------
    options : keyword arguments of `preparation.public.prepare_public`.
    """
    public = public_set(name)
    with telling():
        report = prepare_public(public, folder, **options)
    fields = "" if report["name"] == name else TEXTS
    note = [public.note] if public.note and report["name"] == name else []
    return "\n".join([describe(report), *note, f"next: {run_command(Path(report['folder']), fields)}"])


def has_addresses(folder: Path) -> bool:
    """Whether the .item file of a data set's `folder` has a column with addresses of images."""
    file = folder / f"{folder.name}.item"
    with contextlib.suppress(OSError, UnicodeDecodeError), open(file, encoding="utf-8") as lines:
        return any(name.partition(":")[0] == ADDRESSES for name in lines.readline().rstrip("\n").split("\t"))
    return False


def obtain_images(folder: Path, into: Path | None = None, progress: bool = True) -> ImageReport:
    """Fetch the images of the items of a data set's `folder` from the addresses in its .item file.

    Parameters
    ----------
    folder : holds `<its name>.item` with a column `image_url`.
    into : folder of the images; `<folder>/images` where none is given.

    Raises
    ------
    InputError : there is no such file or column, or no item has an address; see `image_download.fetch_images`.
    """
    file = folder / f"{folder.name}.item"
    if not file.is_file():
        raise InputError(f"{file}: no such file, expected one with a column {ADDRESSES}; prepare the data set first")
    table, _ = read_atomic(file, ["item_id", ADDRESSES])
    addresses = {item: url for item, url in zip(table["item_id"], table[ADDRESSES], strict=True) if url}
    if not addresses:
        raise InputError(
            f"{file}: no item has an address in the column {ADDRESSES}; put images of your own into {folder / 'images'}"
        )
    into = into or folder / "images"
    # A folder that is new appears once all images have been asked for: one that is there is taken for complete.
    place = into if into.exists() else into.with_name(f".{into.name}.part")
    with telling():
        report = fetch_images(addresses, place, progress)
    if place != into:
        place.rename(into)
    return report


def describe_images(report: ImageReport) -> str:
    """Return a report of fetched images as lines to read."""
    lines = [
        f"images: {report.wanted:,} wanted, {report.kept:,} there before, {report.fetched:,} fetched, "
        f"{report.failed:,} failed"
    ]
    return "\n".join(lines + [f"failed: {count:,} {reason}" for reason, count in report.reasons.items()])


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Show what is logged meanwhile, for those who have set up no log of their own."""
    logger = logging.getLogger()
    if logger.handlers:
        yield
        return
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
