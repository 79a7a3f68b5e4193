"""Training on whole sequences, and what is fitted once training is done."""

import contextlib
import functools
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .. import storage
from ..data.dataloader import WindowDataLoader
from ..errors import InputError
from ..model.candidates import CANDIDATES, HALVES, CandidateSimilarity, build_candidates, candidates_of
from .averaging import AveragedAdamW
from .candidate_fit import fit_candidates
from .checkpoint import WEIGHTS_FILE
from .trainer import ProtocolTrainer

ROUNDING = 1e-4
"""Metrics that differ by less are taken for equal: scaled scores round differently."""


class SequenceTrainer(ProtocolTrainer):
    """Trains on windows of whole sequences instead of RecBole's prefixes: every target once, in one pass.

    Candidate similarity is fitted once training is done, on validation: see `model.candidates`.
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
        folder, dataset = self.folder.path, valid_data._dataset
        if folder != self.folder.training:
            super()._save_checkpoint(self.state.best_epoch, verbose=False, saved_model_file=folder / WEIGHTS_FILE)
        fitted = candidates_of(folder) if self.config["resume"] else None
        candidates = fitted or build_candidates(self.config, dataset)
        if candidates is None:
            return
        self.logger.info(
            f"candidate similarity: {candidates.n_weights} weights, signals {', '.join(candidates.signals)}"
        )
        self.model.candidates = candidates.to(self.device)
        if fitted is None:
            started = time.perf_counter()
            self._fit_candidates(candidates, valid_data, show_progress)
            candidates.save(folder / CANDIDATES)
            self._candidate_seconds = time.perf_counter() - started

    def _fit_candidates(self, candidates: CandidateSimilarity, valid_data: Any, show_progress: bool) -> None:
        """Fit the weights, and leave them out where each half of the users is served worse by what the other half gave.

        That happens where a few hundred users are all there is to fit on.
        """
        model, dataset = self.model.eval(), valid_data._dataset
        histories, targets = (dataset.inter_feat[field].to(self.device) for field in (model.ITEM_SEQ, model.ITEM_ID))
        with torch.no_grad():
            given = histories, targets, halves_of(dataset), self.config["seed"]
            score = functools.partial(model.encoder_score, shared=model.shared())
            fit_candidates(candidates, score, *given, show_progress)
        candidates.fitted_on = fingerprint_of(dataset)
        score, without = self._validate(valid_data, show_progress)["masked"][self.valid_metric], self.best_valid_score
        what = f"{self.config['valid_metric']} {without:.4f} without, {score:.4f} with candidate similarity"
        if score > without - ROUNDING:  # equal where nothing but seen items has a weight: they are masked
            self.logger.info(what)
        else:
            candidates.reset()
            self.logger.warning(f"{what}: it is left out (usually there are too few users to fit it on)")

    def timings(self) -> dict[str, float]:
        """As `ProtocolTrainer.timings`, and the seconds of fitting `candidates` where this run did so."""
        return {**super().timings(), "candidates": self._candidate_seconds}

    def _parts(self, dataset: Any, order: np.ndarray) -> Iterator[np.ndarray]:
        """On the rows that candidate similarity was fitted on, each half is judged with what the other half gave."""
        candidates = self.model.candidates
        if candidates is None or candidates.fitted_on != fingerprint_of(dataset):
            yield order
            return
        halves = halves_of(dataset)[order]
        try:
            for half in range(HALVES):
                candidates.part = half
                yield order[halves == half]
        finally:
            candidates.part = HALVES


def fingerprint_of(dataset: Any) -> str:
    """Which users are asked for which items, whatever numbers RecBole has given to them."""
    rows = dataset.inter_feat
    fields = dataset.uid_field, dataset.iid_field
    users, items = (dataset.field2id_token[field][rows[field].numpy()].astype(str) for field in fields)
    return storage.fingerprint(sorted(zip(users.tolist(), items.tolist(), strict=True)))


def halves_of(dataset: Any) -> np.ndarray:
    """Half [R] to which the user of each row belongs, by a hash of the user's token: 0 or 1."""
    tokens = dataset.field2id_token[dataset.uid_field].astype(str)
    half = np.array([zlib.crc32(token.encode()) % HALVES for token in tokens])
    return half[dataset.inter_feat[dataset.uid_field].numpy()]
