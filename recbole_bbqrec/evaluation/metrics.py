"""RecBole's ranking metrics by their names there: of the ranks of targets, and of the lists that users are shown.

Shapes: R rows, each with one target; U users; N items (0 = padding); C cut-offs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COLUMNS = ("masked", "unmasked")
"""Whether what the user had seen before the target leaves the ranking. The two are never mixed."""

METRICS: Mapping[str, Callable[[np.ndarray, int], np.ndarray | float]] = {
    "recall": lambda ranks, k: 1.0,
    "hit": lambda ranks, k: 1.0,
    "precision": lambda ranks, k: 1.0 / k,
    "ndcg": lambda ranks, k: 1.0 / np.log2(1.0 + ranks),
    "mrr": lambda ranks, k: 1.0 / ranks,
    "map": lambda ranks, k: 1.0 / ranks,
}
"""What a target among the first `k` counts for; with one target, recall equals hit rate, and MRR equals MAP."""


def per_row(ranks: np.ndarray, metric: str, k: int) -> np.ndarray:
    """Return a metric's value [R] for each row with one target at the given rank; zero beyond `k`."""
    return (ranks <= k) * METRICS[metric.lower()](ranks, k)


def of_users(users: np.ndarray, ranks: np.ndarray, metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the users [U], ascending, and a metric's value [U] for each of them, of all their targets together.

    `ranks` [R] are those of the targets in one list of their user, so no two of a user are equal unless beyond `k`.
    """
    order = np.lexsort((ranks, users))
    found, begins, n_targets = np.unique(users[order], return_index=True, return_counts=True)
    ranks = ranks[order].astype(float)
    nth = np.arange(1, len(ranks) + 1) - np.repeat(begins, n_targets)  # of its user's targets, the best one is 1
    most = np.minimum(n_targets, k)  # targets that a list has room for
    metric = metric.lower()
    if metric in ("hit", "mrr"):  # the best target alone counts
        return found, per_row(ranks[begins], metric, k)
    counts = {"map": nth / ranks}.get(metric, METRICS[metric](ranks, k) * np.ones(len(ranks)))
    gains = np.add.reduceat((ranks <= k) * counts, begins) if len(ranks) else np.zeros(0)
    ideal = {"recall": n_targets, "map": most, "ndcg": np.cumsum(per_row(np.arange(1, k + 1), "ndcg", k))[most - 1]}
    return found, gains / ideal.get(metric, 1)


def item_coverage(counts: np.ndarray) -> float:
    """Share of the items, padding among them as in RecBole, that are shown at all; `counts` [N] say how often."""
    return np.count_nonzero(counts) / len(counts)


def average_popularity(counts: np.ndarray, popularity: np.ndarray) -> float:
    """Mean training interactions of what is shown; `popularity` [N] has those of each item."""
    return counts @ popularity / counts.sum()


def shannon_entropy(counts: np.ndarray) -> float:
    """Entropy of the shown items, divided by the number of different ones, as in RecBole."""
    share = counts[counts > 0] / counts.sum()
    return -(share * np.log(share)).sum() / len(share)


def gini_index(counts: np.ndarray) -> float:
    """How unequally often items are shown: 0 if all alike, towards 1 if one item alone."""
    places = 2 * np.arange(1, len(counts) + 1) - len(counts) - 1
    return (places * np.sort(counts)).sum() / counts.sum() / len(counts)


def tail_percentage(counts: np.ndarray, popularity: np.ndarray, tail_ratio: float) -> float:
    """Share of what is shown that is in the long tail of the items that training has.

    The tail is the least popular ones: a share `tail_ratio` of the items if it is at most 1, else those of at most
    `tail_ratio` interactions.
    """
    known = np.flatnonzero(popularity)
    if tail_ratio > 1:
        tail = known[popularity[known] <= tail_ratio]
    else:
        tail = known[np.argsort(popularity[known], kind="stable")][: max(int(len(known) * tail_ratio), 1)]
    return counts[tail].sum() / counts.sum()


LIST_METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    "itemcoverage": lambda counts, popularity, tail_ratio: item_coverage(counts),
    "averagepopularity": lambda counts, popularity, tail_ratio: average_popularity(counts, popularity),
    "shannonentropy": lambda counts, popularity, tail_ratio: shannon_entropy(counts),
    "giniindex": lambda counts, popularity, tail_ratio: gini_index(counts),
    "tailpercentage": tail_percentage,
}
"""Metrics of what is shown, whatever the targets: of how often each item is, how popular it is, and `tail_ratio`."""

SMALLER = ("averagepopularity", "giniindex", "logloss")
"""Metrics of which RecBole takes a smaller value to be better."""


def of_lists(names: Sequence[str]) -> list[str]:
    """Return those of the metrics, in lower case, that need lists."""
    return [name.lower() for name in names if name.lower() in LIST_METRICS]


@dataclass(frozen=True)
class Shown:
    """How often each item stands among the first k of the rows' lists.

    Attributes
    ----------
    topk : the C cut-offs k.
    counts : [2, C, N] by column, in the order of `COLUMNS`, and cut-off.
    popularity : [N] rows of the training part whose target is the item, which is what RecBole counts.
    tail_ratio : see `tail_percentage`.
    """

    topk: tuple[int, ...]
    counts: np.ndarray
    popularity: np.ndarray
    tail_ratio: float

    def value(self, column: str, metric: str, k: int) -> float:
        """Return one of `LIST_METRICS`."""
        counts = self.counts[COLUMNS.index(column), self.topk.index(k)]
        return float(LIST_METRICS[metric.lower()](counts, self.popularity, self.tail_ratio))
