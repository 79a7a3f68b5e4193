"""Public data sets, fetched and built, as `properties/dataset/<Set>.yaml` describes them.

A description is the mapping `source` of such a file:

- `reader` and `variant`: which form the raw files have, such as `amazon` of `2018`;
- `files`: by role (those of the reader's `Form`, or one `archive` of `reviews` and `items`), each with `name`, `urls`
  (mirrors, in order), and where they are known `size` in bytes and `sha256`; `{category}` and `{name}` stand for what
  they say;
- `least_rating`: interactions rated lower are left out, before anything else; `user_core`, `item_core`: see `build`;
  `expected`: users, items and interactions as published;
- `page`: where people find the files, and what they have to do for them;
- `about`, `terms`, `cite`, `note`: whose data this is, under which terms, what to cite, what else to know;
- `category`, and `categories`, those there are.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from ..errors import InputError, did_you_mean
from . import amazon, kuairec, microlens, movielens, yambda
from .atomic import read_atomic
from .build import build, check_options, refuse_existing
from .download import Source, fetch
from .raw import Item


class Form(NamedTuple):
    """A form of raw files, and what reads it.

    Attributes
    ----------
    variants : what `reviews` and `items` may be told beside their files, such as the release.
    reviews : gives frames of interactions (`raw.REVIEWS`), of a path, a variant and a counter of dirt.
    items : gives items, of the paths of the files `texts` in turn, a variant and a counter of dirt.
    texts, media : roles of the files that `items` and `add` read.
    add : puts vectors and images of the items of a set into its folder, given their tokens and the files `media` by
        role; returns how many items have what.
    """

    variants: tuple[str, ...]
    reviews: Callable[[Path, str, Counter[str]], Iterable[pl.DataFrame]]
    items: Callable[..., Iterable[Item]]
    texts: tuple[str, ...] = ("items",)
    media: tuple[str, ...] = ()
    add: Callable[[Path, Sequence[str], Mapping[str, Path]], dict[str, int]] | None = None


READERS = {
    "amazon": Form(amazon.VARIANTS, amazon.reviews, amazon.items),
    "movielens": Form(movielens.VARIANTS, movielens.reviews, movielens.items),
    "kuairec": Form(kuairec.VARIANTS, kuairec.reviews, kuairec.items),
    "microlens": Form(
        microlens.VARIANTS,
        microlens.reviews,
        microlens.items,
        ("items", "categories"),
        ("covers", *microlens.VECTORS),
        microlens.add,
    ),
    "yambda": Form(yambda.VARIANTS, yambda.reviews, yambda.items, (), ("audio_vectors",), yambda.add),
}
"""Forms of raw files by name."""


@dataclass(frozen=True)
class PublicSet:
    """A public data set: `files` has sources by role, of which several may be one and the same."""

    name: str
    reader: str
    variant: str
    files: Mapping[str, Source]
    user_core: int
    item_core: int
    least_rating: float | None = None
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
            hint = did_you_mean(category.replace(" ", "_"), categories, f"expected one of {', '.join(categories)}")
            raise InputError(f"{name}: found the category {category!r}; {hint}")

        def source(file: Mapping[str, Any]) -> Source:
            name = file["name"].format(category=category)
            urls = tuple(url.format(category=category, name=name) for url in file["urls"])
            return Source(name, urls, file.get("size"), file.get("sha256"), found.get("page", ""))

        try:
            reader, variant = found["reader"], str(found["variant"])
            files = {role: source(file) for role, file in found["files"].items()}
            if archive := files.pop("archive", None):
                files = {"reviews": archive, "items": archive}
            form = READERS.get(reader)
            if form is None or files.keys() != {"reviews", *form.texts, *form.media}:
                raise ValueError(f"reader {reader!r} and files {', '.join(files)}")
            if variant not in form.variants:
                raise ValueError(f"variant {variant!r}, expected one of {', '.join(form.variants)}")
            least = found.get("least_rating")
            cores, expected = (int(found["user_core"]), int(found["item_core"])), dict(found.get("expected", {}))
            words = {key: " ".join(str(found.get(key, "")).split()) for key in ("about", "terms", "cite", "note")}
            least = None if least is None else float(least)
            return cls(name, reader, variant, files, *cores, least, **words, expected=expected)
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
    least_rating: float | None = None,
    shuffle_ties: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Fetch what is missing of the raw files and write the data set `<folder>/<name>`; it appears whole or not at all.

    Parameters
    ----------
    written : name of the data set; that of `public` where none is given.
    raw_dir : folder of the raw files; what is there already, fetched by hand or before, is checked and used. Without it
        `<folder>/raw/<reader and variant>`.
    user_core, item_core, least_rating : in place of those of `public`; counts are then not compared with the published
        ones.
    shuffle_ties, progress : see `build.build`.

    Returns
    -------
    report : that of `build.build`, with `folder` (of the data set), `raw` (paths) and `added` (how many items have
        which vectors and images).
    """
    folder, name = Path(folder), public.name if written is None else written
    user_core = public.user_core if user_core is None else user_core
    item_core = public.item_core if item_core is None else item_core
    least = public.least_rating if least_rating is None else least_rating
    as_published = (user_core, item_core, least) == (public.user_core, public.item_core, public.least_rating)
    check_options(name, user_core, item_core, shuffle_ties, public.expected)
    refuse_existing(folder / name)
    raw = Path(raw_dir) if raw_dir else folder / "raw" / f"{public.reader}-{public.variant}"
    logging.getLogger().info(f"{name}: {public.about}; {public.terms}. Please cite {public.cite}")
    sources = list(dict.fromkeys(public.files.values()))
    paths = dict(zip(sources, fetch(sources, raw, progress), strict=True))
    form, added = READERS[public.reader], dict[str, int]()
    of = {role: paths[source] for role, source in public.files.items()}

    def add(place: Path) -> None:
        if form.add is not None:
            tokens = read_atomic(place / f"{name}.item", ["item_id"])[0]["item_id"].tolist()
            added.update(form.add(place, tokens, {role: of[role] for role in form.media}))

    report = build(
        name,
        lambda dirt: rated(form.reviews(of["reviews"], public.variant, dirt), least, dirt),
        lambda dirt: form.items(*(of[role] for role in form.texts), public.variant, dirt),
        folder,
        user_core,
        item_core,
        shuffle_ties,
        public.expected if as_published else None,
        progress,
        add,
    )
    return {**report, "folder": str(folder / name), "raw": [str(path) for path in paths.values()], "added": added}


def rated(frames: Iterable[pl.DataFrame], least: float | None, dirt: Counter[str]) -> Iterator[pl.DataFrame]:
    """Yield the interactions rated `least` or higher, all of them where it is none; those left out are counted."""
    for frame in frames:
        if least is None:
            yield frame
            continue
        kept = frame.filter((pl.col("rating") >= least) & pl.col("rating").is_not_nan())
        dirt[f"interactions rated below {least:g} or not at all, left out"] += len(frame) - len(kept)
        yield kept


def describe(report: Mapping[str, Any]) -> str:
    """Return the report of `prepare_public` as lines to read."""
    counts = ", ".join(f"{count:,} {what}" for what, count in report["counts"].items())
    lines = [f"{report['folder']}: {counts}"]
    lines += [
        f"items with {what}: {count:,} of {report['counts']['items']:,}" for what, count in report["added"].items()
    ]
    lines += [f"left out: {count:,} {reason}" for reason, count in report["dropped"].items()]
    lines += [f"met: {count:,} {reason}" for reason, count in report["dirt"].items()]
    return "\n".join([*lines, f"raw files, kept: {', '.join(report['raw'])}"])
