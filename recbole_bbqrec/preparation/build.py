"""Reviews and items to a data set of atomic files: duplicates, k-core, order.

The rules, in the order they apply:

1. Of several reviews of one user about one item the earliest counts; of equally early ones the first in the file.
2. k-core: users and items with fewer than `user_core` and `item_core` interactions go, until none is left to go.
3. `.inter` is sorted by user token, then by time. Interactions of one user at the same time keep the order of the file,
   or come in random order with `shuffle_ties`, which then depends on the seed alone and not on the file.
4. `.item` holds one row per item left, sorted by token, blank where nothing is known. Of several records of one item
   the first with a title counts; where none has one, the first (`atomic_writer.write_items`).

Polars does the rows. A review takes 32 bytes of memory, two to three times as much while it is sorted: names of users
and items are held as 64-bit hashes and wait on the disk, beside the files to be written; so do the texts of items.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from ..errors import InputError
from .atomic_writer import INTER_HEADER, new_folder, number, row, write_items
from .raw import REVIEWS, Item

COUNTS = ("users", "items", "interactions")

_BLOCK = 1 << 18  # rows that are written at once
_PARTS = 4  # names are looked up by a part of their hashes at a time, which takes less memory


def build(
    name: str,
    reviews: Callable[[Counter[str]], Iterable[pl.DataFrame]],
    items: Callable[[Counter[str]], Iterable[Item]],
    folder: str | Path,
    user_core: int = 5,
    item_core: int = 5,
    shuffle_ties: int | None = None,
    expected: Mapping[str, int] | None = None,
    progress: bool = True,
    add: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Write `<folder>/<name>/<name>.inter` and `.item`; the folder appears whole or not at all.

    Parameters
    ----------
    reviews, items : called with a counter of dirt; `reviews` gives frames (`raw.REVIEWS`) and `items` items one by one.
    user_core, item_core : the fewest interactions of a user and of an item; 1 keeps all.
    shuffle_ties : seed that shuffles interactions of one user at the same time; None keeps the order of the file.
    expected : `users`, `items`, `interactions` as published; each that differs is logged as a warning.
    progress : show progress bars.
    add : called with the folder before it appears, to put more files into it.

    Returns
    -------
    report : `counts` (users, items, interactions), `read` (reviews, items), `dropped` (reviews, by rule), `dirt`
        (reason -> count) and `differences` (name -> expected and found), plain data.

    Raises
    ------
    InputError : the name or a number is unfit, the data set exists, or nothing is left after the k-core.
    """
    expected = expected or {}
    check_options(name, user_core, item_core, shuffle_ties, expected)
    dirt: Counter[str] = Counter()
    with new_folder(Path(folder) / name) as temporary:
        names = temporary / "names"
        names.mkdir()
        found = _hashed(reviews(dirt), names, progress)
        n_read = len(found)
        found = found.filter(_earliest(found))
        n_once = len(found)
        found = k_core(found, user_core, item_core)
        if found.is_empty():
            dirty = ", ".join(f"{count:,} {reason}" for reason, count in dirt.items() if count)
            raise InputError(
                f"{name}: none of {n_read} reviews is left, expected users with {user_core} and items with {item_core} "
                f"interactions; check the raw files ({dirty or 'no line was left out'}) or lower user_core and "
                "item_core"
            )
        found, users = _numbered(found, "user", names)
        found, tokens = _numbered(found, "item", names)
        shutil.rmtree(names)
        found = _ordered(found, shuffle_ties)
        _write_inter(temporary / f"{name}.inter", found, users, tokens)
        counts = dict(zip(COUNTS, (len(users), len(tokens), len(found)), strict=True))
        del found, users
        bar = tqdm(items(dirt), desc="read items", unit="row", unit_scale=True, disable=not progress, leave=False)
        n_items = write_items(temporary / f"{name}.item", tokens.to_list(), bar, dirt)
        if add:
            add(temporary)
    dropped = {
        "reviews of a user about an item reviewed before": n_read - n_once,
        "reviews of users or items with too few of them": n_once - counts["interactions"],
    }
    differences = {
        what: {"expected": expected[what], "found": count}
        for what, count in counts.items()
        if expected.get(what, count) != count
    }
    for what, differing in differences.items():
        logging.getLogger().warning(
            f"{name}: found {differing['found']:,} {what}, published are {differing['expected']:,}; the raw files may "
            "be others"
        )
    return {
        "counts": counts,
        "read": {"reviews": n_read, "items": n_items},
        "dropped": {reason: count for reason, count in dropped.items() if count},
        "dirt": {reason: dirt[reason] for reason in sorted(dirt) if dirt[reason]},
        "differences": differences,
    }


def k_core(reviews: pl.DataFrame, user_core: int, item_core: int) -> pl.DataFrame:
    """Return the largest set of reviews in which every user has `user_core` and every item `item_core` of them."""
    cores = [(name, core) for name, core in (("user", user_core), ("item", item_core)) if core > 1]
    before = None
    while len(reviews) != before:
        before = len(reviews)
        for name, core in cores:
            left = reviews.group_by(name).len().filter(pl.col("len") >= core)
            reviews = reviews.join(left, on=name, how="semi", maintain_order="left")
    return reviews


def check_options(
    name: str, user_core: int, item_core: int, shuffle_ties: int | None, expected: Mapping[str, int]
) -> None:
    """Refuse what `build` cannot go by, before anything is fetched or read; see there."""
    if not name or name.startswith(".") or Path(name).name != name or "\\" in name:
        raise InputError(f"found the data set name {name!r}, expected one that can name a folder, such as Sports")
    for key, core in (("user_core", user_core), ("item_core", item_core)):
        if core < 1:
            raise InputError(f"{key}: found {core}, expected 1 or more (1 keeps all)")
    if shuffle_ties is not None and shuffle_ties < 0:
        raise InputError(f"shuffle_ties: found {shuffle_ties}, expected a seed of 0 or more")
    if unknown := sorted(set(expected) - set(COUNTS)):
        raise InputError(f"expected counts: found {', '.join(unknown)}, expected names out of {', '.join(COUNTS)}")


def _hashed(frames: Iterable[pl.DataFrame], names: Path, progress: bool) -> pl.DataFrame:
    """Return all reviews with hashes for names; files in the folder `names` tell which hash has which name."""
    found = [pl.DataFrame(schema={**REVIEWS, "user": pl.UInt64, "item": pl.UInt64})]
    with tqdm(desc="read reviews", unit="row", unit_scale=True, disable=not progress, leave=False) as bar:
        for frame in frames:
            hashed = frame.with_columns(frame["user"].hash(), frame["item"].hash())
            named = frame.select(user_name="user", item_name="item").hstack(hashed.select("user", "item"))
            named.write_ipc(names / f"{len(found)}.arrow", compression="lz4")
            found.append(hashed)
            bar.update(len(frame))
    return pl.concat(found)


def _earliest(reviews: pl.DataFrame) -> pl.Series:
    """Return, for every review, whether it counts by rule 1."""
    # Few pairs come twice, and sorting one number per review takes far less memory than grouping reviews.
    pairs = reviews["user"] * 3 + reviews["item"]
    ordered = pairs.sort()
    several = pairs.is_in(ordered.filter(ordered == ordered.shift()).unique())
    del pairs, ordered
    again = reviews.with_row_index("row").filter(several).sort("time", "row")
    first = again.unique(["user", "item"], keep="first", maintain_order=True)["row"]
    counts = ~several
    counts[first] = True
    return counts


def _numbered(reviews: pl.DataFrame, column: str, folder: Path) -> tuple[pl.DataFrame, pl.Series]:
    """Return `reviews` with numbers for hashes in one column, and the names in the order of the numbers, sorted."""
    named = pl.scan_ipc(list(folder.iterdir()), glob=False).select(column, name=f"{column}_name")
    parts = []
    for part in range(_PARTS):
        left = reviews.lazy().select(column).filter(pl.col(column) % _PARTS == part).unique()
        parts.append(named.join(left, on=column, how="semi").unique().collect(engine="streaming"))
    found = pl.concat(parts).sort("name")
    del parts
    if twice := found.filter(pl.col(column).is_duplicated()).sort(column)["name"].to_list():
        raise InputError(f"{twice[0]!r} and {twice[1]!r} have the same hash, a rare chance; rename one of them")
    numbers = reviews.select(column).join(
        found.select(column).with_row_index("number"), on=column, how="left", maintain_order="left"
    )
    return reviews.with_columns(numbers["number"].alias(column)), found["name"]


def _ordered(reviews: pl.DataFrame, shuffle_ties: int | None) -> pl.DataFrame:
    """Return the reviews, which are in the order of the file, in that of `.inter`, rule 3."""
    if shuffle_ties is None:
        return reviews.sort("user", "time", maintain_order=True)
    # One random number per row of an order that owes nothing to the file.
    reviews = reviews.sort("user", "time", "item")
    chance = np.random.default_rng(shuffle_ties).permutation(len(reviews))
    return reviews.with_columns(chance=chance).sort("user", "time", "chance")


def _write_inter(path: Path, reviews: pl.DataFrame, users: pl.Series, items: pl.Series) -> None:
    ratings = reviews["rating"].unique()
    texts = [number(rating) for rating in ratings]
    with open(path, "wb") as file:
        file.write(row(INTER_HEADER))
        for part in reviews.iter_slices(_BLOCK):
            spelt = part["rating"].replace_strict(ratings, texts, return_dtype=pl.String)
            cells = (users.gather(part["user"]), items.gather(part["item"]), spelt, part["time"])
            rows = pl.DataFrame(dict(zip(INTER_HEADER, cells, strict=True)))
            rows.write_csv(file, include_header=False, separator="\t", quote_style="never")
