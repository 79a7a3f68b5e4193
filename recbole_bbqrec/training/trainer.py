"""RecBole's `Trainer` under this project's protocol: masked early stopping, exact resume, no pickle."""

import contextlib
import functools
import random
import shutil
import statistics
import time
import warnings
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.utils import set_color
from tqdm import tqdm

from .. import compat, distributed
from ..data.cold_items import is_cold
from ..data.dataloader import seed_batches, seeded_draws
from ..data.sequences import seen_before, token_places
from ..errors import InputError
from ..evaluation.configuration import judged_parts
from ..evaluation.labels import LABEL_METRICS
from ..evaluation.ranking import COLUMNS, Ranks, rows_of_some
from ..evaluation.sample import sampled_rows
from ..model.padding import LENGTH_INDEPENDENT, group_by_length
from ..model.protocol import ranker_of
from ..second_stage import socket
from ..settings import second_stage_settings
from ..tokenizer import memory
from ..tokenizer.memory import PeakMemory
from . import checkpoint
from .afterwards import Decided, TrainingState
from .checkpoint import LAST_FILE, WEIGHTS_FILE, RunFolder
from .row_ranks import RowRanks
from .shares import joint_loss
from .steps import check_finite

STOPS_ON = 10_000
"""Rows of validation, at most, that decide which epoch is the best; docs/speed.md says what that costs."""
RESUMED = ("cur_step", "best_valid_score", "best_valid_result")
"""What RecBole's trainer knows of the validation so far; kept with our own state."""


class ProtocolTrainer(RowRanks):
    """RecBole's trainer with the protocol of this project; works over any RecBole trainer as a mixin.

    A run keeps its files in one folder, see `RunFolder`: the best weights by masked validation score, and the state
    after the last epoch. Every epoch starts from a seed of its own, so a run that was killed goes on to the very result
    it would have had.

    Attributes
    ----------
    folder : where the run keeps its files; known once `fit` has seen the data.
    decided : set before `fit` where another run has decided what validation decides.
    """

    _keeps_last, _samples = False, True

    def __init__(self, config: Any, model: Any) -> None:
        with contextlib.nullcontext() if distributed.is_main() else compat.writing_no_events():
            super().__init__(config, model)
        self.eval_collector = compat.ListCollector(config)
        if config["length_groups"] and config["model"] in LENGTH_INDEPENDENT:
            group_by_length(model)
        self.ranker = ranker_of(model, config)
        self.state, self._memory = TrainingState(), PeakMemory()
        # Of each split, what its users have seen before it, and what its targets are ranked among: collected once.
        self._seen_before, self._candidates = functools.cache(seen_before), functools.cache(self._drawn)

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """Train as RecBole does; go on where an earlier run of the same settings and data stopped.

        A run that was interrupted goes on in its folder; one of fewer epochs that ended at its cap goes on from a copy.
        Without validation, training ends at the cap on epochs and the weights of the last one are kept.
        """
        train_data = self._training_batches(train_data)
        valid_data = self._open_run(train_data, valid_data)
        path = self.folder.training / LAST_FILE
        if saved and self.config["resume"] and distributed.agreed(lambda: path.is_file() or self._take_over()):
            header = checkpoint.load_training(path, self.model, self._optimizers)
            self.start_epoch, self.state = header["epoch"] + 1, TrainingState(**header["state"])
            for name in RESUMED:
                setattr(self, name, header[name])
            memory.count(self.state.peak_memory_mib)
            going_on = f"going on at epoch {self.start_epoch}"
            done = "finished run found, training is skipped" if self._is_finished else going_on
            self.logger.info(f"{path}: {done} (--resume=False trains anew)")
        elif saved and distributed.is_main():
            shutil.rmtree(self.folder.training, ignore_errors=True)
        distributed.broadcast(self.model.state_dict().values())

        def after_epoch(epoch: int, score: float) -> None:
            if saved:
                self._save_last(epoch)
            if callback_fn:
                callback_fn(epoch, score)

        if not self._is_finished:
            self._keeps_last = saved and not self._validates
            super().fit(train_data, valid_data, verbose, saved, show_progress, after_epoch)
            if saved:
                self._save_last(self.state.epochs_done - 1)
        elif saved and not self.epochs:  # the model as it begins
            self._save_checkpoint(-1, verbose)
        distributed.barrier()  # what the main process has kept is there for all
        return self.best_valid_score, self.best_valid_result

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """All that train the model; RecVAE's takes `optimizer` in turns as a name of its other ones."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, torch.optim.Optimizer)}
        others = [value for name, value in found.items() if name != "optimizer"]
        return others or [self.optimizer]

    @property
    def _is_finished(self) -> bool:
        return self.start_epoch >= self.epochs or self.cur_step > self.stopping_step

    def _take_over(self) -> bool:
        """Copy the longest training that is the beginning of this one; returns whether there is any."""
        for shorter in self.folder.shorter:
            if (shorter / LAST_FILE).is_file() and (shorter / WEIGHTS_FILE).is_file():
                checkpoint.copy_training(shorter, self.folder.training)
                self.logger.info(f"{shorter}: the same training with fewer epochs, taken over")
                return True
        return False

    def _training_batches(self, train_data: Any) -> Any:
        return train_data

    def _open_run(self, train_data: Any, valid_data: Any) -> Any:
        """Name the run's folder; returns the validation data, none where there is to be no validation."""
        if valid_data is not None and not len(valid_data):
            if "valid" in judged_parts(self.config):
                why = "users need at least four items; loosen the filters of the data set"
                raise InputError(f"no validation interaction: {why}")
            valid_data = None
        self._validates, self._best_ranks = valid_data is not None and self.eval_step > 0, None
        socket.check(self.model, self.config)
        self._train_dataset = train_data._dataset
        self.eval_collector.data_collect(SimpleNamespace(dataset=self._train_dataset))
        socket.attach(self.model, None)
        parts = [data._dataset for data in (train_data, valid_data) if data is not None]
        found = RunFolder.of(self.config, parts, [type(self), type(self.model)])
        # Features of another machine may differ in their last bits, and with them the names.
        path, training = (Path(distributed.told(str(place))) for place in (found.path, found.training))
        self.folder = found._replace(path=path, training=training)
        self.saved_model_file = str(self.folder.training / WEIGHTS_FILE)
        return valid_data

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        if self._keeps_last and epoch_idx > self.start_epoch:
            self._save_last(epoch_idx - 1)  # with validation, RecBole says when an epoch's weights are kept
        # One seed per epoch: what an epoch draws does not depend on whether the process began with it.
        seed = int(np.random.SeedSequence([self.config["seed"], epoch_idx]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (RecBole's samplers draw from numpy's global state)
        distributed.part_draws(seed)
        seed_batches(train_data, seed)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*GradScaler", category=FutureWarning)
            if distributed.world() > 1:
                loss_func = joint_loss(self.model)
            loss = self._take_steps(train_data, epoch_idx, loss_func, show_progress)
        loss = distributed.total(loss)
        self.state.epoch_seconds.append(time.perf_counter() - started)
        self.state.epochs_done = epoch_idx + 1
        if not self._validates:
            self.state.best_epoch = epoch_idx
        return loss

    def _take_steps(self, train_data: Any, epoch_idx: int, loss_func: Any, show_progress: bool) -> Any:
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def _check_nan(self, loss: torch.Tensor) -> None:
        check_finite(loss)

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
        # RecBole's own names stay what RecBole means by them, the unmasked column.
        masked = {f"masked_{name}": value for name, value in metrics["masked"].items()}
        return score, OrderedDict({**masked, **metrics["unmasked"]})

    def _validate(self, valid_data: Any, show_progress: bool) -> dict[str, dict[str, float]]:
        """Metrics of validation by column; where items are held out of training, they judge training as little.

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
        """Places of rows among the `judged` that decide when to stop; where users have several, of so many users."""
        most = STOPS_ON if self._samples else 0
        if not dataset.rows_are_interactions:
            return sampled_rows(len(judged), most, self.config["seed"])
        places = token_places(dataset, dataset.uid_field)
        found = rows_of_some(places[dataset.inter_feat[dataset.uid_field].numpy()[judged]], most)
        return np.arange(len(judged)) if found is None else found

    def _save_checkpoint(self, epoch: int | None, verbose: bool = True, **kwargs: Any) -> None:
        if not distributed.is_main():
            return
        path = Path(kwargs.get("saved_model_file", self.saved_model_file))
        checkpoint.save_weights(path, self.model, self._header(epoch))
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")

    def _save_last(self, epoch: int) -> None:
        if not distributed.is_main():
            return
        self.state.peak_memory_mib = self._memory.mib
        header = {"epoch": epoch, "state": asdict(self.state), **{name: getattr(self, name) for name in RESUMED}}
        checkpoint.save_training(self.folder.training / LAST_FILE, self.model, self._optimizers, header)

    @property
    def hit_cap(self) -> bool:
        """Whether validation was cut short by the cap on epochs: perhaps there are better ones beyond it."""
        if self.decided is not None:
            return self.decided.hit_cap
        return self._validates and self.state.epochs_done >= self.config["epochs"]  # models that count have one epoch

    def decide(self) -> Decided:
        """What a training on all interactions takes over from this finished run."""
        epochs = 0 if self.state.best_epoch is None else self.state.best_epoch + 1
        return Decided(epochs, self.hit_cap, self.state.chosen, self.model.second_stage)

    @torch.no_grad()
    def rank(
        self, eval_data: Any, earlier: list[Any], show_progress: bool = False, rows: np.ndarray | None = None
    ) -> Ranks:
        """Rank the target of every row of `eval_data`, or of some `rows` [R], with the model as it is.

        `eval_data` is RecBole's full-sort evaluation loader, `earlier` the data sets before it, see `seen_before`. Of
        several processes each ranks a share of the rows, and all of them get all ranks.
        """
        self.model.eval()
        dataset = eval_data._dataset
        self.tot_item_num = dataset.item_num
        if self.item_tensor is None:
            self.item_tensor = dataset.get_item_feature().to(self.device)
        if (liked := dataset.positive_rows) is not None:
            rows = liked if rows is None else np.intersect1d(rows, liked)
        judged = np.arange(len(dataset.inter_feat)) if rows is None else rows
        order = self._order(dataset, judged)
        judging = self._judging(dataset, tuple(earlier), judged)
        n_parts = distributed.rounded(-(-len(order) // self.config["eval_batch_size"]))
        own = [part for part in distributed.share(np.array_split(order, n_parts)) if len(part)] if n_parts else []
        bar = tqdm(total=sum(map(len, own)), desc="Rank", ncols=100, disable=not show_progress)
        ranker, cold = self._ranker_for(dataset), is_cold(dataset)
        shared, parts = ranker.shared(), []
        # Some of RecBole's models of users draw while they score.
        with bar, seeded_draws(self.config["seed"], dataset.rows_are_interactions):
            for part in own:
                parts.append(self._rank_rows(eval_data, judged[part], judging, ranker, shared))
                bar.update(len(part))
        ranks = np.zeros((len(COLUMNS), len(order)), np.int64)
        if parts:  # they come from the device once, after the last one
            ranks[:, np.concatenate(own)] = torch.cat(parts, dim=1).cpu().numpy()
        distributed.add(ranks)  # zeros, where other processes have ranked
        users = dataset.inter_feat[dataset.uid_field].numpy()[judged]
        cold = None if cold is None else cold[judged]
        shown = judging.shown and judging.shown.total(earlier[0], self.config["tail_ratio"])
        return Ranks(users, *ranks, cold=cold, rows=rows, per_user=dataset.rows_are_interactions, shown=shown)

    def timings(self) -> dict[str, float]:
        """Seconds of `train` (all epochs with their validation), of a median `epoch` and of a median `evaluate`.

        Where a `second stage` was made and fitted, now or before, its seconds too.
        """
        seconds = {"epoch": self.state.epoch_seconds, "evaluate": self.state.evaluate_seconds}
        medians = {name: statistics.median(values) if values else 0.0 for name, values in seconds.items()}
        afterwards = {"second stage": self._stage_seconds} if second_stage_settings(self.config) else {}
        return {"train": sum(map(sum, seconds.values())), **medians, **afterwards}
