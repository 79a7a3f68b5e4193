"""What comes after training: its best weights, a second stage fitted on validation, and what other runs take over."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import distributed, run_log
from ..second_stage import socket
from ..second_stage.hashing import sample_of
from ..settings import plain_settings, second_stage_settings
from ..tokenizer import memory
from . import checkpoint
from .checkpoint import WEIGHTS_FILE, RunFolder
from .validation import Validation

FITTED_ON = 50_000
"""Rows of validation that a second stage is fitted on, at most: more than either form takes of them."""
SECONDS, MEMORY = "second_stage_seconds", "peak_memory_mib"
"""Keys in the header of a run's weights."""


class Decided(NamedTuple):
    """What validation has decided in a finished run, for a training without validation on all interactions.

    Attributes
    ----------
    epochs : number of epochs up to the best one; 0 for a model that counts instead of training.
    hit_cap : as `ProtocolTrainer.hit_cap`.
    chosen : settings of a model that counts.
    second_stage : fitted after training, none where nothing is.
    """

    epochs: int
    hit_cap: bool
    chosen: dict[str, float]
    second_stage: Any


class SecondStageFit(Validation):
    """The part of a trainer that fits a second stage on validation once training is done, see `second_stage.socket`.

    What another run has fitted is taken over, for this run's sequences.
    """

    saved_model_file: str
    folder: RunFolder
    decided: Decided | None = None
    _memory: memory.PeakMemory
    _stage_seconds = 0.0

    def load_best(self, model_file: Any = None) -> None:
        """Put the best weights by validation into the model."""
        path = Path(model_file or self.saved_model_file)
        checkpoint.load_weights(path, self.model)
        self.logger.info(f"Loading model structure and parameters from {path}", extra=run_log.DETAIL)

    def finish(self, valid_data: Any, show_progress: bool = False) -> None:
        """Load the best weights into the model, and fit its second stage on validation, once for each run folder."""
        self.load_best()
        path = self.folder.path / WEIGHTS_FILE
        if path == Path(self.saved_model_file):
            return
        if not (self.config["resume"] and distributed.agreed(path.is_file) and self._load_fitted(path)):
            started = time.perf_counter()
            memory.give_back()
            self._fit_second_stage(valid_data, show_progress)
            self._stage_seconds = time.perf_counter() - started
            header = {SECONDS: self._stage_seconds, MEMORY: self._memory.mib}
            if distributed.is_main():
                checkpoint.save_weights(path, self.model, {**self._header(self.state.best_epoch), **header})
            distributed.barrier()
            if not distributed.is_main():  # which alone has fitted it
                checkpoint.load_weights(path, self.model)
        self.saved_model_file = str(path)

    def _header(self, epoch: int | None) -> dict[str, Any]:
        return {"model": self.config["model"], "epoch": epoch, "settings": plain_settings(self.config)}

    def _load_fitted(self, path: Path) -> bool:
        """Load what has been fitted already, if it was for the very weights that the model has now."""
        best = {name: value.clone() for name, value in self.model.state_dict().items()}
        header = checkpoint.load_weights(path, self.model)
        loaded = self.model.state_dict()
        if not all(torch.equal(value, loaded[name]) for name, value in best.items()):
            self.load_best()
            return False
        self._stage_seconds = header[SECONDS]
        memory.count(header[MEMORY])
        return True

    def _fit_second_stage(self, valid_data: Any, show_progress: bool) -> None:
        """Fit the second stage that is asked for on validation, or where it is not worth it, the form in its place."""
        if not second_stage_settings(self.config):
            return
        fitted = self.decided and self.decided.second_stage
        if fitted is None and not self._validates:
            if self.decided is None:
                self.logger.warning("second stage: left out, there is no validation to fit it on")
            return
        if fitted is not None:
            stage = socket.build(self.config, self._train_dataset, str(socket.form_of(fitted)))
            stage.take_over(fitted)
            socket.attach(self.model, stage)
            return
        rows, *given = rows_to_fit(valid_data._dataset)
        histories, targets = (part.to(self.device) for part in given)
        if len(rows) < (n_rows := len(valid_data._dataset.inter_feat)):
            self.logger.info(f"second stage: fitted on a sample of {len(rows)} of {n_rows} targets of validation")
        form: str | None = self.config["second_stage"]
        while form is not None:
            stage = socket.build(self.config, self._train_dataset, form)
            if stage is None:
                return
            stage = stage.to(self.device)
            words, is_better = socket.fit(stage, self.model, self.config, histories, targets, show_progress)
            self.logger.info(f"second stage: {words}")
            if distributed.agreed(lambda better=is_better: better):
                socket.attach(self.model, stage)
                return
            form = socket.INSTEAD.get(form)


def rows_to_fit(judged: Any) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Rows [R] of validation that a second stage is fitted on, their histories [R, T] and next items [R].

    Those are at most `FITTED_ON`, drawn by a hash of their items, alike for all seeds and models.
    """
    targets = judged.inter_feat[judged.iid_field]
    rows = sample_of(judged.lists, targets, judged.catalogue.tokens, FITTED_ON)
    return rows, judged.lists(rows), targets[torch.from_numpy(rows)]
