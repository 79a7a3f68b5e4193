"""Reviews and items to a data set of atomic files: duplicates, k-core, order.

The rules, in the order they apply:

1. Of several reviews of one user about one item the earliest counts; of equally early ones the first in the file.
2. k-core: users and items with fewer than `user_core` and `item_core` interactions go, until none is left to go.
3. `.inter` is sorted by user token, then by time. Interactions of one user at the same time keep the order of the file,
   or come in random order with `shuffle_ties`, which then depends on the seed alone and not on the file.
4. `.item` holds one row per item left, sorted by token, blank where nothing is known. Of several records of one item
   the first with a title counts; where none has one, the first (`atomic_writer.write_items`).

Reviews are read twice. What is held is 24 bytes a review in the first pass, some more while it is sorted, and in the
second what is left after the k-core; texts of items go through the disk.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from ..errors import InputError
from .atomic_writer import new_folder, write_inter, write_items
from .raw import Item, Review

Reviews = Callable[[Counter[str]], Iterable[Review]]
Items = Callable[[Counter[str]], Iterable[Item]]

COUNTS: tuple[str, ...] = ("users", "items", "interactions")

_BLOCK = 1 << 16  # rows handled at a time as Python numbers, which take several times the memory

_Record = TypeVar("_Record")


class _Kept(NamedTuple):
    """What is left after the k-core, R rows in file order, U users and I items numbered by `hash`."""

    rows: np.ndarray  # int64 [R], position in the file
    users: np.ndarray  # int32 [R]
    items: np.ndarray  # int32 [R]
    times: np.ndarray  # int64 [R]
    user_hashes: np.ndarray  # int64 [U]
    item_hashes: np.ndarray  # int64 [I]


def build(
    name: str,
    reviews: Reviews,
    items: Items,
    folder: str | Path,
    user_core: int = 5,
    item_core: int = 5,
    shuffle_ties: int | None = None,
    expected: Mapping[str, int] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write `<folder>/<name>/<name>.inter` and `.item`; the folder appears whole or not at all.

    Parameters
    ----------
    name : of the data set.
    reviews, items : called with a counter of dirt, each gives its records one by one; `reviews` is called twice and
        must give the same records again.
    user_core, item_core : the fewest interactions of a user and of an item; 1 keeps all.
    shuffle_ties : seed that shuffles interactions of one user at the same time; None keeps the order of the file.
    expected : `users`, `items`, `interactions` as published; each that differs is logged as a warning.
    progress : show progress bars.

    Returns
    -------
    report : `counts` (users, items, interactions), `read` (reviews, items), `dropped` (reviews, by rule), `dirt`
        (reason -> count) and `differences` (name -> expected and found), plain data.

    Raises
    ------
    InputError : the name or a number is unfit, the data set exists, nothing is left after the k-core, or the reviews
        read differ from the first to the second time.
    """
    check_options(name, user_core, item_core, shuffle_ties, expected or {})
    dirt: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    read: Counter[str] = Counter()
    with new_folder(Path(folder) / name) as temporary:
        kept = _select(_counted(reviews(dirt), "reviews", read, progress), user_core, item_core, dropped)
        if not len(kept.rows):
            raise InputError(
                f"{name}: none of {read['reviews']} reviews is left, expected users with {user_core} and items with "
                f"{item_core} interactions; check the raw files ({_listed(dirt)}) or lower user_core and item_core"
            )
        users, tokens, ratings = _names(name, kept, reviews, read["reviews"], progress)
        order = _order(kept, users, tokens, shuffle_ties)
        columns = _blocks(*(column[order] for column in (kept.users, kept.items, ratings, kept.times)))
        rows = ((users[user], tokens[item], rating, time) for user, item, rating, time in columns)
        write_inter(temporary / f"{name}.inter", rows)
        found = _counted(items(dirt), "items", read, progress)
        write_items(temporary / f"{name}.item", sorted(tokens), found, dirt)
    counts = dict(zip(COUNTS, (len(users), len(tokens), len(order)), strict=True))
    return {
        "name": name,
        "counts": counts,
        "read": {what: read[what] for what in ("reviews", "items")},
        "dropped": {reason: count for reason, count in dropped.items() if count},
        "dirt": {reason: dirt[reason] for reason in sorted(dirt) if dirt[reason]},
        "differences": _differences(name, counts, expected or {}),
    }


def k_core(users: np.ndarray, items: np.ndarray, user_core: int, item_core: int) -> np.ndarray:
    """Return the positions of the interactions that are left, ascending.

    The result is the largest set in which every user has `user_core` and every item `item_core` interactions.
    """
    kept = np.arange(len(users))
    while True:
        user_stays = np.bincount(users) >= user_core
        item_stays = np.bincount(items) >= item_core
        stays = user_stays[users] & item_stays[items]
        if stays.all():
            return kept
        kept, users, items = kept[stays], users[stays], items[stays]


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


def _counted(records: Iterable[_Record], what: str, read: Counter[str], progress: bool) -> Iterable[_Record]:
    """Pass `records` on, counting them as they go by."""
    for record in tqdm(records, desc=f"read {what}", unit="row", unit_scale=True, disable=not progress, leave=False):
        read[what] += 1
        yield record


def _select(reviews: Iterable[Review], user_core: int, item_core: int, dropped: Counter[str]) -> _Kept:
    """First pass: what counts, by rules 1 and 2.

    Names are known by their hashes only: a set of names would take many times the memory. Python salts the hash of a
    text anew in every process, so nothing may depend on its value; that two names share one is noticed in `_names`.
    """
    user_column, item_column, time_column = array("q"), array("q"), array("q")
    for review in reviews:
        user_column.append(hash(review.user))
        item_column.append(hash(review.item))
        time_column.append(review.time)
    user_hashes, users = _numbered(user_column)
    item_hashes, items = _numbered(item_column)
    times = np.frombuffer(time_column, dtype=np.int64) if time_column else np.empty(0, np.int64)
    rows = _earliest(users, items, times, len(item_hashes))
    dropped["reviews of a user about an item reviewed before"] = len(users) - len(rows)
    left = rows[k_core(users[rows], items[rows], user_core, item_core)]
    dropped["reviews of users or items with too few of them"] = len(rows) - len(left)
    user_at, users = np.unique(users[left], return_inverse=True)
    item_at, items = np.unique(items[left], return_inverse=True)
    users, items = users.astype(np.int32), items.astype(np.int32)
    return _Kept(left, users, items, times[left], user_hashes[user_at], item_hashes[item_at])


def _numbered(column: "array[int]") -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values and, int32, the number of each entry's value; empties `column`."""
    values = np.array(column, dtype=np.int64)
    del column[:]
    distinct, numbers = np.unique(values, return_inverse=True)
    return distinct, numbers.astype(np.int32)


def _earliest(users: np.ndarray, items: np.ndarray, times: np.ndarray, n_items: int) -> np.ndarray:
    """Return the positions of the earliest interaction of each pair, ascending."""
    pairs = users.astype(np.int64) * n_items + items
    order = np.lexsort((times, pairs))  # stable: of equally early ones the first in the file leads
    pairs = pairs[order]
    leads = np.ones(len(pairs), dtype=bool)
    leads[1:] = pairs[1:] != pairs[:-1]
    return np.sort(order[leads])


def _names(
    name: str, kept: _Kept, reviews: Reviews, n_reviews: int, progress: bool
) -> tuple[list[str], list[str], np.ndarray]:
    """Second pass: the tokens of users and items by number, and the rating of each row."""
    users, items = [""] * len(kept.user_hashes), [""] * len(kept.item_hashes)
    ratings = np.empty(len(kept.rows))
    wanted = _blocks(kept.rows, kept.users, kept.items, kept.times)
    row_at, user, item, time = next(wanted)
    seen: Counter[str] = Counter()
    n_found = 0
    for position, review in enumerate(_counted(reviews(Counter()), "reviews", seen, progress)):
        if position != row_at:
            continue
        hashes = hash(review.user), hash(review.item), review.time
        if hashes != (kept.user_hashes[user], kept.item_hashes[item], time):
            break
        for tokens, at, token in ((users, user, review.user), (items, item, review.item)):
            if tokens[at] not in ("", token):
                raise InputError(f"{name}: {tokens[at]!r} and {token!r} have the same hash, a rare chance; run again")
            tokens[at] = token
        ratings[n_found] = review.rating
        n_found += 1
        row_at, user, item, time = next(wanted, (-1, 0, 0, 0))
    if n_found != len(ratings) or seen["reviews"] != n_reviews:
        raise InputError(
            f"{name}: the reviews differ from the first to the second reading; let the files be, run again"
        )
    return users, items, ratings


def _blocks(*columns: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of equally long `columns` as plain Python numbers."""
    for start in range(0, len(columns[0]), _BLOCK):
        yield from zip(*(column[start : start + _BLOCK].tolist() for column in columns), strict=True)


def _order(kept: _Kept, users: list[str], items: list[str], shuffle_ties: int | None) -> np.ndarray:
    """Return the order of the rows of `.inter`, rule 3."""
    by_user = _ranks(users)[kept.users]
    if shuffle_ties is None:
        return np.lexsort((kept.times, by_user))  # stable
    # One random number per row of an order that owes nothing to the file.
    order = np.lexsort((_ranks(items)[kept.items], kept.times, by_user))
    chance = np.random.default_rng(shuffle_ties).permutation(len(order))
    return order[np.lexsort((chance, kept.times[order], by_user[order]))]


def _ranks(tokens: list[str]) -> np.ndarray:
    """Return the rank of each token among all."""
    ranks = np.empty(len(tokens), dtype=np.int32)
    ranks[sorted(range(len(tokens)), key=tokens.__getitem__)] = np.arange(len(tokens), dtype=np.int32)
    return ranks


def _differences(name: str, counts: Mapping[str, int], expected: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return and log where `counts` differ from what was expected."""
    found = {}
    for what in COUNTS:
        if what in expected and expected[what] != counts[what]:
            found[what] = {"expected": expected[what], "found": counts[what]}
            logging.getLogger().warning(
                f"{name}: found {counts[what]:,} {what}, published are {expected[what]:,}; the raw files may be others"
            )
    return found


def _listed(dirt: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in dirt.items() if count) or "no line was left out"
