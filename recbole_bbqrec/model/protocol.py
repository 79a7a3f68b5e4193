"""What trainers, the ranker, bundles and measurements ask of a model.

Models of this project are `RankingModel`s, which fills in what they have no use for. RecBole's own are adapted here, by
`ranker_of`, and nowhere else.

Shapes: B histories, T items of the longest, N items (row 0 = padding), W width of vectors.
"""

import threading
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import FeatureType, InputType
from torch import nn

from ..errors import InputError
from .decoding import Pairs


class NeedsDataError(InputError, AttributeError):
    """A model asks its data set for more than the catalogue, which is all there is without the data."""


class Products(NamedTuple):
    """Scores [B, N] are `queries @ keys.T`."""

    queries: torch.Tensor  # [B, W]
    keys: torch.Tensor  # [N, W]


@runtime_checkable
class Ranker(Protocol):
    """A model that scores items after histories."""

    is_beam_search: bool = False
    """Whether items may go without a score (minus infinity): those beyond the beam of a beam search."""

    def shared(self) -> Any:
        """What the scores of all histories share, for `score`; it holds for as long as the weights stay as they are."""
        return None

    def score(
        self,
        histories: torch.Tensor,
        candidates: torch.Tensor | None = None,
        excluded: Pairs | None = None,
        shared: Any = None,
    ) -> torch.Tensor:
        """Score items as the next one after histories [B, T] (0 pads on the right, none is empty).

        Parameters
        ----------
        candidates : item ids [m]; none = all N, padding included. What is asked for by id gets its exact score: a beam
            search is not made.
        excluded : (history, item) pairs that need no score; a beam search does not spend its places on them.
        shared : what `shared` has returned; none = it is computed for this call.

        Returns
        -------
        [B, m] or [B, N]; minus infinity for what a beam search has not found.
        """
        ...

    def products(self, histories: torch.Tensor, shared: Any = None) -> Products | None:
        """Vectors whose products are the scores of `score`, which nobody then has to hold for all items at once.

        None where scores are made otherwise, a second stage among them. Parameters are those of `score`.
        """
        return None


class FirstStage(NamedTuple):
    """What a model itself says of the next items, for a second stage to go on from."""

    scores: torch.Tensor
    """[B, N]."""
    id_log_p: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Log-probability [B, C] of the semantic IDs of items [B, C]; none where the model has no code heads."""


class RankingModel(SequentialRecommender, Ranker):
    """A sequential model of this project: a model gives its `first_stage`, and RecBole's calls are made from `score`.

    `second_stage`, where there is one, makes scores [B, N] of a `FirstStage` and histories [B, T]; see
    `second_stage.socket`.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.second_stage: nn.Module | None = None
        self.catalogue = getattr(dataset, "catalogue", None)  # RecBole's own scripts may bring its data sets

    @property
    def large_table(self) -> nn.Embedding | None:
        """An embedding of which a training step reads few of very many rows, and each of them once; mostly none."""
        return None

    def first_stage(
        self,
        histories: torch.Tensor,
        candidates: torch.Tensor | None = None,
        excluded: Pairs | None = None,
        shared: Any = None,
    ) -> FirstStage:
        """What the model itself says after histories; all N items, though only `candidates` need their exact score.

        Parameters are those of `Ranker.score`.
        """
        raise NotImplementedError

    def score(
        self,
        histories: torch.Tensor,
        candidates: torch.Tensor | None = None,
        excluded: Pairs | None = None,
        shared: Any = None,
    ) -> torch.Tensor:
        """As `Ranker.score`."""
        first = self.first_stage(histories, candidates, excluded, shared)
        scores = first.scores if self.second_stage is None else self.second_stage(first, histories)
        return scores if candidates is None else scores[:, candidates]

    def scores_to_rank(self, histories: torch.Tensor, targets: torch.Tensor, shared: Any = None) -> torch.Tensor:
        """Scores [B, N] by which `targets` [B] have the ranks that they have by `score`; others may be out of order."""
        first = self.first_stage(histories, shared=shared)
        return first.scores if self.second_stage is None else self.second_stage(first, histories, targets)

    def first_products(self, histories: torch.Tensor, shared: Any = None) -> Products | None:
        """As `products`, whether there is a second stage or not."""
        return None

    def products(self, histories: torch.Tensor, shared: Any = None) -> Products | None:
        """As `Ranker.products`."""
        return self.first_products(histories, shared) if self.second_stage is None else None

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B, N] of all items, as RecBole asks for them."""
        return self.score(interaction[self.ITEM_SEQ])

    def predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B] of one item per history, as RecBole asks for them."""
        unique, place = torch.unique(interaction[self.ITEM_ID], return_inverse=True)
        return self.score(interaction[self.ITEM_SEQ], unique).gather(1, place.unsqueeze(1)).squeeze(1)


class _History(Interaction):
    """All there is without a data set: the items of a history and their number."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str) and index not in self.interaction:
            raise NeedsDataError(f"column {index}")
        return super().__getitem__(index)


class RecBoleRanker(Ranker):
    """One of RecBole's own models, scored as it was trained: histories padded to `MAX_ITEM_LIST_LENGTH`."""

    def __init__(self, model: Any, config: Any) -> None:
        self.model, self.length = model, config["MAX_ITEM_LIST_LENGTH"]
        self._one_call = threading.Lock()

    def score(
        self,
        histories: torch.Tensor,
        candidates: torch.Tensor | None = None,
        excluded: Pairs | None = None,
        shared: Any = None,
    ) -> torch.Tensor:
        """As `Ranker.score`; everything gets a score."""
        scores = self._call(self.model.full_sort_predict, histories)
        return scores if candidates is None else scores[:, candidates]

    def first_stage(self, histories: torch.Tensor, shared: Any = None) -> FirstStage:
        """What the model says without the second stage that it may carry, see `second_stage.socket.attach`."""
        return FirstStage(self._call(MethodType(type(self.model).full_sort_predict, self.model), histories))

    def _call(self, predict: Callable[[Interaction], torch.Tensor], histories: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(histories, (0, self.length - histories.shape[1]))
        lengths = (histories != 0).sum(1)
        fields = {self.model.ITEM_SEQ: padded, self.model.ITEM_SEQ_LEN: lengths}
        fields[self.model.ITEM_ID] = torch.zeros_like(lengths)  # SASRecCPR and GRU4RecCPR count a loss and drop it
        with self._one_call:  # RecBole's models may keep state during a call; RepeatNet does
            return predict(_History(fields)).view(len(histories), -1)


PAIRS = 2**14
"""Pairs of a user and an item that are scored at once, by models that score nothing else."""


class UserRanker(Ranker):
    """One of RecBole's models of users and items: it knows the users it was trained with, and no other history."""

    def __init__(self, model: Any, config: Any) -> None:
        self.model, self.uid_field = model, config["USER_ID_FIELD"]

    def score(self, histories: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Raise the error that says what the model reads."""
        raise NeedsDataError(f"the column {self.uid_field}")

    def first_stage(self, histories: torch.Tensor, shared: Any = None) -> FirstStage:
        """As `score`: there is nothing that a second stage could go on from."""
        return FirstStage(self.score(histories))

    def of_users(self, users: Interaction, items: Interaction) -> torch.Tensor:
        """Score all items for users [B]: [B, N].

        Parameters
        ----------
        users : what is known of each user, and of the row where the model reads more of it.
        items : what is known of each item, row 0 is padding.
        """
        try:
            return self.model.full_sort_predict(users).view(len(users), -1)
        except NotImplementedError:
            pass
        n_items, scores = len(items), []
        pairs = torch.arange(len(users) * n_items, device=users[users.columns[0]].device)
        for block in pairs.split(PAIRS):
            asked = Interaction({name: users[name][block // n_items] for name in users.columns})
            asked.update(Interaction({name: items[name][block % n_items] for name in items.columns}))
            scores.append(self.model.predict(asked).view(-1))
        return torch.cat(scores).view(len(users), -1)


def context_fields(model: Any, dataset: Any) -> list[str]:
    """Columns of a row, beside its user and item, that a context-aware model reads: those of tokens and numbers."""
    numbers = set(getattr(model, "numerical_features", ()))
    kinds = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)
    left_out = {dataset.uid_field, dataset.iid_field, dataset.label_field}
    return [
        field
        for field in getattr(model, "field_names", ())
        if field in dataset.inter_feat and field not in left_out
        if field in numbers or dataset.field2type[field] in kinds
    ]


def ranker_of(model: Any, config: Any) -> RankingModel | RecBoleRanker | UserRanker:
    """Return a model as a `Ranker`: itself where it is one of ours."""
    if isinstance(model, RankingModel):
        return model
    return RecBoleRanker(model, config) if isinstance(model, SequentialRecommender) else UserRanker(model, config)
