"""RecBole's `Trainer` under this project's protocol: masked early stopping, exact resume, no pickle."""

import random
import shutil
import statistics
import time
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import set_color
from tqdm import tqdm

from .. import storage
from ..data.sequences import Seen, seen_before
from ..errors import InputError
from ..evaluation.ranking import Ranks, rank_targets, tie_order
from ..model.padding import LENGTH_INDEPENDENT, group_by_length
from ..settings import candidate_settings, learning_settings, plain_settings, trained_as
from . import checkpoint


def _content(dataset: Any) -> dict[str, Any]:
    """Everything of a data set that a model can learn from, for the run's fingerprint."""
    content: dict[str, Any] = {}
    for name in ("inter_feat", "user_feat", "item_feat"):
        feat = getattr(dataset, name)
        content[name] = {} if feat is None else dict(feat.interaction)
    for field in (dataset.uid_field, dataset.iid_field):
        content[f"tokens of {field}"] = [str(token) for token in dataset.field2id_token[field]]
    features, ids = dataset.catalogue.features, dataset.catalogue.semantic_ids
    if features is not None:
        content["features"] = {"matrices": features.matrices, "present": features.present}
    if ids is not None:
        content["codes"] = {"codes": ids.codes, "vectors": ids.vectors, "present": ids.present}
    return content


class ProtocolTrainer(Trainer):
    """RecBole's trainer with the protocol of this project; works over any RecBole trainer as a mixin.

    A run keeps its files in one folder, named by everything that can change its result. The best weights by masked
    validation score stand in `weights.safetensors`, the state after the last epoch in `last.safetensors`. Every epoch
    starts from a seed of its own, so a run that was killed goes on to the very result it would have had.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        if config["length_groups"] and config["model"] in LENGTH_INDEPENDENT:
            group_by_length(model)
        self._run_dir: Path | None = None
        self.state: dict[str, Any] = {
            "best_epoch": None,
            "epoch_seconds": [],
            "evaluate_seconds": [],
            "finished": False,
        }
        self._train_dataset: Any = None
        self._seen: list[tuple[tuple[Any, ...], Seen]] = []

    # Training

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[float, Any]:
        """Train as RecBole does; continue an interrupted run of the same settings and data where it stopped."""
        train_data = self._training_batches(train_data)
        self._train_dataset = train_data._dataset
        self._open_run(train_data, valid_data)
        if saved and self.config["resume"] and self._last.is_file():
            self._resume(self._last)
        elif saved:
            shutil.rmtree(self._training_dir, ignore_errors=True)

        def after_epoch(epoch: int, score: float) -> None:
            if saved:
                self._save_last(epoch)
            if callback_fn:
                callback_fn(epoch, score)

        if not self.state["finished"] and self.start_epoch < self.epochs and self.cur_step <= self.stopping_step:
            super().fit(train_data, valid_data, verbose, saved, show_progress, after_epoch)
        if saved and not self.state["finished"]:
            self.state["finished"] = True
            self._save_last(self.state["epochs_done"] - 1)
        return self.best_valid_score, self.best_valid_result

    def _training_batches(self, train_data: Any) -> Any:
        return train_data

    def _open_run(self, train_data: Any, valid_data: Any) -> None:
        if valid_data is None or not len(valid_data):
            raise InputError(
                "no validation interaction: users need at least four items; loosen the filters of the data set"
            )
        given, afterwards = learning_settings(self.config), candidate_settings(self.config)
        name = trained_as(self.config["model"])
        key = storage.fingerprint(
            {**{name: value for name, value in given.items() if name not in afterwards}, "model": name},
            str(self.device),
            *(_content(data._dataset) for data in (train_data, valid_data)),
            storage.source_fingerprint(*_own_modules(self, self.model)),
            torch.__version__,
        )
        rest = f"{self.config['dataset']}-{self.config['seed']}-{key}"
        # One training serves every setting of what is fitted after it, and all names of what is trained alike.
        self._training_dir = Path(self.checkpoint_dir) / f"{name}-{rest}"
        if afterwards.get("candidate_similarity"):
            rest += f"-{storage.fingerprint(afterwards)[:8]}"
        self._run_dir = self._training_dir.with_name(f"{self.config['model']}-{rest}")
        self.saved_model_file = str(self._training_dir / "weights.safetensors")

    @property
    def run_dir(self) -> Path:
        """Folder of the run; training itself has one of its own where something is fitted after it.

        Raises
        ------
        RuntimeError : `fit` has not seen the data yet, on which the name depends.
        """
        if self._run_dir is None:
            raise RuntimeError("the run's folder is known only once fit has seen the data")
        return self._run_dir

    @property
    def _last(self) -> Path:
        return self._training_dir / "last.safetensors"

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        # One seed per epoch: what an epoch draws does not depend on whether the process began with it.
        seed = int(np.random.SeedSequence([self.config["seed"], epoch_idx]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (RecBole's samplers draw from numpy's global state)
        torch.manual_seed(seed)
        train_data.generator.manual_seed(seed)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*GradScaler", category=FutureWarning)
            loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        self.state["epoch_seconds"].append(time.perf_counter() - started)
        self.state["epochs_done"] = epoch_idx + 1
        return loss

    def _check_nan(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            raise InputError("the training loss is not finite; lower learning_rate or set clip_grad_norm")

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        started = time.perf_counter()
        metrics = self.rank(valid_data, [self._train_dataset], show_progress).metrics(
            self.config["metrics"], self.config["topk"]
        )
        self.state["evaluate_seconds"].append(time.perf_counter() - started)
        score = metrics["masked"][self.valid_metric]
        if score >= self.best_valid_score:  # RecBole's rule: an equal score counts as better
            self.state["best_epoch"] = self.state["epochs_done"] - 1
        # RecBole's own names stay what RecBole means by them, the unmasked column.
        masked = {f"masked_{name}": value for name, value in metrics["masked"].items()}
        return score, OrderedDict({**masked, **metrics["unmasked"]})

    # Files

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        self._save_weights(path, epoch)
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")

    def _save_weights(self, path: Path, epoch: int) -> None:
        header = {"model": self.config["model"], "epoch": epoch, "settings": plain_settings(self.config)}
        checkpoint.save_weights(path, self.model, header)

    def _save_last(self, epoch: int) -> None:
        header = {
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "best_valid_result": self.best_valid_result,
            "state": self.state,
        }
        checkpoint.save_training(self._last, self.model, self.optimizer, header)

    def _resume(self, path: Path) -> None:
        header = checkpoint.load_training(path, self.model, self.optimizer)
        self.start_epoch = header["epoch"] + 1
        self.cur_step, self.best_valid_score = header["cur_step"], header["best_valid_score"]
        self.best_valid_result = header["best_valid_result"]
        self.state = header["state"]
        done = (
            "finished run found, training is skipped"
            if self.state["finished"]
            else f"going on at epoch {self.start_epoch}"
        )
        self.logger.info(f"{path}: {done} (--resume=False trains anew)")

    def resume_checkpoint(self, resume_file: Any) -> None:
        """Go on from the `last.safetensors` of a run, as RecBole's method of this name does from its files."""
        self._resume(Path(resume_file))

    def load_best(self, model_file: Any = None) -> None:
        """Put the best weights by validation into the model."""
        path = Path(model_file or self.saved_model_file)
        checkpoint.load_weights(path, self.model)
        self.logger.info(f"Loading model structure and parameters from {path}")

    def finish(self, valid_data: Any, show_progress: bool = False) -> None:
        """Bring the best weights into the model, and fit on validation what is fitted after training.

        That is done once for a run's folder; afterwards it is read from there.
        """
        self.load_best()

    # Evaluation

    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, show_progress: bool = False
    ) -> Any:
        """Evaluate with RecBole's own evaluator (unmasked column), on the best weights unless told otherwise."""
        if load_best_model:
            self.load_best(model_file)
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    @torch.no_grad()
    def rank(self, eval_data: Any, earlier: list[Any], show_progress: bool = False) -> Ranks:
        """Rank the target of every row of `eval_data` with the model as it is.

        Parameters
        ----------
        eval_data : RecBole's full-sort evaluation loader.
        earlier : the data sets before it in time, see `data.sequences.seen_before`.
        """
        self.model.eval()
        dataset = eval_data._dataset
        seen = self._seen_before(dataset, earlier)
        self.tot_item_num = dataset.item_num
        if self.item_tensor is None:
            self.item_tensor = dataset.get_item_feature().to(self.device)
        lengths = dataset.inter_feat[dataset.item_list_length_field].numpy()
        # Rows of one length side by side: a model that trims its batches has no work with padding.
        order = np.argsort(lengths, kind="stable")
        ties = tie_order(dataset.item_num, self.config["seed"])
        ranks = {column: np.zeros(len(lengths), np.int64) for column in ("masked", "unmasked")}
        parts = self._parts(dataset, order)
        chunks = [
            rows
            for part in parts
            for rows in np.array_split(part, max(-(-len(part) // self.config["eval_batch_size"]), 1))
            if len(rows)
        ]
        for rows in tqdm(chunks, desc="Rank", ncols=100, disable=not show_progress):
            row, item = (torch.from_numpy(part).to(self.device) for part in seen.pairs(rows))
            for column, values in self._rank_rows(eval_data, rows, (row, item), ties).items():
                ranks[column][rows] = values.cpu().numpy()
        return Ranks(dataset.inter_feat[dataset.uid_field].numpy(), **ranks)

    def _parts(self, dataset: Any, order: np.ndarray) -> list[np.ndarray]:
        """Rows that may be scored side by side."""
        return [order]

    def _rank_rows(
        self, eval_data: Any, rows: np.ndarray, seen: tuple[torch.Tensor, torch.Tensor], ties: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        targets, scores = self._score_rows(eval_data, rows)
        return rank_targets(scores, targets, seen, ties)

    def _seen_before(self, dataset: Any, earlier: list[Any]) -> Seen:
        """Seen items of a split, collected once; the data sets are kept, so that no other can take their identity."""
        datasets = (dataset, *earlier)
        for known, seen in self._seen:
            if len(known) == len(datasets) and all(one is other for one, other in zip(known, datasets, strict=True)):
                return seen
        self._seen.append((datasets, seen_before(dataset, earlier)))
        return self._seen[-1][1]

    def _score_rows(self, eval_data: Any, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        interaction, _, _, targets = eval_data.collate_fn(rows)
        scores = self._full_sort_batch_eval((interaction, None, None, None))[1]
        return targets.to(self.device), scores

    def timings(self) -> dict[str, float]:
        """Seconds of `train` (all epochs with their validation), of a median `epoch` and of a median `evaluate`."""
        epochs, evaluations = self.state["epoch_seconds"], self.state["evaluate_seconds"]
        return {
            "train": sum(epochs) + sum(evaluations),
            "epoch": statistics.median(epochs) if epochs else 0.0,
            "evaluate": statistics.median(evaluations) if evaluations else 0.0,
        }


def _own_modules(*objects: Any) -> list[str]:
    """Modules of this package that the classes of some objects, and those they inherit from, are written in."""
    package = __name__.partition(".")[0]
    modules = {cls.__module__ for each in objects for cls in type(each).__mro__}
    return sorted({name for name in modules if name.startswith(f"{package}.")} | {f"{package}.model.stock_attention"})
