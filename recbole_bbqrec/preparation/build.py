"""Reviews and items to a data set of atomic files: duplicates, k-core, order.

The rules, in the order they apply:

1. Of several reviews of one user about one item the earliest counts; of equally early ones the first in the file.
2. k-core: users and items with fewer than `user_core` and `item_core` interactions go, until none is left to go.
3. `.inter` is sorted by user token, then by time. Interactions of one user at the same time keep the order of the file,
   or come in random order with `shuffle_ties`, which then depends on the seed alone and not on the file.
4. `.item` holds one row per item left, sorted by token, blank where nothing is known. Of several records of one item
   the first with a title counts; where none has one, the first.

Polars handles the rows. A review takes 32 bytes of memory, two to three times as much while it is sorted: names of
users and items are held as 64-bit hashes and wait on the disk, beside the files to be written; so do the texts of
items.
"""

import contextlib
import glob
import logging
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from tqdm import tqdm

from ..errors import InputError
from .raw import REVIEWS, Item, clean

INTER_HEADER = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
ITEM_HEADER = ("item_id:token", "title:token_seq", "brand:token", "categories:token_seq", "description:token_seq")
ITEM_HEADER += ("price:token", "image_url:token", "release_year:token")

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
    report : `counts` (users, items, interactions), `times` (first, last; of what is left), `read` (reviews, items),
        `dropped` (reviews, by rule), `dirt` (reason -> count) and `differences` (name -> expected and found), plain
        data.
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
                f"{name}: none of {n_read} interactions is left, expected users with {user_core} and items with "
                f"{item_core} of them; check the raw files ({dirty or 'no line was left out'}) or keep more with "
                "--user-core=1 --item-core=1"
            )
        found, users = _numbered(found, "user", names)
        found, tokens = _numbered(found, "item", names)
        shutil.rmtree(names)
        if shuffle_ties is None:
            found = found.sort("user", "time", maintain_order=True)
        else:  # one random number per row of an order that owes nothing to the file
            found = found.sort("user", "time", "item")
            chance = np.random.default_rng(shuffle_ties).permutation(len(found))
            found = found.with_columns(chance=chance).sort("user", "time", "chance")
        _write_inter(temporary / f"{name}.inter", found, users, tokens)
        counts = dict(zip(COUNTS, (len(users), len(tokens), len(found)), strict=True))
        times = found.select(pl.col("time").min().alias("first"), pl.col("time").max().alias("last")).row(0, named=True)
        del found, users
        bar = tqdm(items(dirt), desc="read items", unit="row", unit_scale=True, disable=not progress, leave=False)
        n_items = _write_items(temporary / f"{name}.item", tokens.to_list(), bar, dirt)
        if add:
            add(temporary)
    dropped = {
        "interactions of a user with an item met before": n_read - n_once,
        "interactions of users or items with too few of them": n_once - counts["interactions"],
    }
    differences = {
        what: {"expected": expected[what], "found": count}
        for what, count in counts.items()
        if expected.get(what, count) != count
    }
    for what, differing in differences.items():
        logging.getLogger().warning(
            f"{name}: found {differing['found']:,} {what}, published are {differing['expected']:,}; the raw files may "
            "differ"
        )
    return {
        "counts": counts,
        "times": times,
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


def check_options(name: str, user_core: int, item_core: int, shuffle_ties: int | None, expected: Iterable[str]) -> None:
    """Refuse what `build` cannot go by, before anything is fetched or read; see there."""
    if not name or name.startswith(".") or Path(name).name != name or "\\" in name:
        raise InputError(f"found the data set name {name!r}, expected one that can name a folder, such as Sports")
    for key, core in (("user_core", user_core), ("item_core", item_core)):
        if core < 1:
            raise InputError(f"--{key.replace('_', '-')}: found {core}, expected 1 or more (1 keeps all)")
    if shuffle_ties is not None and shuffle_ties < 0:
        raise InputError(f"--shuffle-ties: found {shuffle_ties}, expected a seed of 0 or more")
    if unknown := sorted(set(expected) - set(COUNTS)):
        raise InputError(f"expected counts: found {', '.join(unknown)}, expected names out of {', '.join(COUNTS)}")


def _hashed(frames: Iterable[pl.DataFrame], names: Path, progress: bool) -> pl.DataFrame:
    """Return all reviews with hashes for names; files in the folder `names` tell which hash has which name."""
    found = [pl.DataFrame(schema={**REVIEWS, "user": pl.UInt64, "item": pl.UInt64})]
    with tqdm(desc="read interactions", unit="row", unit_scale=True, disable=not progress, leave=False) as bar:
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
    several = pairs.is_in(ordered.filter(ordered == ordered.shift()).unique().implode())
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


def _write_inter(path: Path, reviews: pl.DataFrame, users: pl.Series, items: pl.Series) -> None:
    ratings = reviews["rating"].unique()
    # The shortest form that reads back as the same float64, blank for one that is not finite.
    texts = [str(int(x)) if x.is_integer() else repr(x) if math.isfinite(x) else "" for x in ratings]
    with open(path, "wb") as file:
        file.write(_row(INTER_HEADER))
        for part in reviews.iter_slices(_BLOCK):
            spelt = part["rating"].replace_strict(ratings, texts, return_dtype=pl.String)
            cells = (users.gather(part["user"]), items.gather(part["item"]), spelt, part["time"])
            rows = pl.DataFrame(dict(zip(INTER_HEADER, cells, strict=True)))
            rows.write_csv(file, include_header=False, separator="\t", quote_style="never")


def _row(cells: Sequence[str]) -> bytes:
    """Return one line of an atomic file; it has no way to write tabs and line ends within a cell."""
    for cell in cells:
        if "\t" in cell or "\n" in cell or "\r" in cell:
            raise InputError(f"found {cell[:60]!r}, expected text without tabs and line ends; clean it before writing")
    return ("\t".join(cells) + "\n").encode()


def _write_items(path: Path, tokens: Sequence[str], items: Iterable[Item], dirt: Counter[str]) -> int:
    """Write one row per token, in the order of `tokens`, blank where no item describes it; return how many items came.

    Of several records of one item the first with a title counts; where none has one, the first. Texts are cleaned, a
    category is one name (`_` for its blanks), and the year is a column only where one is known. Rows wait in the order
    met in a file beside `path`, so that the memory holds no texts.
    """
    places: dict[str, tuple[int, int]] = dict.fromkeys(tokens, (0, 0))  # start and length of a row
    described, titled, dated, n_items = set[str](), set[str](), False, 0
    with tempfile.TemporaryFile(dir=path.parent) as rows, open(path, "wb") as file:
        for item in items:
            n_items += 1
            if item.token not in places:
                continue
            again = item.token in described
            dirt["records of an item met before"] += again
            if item.token in titled:
                continue
            texts = (item.title, item.brand, item.description, item.price, item.image_url, item.year)
            title, brand, *others, year = (clean(text, dirt) for text in texts)
            categories = " ".join(filter(None, ("_".join(clean(name, dirt).split()) for name in item.categories)))
            if again and not title:
                continue
            cells = (item.token, title, brand, categories, *others, year)
            places[item.token] = (rows.tell(), rows.write(_row(cells)))
            dated |= bool(year)
            described.add(item.token)
            if title:
                titled.add(item.token)
        file.write(_row(ITEM_HEADER if dated else ITEM_HEADER[:-1]))
        for token, (start, length) in places.items():
            rows.seek(start)
            line = rows.read(length) or _row([token] + [""] * (len(ITEM_HEADER) - 1))
            file.write(line if dated else line.removesuffix(b"\t\n") + b"\n")
    dirt["items left that no record describes"] += len(places) - len(described)
    dirt["items left with a record but no title"] += len(described) - len(titled)
    return n_items


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that is renamed to it once the block has ended well.

    What a killed process left behind is removed by the next one; folders of processes that still run are left alone.
    """
    refuse_existing(target)
    temporary = target.parent / f".{target.name}.{os.getpid()}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
            process = path.name.removeprefix(f".{target.name}.").removesuffix(".part")
            if process.isdigit() and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
                shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for path in filter(Path.is_file, temporary.rglob("*")):
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        try:
            os.rename(temporary, target)
        except OSError:
            refuse_existing(target)  # another process was faster
            raise
    except OSError as error:
        raise InputError(
            f"{error.filename or target}: cannot be written ({error.strerror or error}); make room or correct its "
            "permissions, or name another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Raise an `InputError` where `target` exists."""
    if target.exists():
        raise InputError(f"{target}: exists already, expected none yet; use it, or move it away")
