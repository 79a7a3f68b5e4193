"""Ranking among sampled items, as RecBole's `uni100` and `pop100` do: which items a target is ranked among.

Sampled metrics are not those of full ranking, and may order models otherwise (Krichene and Rendle, "On Sampled Metrics
for Item Recommendation", KDD 2020): they stand in tables of their own, and full ranking is the default.

Shapes: R rows, N items (column 0 = padding), n sampled items of each row.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch

from ..data.sequences import targets_by_item
from ..errors import InputError
from .metrics import LIST_METRICS

SEED = 0
"""Seed of the draw: fixed, so that all models and seeds are judged on the same items, as on the same targets."""
MODE = re.compile(r"(uni|pop)([1-9]\d*)")


class Sampling(NamedTuple):
    """How many items are sampled for each target, and whether by their popularity in training."""

    n_items: int
    by_popularity: bool

    @property
    def words(self) -> str:
        """What tables say that targets are ranked among."""
        return f"{self.n_items} items sampled by popularity" if self.by_popularity else f"{self.n_items} sampled items"


def sampling_of(settings: Mapping[str, Any], split: str) -> Sampling | None:
    """Return how items are sampled to rank a split's targets among, by `eval_args` of the settings; none: all items."""
    mode = (settings.get("eval_args") or {}).get("mode", "full")
    found = MODE.fullmatch(str(mode.get(split, "full") if isinstance(mode, dict) else mode))
    return Sampling(int(found[2]), found[1] == "pop") if found else None


def check_mode(mode: Any, metrics: Iterable[str]) -> None:
    """Raise an `InputError` where there is no such mode, or metrics (in lower case) mean nothing under it."""
    if unknown := {*map(str, mode)} - {"valid", "test"} if isinstance(mode, dict) else ():
        raise InputError(f"eval_args: found mode of the split {min(unknown)!r}, expected valid or test")
    modes = list(mode.values()) if isinstance(mode, dict) else [mode]
    sampled = [found for found in modes if found not in ("full", "labeled")]
    if not all(MODE.fullmatch(str(found)) for found in sampled):
        how = (
            "full, where all items are ranked, uni100 or pop100 with any number, where so many are sampled, or labeled"
        )
        raise InputError(f"eval_args: found mode {mode!r}, expected {how}")
    if sampled and (of_lists := [name for name in metrics if name in LIST_METRICS]):
        raise InputError(
            f"metrics: found {of_lists[0]} with eval_args mode {sampled[0]}, but a list of sampled items tells of the "
            "sample; drop it, or rank all items with mode full"
        )


def draw_candidates(
    judged: Any, train: Any, sampling: Sampling, seen: scipy.sparse.csr_array
) -> dict[str, scipy.sparse.csr_array]:
    """As `candidates_of`, of all rows of the data set `judged`."""
    users, targets = (judged.inter_feat[field].numpy() for field in (judged.uid_field, judged.iid_field))
    popularity = targets_by_item(train, judged.item_num)
    return candidates_of(users, targets, seen, popularity, sampling, judged.rows_are_interactions)


def candidates_of(
    users: np.ndarray,
    targets: np.ndarray,
    seen: scipy.sparse.csr_array,
    popularity: np.ndarray,
    sampling: Sampling,
    per_user: bool = False,
) -> dict[str, scipy.sparse.csr_array]:
    """Return by column the items [R, N] that targets are ranked among, as RecBole's samplers choose them.

    In the masked column they are none that the user has met, in the judged part either. In the unmasked one they are
    any but the target. With `per_user` all rows of a user are ranked among the items of all of them, other targets
    included.

    Parameters
    ----------
    users, targets : [R] of the judged part, all of its rows.
    seen : [R, N] what the user had seen before the target.
    popularity : [N] training interactions of each item. RecBole counts validation and test too.
    """
    n_rows, n_items = seen.shape
    ones, rows, place = np.ones(n_rows, bool), np.arange(n_rows), np.lexsort((targets, users))
    places = np.empty(n_rows, np.int64)
    places[place] = rows
    of_user = scipy.sparse.csr_array((ones, (users, targets)), shape=(int(users.max(initial=0)) + 1, n_items))
    own = of_user[users] if per_user else scipy.sparse.csr_array((ones, (rows, targets)), shape=seen.shape)
    found = {
        "masked": _draw(seen + of_user[users], sampling, popularity, places),
        "unmasked": _draw(own, sampling, popularity, places),
    }
    if not per_user:
        return found
    rows_of = scipy.sparse.csr_array((ones, (users, rows)), shape=(of_user.shape[0], n_rows))
    return {column: (rows_of @ drawn + of_user)[users] for column, drawn in found.items()}


def _draw(
    excluded: scipy.sparse.csr_array, sampling: Sampling, popularity: np.ndarray, places: np.ndarray
) -> scipy.sparse.csr_array:
    """Draw items [R, N], all different in a row and none `excluded` [R, N]; where too few are left, all of them.

    `places` [R] is an order of the rows that does not depend on the one they come in.
    """
    n_rows, n_items = excluded.shape
    weights = np.where(np.arange(n_items) > 0, popularity if sampling.by_popularity else 1, 0).astype(float)
    row, item = (part.astype(np.int64) for part in excluded.nonzero())
    keys, free = np.unique(np.r_[row * n_items + item, n_rows * n_items]), weights > 0  # the last one is no pair
    n_free = int(free.sum()) - np.bincount(row, free[item], n_rows).astype(int)
    generator, edges = np.random.default_rng(SEED), np.cumsum(weights) / weights.sum()
    edges[edges >= edges[-1]] = 1.0
    found = np.zeros((n_rows, sampling.n_items), np.int64)
    order = np.argsort(places, kind="stable")
    waits = order[n_free[order] > sampling.n_items]  # rows that still lack items
    while len(waits):
        cells = found[waits]
        lacking = cells == 0
        cells[lacking] = np.searchsorted(edges, generator.random(int(lacking.sum())), side="right")
        cells.sort(axis=1)
        again, drawn = np.diff(cells, axis=1, prepend=0) == 0, waits[:, None] * n_items + cells
        cells[again | (keys[np.searchsorted(keys, drawn)] == drawn)] = 0
        found[waits] = cells
        waits = waits[(cells == 0).any(axis=1)]
    rows, at = np.nonzero(found)
    few = np.flatnonzero(n_free <= sampling.n_items)
    nth, rest = np.nonzero((excluded[few].toarray() == 0) & free)
    rows, items = np.r_[rows, few[nth]], np.r_[found[rows, at], rest]
    return scipy.sparse.csr_array((np.ones(len(rows), bool), (rows, items)), shape=excluded.shape)


def among(ranks: Mapping[str, torch.Tensor], not_found: int) -> torch.Tensor:
    """Rank [B] of each target among candidates that were handed to the ranker as items to leave out.

    Leaving them out removes exactly those of them that beat the target.
    """
    everything, without = ranks["unmasked"], ranks["masked"]
    return torch.where(everything == not_found, not_found, everything - without + 1)
