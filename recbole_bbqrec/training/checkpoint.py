"""What training leaves on disk, without pickle: folders, weights, and the state to go on from."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import distributed, storage
from ..errors import InputError
from ..second_stage import socket
from ..settings import learning_settings, second_stage_settings, trained_as

WEIGHTS, TRAINING = "weights", "training"
WEIGHTS_FILE, LAST_FILE = "weights.safetensors", "last.safetensors"
"""In the folder of a training: the best weights by validation, and the state after the last epoch."""
_MODEL, _OPTIMIZER = "model.", "optimizer."
_STAGE = "second_stage"  # in the header of weights: the form of the second stage among them


@dataclass
class TrainingState:
    """How far training is; kept with the weights of the last epoch.

    Epochs count from 0. `best_epoch` is none before the first evaluation; without validation it is the last epoch.
    `peak_memory_mib` is the largest of all processes that have worked on it. `chosen` are the settings that validation
    has chosen, where a model counts instead of training.
    """

    best_epoch: int | None = None
    epochs_done: int = 0
    epoch_seconds: list[float] = field(default_factory=list)
    evaluate_seconds: list[float] = field(default_factory=list)
    chosen: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: float | None = None


class RunFolder(NamedTuple):
    """The folder `path` of a finished run, and that of its `training`, named by everything that can change its result.

    They differ where something is fitted after training: one training serves every setting of that, and all models that
    are trained alike (`settings.trained_as`). `shorter` are the folders of trainings that differ in nothing but fewer
    epochs, the longest first: what they have done is the beginning of this one.
    """

    path: Path
    training: Path
    shorter: list[Path]

    @classmethod
    def of(cls, config: Any, parts: list[Any], classes: list[type]) -> "RunFolder":
        """Name the folders of a run over data sets; the source of its `classes` (trainer, model) counts as well."""
        afterwards, name = second_stage_settings(config), trained_as(config["model"])
        package, stage = __name__.partition(".")[0], socket.__name__.rpartition(".")[0]
        modules = {base.__module__ for each in classes for base in each.__mro__} | {f"{package}.model.stock_attention"}
        if config["item_semantics"]:
            modules.add(f"{package}.model.item_semantics")
        learned_from = learning_settings(config)
        n_epochs = learned_from.pop("epochs")
        of_all_lengths = storage.fingerprint(
            {**learned_from, "model": name},
            str(config["device"]),
            *(part for dataset in parts for part in _content(dataset)),
            storage.source_fingerprint(
                *sorted(name for name in modules if name.startswith(f"{package}.")), without=stage
            ),
            torch.__version__,
        )
        root, begins = Path(config["checkpoint_dir"]), f"{config['dataset']}-{config['seed']}"
        if distributed.world() > 1:  # which draws of their own
            of_all_lengths = storage.fingerprint(of_all_lengths, distributed.world())
        if config["train_on"] == "all":
            begins = f"{config['dataset']}-all-{config['seed']}"

        def rest(epochs: int) -> str:
            return f"{begins}-{storage.fingerprint(of_all_lengths, epochs)}"

        there = {path.name for path in root.glob("*")}
        # A cap below `eval_step` brings an evaluation at its end that a longer training does not have.
        fewer = range(n_epochs - 1, min(learned_from["eval_step"], n_epochs) - 1, -1) if there else ()
        shorter = [root / found for found in (f"{name}-{rest(epochs)}" for epochs in fewer) if found in there]
        source = storage.source_fingerprint(socket.__name__)
        fitted = f"-{storage.fingerprint(afterwards, source)[:8]}" if afterwards else ""
        return cls(root / f"{config['model']}-{rest(n_epochs)}{fitted}", root / f"{name}-{rest(n_epochs)}", shorter)


def _content(dataset: Any) -> Iterator[Any]:
    """Everything of a data set that a model can learn from."""
    graph = [dataset.kg_feat] if dataset.rows_are_interactions and hasattr(dataset, "kg_feat") else []
    for feat in (dataset.inter_feat, dataset.user_feat, dataset.item_feat, *graph):
        yield {} if feat is None else dict(feat.interaction)
    yield [str(token) for token in dataset.field2id_token[dataset.uid_field]]
    rows = dataset.histories.covering()
    yield dataset.histories[rows].entries()[1]
    yield dataset.histories.stop - dataset.histories.start
    yield dataset.catalogue.tokens
    features, ids = dataset.catalogue.features, dataset.catalogue.semantic_ids
    if features is not None:
        yield from (features.matrices, features.present)
    if ids is not None:
        yield from (ids.codes, ids.vectors, ids.present)


def note_derived(model: Any) -> None:
    """Note what one of RecBole's models has beside its weights when it is built.

    That follows from the data and the seed, or is none until the model has worked it out from its weights; see
    `_forget_derived`. Some of the latter do not stand among what RecBole calls a model's other parameters.
    """
    named = {name: value for name, value in model.other_parameter().items() if not isinstance(value, nn.Module)}
    empty = {name: None for name, value in vars(model).items() if value is None and not name.startswith("_")}
    model.as_built = {**empty, **named}


def _forget_derived(model: nn.Module) -> None:
    """Make a model with newly loaded weights work out again what it had worked out from the old ones."""
    for name, value in getattr(model, "as_built", {}).items():
        setattr(model, name, value)


def _counters(model: nn.Module) -> dict[str, Any]:
    """Numbers among a model's own attributes: RecBole's count steps there, by which weights of losses grow."""
    return {name: value for name, value in vars(model).items() if type(value) in (int, float)}


def save_weights(path: Path, model: nn.Module, header: dict[str, Any]) -> None:
    """Write the model's weights, those of its second stage included, with `header` (plain data)."""
    storage.save(
        path,
        WEIGHTS,
        model.state_dict(prefix=_MODEL),
        {**header, _STAGE: socket.form_of(getattr(model, "second_stage", None))},
    )


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Read weights into `model`, with the second stage they hold or none, and return the header.

    Weights of other settings are an `InputError`.
    """
    if (apart := path.with_name("candidates.safetensors")).is_file():
        raise InputError(f"{apart}: of an earlier version, which kept a part of the weights there; train again")
    tensors, header = storage.load(path, WEIGHTS)
    state = _of_prefix(_MODEL, tensors)
    socket.attach_from_state(model, state, header.get(_STAGE))
    _restore(path, "weights", model.load_state_dict, state)
    _forget_derived(model)
    return header


def save_training(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], header: dict[str, Any]
) -> None:
    """Write everything the next epoch needs: weights, states of the optimizers and `header` (plain data)."""
    tensors, kept = model.state_dict(prefix=_MODEL), []
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        flat = {f"{at}.{name}": value for at, entries in state["state"].items() for name, value in entries.items()}
        scalars = {name: value for name, value in flat.items() if not isinstance(value, torch.Tensor)}
        moments = {f"{_OPTIMIZER}{number}.{name}": value for name, value in flat.items() if name not in scalars}
        tensors, kept = {**tensors, **moments}, [*kept, {"groups": state["param_groups"], "scalars": scalars}]
    storage.save(path, TRAINING, tensors, {**header, "optimizers": kept, "counters": _counters(model)})


def load_training(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Read what `save_training` wrote into `model`, which trains without a second stage, and its optimizers."""
    tensors, header = storage.load(path, TRAINING)
    socket.attach(model, None)
    _restore(path, "weights", model.load_state_dict, _of_prefix(_MODEL, tensors))
    _forget_derived(model)
    vars(model).update(header["counters"])
    for number, (optimizer, kept) in enumerate(zip(optimizers, header["optimizers"], strict=True)):
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**kept["scalars"], **_of_prefix(f"{_OPTIMIZER}{number}.", tensors)}.items():
            index, _, entry = name.partition(".")
            state.setdefault(int(index), {})[entry] = value
        _restore(path, "optimizer state", optimizer.load_state_dict, {"state": state, "param_groups": kept["groups"]})
    return header


def copy_training(source: Path, target: Path) -> None:
    """Copy a training's weights and state to the folder `target`; the state comes last and makes it a training.

    The state is read first, as another process may be at work on it: best weights of a later epoch are found again.
    """
    with storage.replacing(target / LAST_FILE) as last, storage.replacing(target / WEIGHTS_FILE) as weights:
        shutil.copyfile(source / LAST_FILE, last)
        shutil.copyfile(source / WEIGHTS_FILE, weights)


def _of_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore(path: Path, what: str, load: Callable[[dict[str, Any]], Any], state: dict[str, Any]) -> None:
    try:
        load(state)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: {what} of other settings ({reason}); delete the folder or --resume=False") from error
