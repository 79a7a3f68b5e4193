"""Folds of histories by hash: what was fitted on a history must not score it.

Shapes: B histories, T items of the longest, N items (row 0 = padding).
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

FACTOR = -7046029254386353131  # odd, so that no power of it loses bits modulo 2 ** 64; the golden ratio's bits

AT_ONCE = 2**15
"""Histories that are held at once where many are hashed."""


class Folds(nn.Module):
    """Puts every history into one of K folds, and knows which histories were fitted on.

    Parameters
    ----------
    n_folds : number K.
    item_hashes : [N + 1] see `hashes_of`.

    Attributes
    ----------
    fitted : hashes of the histories that were fitted on, ascending, each once.
    """

    item_hashes: torch.Tensor
    fitted: torch.Tensor

    def __init__(self, n_folds: int, item_hashes: torch.Tensor) -> None:
        super().__init__()
        self.n_folds = n_folds
        self.register_buffer("item_hashes", item_hashes)
        self.register_buffer("fitted", torch.zeros(0, dtype=torch.long))

    def hashes(self, histories: torch.Tensor) -> torch.Tensor:
        """64-bit hashes [B] of histories [B, T]: of their items' tokens in order, however wide the padding is."""
        known = self.item_hashes[histories.clamp(max=len(self.item_hashes) - 1)]
        powers = torch.full_like(known[:1], FACTOR).cumprod(1)
        return (known * powers).sum(1)  # modulo 2 ** 64

    def forward(self, histories: torch.Tensor) -> torch.Tensor:
        """Fold [B] of each history that was fitted on; K for all others."""
        hashes = self.hashes(histories)
        is_fitted = torch.searchsorted(self.fitted, hashes, right=True) > torch.searchsorted(self.fitted, hashes)
        return torch.where(is_fitted, fold_of(hashes, self.n_folds), self.n_folds)


def hashes_of(tokens: Sequence[str]) -> torch.Tensor:
    """64-bit hashes [N + 1] of item tokens by item id: 0 for padding, and one for all items that come later."""
    digests = (hashlib.blake2b(token.encode(), digest_size=8).digest() for token in [*tokens[1:], ""])
    return torch.tensor([0, *(int.from_bytes(digest, "little", signed=True) for digest in digests)])


def fold_of(hashes: torch.Tensor, n_folds: int) -> torch.Tensor:
    """Fold [B] of histories with these hashes, from 0 to K - 1: their range is cut into K equal parts."""
    return (((hashes >> 32) + 2**31) * n_folds) >> 32


def first_by_hash(hashes: torch.Tensor, target_hashes: torch.Tensor) -> torch.Tensor:
    """Return rows [R] in an order of hashes [R] of histories and of their targets: a sample is the beginning of it.

    The order goes by items, not by users' numbers, which depend on held-out rows, and by bits of the hash that do not
    decide the folds.
    """
    rows = target_hashes.argsort(stable=True)
    return rows[(hashes[rows] << 32).argsort(stable=True)]


def sample_of(
    lists: Callable[[np.ndarray], torch.Tensor], targets: torch.Tensor, tokens: Sequence[str], size: int
) -> np.ndarray:
    """Return `size` of the rows, ascending: what `first_by_hash` begins with; all where there are no more.

    `lists` gives the histories [n, T] of some rows [n], which are never held all at once; `targets` [R] are the next
    items of all of them, `tokens` those of the items by id.
    """
    every = np.arange(len(targets))
    if len(every) <= size:
        return every
    folds = Folds(1, hashes_of(tokens))
    parts = np.split(every, range(AT_ONCE, len(every), AT_ONCE))
    hashes = torch.cat([folds.hashes(lists(part)) for part in parts])
    return first_by_hash(hashes, folds.item_hashes[targets])[:size].sort().values.numpy()
