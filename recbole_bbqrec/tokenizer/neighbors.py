"""Whether items that are near each other in one space are so in another.

Shapes: N items, Q of them asked about, k neighbours.
"""

import numpy as np
import torch
from torch.nn import functional

CHUNK = 500
"""Items whose cosines with all others are held at once."""


def nearest(rows: torch.Tensor, has: torch.Tensor, asked: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """The k items of highest cosine with each asked item, itself left out; equal cosines in a seeded random order.

    Parameters
    ----------
    rows : [N, D] vectors.
    has : [N] which items have one; the others are nobody's neighbours and have none.
    asked : [Q] items.

    Returns
    -------
    [Q, k] items; -1 where there is none.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    order = order[has[order]]
    unit = functional.normalize(rows.float(), dim=-1)
    keys = unit[order]
    found = torch.full((len(asked), k), -1)
    width = min(k, max(len(order) - 1, 0))
    for begin in range(0, len(asked) if width else 0, CHUNK):
        part = asked[begin : begin + CHUNK]
        # Equal vectors have equal cosines only up to rounding, which depends on where they stand.
        cosine = (unit[part] @ keys.T).mul_(1e5).round_()
        cosine[part.unsqueeze(1) == order] = -torch.inf
        places = cosine.topk(width, dim=1).indices
        found[begin : begin + CHUNK, :width] = order[places]
    return found.masked_fill(~has[asked].unsqueeze(1), -1)


def cooccurring(
    offsets: np.ndarray, items: np.ndarray, n_items: int, asked: torch.Tensor, k: int, window: int, seed: int
) -> torch.Tensor:
    """The k items most often at most `window` places from each asked item in a sequence.

    Equal counts stand in a seeded random order.

    Returns
    -------
    [Q, k] items; -1 where there are fewer.
    """
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = []
    for distance in range(1, window + 1):
        together = user[distance:] == user[:-distance]
        left, right = items[:-distance][together], items[distance:][together]
        pairs += [left * n_items + right, right * n_items + left]
    keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
    left, right = np.divmod(keys, n_items)
    different = left != right
    left, right, counts = left[different], right[different], counts[different]
    order = np.lexsort((np.random.default_rng(seed).random(len(left)), -counts, left))
    left, right = left[order], right[order]
    place = np.arange(len(left)) - np.searchsorted(left, left)
    kept = place < k
    table = np.full((n_items, k), -1, dtype=np.int64)
    table[left[kept], place[kept]] = right[kept]
    return torch.from_numpy(table)[asked]


def overlap(reference: torch.Tensor, found: torch.Tensor) -> float | None:
    """Mean share of the reference neighbours [Q, k] among those found [Q, k].

    Items without reference neighbours do not count, nor do those without any found; None where none is left.
    """
    counts = (reference >= 0).sum(1)
    kept = (counts > 0) & (found >= 0).any(1)
    if not kept.any():
        return None
    same = (reference.unsqueeze(2) == found.unsqueeze(1)) & (reference >= 0).unsqueeze(2)
    return float((same.any(2).sum(1)[kept] / counts[kept]).mean())
