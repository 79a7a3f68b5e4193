"""What the item tokenizer is given: checked, and brought to one form."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .behavior_bind import MODES
from .residual_quantizer import UPDATES


def check_parameters(given: Mapping[str, Any]) -> None:
    """Check the arguments of `BehaviorBindTokenizer`.

    Raises
    ------
    InputError : naming the argument, what was found and what was expected.
    """
    if given["mode"] not in MODES:
        raise InputError(f"mode: found {given['mode']!r}, expected one of {', '.join(MODES)}")
    if given["codebook_update"] not in UPDATES:
        raise InputError(f"codebook_update: found {given['codebook_update']!r}, expected {' or '.join(UPDATES)}")
    check_counts(given, "levels", "codebook_size", "code_dim", "epochs", "batch_size", "max_length")
    if not 0 <= given["warmup"] < 1:
        raise InputError(f"warmup: found {given['warmup']}, expected a share from 0 to below 1")
    if given["code_dim"] % 2:
        raise InputError(f"code_dim: found {given['code_dim']}, expected an even number")


def check_counts(given: Mapping[str, Any], *names: str) -> None:
    """Check that the named arguments are whole numbers of at least 1.

    Raises
    ------
    InputError : naming the argument and what was found.
    """
    for name in names:
        if not isinstance(given[name], int) or isinstance(given[name], bool) or given[name] < 1:
            raise InputError(f"{name}: found {given[name]!r}, expected a whole number of at least 1")


def check_features(
    features: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor], n_items: int, names: Iterable[str]
) -> None:
    """Check that every modality has a finite matrix [n_items, D_m] and a mask [n_items].

    Raises
    ------
    InputError : naming the modality, what was found and what was expected.
    """
    names = list(names)
    for what, given in (("features", features), ("present", present)):
        if set(given) != set(names):
            raise InputError(f"{what}: found modalities {sorted(given)}, expected {sorted(names)}")
    for name in names:
        matrix, mask = features[name], present[name]
        if matrix.ndim != 2 or len(matrix) != n_items or not matrix.shape[1]:
            raise InputError(f"features {name}: found shape {list(matrix.shape)}, expected [{n_items}, width]")
        if mask.shape != (n_items,):
            raise InputError(f"present {name}: found shape {list(mask.shape)}, expected [{n_items}]")
        if not torch.isfinite(matrix[mask.bool()]).all():
            raise InputError(
                f"features {name}: found NaN or infinity, expected finite numbers; mark such items missing"
            )


def feature_statistics(matrix: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation [2, D_m] of the present rows; a dimension that does not vary gets deviation 1."""
    rows = matrix[present.bool()].double()
    if not len(rows):
        return torch.stack([torch.zeros(matrix.shape[1]), torch.ones(matrix.shape[1])])
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    # What varies by rounding alone does not vary.
    constant = deviation <= 1e-6 * mean.abs() + 1e-12
    return torch.stack([mean, deviation.masked_fill(constant, 1.0)]).float()


def effective_size(codebook_size: int, levels: int, n_items: int) -> int:
    """Codes per codebook: fewer than asked for where there are fewer items, about one for four items then.

    Raises
    ------
    InputError : the codes of one signal cannot tell the items apart.
    """
    size = codebook_size
    if n_items < codebook_size:
        # A code for every item would only number them; but the IDs have to suffice.
        size = max(n_items // 4, math.ceil(n_items ** (1 / levels)), 1)
        size += size**levels < n_items  # the root may be rounded down
    if size**levels < n_items:
        raise InputError(
            f"codebook_size={codebook_size}, levels={levels}: {size**levels} IDs for {n_items} items; raise one of them"
        )
    return size


def flat_sequences(
    sequences: Sequence[np.ndarray] | tuple[np.ndarray, np.ndarray], n_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(offsets, items)`, int64, from a list of item arrays or from that pair itself (a tuple).

    Sequence u is `items[offsets[u] : offsets[u + 1]]`.

    Raises
    ------
    InputError : offsets that do not fit, or an item outside 0 .. n_items - 1.
    """
    if isinstance(sequences, tuple):
        offsets, items = (np.asarray(part, dtype=np.int64) for part in sequences)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
            raise InputError(
                f"sequences: expected offsets that rise from 0 to {len(items)}, the number of items in them"
            )
    else:
        offsets = np.r_[0, np.cumsum([len(part) for part in sequences])].astype(np.int64)
        items = np.concatenate([np.zeros(0, np.int64), *sequences]).astype(np.int64)
    if len(items) and (items.min() < 0 or items.max() >= n_items):
        found = items.min() if items.min() < 0 else items.max()
        raise InputError(f"sequences: found item {found}, expected 0 to {n_items - 1}; number the items from 0")
    return offsets, items
