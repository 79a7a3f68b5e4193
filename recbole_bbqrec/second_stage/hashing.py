"""Folds of histories by hash: what was fitted on a history must not score it.

Shapes: B histories, T items of the longest, N items (row 0 = padding).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

FACTOR = -7046029254386353131  # odd, so that no power of it loses bits modulo 2 ** 64; the golden ratio's bits


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
