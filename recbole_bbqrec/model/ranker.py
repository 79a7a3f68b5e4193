"""What trainer, ranker and bundle ask of a model of this project, and RecBole's calls made from it."""

import contextlib
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from .candidates import CandidateSimilarity
from .decoding import Pairs


class Ranker(SequentialRecommender):
    """A sequential model that ranks items by `score`.

    Shapes: B histories, T items of the longest, N items (0 = padding), m items to be scored.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.candidates: CandidateSimilarity | None = None
        """Set by the trainer, or read from the run's folder; not part of what training learns."""

    @property
    def is_beam_search(self) -> bool:
        """Whether items may go without a score (minus infinity): those beyond the beam."""
        return False

    def score(self, histories: Tensor, candidates: Tensor | None = None, excluded: Pairs | None = None) -> Tensor:
        """Score items as the next one after histories [B, T] (0 pads on the right, none is empty).

        Parameters
        ----------
        candidates : item ids [m]; none = all N, padding included.
        excluded : (history, item) pairs that need no score; a beam search does not spend its places on them.

        Returns
        -------
        [B, m] or [B, N]; minus infinity for what a beam search has not found.
        """
        raise NotImplementedError

    def cached_rows(self) -> contextlib.AbstractContextManager[None]:
        """Compute what all histories have in common once for all scores within the block; nothing may change it."""
        return contextlib.nullcontext()

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores [B, N] of all items, as RecBole asks for them."""
        return self.score(interaction[self.ITEM_SEQ])

    def predict(self, interaction: Any) -> Tensor:
        """Scores [B] of one item per history, as RecBole asks for them."""
        unique, place = torch.unique(interaction[self.ITEM_ID], return_inverse=True)
        return self.score(interaction[self.ITEM_SEQ], unique).gather(1, place.unsqueeze(1)).squeeze(1)
