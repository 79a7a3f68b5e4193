"""The one ranker: scores in, the target's rank in both columns out, the same for every model.

Shapes: B histories, N items (column 0 = padding), R evaluated rows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError

NOT_FOUND = 2**31 - 1
"""Rank of what a model does not find at all."""

COLUMNS = ("masked", "unmasked")
"""Whether what the user had seen before the target leaves the ranking. The two are never mixed."""

METRICS: Mapping[str, Callable[[np.ndarray, int], np.ndarray | float]] = {
    "recall": lambda ranks, k: 1.0,
    "hit": lambda ranks, k: 1.0,
    "precision": lambda ranks, k: 1.0 / k,
    "ndcg": lambda ranks, k: 1.0 / np.log2(1.0 + ranks),
    "mrr": lambda ranks, k: 1.0 / ranks,
}
"""What a target among the first `k` counts; with one target recall and hit rate are the same."""


def tie_order(n_items: int, seed: int) -> torch.Tensor:
    """Return the fixed random order [N] of the items that breaks ties: of two equal scores the smaller entry wins."""
    return torch.randperm(n_items, generator=torch.Generator().manual_seed(seed))


def rank_targets(
    scores: torch.Tensor,
    targets: torch.Tensor,
    seen: tuple[torch.Tensor, torch.Tensor],
    order: torch.Tensor,
    is_beam_search: bool = False,
) -> dict[str, torch.Tensor]:
    """Rank each row's target among all items, with and without the items the user has seen.

    Parameters
    ----------
    scores : [B, N], all finite; column 0 is ignored.
    targets : [B] item ids.
    seen : (row, item) pairs to leave out of the masked column; a row's own target may not be among them.
    order : [N] from `tie_order`.
    is_beam_search : whether minus infinity stands for an item that the model has not found, which no list shows.

    Returns
    -------
    `masked` and `unmasked` ranks [B], 1 is best; `NOT_FOUND` for a target without a score.
    """
    scores = scores[:, 1:]
    low, high = torch.aminmax(scores)
    if is_beam_search:
        low = torch.nan_to_num(low, nan=torch.nan, neginf=0.0)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise InputError("the model gave a score that is not finite; lower learning_rate or set clip_grad_norm")
    order = order.to(scores.device)
    target_score = scores.gather(1, (targets - 1).unsqueeze(1))  # [B, 1]
    better = _count(scores > target_score)
    tied_rows = torch.nonzero(_count(scores == target_score) > 1).squeeze(1)
    if len(tied_rows):
        tied = scores[tied_rows] == target_score[tied_rows]
        wins = order[1:] < order[targets[tied_rows]].unsqueeze(1)
        better[tied_rows] += (tied & wins).sum(1)
    # Masking an item can only take it away from those that beat the target; no second pass over the scores is needed.
    rows, items = seen
    seen_score, wanted = scores[rows, items - 1], target_score[rows, 0]
    beats = (seen_score > wanted) | ((seen_score == wanted) & (order[items] < order[targets[rows]]))
    removed = torch.zeros_like(better).index_add_(0, rows, beats.long())
    lost = torch.isneginf(target_score[:, 0])
    return {
        "masked": (better - removed + 1).masked_fill(lost, NOT_FOUND),
        "unmasked": (better + 1).masked_fill(lost, NOT_FOUND),
    }


def _count(mask: torch.Tensor) -> torch.Tensor:
    """Number of true entries in each row [B, N] -> [B]."""
    if mask.device.type != "cpu":
        return mask.sum(1)
    # On a CPU numpy counts bytes eight times faster than torch, which widens each to an integer first.
    return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1))


@dataclass(frozen=True)
class Ranks:
    """Of each evaluated row [R] the user's id, and the rank of its target in both columns, 1 is best.

    `cold` says whether the target was held out of training; none where no item was.
    """

    users: np.ndarray
    masked: np.ndarray
    unmasked: np.ndarray
    cold: np.ndarray | None = None

    def groups(self) -> dict[str, "Ranks"]:
        """All rows; where items were held out, also those with warm and those with cold targets."""
        parts = {} if self.cold is None else {"warm": ~self.cold, "cold": self.cold}
        return {"all": self, **{name: self.of(rows) for name, rows in parts.items()}}

    def of(self, rows: np.ndarray) -> "Ranks":
        """The `rows`, bool [R], alone."""
        return Ranks(self.users[rows], self.masked[rows], self.unmasked[rows])

    def metrics(self, names: Iterable[str], topk: Iterable[int]) -> dict[str, dict[str, float]]:
        """Return `{column: {"recall@10": value, ...}}`, means over the rows."""
        names, topk = list(names), list(topk)
        return {
            column: {
                f"{name.lower()}@{k}": float(per_row(getattr(self, column), name, k).mean())
                for name in names
                for k in topk
            }
            for column in COLUMNS
        }


def per_row(ranks: np.ndarray, metric: str, k: int) -> np.ndarray:
    """Return a metric's value [R] for each row with one target at the given rank; zero beyond `k`."""
    return (ranks <= k) * METRICS[metric.lower()](ranks, k)
