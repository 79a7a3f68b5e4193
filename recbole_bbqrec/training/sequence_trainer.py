"""Training on whole sequences, and what is fitted once training is done."""

import contextlib
import functools
import time
from pathlib import Path
from typing import Any

import torch

from ..data.dataloader import WindowDataLoader
from ..errors import InputError
from ..model.candidates import build_candidates
from ..settings import candidate_settings
from ..tokenizer import memory
from . import checkpoint
from .averaging import AveragedAdamW
from .candidate_fit import fit_candidates
from .checkpoint import WEIGHTS_FILE
from .trainer import ProtocolTrainer

SECONDS, MEMORY = "candidate_seconds", "peak_memory_mib"
"""Keys in the header of a run's weights."""


class SequenceTrainer(ProtocolTrainer):
    """Trains on windows of whole sequences instead of RecBole's prefixes: every target once, in one pass.

    Candidate similarity is fitted once training is done, on validation: see `model.candidates`. Where another run has
    fitted it, its weights serve over neighbours of this run's sequences.
    """

    _candidate_seconds = 0.0

    def _build_optimizer(self, **kwargs: Any) -> Any:
        if self.learner != "adamw":
            if self.config["average_weights"]:
                raise InputError(f"average_weights: needs learner adamw, found {self.learner}; set it to False")
            return super()._build_optimizer(**kwargs)
        kind = AveragedAdamW if self.config["average_weights"] else torch.optim.AdamW
        # Fused: one pass over the item table instead of ten, with the same result but for rounding.
        return kind(self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

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
        dataset = train_data._dataset
        sequences = dataset.train_sequences
        batches = WindowDataLoader(self.config, dataset, sequences)
        self.logger.info(
            f"Training on {len(sequences)} sequences, {batches.n_targets} targets, {len(batches)} steps an epoch"
        )
        return batches

    def finish(self, valid_data: Any, show_progress: bool = False) -> None:
        super().finish(valid_data, show_progress)
        path = self.folder.path / WEIGHTS_FILE
        if path == Path(self.saved_model_file):
            return
        if not (self.config["resume"] and self._load_fitted(path)):
            started = time.perf_counter()
            self._fit_candidates(valid_data, show_progress)
            self._candidate_seconds = time.perf_counter() - started
            header = {SECONDS: self._candidate_seconds, MEMORY: self._memory.mib}
            super()._save_checkpoint(self.state.best_epoch, verbose=False, saved_model_file=path, header=header)
        self.saved_model_file = str(path)

    def _load_fitted(self, path: Path) -> bool:
        """Load what has been fitted already, if it was for the very weights that the model has now."""
        if not path.is_file():
            return False
        best = {name: value.clone() for name, value in self.model.state_dict().items()}
        header = checkpoint.load_weights(path, self.model)
        loaded = self.model.state_dict()
        if not all(torch.equal(value, loaded[name]) for name, value in best.items()):
            self.model.load_state_dict(best)
            return False
        self._candidate_seconds = header[SECONDS]
        memory.count(header[MEMORY])
        return True

    def _fit_candidates(self, valid_data: Any, show_progress: bool) -> None:
        """Build candidate similarity where the settings ask for any, and fit it on validation."""
        fitted = self.decided and self.decided.candidates
        if fitted is None and not self._validates:
            if candidate_settings(self.config).get("candidate_similarity"):
                self.logger.warning("candidate similarity: left out, there is no validation to fit its weights on")
            return
        model, candidates = self.model.eval(), build_candidates(self.config, self._train_dataset)
        if candidates is None:
            return
        model.candidates = candidates.to(self.device)
        if fitted is not None:
            candidates.take_over(fitted)
            return
        rows = valid_data._dataset.inter_feat
        histories, targets = (rows[field].to(self.device) for field in (model.ITEM_SEQ, model.ITEM_ID))
        with torch.no_grad():
            score = functools.partial(model.encoder_score, shared=model.shared())
            shares = fit_candidates(candidates, score, histories, targets, self.config["seed"], show_progress)
        self.logger.info(
            f"candidate similarity: {candidates.n_weights} weights, signals {', '.join(candidates.signals)}; of what "
            f"they add {', '.join(f'{share:.2f}' for share in shares)} is kept for the two halves of the histories"
        )

    def timings(self) -> dict[str, float]:
        """As `ProtocolTrainer.timings`, and the seconds that making and fitting `candidates` took, now or before."""
        return {**super().timings(), "candidates": self._candidate_seconds}
