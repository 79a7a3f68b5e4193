"""How a model is judged: on validation after each epoch, which decides the best one, and on a split for tables."""

import time
from collections import OrderedDict
from typing import Any

import numpy as np

from .. import run_log
from ..data.cold_items import is_cold
from ..data.sequences import token_places
from ..errors import InputError
from ..evaluation.labels import LABEL_METRICS, of_rankings
from ..evaluation.ranking import Ranks, rows_of_some
from ..evaluation.sample import sampled_rows
from .checkpoint import TrainingState
from .labelled import judge_labels
from .target_ranks import TargetRanks

STOPS_ON = 10_000
"""Rows of validation, at most, that decide which epoch is the best; docs/speed.md says what that costs."""


class Validation(TargetRanks):
    """The part of a trainer that judges its model."""

    state: TrainingState
    _train_dataset: Any = None
    _validates = _samples = True
    _last_ranks: Ranks | None = None  # of the last validation, and of the best
    _best_ranks: Ranks | None = None

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        started = time.perf_counter()
        if self.valid_metric in LABEL_METRICS:
            metrics, self._last_ranks = {"masked": {}, "unmasked": self.judge_labels("valid", valid_data)["all"]}, None
        else:
            metrics = self._validate(valid_data, show_progress)
        self.state.evaluate_seconds.append(time.perf_counter() - started)
        score = {**metrics["unmasked"], **metrics["masked"]}[self.valid_metric]
        better, worse = (score, self.best_valid_score)[:: 1 if self.valid_metric_bigger else -1]
        if better >= worse:  # RecBole's rule: an equal score counts as better
            self.state.best_epoch, self._best_ranks = self.state.epochs_done - 1, self._last_ranks
        self._tell(score, show_progress)
        # RecBole's own names stay what RecBole means by them, the unmasked column.
        masked = {f"masked_{name}": value for name, value in metrics["masked"].items()}
        return score, OrderedDict({**masked, **metrics["unmasked"]})

    def _tell(self, score: float, show_progress: bool) -> None:
        """Say how the epoch was judged; where bars show it, in the log file alone."""
        best = (self.state.best_epoch or 0) + 1
        what = f"epoch {self.state.epochs_done}: {self.valid_metric} {score:.4f}"
        marked = (
            ", the best so far" if best == self.state.epochs_done else f"; best {self.best_valid_score:.4f} in {best}"
        )
        self.logger.info(what + marked, extra=run_log.DETAIL if show_progress else None)

    def _validate(self, valid_data: Any, show_progress: bool) -> dict[str, dict[str, float]]:
        """Metrics of validation by column; where items are held out of training, those of warm targets alone.

        Of many rows a sample decides when to stop, the same after each epoch.
        """
        told = self._told_of(valid_data)
        judged = np.arange(len(valid_data._dataset.inter_feat)) if told is None else told
        sample = judged[self._sampled(valid_data._dataset, judged)]
        are_all = len(sample) == len(judged)
        ranks = self.rank(valid_data, [self._train_dataset], show_progress, told if are_all else sample)
        self._last_ranks = ranks if are_all else None
        asked, groups = (self.config["metrics"], self.config["topk"]), ranks.groups()
        found = groups["all"].metrics(*asked)
        warm = groups["warm"].metrics(*asked) if "warm" in groups else found
        return {column: {**found[column], **warm[column]} for column in found}

    def _sampled(self, dataset: Any, judged: np.ndarray) -> np.ndarray:
        """Places among the `judged` rows that decide when to stop; where users have several, those of as many users."""
        most = STOPS_ON if self._samples else 0
        if not dataset.rows_are_interactions:
            return sampled_rows(len(judged), most, self.config["seed"])
        places = token_places(dataset, dataset.uid_field)
        found = rows_of_some(places[dataset.inter_feat[dataset.uid_field].numpy()[judged]], most)
        return np.arange(len(judged)) if found is None else found

    def judge(self, split: str, eval_data: Any, earlier: list[Any], show_progress: bool = False) -> Ranks:
        """Ranks of a split for tables; those of the best epoch where they are of the same users and still hold."""
        rows, best = self._told_of(eval_data) if split == "valid" else None, self._best_ranks
        if split == "valid" and best is not None and self.model.second_stage is None and _same(rows, best.rows):
            return best
        return self.rank(eval_data, earlier, show_progress, rows)

    def _told_of(self, valid_data: Any) -> np.ndarray | None:
        """Rows of validation that tables report on, see `valid_users`; none where those are all."""
        if not self.config["valid_users"]:
            return None
        dataset = valid_data._dataset
        rows, cold = rows_of_users(dataset, self.config["valid_users"]), is_cold(dataset)
        if rows is not None and cold is not None and len(np.unique(cold[rows])) < 2:
            raise InputError("valid_users: found only warm or only cold targets among those drawn; raise it")
        return rows

    def judge_labels(self, split: str, eval_data: Any) -> dict[str, dict[str, float]]:
        """Metrics of a split's labels by group of rows, see `labelled.judge_labels`; none without such metrics."""
        if len(of_rankings(self.config["metrics"])) == len(self.config["metrics"]):
            return {}
        return judge_labels(self.config, self.model, eval_data._dataset, self._train_dataset, split)


def rows_of_users(dataset: Any, n_users: int) -> np.ndarray | None:
    """Rows of a part of a data set that are of `n_users` of its users, see `rows_of_some`."""
    places = token_places(dataset, dataset.uid_field)
    return rows_of_some(places[dataset.inter_feat[dataset.uid_field].numpy()], n_users)


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
