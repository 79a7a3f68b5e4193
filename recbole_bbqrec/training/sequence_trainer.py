"""Training on whole sequences, and what is fitted once training is done."""

import contextlib
import time
import zlib
from typing import Any

import numpy as np
import torch

from .. import storage
from ..data.dataloader import WindowDataLoader
from ..data.sequences import training_sequences
from ..errors import InputError
from ..evaluation.ranking import Ranks, rank_targets
from ..model.candidates import CANDIDATES, HALVES, CandidateSimilarity, build_candidates, candidates_of
from .averaging import AveragedAdamW
from .candidate_fit import fit_candidates
from .trainer import ProtocolTrainer

ROUNDING = 1e-4
"""Metrics that differ by less are taken for equal: scaled scores round differently."""


class SequenceTrainer(ProtocolTrainer):
    """Trains on windows of whole sequences instead of RecBole's prefixes: every target once, in one pass.

    Candidate similarity is fitted once training is done, on validation: see `model.candidates`.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self._known_halves: list[tuple[Any, np.ndarray | None]] = []
        self._candidate_seconds = 0.0

    def _build_optimizer(self, **kwargs: Any) -> Any:
        if self.learner != "adamw":
            if self.config["average_weights"]:
                raise InputError(f"average_weights: needs learner adamw, found {self.learner}; set it to False")
            return super()._build_optimizer(**kwargs)
        # Fused: one pass over the item table instead of ten, with the same result but for rounding.
        given = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        kind = AveragedAdamW if self.config["average_weights"] else torch.optim.AdamW
        return kind(self.model.parameters(), **given)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """The weights that are judged and kept, in place of those that training goes on with."""
        return self.optimizer.averaged() if isinstance(self.optimizer, AveragedAdamW) else contextlib.nullcontext()

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        with self._averaged():
            return super()._valid_epoch(valid_data, show_progress)

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        with self._averaged():
            super()._save_checkpoint(epoch, verbose, **kwargs)

    def _training_batches(self, train_data: Any) -> Any:
        if isinstance(train_data, WindowDataLoader):
            return train_data
        dataset = train_data._dataset
        sequences = dataset.train_sequences or training_sequences(dataset)
        batches = WindowDataLoader(self.config, dataset, sequences)
        self.logger.info(
            f"Training on {len(sequences)} sequences, {batches.n_targets} targets, {len(batches)} steps an epoch"
        )
        return batches

    def finish(self, valid_data: Any, show_progress: bool = False) -> None:
        super().finish(valid_data, show_progress)
        model, dataset = self.model.eval(), valid_data._dataset
        path = self.run_dir / CANDIDATES
        candidates = candidates_of(self.run_dir) if self.config["resume"] else None
        if candidates is None:
            candidates = build_candidates(self.config, dataset)
        if self.run_dir != self._training_dir:
            self._save_weights(self.run_dir / "weights.safetensors", self.state["best_epoch"])
        if candidates is None:
            return
        candidates.to(self.device)
        self.logger.info(
            f"candidate similarity: {candidates.n_weights} weights, signals {', '.join(candidates.signals)}"
        )
        model.candidates = candidates
        self._known_halves.clear()
        if path.is_file() and self.config["resume"]:
            return
        started = time.perf_counter()
        histories = dataset.inter_feat[model.ITEM_SEQ].to(self.device)
        targets = dataset.inter_feat[model.ITEM_ID].to(self.device)
        with torch.no_grad():
            halves, seed = halves_of(dataset), self.config["seed"]
            with model.cached_rows():
                fit_candidates(candidates, model.encoder_score, histories, targets, halves, seed, show_progress)
        candidates.fitted_on = fingerprint_of(dataset)
        self._judge_candidates(candidates, valid_data, show_progress)
        candidates.save(path)
        self._candidate_seconds = time.perf_counter() - started

    def _judge_candidates(self, candidates: CandidateSimilarity, valid_data: Any, show_progress: bool) -> None:
        """Leave the fitted weights out where each half of the users is served worse by what the other half gave.

        That happens where a few hundred users are all there is to fit on.
        """
        metrics = self.rank(valid_data, [self._train_dataset], show_progress).metrics(
            self.config["metrics"], self.config["topk"]
        )
        score, without = metrics["masked"][self.valid_metric], self.best_valid_score
        what = f"{self.config['valid_metric']} {without:.4f} without, {score:.4f} with candidate similarity"
        if score > without - ROUNDING:  # equal where nothing but seen items has a weight: they are masked
            self.logger.info(what)
            return
        candidates.reset()
        self.logger.warning(f"{what}: it is left out (usually there are too few users to fit it on)")

    def timings(self) -> dict[str, float]:
        """As `ProtocolTrainer.timings`, and the seconds of fitting `candidates` where this run did so."""
        return {**super().timings(), "candidates": self._candidate_seconds}

    def rank(self, eval_data: Any, earlier: list[Any], show_progress: bool = False) -> Ranks:
        """As `ProtocolTrainer.rank`, with what does not change with the history computed once."""
        self.model.eval()
        with self.model.cached_rows():
            return super().rank(eval_data, earlier, show_progress)

    def _parts(self, dataset: Any, order: np.ndarray) -> list[np.ndarray]:
        halves = self._halves(dataset)
        return super()._parts(dataset, order) if halves is None else [order[halves[order] == h] for h in range(HALVES)]

    def _halves(self, dataset: Any) -> np.ndarray | None:
        """Half [R] of each row's user where the rows are those that candidate similarity was fitted on."""
        for known, halves in self._known_halves:
            if known is dataset:
                return halves
        candidates = self.model.candidates
        fitted_here = candidates is not None and candidates.fitted_on == fingerprint_of(dataset)
        self._known_halves.append((dataset, halves_of(dataset) if fitted_here else None))
        return self._known_halves[-1][1]

    def _rank_rows(
        self, eval_data: Any, rows: np.ndarray, seen: tuple[torch.Tensor, torch.Tensor], ties: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        candidates = self.model.candidates
        if candidates is None:
            return self._rank_found(eval_data, rows, seen, ties)
        # Validation has fitted the weights: its users are judged with those that the other half of them gave.
        halves = self._halves(eval_data._dataset)
        candidates.part = HALVES if halves is None else int(halves[rows[0]])
        try:
            return self._rank_found(eval_data, rows, seen, ties)
        finally:
            candidates.part = HALVES

    def _rank_found(
        self, eval_data: Any, rows: np.ndarray, seen: tuple[torch.Tensor, torch.Tensor], ties: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        if not self.model.is_beam_search:
            return super()._rank_rows(eval_data, rows, seen, ties)
        # What a user has seen leaves the beam before it is cut: two searches, one for each column.
        interaction, _, _, targets = eval_data.collate_fn(rows)
        histories, targets = interaction[self.model.ITEM_SEQ].to(self.device), targets.to(self.device)
        ranks = {}
        for column, excluded in (("masked", seen), ("unmasked", None)):
            scores = self.model.score(histories, excluded=excluded)
            ranks[column] = rank_targets(scores, targets, seen, ties, finds_some=True)[column]
        return ranks


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
