"""Public data sets by their name: fetched and built."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest
from ..settings import dataset_settings, public_sets, public_source
from .own_data import run_command
from .public import PublicSet, prepare_public


def public_set(name: str) -> PublicSet:
    """Return the public data set `name`, such as `Sports` or `Amazon2018-Video_Games`."""
    if (found := public_source(name)) is not None:
        return PublicSet.from_description(name, found)
    names: list[str] = []
    meant: dict[str, list[str]] = defaultdict(list)  # a name or category in small letters -> the names it may mean
    for known in public_sets():
        source = public_source(known) or {}
        categories = [] if "category" in source else source.get("categories", [])
        names.append(f"{known}-<Category>" if categories else known)
        meant[known.lower()].append(names[-1])
        for category in categories:
            meant[category.lower()].append(f"{known}-{category}")
    near = nearest(name, meant)
    hint = f"did you mean {' or '.join(meant[near[0]])}?" if near else f"expected one of {', '.join(names)}"
    raise InputError(f"{name}: not known, {hint}; your own tables: bbqrec prepare {name} --from interactions.csv")


def obtain(name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Fetch and build the public data set `name`, telling what is done; see `prepare_public` for options and report."""
    logger = logging.getLogger()
    handlers, level = [*logger.handlers], logger.level
    # Those who have set up no log of their own see what is logged meanwhile; for others this does nothing.
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        return prepare_public(public_set(name), folder, **options)
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def advice(name: str, report: Mapping[str, Any]) -> str:
    """Return what to do with the public data set `name` once it has been obtained, as lines to read."""
    written = Path(report["folder"])
    if written.name != name:  # without a YAML file of its own, so the command has to say what those of others say
        return f"next: {run_command(written, dataset_settings(name))}"
    return f"{public_set(name).note}\nnext: {run_command(written, {})}".lstrip()
