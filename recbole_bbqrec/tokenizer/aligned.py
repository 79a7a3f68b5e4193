"""An RQ-VAE of features whose quantised vectors lie as behaviour does, after LETTER; see `AlignedTokenizer`.

Shapes: N items, B of a batch, D code width.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from . import measures
from .base import Flat
from .behavior_bind import Catalogue
from .features import Objective, RQVAETokenizer
from .losses import info_nce

WINDOW = 3
"""Places in a sequence at which two items still count as met."""
SHIFT = 1.0
"""Subtracted from the PMI: a pair counts where it is met more than e times as often as by chance. Larger shifts find a
little more on Beauty, and leave nothing of catalogues with few groups of items."""


@dataclass(eq=False, kw_only=True)
class AlignedTokenizer(RQVAETokenizer):
    """The RQ-VAE with its quantised vectors aligned to collaborative ones (LETTER, Wang et al. 2024, arXiv 2405.07314).

    LETTER takes the collaborative vectors of a trained recommender; here they are `collaborative_vectors`, made in
    `fit` from its sequences alone. Its third regularisation, an even use of the codes, is left to the restarts of dead
    codes. Items without features, or that no sequence has near another, take no part in the alignment. `encode` goes
    by features alone.

    Parameters
    ----------
    alignment_weight : of the contrast between an item's quantised and its collaborative vector; it counts nats, the
        reconstruction beside it the squared error of all standardised features together. Other arguments as in
        `RQVAETokenizer`.
    """

    name: ClassVar[str] = "aligned"

    alignment_weight: float = 1000.0

    def _objective(self, catalogue: Catalogue, sequences: Flat) -> Objective:
        n_items = catalogue.known.shape[1]
        behavior = collaborative_vectors(*sequences, n_items, self.code_dim, self.seed).to(catalogue.known.device)
        taking_part = behavior.any(1) & catalogue.known.any(0)

        def objective(items: torch.Tensor, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
            kept = taking_part[items]
            items = items[kept]
            return {"alignment": self.alignment_weight * info_nce(vectors[kept], behavior[items], items)}

        return objective


def collaborative_vectors(offsets: np.ndarray, items: np.ndarray, n_items: int, width: int, seed: int) -> torch.Tensor:
    """Vectors [N, width] whose inner products follow how much more often than by chance items stand near each other.

    The truncated SVD of the shifted positive PMI (Levy and Goldberg 2014) of items at most `WINDOW` places apart, each
    direction by the root of its singular value. Items that are never met so are zero, and so is what exceeds the rank.
    """
    left, right, counts = measures.cooccurrence(offsets, items, n_items, WINDOW)
    met = np.bincount(left, counts, n_items)
    pmi = np.log(counts * met.sum() / (met[left] * met[right]))
    matrix = csr_array(((pmi - SHIFT).clip(min=0), (left, right)), shape=(n_items, n_items))
    vectors, rank = np.zeros((n_items, width)), min(width, n_items - 1)
    if matrix.sum() > 0:
        start = np.random.default_rng(seed).normal(size=n_items)
        directions, values, _ = svds(matrix, k=rank, v0=start)
        signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(rank)])  # either would do; this one is taken
        vectors[:, :rank] = directions * signs * np.sqrt(values)
    vectors[np.asarray(matrix.sum(1)) == 0] = 0.0  # exactly
    return torch.from_numpy(vectors).float()
