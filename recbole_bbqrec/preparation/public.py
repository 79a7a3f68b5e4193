"""Public data sets, fetched and built: Amazon reviews and MovieLens, as `properties/dataset/<Set>.yaml` describes them.

A description is the mapping `source` of such a file:

- `reader` and `variant`: which form the raw files have, such as `amazon` of `2018`;
- `files`: by role (`reviews` and `items`, or one `archive`), each with `name`, `urls` (mirrors, in order), and where
  they are known `size` in bytes and `sha256`; `{category}` and `{name}` stand for what they say;
- `user_core`, `item_core`: see `build`; `expected`: users, items and interactions as published;
- `about`, `terms`, `cite`, `note`: whose data this is, under which terms, what to cite, what else to know;
- `category`, and `categories`, those there are.
"""

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import amazon, movielens
from .build import build, check_options, refuse_existing
from .download import Source, fetch

READERS = {"amazon": amazon, "movielens": movielens}
"""Forms of raw files -> module whose `reviews` and `items` take a path, one of its `VARIANTS` and a counter of dirt."""


@dataclass(frozen=True)
class PublicSet:
    """A public data set: `files` has the sources of `reviews` and `items`, which may be one and the same."""

    name: str
    reader: str
    variant: str
    files: Mapping[str, Source]
    user_core: int
    item_core: int
    about: str = ""
    terms: str = ""
    cite: str = ""
    note: str = ""
    expected: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_description(cls, name: str, found: Mapping[str, Any]) -> "PublicSet":
        """Read a description, see above; an `InputError` names what is missing from it, or the nearest category."""
        category, categories = str(found.get("category", "")), list(map(str, found.get("categories", ())))
        if categories and category not in categories:
            spelt = {entry.lower(): entry for entry in categories}
            near = difflib.get_close_matches(category.lower().replace(" ", "_"), spelt, n=1, cutoff=0.5)
            hint = f"did you mean {spelt[near[0]]}?" if near else f"expected one of {', '.join(categories)}"
            raise InputError(f"{name}: found the category {category!r}; {hint}")

        def source(file: Mapping[str, Any]) -> Source:
            name = file["name"].format(category=category)
            urls = tuple(url.format(category=category, name=name) for url in file["urls"])
            return Source(name, urls, file.get("size"), file.get("sha256"))

        try:
            reader, variant = found["reader"], str(found["variant"])
            files = {role: source(file) for role, file in found["files"].items()}
            if archive := files.pop("archive", None):
                files = {"reviews": archive, "items": archive}
            if reader not in READERS or set(files) != {"reviews", "items"}:
                raise ValueError(f"reader {reader!r} and files {', '.join(files)}")
            if variant not in READERS[reader].VARIANTS:
                raise ValueError(f"variant {variant!r}, expected one of {', '.join(READERS[reader].VARIANTS)}")
            cores, expected = (int(found["user_core"]), int(found["item_core"])), dict(found.get("expected", {}))
            words = {key: " ".join(str(found.get(key, "")).split()) for key in ("about", "terms", "cite", "note")}
            return cls(name, reader, variant, files, *cores, **words, expected=expected)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"source of {name}: found {type(error).__name__} {error}, expected reader, variant, files, user_core "
                "and item_core as in properties/dataset/Amazon2014.yaml; correct its YAML file"
            ) from error


def prepare_public(
    public: PublicSet,
    folder: str | Path,
    *,
    written: str | None = None,
    raw_dir: str | Path | None = None,
    user_core: int | None = None,
    item_core: int | None = None,
    shuffle_ties: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Fetch what is missing of the raw files and write the data set `<folder>/<name>`; it appears whole or not at all.

    Parameters
    ----------
    written : name of the data set; that of `public` where none is given.
    raw_dir : folder of the raw files; what is there already, fetched by hand or before, is checked and used. Without it
        `<folder>/raw/<reader and variant>`.
    user_core, item_core : in place of those of `public`; counts are then not compared with the published ones.
    shuffle_ties, progress : see `build.build`.

    Returns
    -------
    report : that of `build.build`, with `folder` (of the data set) and `raw` (paths).
    """
    folder, name = Path(folder), public.name if written is None else written
    user_core = public.user_core if user_core is None else user_core
    item_core = public.item_core if item_core is None else item_core
    as_published = (user_core, item_core) == (public.user_core, public.item_core)
    check_options(name, user_core, item_core, shuffle_ties, public.expected)
    refuse_existing(folder / name)
    raw = Path(raw_dir) if raw_dir else folder / "raw" / f"{public.reader}-{public.variant}"
    logging.getLogger().info(f"{name}: {public.about}; {public.terms}. Please cite {public.cite}")
    sources = list(dict.fromkeys(public.files.values()))
    paths = dict(zip(sources, fetch(sources, raw, progress), strict=True))
    reader = READERS[public.reader]
    report = build(
        name,
        lambda dirt: reader.reviews(paths[public.files["reviews"]], public.variant, dirt),
        lambda dirt: reader.items(paths[public.files["items"]], public.variant, dirt),
        folder,
        user_core,
        item_core,
        shuffle_ties,
        public.expected if as_published else None,
        progress,
    )
    return {**report, "folder": str(folder / name), "raw": [str(path) for path in paths.values()]}


def describe(report: Mapping[str, Any]) -> str:
    """Return the report of `prepare_public` as lines to read."""
    counts = ", ".join(f"{count:,} {what}" for what, count in report["counts"].items())
    lines = [f"{report['folder']}: {counts}"]
    lines += [f"left out: {count:,} {reason}" for reason, count in report["dropped"].items()]
    lines += [f"met: {count:,} {reason}" for reason, count in report["dirt"].items()]
    return "\n".join([*lines, f"raw files, kept: {', '.join(report['raw'])}"])
