"""Training sequences as batches of windows."""

from collections.abc import Iterator

import numpy as np
import torch

SORT_CHUNK = 50
"""Batches whose windows are sorted by length together: little padding, and still a random mix."""


class Windows:
    """Windows in which every item but a sequence's first is a target once.

    Parameters
    ----------
    offsets, items : sequences as flat arrays.
    length : most items a window shows; its last target comes one later.

    Attributes
    ----------
    start, size : [W] first item of a window and number of its targets.
    """

    def __init__(self, offsets: np.ndarray, items: np.ndarray, length: int) -> None:
        self.items = torch.from_numpy(items)
        n_targets = np.maximum(np.diff(offsets) - 1, 0)
        n_windows = -(-n_targets // length)
        within = np.arange(n_windows.sum()) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
        self.start = np.repeat(offsets[:-1], n_windows) + within * length
        self.size = np.minimum(np.repeat(n_targets, n_windows) - within * length, length)

    @property
    def n_targets(self) -> int:
        """Targets over all windows."""
        return int(self.size.sum())

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all windows once, about `batch_size` targets at a time, in random order.

        Yields
        ------
        items : [R, T + 1], inputs are the first T columns, targets the last T.
        valid : [R, T] which targets are real; padding stands at the right.
        """
        if not len(self.start):
            return
        order = torch.randperm(len(self.start), generator=generator).numpy()
        chunk = (np.cumsum(self.size[order]) - 1) // (batch_size * SORT_CHUNK)
        order = order[np.lexsort((self.size[order], chunk))]
        batch = (np.cumsum(self.size[order]) - 1) // batch_size
        starts = np.flatnonzero(np.diff(batch, prepend=-1))
        parts = np.split(order, starts[1:])
        for index in torch.randperm(len(parts), generator=generator).tolist():
            yield self._gather(parts[index])

    def _gather(self, windows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        start, size = torch.from_numpy(self.start[windows]), torch.from_numpy(self.size[windows])
        steps = torch.arange(int(size.max()) + 1)
        places = (start.unsqueeze(1) + torch.minimum(steps, size.unsqueeze(1))).contiguous()
        return self.items[places], steps[1:] <= size.unsqueeze(1)
