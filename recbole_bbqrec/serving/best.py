"""The best items of rows of scores.

Shapes: B histories, N items (row 0 = padding).
"""

import functools

import numpy as np
from torch import Tensor

from ..evaluation.ranking import tie_order

SPARE = 16
"""Further items that are looked at for ties with the last one."""

order_of = functools.lru_cache(8)(tie_order)
"""The order that breaks ties, which is the same for all calls of a bundle."""


def best(scores: Tensor, k: int, seed: int) -> list[tuple[list[int], list[float]]]:
    """Return at most `k` items of each row of scores [B, N] that have one, best first, and their scores.

    Minus infinity is no score. Of equal scores the run's order of ties decides, as in the ranks of a run.
    """
    n_items = scores.shape[1]
    k = min(k, n_items)
    values, items = scores.topk(min(k + SPARE, n_items))
    values, items = values.cpu().numpy(), items.cpu().numpy()
    ties = order_of(n_items, seed).numpy()
    found = []
    # Where the last place is tied with items beyond the choice, the whole row has to be looked at.
    tied = (values[:, -1] == values[:, k - 1]) & (values[:, -1] > -np.inf)
    order = np.lexsort((ties[items], -values))
    for row, places in enumerate(order[:, :k]):
        of_row, at = values[row], items[row]
        if tied[row]:
            at = np.arange(n_items)
            of_row = scores[row].cpu().numpy()
            places = np.lexsort((ties, -of_row))[:k]
        places = places[of_row[places] > -np.inf]
        found.append((at[places].tolist(), of_row[places].tolist()))
    return found
