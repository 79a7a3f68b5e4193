"""Training on whole sequences."""

import contextlib
from typing import Any

import torch

from ..data.dataloader import WindowDataLoader
from ..errors import InputError
from .averaging import AveragedAdamW
from .steps import one_cycle, take_steps
from .trainer import ProtocolTrainer


class SequenceTrainer(ProtocolTrainer):
    """Trains on windows of whole sequences instead of RecBole's prefixes: every target once, in one pass."""

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.cycle_epochs: int = config["cycle_epochs"] or 0
        if self.cycle_epochs:
            self.epochs = min(self.epochs, self.cycle_epochs)  # after which the rate is 0
            self.eval_step = min(self.eval_step, self.epochs)

    @property
    def hit_cap(self) -> bool:
        """As `ProtocolTrainer.hit_cap`; the end of a cycle is no cap."""
        return super().hit_cap and not (self.decided is None and self.epochs == self.cycle_epochs)

    def _build_optimizer(self, **kwargs: Any) -> Any:
        if self.learner != "adamw":
            if self.config["average_weights"]:
                raise InputError(f"average_weights: needs learner adamw, found {self.learner}; set it to False")
            return super()._build_optimizer(**kwargs)
        # Fused: one pass over the item table instead of ten, with the same result but for rounding.
        rates = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        if self.config["average_weights"]:
            return AveragedAdamW(self.model.parameters(), self._tables_by_row(), **rates)
        return torch.optim.AdamW(self.model.parameters(), **rates)

    def _tables_by_row(self) -> list[torch.nn.Embedding]:
        """Embeddings of which a step reads so little that it updates only those rows.

        Clipping and scaling of gradients work on whole tables only.
        """
        table = self.model.large_table
        return [] if table is None or self.clip_grad_norm or self.enable_scaler else [table]

    def _take_steps(self, train_data: Any, epoch_idx: int, loss_func: Any, show_progress: bool) -> Any:
        whole, before = self.cycle_epochs * len(train_data), epoch_idx * len(train_data)

        def set_rate(at: int) -> None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * one_cycle(before + at, whole)

        loss = loss_func or self.model.calculate_loss
        if not whole:
            return take_steps(self, train_data, loss, epoch_idx, show_progress)
        return take_steps(self, train_data, loss, epoch_idx, show_progress, set_rate)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """The weights that are judged and kept, in place of those that training goes on with."""
        return self.optimizer.averaged() if isinstance(self.optimizer, AveragedAdamW) else contextlib.nullcontext()

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        with self._averaged():
            return super()._valid_epoch(valid_data, show_progress)

    def _save_checkpoint(self, epoch: int | None, verbose: bool = True, **kwargs: Any) -> None:
        with self._averaged():
            super()._save_checkpoint(epoch, verbose, **kwargs)

    def _training_batches(self, train_data: Any) -> Any:
        batches = train_data
        if not isinstance(batches, WindowDataLoader):  # of RecBole's own scripts
            batches = WindowDataLoader(self.config, train_data._dataset, train_data._dataset.train_sequences)
        size = f"{len(batches.sequences)} sequences, {batches.n_targets} targets"
        self.logger.info(f"Training on {size}, {len(batches)} steps an epoch")
        return batches
