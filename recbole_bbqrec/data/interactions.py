"""The data set of models that learn from pairs of a user and an item: rows are interactions, as RecBole has them."""

from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from . import splitting
from .dataset import MultiModalSequentialDataset
from .loading import taken
from .sequences import Histories, token_places


class InteractionDataset(MultiModalSequentialDataset):
    """As `MultiModalSequentialDataset`, with a row for every interaction, the first one of a user too.

    Files, filters and ids are those of sequential models. `leave_one_out` has their targets: a user's first two
    interactions stay in training. All other splits are RecBole's of the same seed, row by row.

    What stands in `histories` for a row is what its user has done in earlier parts of the split, in the order of time
    where there is one. Rows of one user share it, and training rows have nothing there.
    """

    rows_are_interactions = True

    @property
    def is_ordered(self) -> bool:
        """Whether the rows of a user stand in an order that says something: that of time, or of the file for it."""
        return self.config["eval_args"]["order"] == "TO" and self.config["TIME_FIELD"] is not None

    @property
    def positive_rows(self) -> np.ndarray | None:
        """Rows [R] whose label is 1; none where rows have no labels."""
        if self.label_field not in self.inter_feat:
            return None
        return np.flatnonzero(self.inter_feat[self.label_field].numpy() > 0)

    def positive(self) -> Any:
        """This part of a split with its positive rows alone."""
        rows = self.positive_rows
        if rows is None:
            return self
        part = self.copy(taken(self.inter_feat, rows))
        part.histories = self.histories[rows]
        return part

    def data_augmentation(self) -> None:
        """Leave the rows as they are."""

    def _benchmark_presets(self) -> None:
        """Leave the rows of files that are split already as they are."""

    def _splits(self) -> list[Any]:
        return Dataset.build(self)

    def _set_histories(self, splits: list[Any]) -> None:
        """Give all parts one list of items: of each user what is in training, then what is in validation and test."""
        for part in splits[1:]:  # as RecBole's loaders put them, so that they find nothing to move
            part.inter_feat.sort(by=self.uid_field)
        sizes = [len(part.inter_feat) for part in splits]
        users, items, times = (
            np.concatenate([part.inter_feat[field].numpy() for part in splits])
            for field in (self.uid_field, self.iid_field, self.time_field)
        )
        phase = np.repeat(np.arange(len(splits)), sizes)
        order = np.lexsort((self.places_of(items, times), phase, token_places(self, self.uid_field)[users]))
        user_of, begin = users[order], np.zeros(self.user_num, np.int64)
        firsts = np.flatnonzero(np.r_[True, np.diff(user_of) != 0][: len(order)])
        begin[user_of[firsts]] = firsts
        done = [begin]  # of each user, where each part begins in the list
        for part in splits[:-1]:
            done.append(done[-1] + np.bincount(part.inter_feat[self.uid_field].numpy(), minlength=self.user_num))
        for part, stop in zip(splits, done, strict=True):
            rows = part.inter_feat[self.uid_field].numpy()
            part.histories = Histories(items[order], begin[rows], stop[rows])

    def places_of(self, items: np.ndarray, times: np.ndarray) -> np.ndarray:
        """What a user's rows [R] are ordered by: time, ties as they stand, or the token where there is no order.

        Rows of files that are split already stand in any order; all others stand in that of time.
        """
        return times if self.is_ordered else token_places(self, self.iid_field)[items]

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[Any]:
        """Give each user's last rows to validation and test, as of a sequence: the first one is no target there."""
        by_user = splitting.grouped(self.inter_feat[group_by].numpy())
        rest = np.sort(by_user.rows[by_user.place > 0])
        parts = [
            rest[part] for part in splitting.leave_one_out(self.inter_feat[group_by].numpy()[rest], leave_one_mode)
        ]
        held_out = np.isin(by_user.rows, np.concatenate(parts[1:]))
        return self._parts([by_user.rows[~held_out], *parts[1:]])

    def shuffle(self) -> None:
        """Shuffle as RecBole does right after it has set the seed, whatever has been drawn since."""
        generator = torch.Generator().manual_seed(self.config["seed"])
        self.inter_feat = taken(self.inter_feat, torch.randperm(len(self.inter_feat), generator=generator).numpy())

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """As RecBole's of interactions; that of sequences looks for the first item of each."""
        return Dataset.inter_matrix(self, form, value_field)

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        return Dataset.__getitem__(self, index, join)
