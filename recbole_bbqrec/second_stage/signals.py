"""Signals of the second stage: what each item of a history says of each candidate.

Pairs of items are compared by how training sequences lead from one to the other, by their features, by towers over
them, and by their codes. What is counted is never divided by how often the candidate occurs in training: in a k-core
data set that tells which items were held out (docs/second-stage.md). Nothing here looks at validation.

Shapes: B histories, C candidates of each (0 = none), J items of the history from the last one backwards (0 = none), N
items (row 0 = padding), D width of vectors, L levels of a signal's codes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor, nn
from torch.nn import functional

from ..model.catalogue import Vectors
from ..model.counts import distance_counts, pairs_apart
from .neighbours import largest, two_steps

MOST = 100
"""Entries of an item in lists that would reach a good part of the catalogue."""
FAR = 7
"""Items further apart than this in a training sequence do not count as met together."""
STEP_WEIGHTS = (1.0, 1 / 2, 1 / 3)
"""Weights of pairs 1, 2 and 3 apart in a step of a walk."""
LOOKED_AT = 10
"""Last items of a history whose vectors meet those of the candidates."""
PRIOR = 20.0
"""Transitions that a coarser level of the codes counts for in an estimate of the next finer one."""
FEW = 8
"""Histories whose candidates' vectors are looked up at once."""


class Batch(NamedTuple):
    """Histories and their candidates."""

    recent: Tensor  # [B, J]
    items: Tensor  # [B, C]
    slots: Tensor  # [B, N] int16, where an item stands among the candidates; -1 elsewhere


class PairList(nn.Module):
    """Item `i` says `values[offsets[i] : offsets[i + 1]]` of the items `items[...]`, and nothing of all others."""

    offsets: Tensor
    items: Tensor
    values: Tensor

    def __init__(self, offsets: Tensor, items: Tensor, values: Tensor) -> None:
        super().__init__()
        for name, value in (("offsets", offsets), ("items", items), ("values", values)):
            self.register_buffer(name, value)

    def entries(self, recent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return row and place in the history [m] of the items of histories [B, J], and their entries in the lists.

        Of entries these are the number [m] that each item has, and where they stand in `items` and `values` [n].
        """
        row, back = torch.nonzero(recent, as_tuple=True)
        last = len(self.offsets) - 1  # new items have no list
        item = recent[row, back]
        begin = self.offsets[item.clamp(max=last)]
        count = self.offsets[(item + 1).clamp(max=last)] - begin
        shift = (begin - count.cumsum(0) + count).repeat_interleave(count)
        return row, back, count, shift + torch.arange(len(shift), device=shift.device)

    def forward(self, batch: Batch) -> Tensor:
        """What each item of the histories says of each candidate [B, C, J]."""
        row, back, count, place = self.entries(batch.recent)
        found = self.values.new_zeros(*batch.items.shape, batch.recent.shape[1])
        cell = (row * batch.slots.shape[1]).repeat_interleave(count) + self.items.index_select(0, place)
        slot = batch.slots.view(-1).index_select(0, cell)  # several times as fast as an index in brackets
        known = torch.nonzero(slot >= 0).squeeze(1)  # a small part: most of what is listed is no candidate
        cell = (row * found[0].numel() + back).repeat_interleave(count)[known] + slot[known].long() * found.shape[2]
        found.view(-1)[cell] = self.values[place[known]]
        return found


class Cosines(nn.Module):
    """Products of a vector of the history's item and one of the candidate, unit rows [N, D]; zero rows say nothing."""

    queries: Tensor
    documents: Tensor

    def __init__(self, queries: Tensor, documents: Tensor) -> None:
        super().__init__()
        self.register_buffer("queries", queries, persistent=False)  # they come with the catalogue
        self.register_buffer("documents", documents, persistent=False)

    @classmethod
    def of(cls, vectors: Vectors) -> "Cosines":
        """Compare items by the cosine of one vector each."""
        rows = vectors.rows
        if rows[~vectors.present].any():  # else there is no need for a copy
            rows = rows * vectors.present.unsqueeze(1)
        return cls(rows, rows)

    def forward(self, batch: Batch) -> Tensor:
        """As `PairList.forward`, of the last `LOOKED_AT` items."""
        asked, offered = batch.recent[:, :LOOKED_AT], batch.items
        found = self.queries.new_empty(*offered.shape, asked.shape[1])
        # A few rows at a time: vectors of all candidates at once are far more than a CPU's cache holds.
        for said, items, last in zip(found.split(FEW), offered.split(FEW), asked.split(FEW), strict=True):
            queries = functional.embedding(last, self.queries).transpose(1, 2)
            torch.bmm(functional.embedding(items, self.documents), queries, out=said)
        return found


class Popularity(nn.Module):
    """log(1 + count in training) of the candidate, or of the last item with `of_last`."""

    counts: Tensor

    def __init__(self, counts: Tensor, of_last: bool) -> None:
        super().__init__()
        self.register_buffer("counts", counts)  # [N] of the items that training knows
        self.of_last = of_last

    def forward(self, batch: Batch) -> Tensor:
        """[B, C, 1], whatever the history says."""
        of = batch.recent[:, :1].expand_as(batch.items) if self.of_last else batch.items
        known = of < len(self.counts)
        return torch.where(known, self.counts[of.clamp(max=len(self.counts) - 1)], 0.0).log1p().unsqueeze(2)


class CodeTransitions(nn.Module):
    """log(N P(candidate | last item)) by the codes of one signal; coarse ones stand in for rare fine ones.

    Of N items that training knows, those with equal first l codes are one class at level l. With n transitions from the
    class of the last item, m of them to that of the candidate, which has s items, and the estimate p of the level above
    (1 / N above the first),

        P = (m / s + PRIOR p) / (n + PRIOR).

    Within a class all candidates are alike: how often one occurs in training does not matter.

    Attributes
    ----------
    classes_l : ascending numbers of the classes of level l. sizes_l, totals_l : of each, its items and transitions.
    pairs_l, counts_l : ascending numbers of pairs of classes that occur, and how often.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, codebook_size: int, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("codes", codes, persistent=False)  # [N, L], -1 where there is none
        self.codebook_size = codebook_size
        for name, value in state.items():
            self.register_buffer(name, value)
        self.n_levels = sum(name.startswith("classes_") for name in state)
        for level in range(1, self.n_levels + 1):
            self.register_buffer(f"places_{level}", self._places(level), persistent=False)

    def _places(self, level: int) -> Tensor:
        """Place [N] of each item's class among those of a level; -1 of a new item in a class that training lacks."""
        classes, numbers = self.get_buffer(f"classes_{level}"), _numbers(self.codes[:, :level], self.codebook_size)
        place = torch.searchsorted(classes, numbers).clamp(max=len(classes) - 1)
        return torch.where(classes[place] == numbers, place, -1)

    @classmethod
    def count(cls, codes: Tensor, codebook_size: int, offsets: np.ndarray, items: np.ndarray) -> "CodeTransitions":
        """Count the transitions of training sequences between classes of codes [N, L]."""
        apart = [pairs_apart(offsets, items, 1 + back) for back in range(len(STEP_WEIGHTS))]
        left, right = np.concatenate(apart, axis=1)
        weights = np.repeat(STEP_WEIGHTS, [pairs.shape[1] for pairs in apart])
        state: dict[str, Tensor] = {}
        for level in range(1, codes.shape[1] + 1):
            numbers = _numbers(codes[:, :level], codebook_size).cpu().numpy()
            classes, place, sizes = np.unique(numbers[1:], return_inverse=True, return_counts=True)
            place = np.r_[0, place]
            if level > 1 and len(classes) > len(numbers) / 2:
                break  # most items are a class of their own: the lists say that better
            keys, at = np.unique(place[left] * len(classes) + place[right], return_inverse=True)
            found = {
                "classes": classes,
                "sizes": sizes.astype(np.float32),
                "totals": np.bincount(place[left], weights, len(classes)).astype(np.float32),
                "pairs": keys,
                "counts": np.bincount(at, weights, len(keys)).astype(np.float32),
            }
            state |= {f"{name}_{level}": torch.from_numpy(value) for name, value in found.items()}
        return cls(codes, codebook_size, state)

    def forward(self, batch: Batch) -> Tensor:
        """As `PairList.forward`, of the last item alone."""
        n_items = self.get_buffer("sizes_1").sum()  # of training: new items change nothing for the others
        estimate = torch.ones_like(batch.items, dtype=torch.float32) / n_items
        for level in range(1, self.n_levels + 1):
            place, sizes, totals, pairs, counts = (
                self.get_buffer(f"{name}_{level}") for name in ("places", "sizes", "totals", "pairs", "counts")
            )
            last, offered = place[batch.recent[:, :1]], place[batch.items]
            key = last * len(sizes) + offered
            at = torch.searchsorted(pairs, key).clamp(max=max(len(pairs) - 1, 0))
            met = torch.where(pairs[at] == key, counts[at], 0.0) if len(pairs) else torch.zeros_like(estimate)
            known = (last >= 0) & (offered >= 0)
            finer = (met / sizes[offered] + PRIOR * estimate) / (totals[last] + PRIOR)
            estimate = torch.where(known, finer, estimate)
        return (estimate * n_items).log().unsqueeze(2)


def _numbers(codes: Tensor, codebook_size: int) -> Tensor:
    """One number for each different row of codes [N, l]."""
    powers = (codebook_size + 1) ** torch.arange(codes.shape[1] - 1, -1, -1, device=codes.device)
    return ((codes.long() + 1) * powers).sum(1)


# Lists of pairs from training sequences


def pair_lists(offsets: np.ndarray, items: np.ndarray, n_items: int) -> dict[str, csr_array]:
    """Count pairs of items in training sequences, all [N, N], items in an order that nothing held out decides.

    - `next_1`, `next_2`, `next_3`: how often an item comes 1, 2, 3 places later.
    - `together`: how often both stand at most `FAR` apart, near ones counting more.
    - `step`: share of an item among all that come up to 3 places later; `walk`: of two such steps.
    - `side_step`, `side_walk`: the same, later or earlier, the three distances alike.
    """
    found: dict[str, csr_array] = {}
    apart: list[csr_array] = []
    nearer: Any = csr_array((n_items, n_items))
    for distance in range(1, FAR + 1):
        counts = distance_counts(offsets, items, n_items, distance)
        nearer = nearer + counts / (1 + distance)
        apart += [counts] if distance <= len(STEP_WEIGHTS) else []
    found |= {f"next_{1 + at}": _small(counts) for at, counts in enumerate(apart)}
    # Each of these is hundreds of megabytes on large sets: what has served is let go.
    found["together"] = largest(csr_array(nearer + nearer.T), MOST)
    del nearer
    later: Any = sum((counts * weight for counts, weight in zip(apart, STEP_WEIGHTS, strict=True)), start=apart[0] * 0)
    beside: Any = sum(apart[1:], start=apart[0])
    del apart, counts
    step = _shares(later)
    del later
    found |= {"step": _small(step), "walk": two_steps(step, MOST)}
    step = _shares(csr_array(beside + beside.T))
    del beside
    found |= {"side_step": _small(step), "side_walk": two_steps(step, MOST)}
    return found


def _small(counts: csr_array) -> csr_array:
    counts.sum_duplicates()  # which sorts in place, and would do so later for one of the two that share their indices
    return csr_array(counts, dtype=np.float32)


def normalised(counts: csr_array) -> csr_array:
    """Counts over the root of the product of both items' totals: DIVIDED BY POPULARITY, see the module's docstring."""
    scale = diags_array(1 / np.sqrt(np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)))
    return csr_array(scale @ counts @ scale)


def _shares(counts: csr_array) -> csr_array:
    totals = np.asarray(counts.sum(axis=1)).ravel()
    return csr_array(diags_array(1 / np.maximum(totals, 1.0)) @ counts)
