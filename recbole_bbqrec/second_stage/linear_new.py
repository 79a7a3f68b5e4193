"""Lists of neighbours for items that training does not know: candidate similarity reads and scores them by content.

Nothing is fitted. A new item and a known one are neighbours where the known one's list would have had the new one, and
the bucket of their cosine is the one that equal cosines of the lists are in.

Shapes: N items, of which the first N0 are known to training (row 0 = padding), n pairs, C width of vectors.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..model.catalogue import Catalogue, Vectors
from .neighbours import ROUNDING, rows_at_once


class Lists(NamedTuple):
    """Item `i` lists `items[offsets[i] : offsets[i + 1]]` (int32), each in its bucket (int16)."""

    offsets: Tensor
    items: Tensor
    buckets: Tensor


def new_lists(known: Lists, name: str, catalogue: Catalogue) -> Lists | None:
    """Return what joins the lists `known` of a signal with the new items; none where it compares no vectors."""
    vectors = catalogue.content.get(name) or catalogue.quantised.get(name)
    if vectors is None or not len(known.items):
        return None
    return _joining(known, vectors)


def _joining(known: Lists, vectors: Vectors) -> Lists:
    n_known, n_items = len(known.offsets) - 1, len(vectors.rows)
    rows = vectors.rows * vectors.present.unsqueeze(1)
    sizes = known.offsets.diff()
    floors, edges = _of_known(known, rows, sizes)
    size, parts = int(sizes.max()), []
    for new in torch.arange(n_known, n_items).split(rows_at_once(n_items)):
        new = new[vectors.present[new]]
        cosines = _rounded(rows[new] @ rows.T)  # [m, N]
        cosines[torch.arange(len(new)), new] = -torch.inf
        cosines[:, ~vectors.present] = -torch.inf
        near, items = cosines.topk(min(size, n_items - 1), dim=1)
        of_new = torch.stack([new.unsqueeze(1).expand_as(items), items])
        place, item = torch.nonzero(cosines[:, :n_known] >= floors, as_tuple=True)
        parts += [(of_new.flatten(1), near.flatten()), (torch.stack([item, new[place]]), cosines[place, item])]
    pairs, cosines = (torch.cat([part[at] for part in parts], dim=-1) for at in range(2))
    buckets = torch.searchsorted(edges, cosines, right=True) - 1
    listed = buckets >= 0
    pairs, buckets = pairs[:, listed], buckets[listed]
    order = (pairs[0] * n_items + pairs[1]).argsort()
    counts = torch.bincount(pairs[0], minlength=n_items)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Lists(offsets, pairs[1, order].int(), buckets[order].to(known.buckets.dtype))


def _of_known(known: Lists, rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest cosine [N0] in the list of each item, infinite where it lists none, and that of each bucket.

    A bucket that no list has begins where the next one does.
    """
    floors = torch.full((len(sizes),), torch.inf)
    edges = torch.full((int(known.buckets.max()) + 1,), torch.inf)
    for block in torch.arange(len(sizes)).split(rows_at_once(len(rows))):
        begin, end = known.offsets[block[0]], known.offsets[block[-1] + 1]
        source, buckets = block.repeat_interleave(sizes[block]), known.buckets[begin:end].long()
        cosines = _rounded((rows[source] * rows[known.items[begin:end].long()]).sum(1))
        floors.scatter_reduce_(0, source, cosines, "amin")
        edges.scatter_reduce_(0, buckets, cosines, "amin")
    return floors, edges.flip(0).cummin(0).values.flip(0)


def _rounded(cosines: Tensor) -> Tensor:
    """Cosines as lists have them: equal ones are equal to the last bit."""
    return (cosines / ROUNDING).round() * ROUNDING
