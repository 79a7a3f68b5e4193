"""Checkpoints of RecBole's own trainers as plain data, in the form that RecBole reads.

RecBole pickles its `Config` and whatever a model keeps beside its weights, and torch since 2.6 refuses to run what such
a file says. Here the same entries hold tensors, numbers and text alone, which `torch.load` reads as it stands.
"""

from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import set_color
from scipy import sparse
from torch import nn

from .. import storage
from ..errors import InputError

_ARRAY, _SPARSE = "numpy array", "scipy matrix"


def plain(name: str, value: Any) -> Any:
    """Return `value` as data that `torch.load` reads without running code; `restored` is the way back.

    Enumerations and devices become text. An `InputError` names what has no such form.
    """
    if isinstance(value, dict):
        return {plain(name, key): plain(name, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(name, part) for part in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {_ARRAY: torch.from_numpy(value)}
    if isinstance(value, sparse.spmatrix):
        matrix: Any = value
        found = matrix.tocoo()
        places = [torch.from_numpy(np.asarray(part)) for part in (found.row, found.col, found.data)]
        return {_SPARSE: (matrix.format, tuple(map(int, matrix.shape)), *places)}
    if isinstance(value, (Enum, torch.device)):
        return str(value)
    if isinstance(value, (torch.Tensor, str, int, float, bool, type(None))):
        return value
    raise InputError(f"{name}: found {type(value).__name__}, expected numbers, text, tensors or arrays in a checkpoint")


def restored(value: Any) -> Any:
    """Return what `plain` was given; devices and enumerations stay text."""
    if isinstance(value, dict) and _ARRAY in value:
        return value[_ARRAY].cpu().numpy()
    if isinstance(value, dict) and _SPARSE in value:
        kind, shape, row, col, data = value[_SPARSE]
        places = [part.cpu().numpy() for part in (row, col, data)]
        return sparse.coo_matrix((places[2], (places[0], places[1])), shape=shape).asformat(kind)
    if isinstance(value, dict):
        return {key: restored(part) for key, part in value.items()}
    return type(value)(map(restored, value)) if isinstance(value, (list, tuple)) else value


def _save(trainer: Any, path: str, epoch: int, **more: Any) -> None:
    # Layers are in the model's state already.
    kept = {key: part for key, part in trainer.model.other_parameter().items() if not isinstance(part, nn.Module)}
    state = {
        "config": plain("config", trainer.config.final_config_dict),
        "epoch": epoch,
        "state_dict": trainer.model.state_dict(),
        "other_parameter": plain("other_parameter", kept),
        "optimizer": trainer.optimizer.state_dict(),
    }
    with storage.replacing(path) as temporary:
        torch.save({**state, **more}, temporary)


def save_checkpoint(trainer: Any, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
    """Stand in for `Trainer._save_checkpoint`."""
    if not trainer.config["single_spec"] and trainer.config["local_rank"] != 0:
        return
    path = kwargs.get("saved_model_file", trainer.saved_model_file)
    _save(trainer, path, epoch, cur_step=trainer.cur_step, best_valid_score=float(trainer.best_valid_score))
    if verbose:
        trainer.logger.info(set_color("Saving current", "blue") + f": {path}")


def save_pretrained_model(trainer: Any, epoch: int, saved_model_file: str) -> None:
    """Stand in for `PretrainTrainer.save_pretrained_model`."""
    _save(trainer, saved_model_file, epoch)
    trainer.saved_model_file = saved_model_file


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; a file that would run code when read is an `InputError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the .pth file of a run, its log names it") from error
    except Exception as error:  # torch refuses what is no plain data by errors of several kinds
        raise InputError(
            f"{path}: no checkpoint of plain data; RecBole pickles its own, which run code when they are read: "
            "train again after recbole_bbqrec.register()"
        ) from error
