"""The one ranker: scores in, the target's rank in both columns out, the same for every model.

Scores are compared a block of items at a time; where they are products of vectors they are made so too.

Shapes: B histories, N items (column 0 = padding), R evaluated rows, W width of vectors.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import InputError
from ..model.decoding import Pairs
from .lists import Lists
from .metrics import COLUMNS as COLUMNS
from .metrics import LIST_METRICS, Shown, of_users
from .metrics import METRICS as METRICS
from .metrics import per_row as per_row
from .sample import sampled_rows

NOT_FOUND = 2**31 - 1
"""Rank of what a model does not find at all."""

WORD = 8
"""Bytes of a word."""
BLOCK = 1024
"""Items whose scores are compared at once on a CPU: those of 256 users fit into a core's cache. From 512 to 2,048 take
as long; it is a multiple of `WORD`, of fewer than 256 words."""
CELLS = 2**26
"""Scores that are compared at once on other devices."""


def tie_order(n_items: int, seed: int) -> torch.Tensor:
    """Return the fixed random order [N] of the items that breaks ties: of two equal scores the smaller entry wins."""
    return torch.randperm(n_items, generator=torch.Generator().manual_seed(seed))


def rows_of_some(users: np.ndarray, n_users: int) -> np.ndarray | None:
    """Return the rows of `n_users` of the `users` [R], the same ones in every run; none where that is all (0: all)."""
    known = np.unique(users)
    if not 0 < n_users < len(known):
        return None
    return np.flatnonzero(np.isin(users, known[sampled_rows(len(known), n_users, seed=0)]))


def rank_targets(
    scores: torch.Tensor,
    targets: torch.Tensor,
    seen: Pairs,
    order: torch.Tensor,
    is_beam_search: bool = False,
    lists: Lists | None = None,
) -> dict[str, torch.Tensor]:
    """Rank each row's target among all items, with and without the items the user has seen.

    Parameters
    ----------
    scores : [B, N], all finite; column 0 is ignored.
    targets : [B] item ids.
    seen : (row, item) pairs to leave out of the masked column; a row's own target may not be among them.
    order : [N] from `tie_order`.
    is_beam_search : whether minus infinity stands for an item that the model has not found, which no list shows.
    lists : looks at the same scores, where the first items of the ranking are asked for.

    Returns
    -------
    `masked` and `unmasked` ranks [B], 1 is best; `NOT_FOUND` for a target without a score.
    """
    low, high = torch.aminmax(scores[:, 1:])
    _check_finite(torch.nan_to_num(low, nan=torch.nan, neginf=0.0) if is_beam_search else low, high)
    scores = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    comparison = _Comparison(targets, seen, order)
    wanted = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
    return comparison.ranks(*comparison.count(lambda begin, end: scores[:, begin:end], wanted, lists))


def rank_products(
    queries: torch.Tensor,
    keys: torch.Tensor,
    targets: torch.Tensor,
    seen: Pairs,
    order: torch.Tensor,
    lists: Lists | None = None,
) -> dict[str, torch.Tensor]:
    """As `rank_targets`, of scores `queries @ keys.T` with queries [B, W] and keys [N, W].

    Scores are made and counted a block of items at a time: nothing of size [B, N] is held, and on a CPU no score leaves
    the cache.
    """
    # By Cauchy and Schwarz no score is larger.
    _check_finite(queries.norm(dim=1).amax() * keys.norm(dim=1).amax())
    comparison = _Comparison(targets, seen, order)

    def scores_of(begin: int, end: int) -> torch.Tensor:
        return queries @ keys[begin:end].T

    wanted = (queries @ keys[targets].T).diagonal()
    better, found = comparison.count(scores_of, wanted, lists)
    if not torch.equal(of_targets := found[len(seen[0]) :], wanted):
        # The last bit of a product may depend on its shape: what counts is the target's score among the others.
        better, found = comparison.count(scores_of, of_targets)
    return comparison.ranks(better, found)


def _check_finite(*bounds: torch.Tensor) -> None:
    if not torch.isfinite(torch.stack(bounds)).all():
        raise InputError("the model gave a score that is not finite; lower learning_rate or set clip_grad_norm")


class _Comparison:
    """What beats the targets [B] of some rows, and what of it their users had seen; see `rank_targets`.

    The scores that are looked at are those of n pairs of a row and an item: what was seen, then the targets.
    """

    def __init__(self, targets: torch.Tensor, seen: Pairs, order: torch.Tensor) -> None:
        self.targets, self.seen, self.order = targets, seen, order.to(targets.device)
        self.on_cpu = _is_on_cpu(targets)
        self.size = BLOCK if self.on_cpu else max(BLOCK, CELLS // len(targets))
        of_targets = torch.arange(len(targets), device=targets.device), targets
        self.rows, self.items = (torch.cat(parts) for parts in zip(seen, of_targets, strict=True))
        self.by_item = torch.argsort(self.items)  # the pairs of a block stand together
        self.begins = range(1, len(order), self.size)
        ends = torch.tensor([begin + self.size for begin in self.begins], device=targets.device)
        self.ends = torch.searchsorted(self.items[self.by_item], ends).tolist()

    def count(
        self, scores_of: Callable[[int, int], torch.Tensor], wanted: torch.Tensor, lists: Lists | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how many items beat each target, whose scores are `wanted` [B], and the scores [n] of the pairs.

        `scores_of` gives scores [B, end - begin] of the items from `begin` to `end`.
        """
        better, found = torch.zeros_like(self.targets), wanted.new_empty(len(self.rows))
        places, wanted = self.order[self.targets].unsqueeze(1), wanted.unsqueeze(1)  # [B, 1]
        flags, first = np.empty((len(better), self.size if self.on_cpu else 0), bool), 0
        for begin, last in zip(self.begins, self.ends, strict=True):
            end = min(begin + self.size, len(self.order))
            scores, order = scores_of(begin, end), self.order[begin:end]
            if lists is not None:
                lists.look(scores, begin)
            pairs, first = self.by_item[first:last], last
            found[pairs] = scores[self.rows[pairs], self.items[pairs] - begin]
            if not self.on_cpu:
                better += ((scores > wanted) | ((scores == wanted) & (order < places))).sum(1)
                continue
            above = _count(np.greater, scores, wanted, flags)
            better += above
            # Each target at least is as good as itself, in its own block.
            tied = torch.nonzero(_count(np.greater_equal, scores, wanted, flags) > above).squeeze(1)
            if len(tied):
                better[tied] += ((scores[tied] == wanted[tied]) & (order < places[tied])).sum(1)
        return better, found

    def ranks(self, better: torch.Tensor, found: torch.Tensor) -> dict[str, torch.Tensor]:
        """Both columns, from what `count` has returned."""
        rows, items = self.seen
        of_seen, wanted = found[: len(rows)], found[len(rows) :]
        # Masking an item can only take it away from those that beat the target; no second pass is needed.
        is_first = self.order[items] < self.order[self.targets[rows]]
        beats = (of_seen > wanted[rows]) | ((of_seen == wanted[rows]) & is_first)
        removed = torch.zeros_like(better).index_add_(0, rows, beats.long())
        lost = torch.isneginf(wanted)
        return {
            "masked": (better - removed + 1).masked_fill(lost, NOT_FOUND),
            "unmasked": (better + 1).masked_fill(lost, NOT_FOUND),
        }


def _is_on_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"


def _count(compare: np.ufunc, scores: torch.Tensor, wanted: torch.Tensor, flags: np.ndarray) -> torch.Tensor:
    """Count the scores [B, b] of each row that compare so with that `wanted` [B, 1]; `flags` [B, `BLOCK`] is scratch.

    On a CPU numpy compares twice as fast as torch. Eight flags are added up at once as a word, in which no byte can
    overflow: ten times as fast as counting them.
    """
    width = scores.shape[1]
    compare(scores.numpy(), wanted.numpy(), out=flags[:, :width])
    flags[:, width:] = False
    words = torch.from_numpy(flags).view(torch.int64).sum(1)  # [B]
    return words.view(torch.uint8).view(len(flags), WORD).sum(1)


@dataclass(frozen=True)
class Ranks:
    """Of each evaluated row [R] the user's id, and the rank of its target in both columns, 1 is best.

    `cold` says whether the target was held out of training; none where no item was. `rows` are those of the split that
    were judged; none where all were. With `per_user` the rows of a user are targets of one list, and metrics are those
    of RecBole's evaluator: of users, each with all of the user's targets. `shown` is known where metrics of lists are
    asked for.
    """

    users: np.ndarray
    masked: np.ndarray
    unmasked: np.ndarray
    cold: np.ndarray | None = None
    rows: np.ndarray | None = None
    per_user: bool = False
    shown: Shown | None = None

    def groups(self) -> dict[str, "Ranks"]:
        """All rows; where items were held out, also those with warm and those with cold targets."""
        parts = {} if self.cold is None else {"warm": ~self.cold, "cold": self.cold}
        return {"all": self, **{name: self.of(rows) for name, rows in parts.items()}}

    def of(self, rows: np.ndarray) -> "Ranks":
        """Return the `rows`, bool [R], alone, without counts of shown items, which belong to all targets together."""
        found = replace(self, cold=None, rows=None, shown=None)
        return replace(found, **{name: getattr(self, name)[rows] for name in ("users", *COLUMNS)})

    def values(self, column: str, metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Users and values of a metric of ranks: of each row, or with `per_user` of each user."""
        ranks = getattr(self, column)
        return of_users(self.users, ranks, metric, k) if self.per_user else (self.users, per_row(ranks, metric, k))

    def metrics(self, names: Iterable[str], topk: Iterable[int]) -> dict[str, dict[str, float]]:
        """Return `{column: {"recall@10": value, ...}}`, means over the rows, or with `per_user` over the users.

        Metrics of labels are left out, and those of lists where it is not known what is shown.
        """
        there = METRICS.keys() | (LIST_METRICS.keys() if self.shown is not None else set())
        known = [name.lower() for name in names if name.lower() in there]
        asked = [(name, k) for name in known for k in topk]
        return {column: {f"{name}@{k}": self._mean(column, name, k) for name, k in asked} for column in COLUMNS}

    def _mean(self, column: str, name: str, k: int) -> float:
        if self.shown is not None and name in LIST_METRICS:
            return self.shown.value(column, name, k)
        return float(self.values(column, name, k)[1].mean())
