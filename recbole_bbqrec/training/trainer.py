"""RecBole's `Trainer` under this project's protocol: masked early stopping, exact resume, no pickle."""

import contextlib
import random
import shutil
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.utils import set_color

from .. import claims, compat, distributed, run_log
from ..data.dataloader import seed_batches
from ..errors import InputError
from ..evaluation.candidates import sampling_of
from ..evaluation.configuration import judged_parts
from ..evaluation.labels import of_rankings
from ..model.padding import LENGTH_INDEPENDENT, group_by_length
from ..second_stage import socket
from ..settings import second_stage_settings
from ..tokenizer import memory
from ..tokenizer.memory import PeakMemory
from . import checkpoint
from .afterwards import Decided, SecondStageFit
from .checkpoint import LAST_FILE, WEIGHTS_FILE, RunFolder, TrainingState
from .shares import joint_loss
from .steps import check_finite

RESUMED = ("cur_step", "best_valid_score", "best_valid_result")
"""What RecBole's trainer knows of the validation so far; kept with our own state."""


class ProtocolTrainer(SecondStageFit):
    """RecBole's trainer with the protocol of this project; works over any RecBole trainer as a mixin.

    A run keeps its files in one folder, see `RunFolder`: the best weights by masked validation score, and the state
    after the last epoch. Every epoch starts from a seed of its own, so a run that was killed goes on to the very result
    it would have had.

    Attributes
    ----------
    folder : where the run keeps its files; known once `fit` has seen the data.
    decided : set before `fit` where another run has decided what validation decides.
    """

    _keeps_last = False

    def __init__(self, config: Any, model: Any) -> None:
        with contextlib.nullcontext() if distributed.is_main() else compat.writing_no_events():
            super().__init__(config, model)
        self.eval_collector = compat.ListCollector(config)
        if config["length_groups"] and config["model"] in LENGTH_INDEPENDENT:
            group_by_length(model)
        self.state, self._memory = TrainingState(), PeakMemory()

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
        with self._claimed() if saved else contextlib.nullcontext():
            self._fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        distributed.barrier()  # what the main process has kept is there for all
        return self.best_valid_score, self.best_valid_result

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """Keep other runs out of the folder of this training; an `InputError` where one is at it."""
        claim = claims.take(self.folder.training) if distributed.is_main() else None
        if not distributed.agreed(lambda: claim):
            raise InputError(
                f"{self.folder.training}: another run of the same command is training there; wait for its end, or give "
                "--checkpoint_dir another folder"
            )
        try:
            yield
        finally:
            if claim:
                claim.release()

    def _fit(
        self, train_data: Any, valid_data: Any, verbose: bool, saved: bool, show_progress: bool, callback_fn: Any
    ) -> None:
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
            self._tell_end()
        elif saved and not self.epochs:  # the model as it begins
            self._save_checkpoint(-1, verbose)

    def _tell_end(self) -> None:
        seconds = sum(self.state.epoch_seconds) + sum(self.state.evaluate_seconds)
        best = f"; best {self.valid_metric} {self.best_valid_score:.4f}, in epoch {(self.state.best_epoch or 0) + 1}"
        self.logger.info(f"trained {self.state.epochs_done} epochs in {seconds:.0f} s" + best * self._validates)

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """All optimizers of the model; RecVAE's trainer uses the name `optimizer` for its other ones in turn."""
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
        with compat.bars_that_go():
            return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def _check_nan(self, loss: torch.Tensor) -> None:
        check_finite(loss)

    def _save_checkpoint(self, epoch: int | None, verbose: bool = True, **kwargs: Any) -> None:
        if not distributed.is_main():
            return
        path = Path(kwargs.get("saved_model_file", self.saved_model_file))
        checkpoint.save_weights(path, self.model, self._header(epoch))
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}", extra=run_log.DETAIL)

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

    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        """Evaluate with RecBole's own evaluator (unmasked column), on the best weights unless told otherwise.

        It cannot rank items that the model was not trained with (`cold_items`), nor the candidates of our samples
        (`eval_args.mode`), which is an `InputError`.
        """
        if 0 < len(of_rankings(self.config["metrics"])) < len(self.config["metrics"]):
            raise InputError(
                "metrics: RecBole's evaluator judges labels or rankings; take the run script, or name one kind"
            )
        if any(sampling_of(self.config.final_config_dict, split) for split in ("valid", "test")):
            raise InputError("eval_args: RecBole's evaluator samples other items; take the run script, or mode full")
        if self.config["cold_items"]:
            raise InputError("cold_items: RecBole's evaluator ranks no new items; take the run script, or drop it")
        if load_best_model:
            self.load_best(model_file)
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    def timings(self) -> dict[str, float]:
        """Seconds of `train` (all epochs with their validation), of a median `epoch` and of a median `evaluate`.

        Where a `second stage` was made and fitted, now or before, its seconds too.
        """
        seconds = {"epoch": self.state.epoch_seconds, "evaluate": self.state.evaluate_seconds}
        medians = {name: statistics.median(values) if values else 0.0 for name, values in seconds.items()}
        afterwards = {"second stage": self._stage_seconds} if second_stage_settings(self.config) else {}
        return {"train": sum(map(sum, seconds.values())), **medians, **afterwards}
