"""Which items a training step reads: the different ones of its batch, and its negatives. Nothing waits for a GPU here.

Shapes: n items that are asked for, m negatives, N items (row 0 = padding).
"""

import torch
from torch import Tensor

LARGE = 100_000
"""From this many items on, a step costs what its batch reads, whatever the size of the catalogue.

Its negatives come from strata, and only the rows of the item table that it reads are updated (`training.by_row`).
Smaller catalogues are as fast with a permutation and updates of all rows at once.
"""


def different(items: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different ones of `items` [n], in their order, and the place of each of `items` among them.

    On a GPU there are n in any case, the last of them padding: only the GPU knows how many differ.
    """
    if items.device.type == "cpu":
        found, place = torch.unique(items, return_inverse=True)
        return found, place
    return _different_of_fixed_size(items)


def _different_of_fixed_size(items: Tensor) -> tuple[Tensor, Tensor]:
    ordered, order = items.sort()
    is_first = torch.ones_like(ordered)
    is_first[1:] = ordered[1:] != ordered[:-1]
    rank = is_first.cumsum(0) - 1
    found = torch.zeros_like(items).scatter_(0, rank, ordered)
    return found, torch.empty_like(items).scatter_(0, order, rank)


def draw_negatives(n_items: int, wanted: int, device: torch.device) -> Tensor:
    """Draw `wanted` different items, or all where there are no more; each is drawn as often as any other.

    From a `LARGE` catalogue one comes from each of m equal strata, that begin at an item drawn anew at every call.
    """
    n = n_items - 1
    if n < LARGE or wanted >= n:
        return 1 + torch.randperm(n, device=device)[:wanted]
    begins = torch.arange(wanted + 1, device=device) * n // wanted
    within = torch.rand(wanted, device=device, dtype=torch.float64) * begins.diff()
    turned = torch.randint(n, (1,), device=device)
    return 1 + (begins[:-1] + within.long() + turned) % n
