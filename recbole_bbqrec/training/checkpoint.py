"""What training leaves on disk: weights and the state to go on from, without pickle."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import storage
from ..errors import InputError

WEIGHTS, TRAINING = "weights", "training"
_MODEL, _OPTIMIZER = "model.", "optimizer."


def save_weights(path: Path, model: nn.Module, header: dict[str, Any]) -> None:
    """Write the model's weights with `header` (plain data)."""
    storage.save(path, WEIGHTS, _prefixed(_MODEL, model.state_dict()), header)


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Read weights into `model` and return the header.

    Raises
    ------
    InputError : the file is damaged or belongs to a model of other settings.
    """
    tensors, header = storage.load(path, WEIGHTS)
    _restore(path, model, tensors)
    return header


def save_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, header: dict[str, Any]) -> None:
    """Write everything the next epoch needs: weights, optimizer state and `header` (plain data)."""
    state = optimizer.state_dict()
    flat = {f"{index}.{name}": value for index, entries in state["state"].items() for name, value in entries.items()}
    moments = {name: value for name, value in flat.items() if isinstance(value, torch.Tensor)}
    scalars = {name: value for name, value in flat.items() if name not in moments}
    tensors = {**_prefixed(_MODEL, model.state_dict()), **_prefixed(_OPTIMIZER, moments)}
    storage.save(path, TRAINING, tensors, {**header, "groups": state["param_groups"], "scalars": scalars})


def load_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Read what `save_training` wrote into `model` and `optimizer` and return the header.

    Raises
    ------
    InputError : the file is damaged or belongs to a model of other settings.
    """
    tensors, header = storage.load(path, TRAINING)
    _restore(path, model, tensors)
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**header["scalars"], **_of_prefix(_OPTIMIZER, tensors)}.items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": header["groups"]})
    except ValueError as error:
        raise InputError(
            f"{path}: optimizer state of other settings ({error}); delete the folder or --resume=False"
        ) from error
    return header


def _prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _of_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _restore(path: Path, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    try:
        model.load_state_dict(_of_prefix(_MODEL, tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path}: weights of other settings ({reason}); delete the folder or --resume=False"
        ) from error
