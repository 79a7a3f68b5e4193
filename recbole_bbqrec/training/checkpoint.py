"""What training leaves on disk: weights and the state to go on from, without pickle."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import storage
from ..errors import InputError

WEIGHTS, TRAINING = "weights", "training"
_MODEL, _OPTIMIZER, _OTHER = "model.", "optimizer.", "other."


def save_weights(path: Path, model: nn.Module, header: dict[str, Any]) -> None:
    """Write the model's weights with `header` (plain data)."""
    tensors, plain = _model_state(model)
    storage.save(path, WEIGHTS, tensors, {**header, "other": plain})


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Read weights into `model` and return the header.

    Raises
    ------
    InputError : the file is damaged or belongs to a model of other settings.
    """
    tensors, header = storage.load(path, WEIGHTS)
    _restore_model(path, model, tensors, header)
    return header


def save_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, header: dict[str, Any]) -> None:
    """Write everything the next epoch needs: weights, optimizer state and `header` (plain data)."""
    tensors, plain = _model_state(model)
    state = optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{_OPTIMIZER}{index}.{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    storage.save(
        path, TRAINING, tensors, {**header, "other": plain, "groups": state["param_groups"], "scalars": scalars}
    )


def load_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Read what `save_training` wrote into `model` and `optimizer` and return the header.

    Raises
    ------
    InputError : the file is damaged or belongs to a model of other settings.
    """
    tensors, header = storage.load(path, TRAINING)
    _restore_model(path, model, tensors, header)
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in header["scalars"].items()}
    for name, value in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, _, entry = name.removeprefix(_OPTIMIZER).partition(".")
            state.setdefault(int(index), {})[entry] = value
    try:
        optimizer.load_state_dict({"state": state, "param_groups": header["groups"]})
    except ValueError as error:
        raise InputError(
            f"{path}: optimizer state of other settings ({error}); delete the folder or --resume=False"
        ) from error
    return header


def _model_state(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    plain: dict[str, Any] = {}
    other = getattr(model, "other_parameter", dict)()
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            tensors[_OTHER + name] = value
        elif isinstance(value, nn.Module):
            continue  # a part of the model, its weights are in the state already
        elif isinstance(value, (str, int, float, bool, list, dict, type(None))):
            plain[name] = value
        else:
            raise InputError(
                f"{type(model).__name__}.{name} is a {type(value).__name__}: it cannot be kept without pickle"
            )
    return tensors, plain


def _restore_model(path: Path, model: nn.Module, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    weights = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path}: weights of other settings ({reason}); delete the folder or --resume=False"
        ) from error
    other = {name.removeprefix(_OTHER): value for name, value in tensors.items() if name.startswith(_OTHER)}
    load_other = getattr(model, "load_other_parameter", None)
    if load_other is not None:
        load_other({**header["other"], **other})
