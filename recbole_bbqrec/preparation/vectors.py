"""Vectors computed elsewhere, with the tokens of their items.

Two forms: `<name>.safetensors` as `write_vectors` writes it, and `<name>.npy` [N, D] with the tokens in
`<name>.tokens.txt` beside it, UTF-8 text, one token a line.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import storage
from ..errors import InputError

SUFFIXES = (".npy", ".safetensors")


def write_vectors(path: str | os.PathLike, tokens: Sequence[str], vectors: Tensor | np.ndarray) -> None:
    """Write `vectors` [N, D] and the N item `tokens` as a `.safetensors` file that `read_vectors` takes."""
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path}: found the ending {Path(path).suffix!r}, expected .safetensors; rename the target")
    # Tokens are a tensor because a safetensors header is limited in size and a catalogue is not.
    text = torch.tensor(list("\n".join(tokens).encode()), dtype=torch.uint8)
    matrix = _checked(path, tokens, torch.as_tensor(vectors))
    storage.save(path, "vectors", {"vectors": matrix, "item_tokens": text}, {})


def read_vectors(path: Path) -> tuple[list[str], Tensor]:
    """Read item vectors, `(tokens, float32 [N, D])`; a fault of the file or one of its rows is an `InputError`."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: found the ending {path.suffix!r}, expected {' or '.join(SUFFIXES)}")
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            if array.dtype.kind not in "fiu":
                raise ValueError(f"found {array.dtype}, expected numbers")
            # torch takes no foreign byte order.
            vectors = torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.float64))
            text = files_of(path)[1].read_text(encoding="utf-8-sig").removesuffix("\n")
        else:
            tensors, _ = storage.load(path, "vectors")
            vectors, text = tensors["vectors"], bytes(tensors["item_tokens"].numpy()).decode()
    except (OSError, ValueError, EOFError, KeyError, AttributeError) as error:  # an archive of arrays has no dtype
        how = f"write it with {__name__}.write_vectors, or with numpy.save and a .tokens.txt beside it"
        raise InputError(f"{path}: no vectors that can be read ({error}); {how}") from error
    tokens = text.split("\n") if text else []
    return tokens, _checked(path, tokens, vectors)


def files_of(path: Path) -> list[Path]:
    """Return all files that `read_vectors(path)` reads."""
    return [path, path.with_suffix(".tokens.txt")] if path.suffix == ".npy" else [path]


def _checked(path: str | os.PathLike, tokens: Sequence[str], vectors: Tensor) -> Tensor:
    """Return `vectors` as float32 once they fit their tokens."""
    if vectors.dim() != 2 or not vectors.shape[1] or vectors.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise InputError(f"{path}: found {vectors.dtype} of shape {list(vectors.shape)}, expected numbers [items, D]")
    if len(tokens) != len(vectors):
        raise InputError(f"{path}: found {len(tokens)} item tokens for {len(vectors)} vectors, expected one for each")
    matrix, names = vectors.to(torch.float32), pd.Series(tokens, dtype=object)
    faults = {
        "is no token": names.isin([""]) | names.str.contains("\n", regex=False).astype(bool),
        "comes more than once": names.duplicated(keep=False),
        "has a value that is not finite in float32": pd.Series((~torch.isfinite(matrix).all(1)).numpy()),
    }
    for fault, where in faults.items():
        if where.any():
            at = int(where.argmax())
            raise InputError(f"{path}: the item {tokens[at]!r} of row {at + 1} {fault}; mend the row, or drop it")
    return matrix.contiguous()
