"""What the steps of stage 1 see: windows of the training sequences, and random items beside them.

Shapes: R windows of a batch, T targets of the longest.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch

SORT_CHUNK = 50
"""Batches whose windows are sorted by length together: little padding, and still a random mix."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Windows of items [R, T + 1], which of their T targets are real [R, T], and random items [Q], all on the CPU."""


class Windows:
    """Windows of flat sequences in which every item but a sequence's first is a target once.

    A window shows at most `length` items; its last target comes one later. Where sequences are not `in_order`, every
    epoch has their items in a new random order, each item of a user once: targets are other items of the same user.
    """

    def __init__(self, offsets: np.ndarray, items: np.ndarray, length: int, in_order: bool = True) -> None:
        self.owner = None
        if not in_order:
            owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            self.owner, items = np.unique(np.c_[owner, items], axis=0).T.copy()
            offsets = np.searchsorted(self.owner, np.arange(len(offsets)))
        n_targets = np.maximum(np.diff(offsets) - 1, 0)
        n_windows = -(-n_targets // length)
        sequence = np.repeat(np.arange(len(n_targets)), n_windows)
        place = np.arange(len(sequence)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
        self.items = torch.from_numpy(items)
        self.start = offsets[:-1][sequence] + place * length  # first item of each window
        self.size = np.minimum(n_targets[sequence] - place * length, length)  # number of its targets
        self.n_targets = int(self.size.sum())

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all windows once, about `batch_size` targets at a time, in random order; one empty batch without any.

        The first two parts of a `Batch`; padding stands at the right.
        """
        if not len(self.start):
            yield torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 1, dtype=torch.bool)
            return
        if self.owner is not None:
            drawn = torch.rand(len(self.items), generator=generator, dtype=torch.float64).numpy()
            self.items = self.items[torch.from_numpy(np.lexsort((drawn, self.owner)))]
        order = torch.randperm(len(self.start), generator=generator).numpy()
        chunk = (np.cumsum(self.size[order]) - 1) // (batch_size * SORT_CHUNK)
        order = order[np.lexsort((self.size[order], chunk))]
        batch = (np.cumsum(self.size[order]) - 1) // batch_size
        parts = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
        for index in torch.randperm(len(parts), generator=generator).tolist():
            start, size = (torch.from_numpy(part[parts[index]]) for part in (self.start, self.size))
            steps = torch.arange(int(size.max()) + 1)
            places = (start.unsqueeze(1) + torch.minimum(steps, size.unsqueeze(1))).contiguous()
            yield self.items[places], steps[1:] <= size.unsqueeze(1)


def batches(
    windows: Windows, n_items: int, batch_size: int, n_drawn: int, every: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Endless batches, epoch after epoch, with `n_drawn` random items, all different, in each `every`-th."""
    epochs = itertools.chain.from_iterable(windows.epoch(batch_size, generator) for _ in itertools.count())
    for index, (items, valid) in enumerate(epochs):
        yield items, valid, some(n_items, 0 if index % every else n_drawn, generator)


def some(n_items: int, n_drawn: int, generator: torch.Generator) -> torch.Tensor:
    """Draw different items, at most all there are."""
    if n_drawn * 8 > n_items:
        return torch.randperm(n_items, generator=generator)[:n_drawn]
    # A permutation of a large catalogue for each batch would be slow: draw, and drop what has been drawn before.
    drawn = torch.randint(n_items, (n_drawn,), generator=generator)
    order = torch.sort(drawn, stable=True)
    first = torch.ones(n_drawn, dtype=torch.bool)
    first[order.indices[1:]] = order.values[1:] != order.values[:-1]
    return drawn[first]
