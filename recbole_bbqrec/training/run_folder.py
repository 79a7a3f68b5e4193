"""Where a run keeps its files: folders named by everything that can change its result."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import storage
from ..settings import candidate_settings, learning_settings, trained_as


@dataclass(frozen=True)
class RunFolder:
    """The folder of a finished run, and that of its training.

    They differ where something is fitted after training: one training serves every setting of that, and all models that
    are trained alike (`settings.trained_as`).

    Attributes
    ----------
    path : the finished run: its weights, what was fitted after training, and its bundle.
    training : best weights by validation, and the state after the last epoch, from which training goes on.
    """

    path: Path
    training: Path

    @classmethod
    def of(cls, config: Any, parts: list[Any], written_in: list[type]) -> "RunFolder":
        """Name the folders.

        Parameters
        ----------
        config : the run's settings.
        parts : training and validation data sets.
        written_in : classes of the trainer and the model; their source code counts as well.
        """
        afterwards, name = candidate_settings(config), trained_as(config["model"])
        learned_from = {key: value for key, value in learning_settings(config).items() if key not in afterwards}
        key = storage.fingerprint(
            {**learned_from, "model": name},
            str(config["device"]),
            *(part for dataset in parts for part in _content(dataset)),
            storage.source_fingerprint(*_own_modules(written_in)),
            torch.__version__,
        )
        rest = f"{config['dataset']}-{config['seed']}-{key}"
        fitted = f"-{storage.fingerprint(afterwards)[:8]}" if afterwards.get("candidate_similarity") else ""
        root = Path(config["checkpoint_dir"])
        return cls(root / f"{config['model']}-{rest}{fitted}", root / f"{name}-{rest}")

    @property
    def weights(self) -> Path:
        """Best weights by validation."""
        return self.training / "weights.safetensors"

    @property
    def last(self) -> Path:
        """State after the last epoch."""
        return self.training / "last.safetensors"


def _content(dataset: Any) -> Iterator[Any]:
    """Everything of a data set that a model can learn from."""
    for feat in (dataset.inter_feat, dataset.user_feat, dataset.item_feat):
        yield {} if feat is None else dict(feat.interaction)
    yield [str(token) for token in dataset.field2id_token[dataset.uid_field]]
    yield dataset.catalogue.tokens
    features, ids = dataset.catalogue.features, dataset.catalogue.semantic_ids
    if features is not None:
        yield from (features.matrices, features.present)
    if ids is not None:
        yield from (ids.codes, ids.vectors, ids.present)


def _own_modules(classes: list[type]) -> list[str]:
    """Modules of this package that some classes, and those they inherit from, are written in."""
    package = __name__.partition(".")[0]
    modules = {base.__module__ for each in classes for base in each.__mro__}
    return sorted({name for name in modules if name.startswith(f"{package}.")} | {f"{package}.model.stock_attention"})
