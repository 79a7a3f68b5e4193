"""Plain measures of semantic IDs and of the vectors behind them.

Shapes: N items, P positions of an ID.
"""

import numpy as np
import torch


def utilisation(codes: torch.Tensor, size: int) -> list[float]:
    """Share of the `size` codes in use, at each position of `codes` [N, P]; -1 does not count."""
    return [float((counts > 0).double().mean()) for counts in _counts(codes, size)]


def perplexity(codes: torch.Tensor, size: int) -> list[float]:
    """Exponential of the entropy of the codes at each position: how many codes an even use would need."""
    values = []
    for counts in _counts(codes, size):
        share = counts.double() / counts.sum().clamp(min=1)
        values.append(float(torch.exp(-torch.special.xlogy(share, share).sum())) if counts.sum() else 0.0)
    return values


def _counts(codes: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [torch.bincount(column[column >= 0], minlength=size) for column in codes.T]


def collisions(codes: torch.Tensor) -> dict[str, int]:
    """Count IDs that items share.

    Returns
    -------
    `sharing`: items whose ID another item has too; `distinct`: different IDs; `largest`: most items with one ID.
    """
    counts = torch.unique(codes, dim=0, return_counts=True)[1]
    shared = counts[counts > 1]
    largest = int(counts.max()) if len(counts) else 0
    return {"sharing": int(shared.sum()), "distinct": len(counts), "largest": largest}


def first_code_agreement(codes: torch.Tensor, offsets: np.ndarray, items: np.ndarray) -> tuple[float, float]:
    """How often consecutive items of a sequence share a code, and how often chance alone would have it.

    Parameters
    ----------
    codes : [N] code of each item at one position; items with -1 are left out.
    offsets, items : sequences as flat arrays.

    Returns
    -------
    The share of consecutive pairs that agree, and the share expected of two independent draws from such pairs.
    """
    last = np.zeros(len(items), dtype=bool)
    last[offsets[1:][np.diff(offsets) > 0] - 1] = True
    places = np.flatnonzero(~last)
    column = codes.numpy()
    left, right = column[items[places]], column[items[places + 1]]
    known = (left >= 0) & (right >= 0)
    left, right = left[known], right[known]
    if not len(left):
        return 0.0, 0.0
    size = int(max(left.max(), right.max())) + 1
    share_left, share_right = (np.bincount(side, minlength=size) / len(left) for side in (left, right))
    return float((left == right).mean()), float(share_left @ share_right)
