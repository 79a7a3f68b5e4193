"""Running models that count instead of training: one pass over the sequences, then settings chosen on validation."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import distributed, storage
from ..data.cold_items import is_cold
from ..evaluation.judging import Judging
from ..evaluation.ranking import per_row, rank_targets, tie_order
from ..model.untrained import Untrained
from ..tokenizer import memory
from .target_ranks import CELLS
from .trainer import ProtocolTrainer

CHOSEN = "chosen.json"
"""Name of the file in a run's folder that says what validation has chosen; written last."""
USERS = 3_000
"""Most users that a setting is judged by; the grid has some twenty points."""
METRIC, CUT_OFF = "ndcg", 10
ROUNDS = 3

Point = Mapping[str, float]


class UntrainedTrainer(ProtocolTrainer):
    """Counts once and chooses a model's few settings by NDCG@10, masked, on validation users; there are no epochs.

    What was chosen stands in `state.chosen`, and in the run's folder in `chosen.json`.
    """

    ranker: Untrained
    _samples = False  # it ranks once, so nothing is spared
    _fit_seconds = 0.0

    def _build_optimizer(self, **kwargs: Any) -> None:
        return None  # there is nothing to step

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """Count the training sequences and choose the settings; a finished run is read from its folder."""
        self.state.best_epoch = -1
        valid_data = self._open_run(train_data, valid_data)
        path = self.folder.training / CHOSEN
        if saved and self.config["resume"] and distributed.agreed(path.is_file):
            self.load_best()
            found = json.loads(path.read_text(encoding="utf-8"))
            self._fit_seconds = found["fit_seconds"]
            memory.count(found["peak_memory_mib"])
        else:
            if distributed.is_main():
                shutil.rmtree(path.parent, ignore_errors=True)
            started = time.perf_counter()
            sequences = self._train_dataset.train_sequences
            self.ranker.count(sequences.offsets, sequences.items)
            self.ranker.choose(self._point(valid_data, show_progress))
            self._fit_seconds = time.perf_counter() - started
            if saved and distributed.is_main():
                self._save_checkpoint(-1, verbose)
                cost = {"fit_seconds": self._fit_seconds, "peak_memory_mib": self._memory.mib}
                storage.write_json(path, {"chosen": self.ranker.chosen, **cost})
            distributed.barrier()
        self.state.chosen = self.ranker.chosen
        if self.state.chosen:
            values = ", ".join(f"{key} {value}" for key, value in self.state.chosen.items())
            how = "chosen on validation" if self._validates or self.decided else "no validation, first of each list"
            self.logger.info(f"{how}: {values}")
        if valid_data is not None:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)
        return self.best_valid_score, self.best_valid_result

    def timings(self) -> dict[str, float]:
        """As `ProtocolTrainer.timings`; `train` is counting and choosing."""
        return {**super().timings(), "train": self._fit_seconds}

    def _point(self, valid_data: Any, show_progress: bool) -> Point:
        """The settings to use: those of another run, those that validation finds best, or the first of each list."""
        if self.decided is not None:
            return self.decided.chosen
        if valid_data is None:
            return {key: values[0] for key, values in self.ranker.grid.items()}
        return self._best_point(valid_data, show_progress)

    @torch.no_grad()
    def _best_point(self, valid_data: Any, show_progress: bool) -> Point:
        """Settings chosen by up to `USERS` users, drawn with the run's seed from users in the order of tokens.

        Targets that were held out of training choose nothing.
        """
        dataset, seed = valid_data._dataset, self.config["seed"]
        size = min(self.config["eval_batch_size"], max(1, CELLS // dataset.item_num))
        users = dataset.inter_feat[dataset.uid_field].numpy()
        rows = np.argsort(dataset.field2id_token[dataset.uid_field].astype(str)[users], kind="stable")
        cold, ranker = is_cold(dataset), self._ranker_for(dataset)
        rows = rows if cold is None else rows[~cold[rows]]
        rows = np.random.default_rng(seed).permutation(rows)[:USERS]
        seen, ties = self._seen_before(dataset, (self._train_dataset,)), tie_order(dataset.item_num, seed)
        judging = Judging(seen, ties.to(self.device))
        bar = tqdm(desc="Choose", ncols=100, disable=not show_progress, leave=False)

        def judge(points: list[Point]) -> list[float]:
            bar.update(len(points))
            values: list[list[np.ndarray]] = [[] for _ in points]
            for part in np.array_split(rows, -(-len(rows) // size)):
                interaction, _, _, targets = valid_data.collate_fn(part)
                histories, targets = interaction[self.model.ITEM_SEQ].to(self.device), targets.to(self.device)
                for found, scores in zip(values, ranker.scores_at(histories, points), strict=True):
                    ranks = rank_targets(scores, targets, judging.pairs(seen, part), ties)["masked"]
                    found.append(per_row(ranks.cpu().numpy(), METRIC, CUT_OFF))
            return [float(np.concatenate(found).mean()) for found in values]

        with bar:
            return coordinate_search(ranker.grid, judge)


def coordinate_search(grid: Mapping[str, list[float]], judge: Callable[[list[Point]], list[float]]) -> Point:
    """Choose one value for every key, one key after the other, until a round changes nothing (at most `ROUNDS`).

    The search begins at the first value of each key, which stays where others are as good. `judge` gives the value of
    each of several points that differ in one key; larger is better.
    """
    best: Point = {key: values[0] for key, values in grid.items()}
    known: dict[tuple[float, ...], float] = {}
    for _ in range(ROUNDS):
        before = best
        for key in (key for key, values in grid.items() if len(values) > 1):
            points: list[Point] = [best, *({**best, key: value} for value in grid[key] if value != best[key])]
            new = [point for point in points if tuple(point.values()) not in known]
            known |= zip((tuple(point.values()) for point in new), judge(new) if new else (), strict=True)
            best = max(points, key=lambda point: known[tuple(point.values())])
        if best == before:
            break
    return best
