"""What the item tokenizer is given: checked, and brought to one form."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError

ByModality = Mapping[str, torch.Tensor]
"""Modality -> matrix [N, D_m] of features, or -> mask [N] of the items that have it."""
Flat = tuple[np.ndarray, np.ndarray]
"""`(offsets, items)`: sequence u is `items[offsets[u] : offsets[u + 1]]`."""
COUNTS = ("levels", "codebook_size", "code_dim", "epochs", "steps")


def check_counts(arguments: Mapping[str, Any]) -> None:
    """Check that those of a tokenizer's arguments that count something are whole numbers of at least 1.

    Raises
    ------
    InputError : naming the argument and what was found.
    """
    for name, value in arguments.items():
        if name in COUNTS and (type(value) is not int or value < 1):
            raise InputError(f"{name}: found {value!r}, expected a whole number of at least 1")


def check_features(features: ByModality, present: ByModality, n_items: int, names: Iterable[str]) -> None:
    """Check that every modality of `names` has a finite matrix [n_items, D_m] and a mask [n_items].

    Raises
    ------
    InputError : naming the modality, what was found and what was expected.
    """
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
    rows = (matrix[present.bool()] if present.any() else matrix.new_zeros(1, matrix.shape[1])).double()
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


def flat_sequences(sequences: Sequence[np.ndarray] | Flat, n_items: int) -> Flat:
    """Return `(offsets, items)`, int64, from a list of item arrays or from that pair itself.

    Raises
    ------
    InputError : offsets that do not fit, or an item outside 0 .. n_items - 1.
    """
    if not isinstance(sequences, tuple):
        lengths = [len(part) for part in sequences]
        sequences = np.cumsum([0, *lengths]), np.concatenate([np.zeros(0, np.int64), *sequences])
    offsets, items = (np.asarray(part, dtype=np.int64) for part in sequences)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
        raise InputError(f"sequences: expected offsets that rise from 0 to {len(items)}, the number of items in them")
    outside = items[(items < 0) | (items >= n_items)]
    if len(outside):
        raise InputError(f"sequences: found item {outside[0]}, expected 0 to {n_items - 1}; number the items from 0")
    return offsets, items
