"""Public data sets by their name: fetched, built, and their images fetched."""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..settings import public_sets, public_source
from .download import alone
from .image_download import ADDRESS, ImageReport, addresses_of, fetch_images, images_command
from .own_data import run_command
from .public import PublicSet, prepare_public

TEXT_FIELDS = "title brand categories"
"""Setting of a data set made from public files that has no YAML file of its own, as those that have one say it."""


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
    known = {found: public_source(found) or {} for found in public_sets()}
    families = {
        found: source["categories"]
        for found, source in known.items()
        if "categories" in source and "category" not in source
    }
    named = [
        f"{family}-{category}"
        for family, categories in families.items()
        for category in categories
        if category.lower() == name.lower()
    ]
    if named:
        return f"found the name of a category, expected one of {', '.join(named)}"
    spelt = {found.lower(): found for found in known}
    if near := difflib.get_close_matches(name.lower(), spelt, n=1):
        return f"not known, did you mean {spelt[near[0]]}?"
    return f"not known, expected one of {', '.join(f'{n}-<Category>' if n in families else n for n in known)}"


def obtain(name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Fetch and build the public data set `name` in `folder`, telling what is done; return the report.

    Parameters
    ----------
    options : keyword arguments of `preparation.public.prepare_public`.
    """
    public = public_set(name)
    with telling():
        return prepare_public(public, folder, **options)


def advice(name: str, report: Mapping[str, Any]) -> str:
    """Return what to do with the public data set `name` once it has been obtained, as lines to read."""
    written = Path(report["folder"])
    note = public_set(name).note
    lines = [note] if note and written.name == name else []
    return "\n".join([*lines, f"next: {run_command(written, '' if written.name == name else TEXT_FIELDS)}"])


def obtain_images(folder: Path, into: Path | None = None, progress: bool = True, partial: bool = True) -> ImageReport:
    """Fetch the images of the items of a data set's `folder` from the addresses in its .item file.

    A folder of images that is new appears only once all have been asked for: one that is there is taken for complete.

    Parameters
    ----------
    folder : holds `<its name>.item` with a column `image_url`.
    into : folder of the images; `<folder>/images` where none is given.
    partial : a new folder may appear although images have failed that may come on another try.

    Raises
    ------
    InputError : no item has an address, the folder cannot be written, or images are missing that may come on another
        try and `partial` is off; what has come is kept for that.
    """
    file, into = folder / f"{folder.name}.item", into or folder / "images"
    addresses = addresses_of(file)
    if not addresses:
        raise InputError(
            f"{file}: found no item with an address, expected a column {ADDRESS}; prepare the data set from files that "
            f"have one, or put images of your own into {into}"
        )
    with telling(), alone(folder):
        place = into if into.is_dir() else into.with_name(f".{into.name}.part")
        report = fetch_images(addresses, place, progress)
        if place != into:
            if report.passing and not partial:
                raise InputError(
                    f"{into}: {report.passing} of {report.wanted} images did not come but may on another try; run "
                    f"again to go on, or take what there is with `{images_command(folder)}`"
                )
            try:
                place.rename(into)
            except OSError as error:
                raise InputError(
                    f"{into}: cannot be written ({error.strerror}); remove what is in its place"
                ) from error
    return report


def describe_images(report: ImageReport) -> str:
    """Return a report of fetched images as lines to read."""
    lines = [
        f"images: {report.wanted:,} wanted, {report.kept:,} there before, {report.fetched:,} fetched, "
        f"{report.failed:,} failed, {report.passing:,} of them may come on another try"
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
