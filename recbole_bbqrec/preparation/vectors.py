"""Vectors computed elsewhere, kept with the tokens of their items.

Two forms are read:

- `<name>.safetensors` with a tensor `vectors` [N, D] and the tokens either as the tensor `item_tokens` (uint8: UTF-8
  text, one token a line) or in the metadata under `item_tokens` (a JSON list of strings);
- `<name>.npy` [N, D], with the tokens in `<name>.tokens.txt` beside it: UTF-8 text, one token a line.

`write_vectors` writes the first.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..storage import save

SUFFIXES = (".npy", ".safetensors")


def write_vectors(path: str | os.PathLike, tokens: Sequence[str], vectors: Tensor | np.ndarray) -> None:
    """Write `vectors` [N, D] and the N item `tokens` as a `.safetensors` file that `read_vectors` takes."""
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path}: found the ending {Path(path).suffix!r}, expected .safetensors; rename the target")
    matrix = _checked(path, list(tokens), torch.as_tensor(vectors))
    text = np.frombuffer("\n".join(tokens).encode(), dtype=np.uint8)
    save(path, "vectors", {"vectors": matrix, "item_tokens": torch.from_numpy(text.copy())}, {})


def read_vectors(path: str | os.PathLike) -> tuple[list[str], Tensor]:
    """Read item vectors: `(tokens, float32 [N, D])`.

    Raises
    ------
    InputError : the file or its tokens are missing or unreadable, their numbers differ, a token is blank or comes
        twice, a value is not finite.
    """
    file = Path(path)
    if file.suffix not in SUFFIXES:
        raise InputError(f"{path}: found the ending {file.suffix!r}, expected {' or '.join(SUFFIXES)}")
    if not file.is_file():
        raise InputError(f"{path}: no such file; expected item vectors, correct the path or compute them first")
    tokens, vectors = _read_npy(file) if file.suffix == ".npy" else _read_safetensors(file)
    return tokens, _checked(path, tokens, vectors)


def files_of(path: Path) -> list[Path]:
    """Return all files that `read_vectors(path)` reads."""
    return [path, _tokens_file(path)] if path.suffix == ".npy" else [path]


def _tokens_file(path: Path) -> Path:
    return path.with_suffix(".tokens.txt")


def _read_npy(path: Path) -> tuple[list[str], Tensor]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: not an array of numbers ({error}); write it with numpy.save(path, float32)"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise InputError(f"{path}: found {getattr(array, 'dtype', 'several arrays')}, expected one array of numbers")
    names = _tokens_file(path)
    try:
        text = names.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{names}: no such file; expected the item tokens of {path.name}, one a line") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{names}: found byte 0x{error.object[error.start]:02x}, expected UTF-8 text") from None
    native = array.astype(np.float32 if array.dtype.kind == "f" else np.float64)  # torch takes no foreign byte order
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else [], torch.from_numpy(native)


def _read_safetensors(path: Path) -> tuple[list[str], Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = set(file.keys()), file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(names & {"vectors", "item_tokens"})}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); write it again") from error
    how = "see recbole_bbqrec.preparation.vectors.write_vectors, which writes it"
    if "vectors" not in tensors:
        raise InputError(f"{path}: found the tensors {', '.join(sorted(names)) or 'none'}, expected `vectors`; {how}")
    try:
        if "item_tokens" in tensors:
            text = tensors["item_tokens"].numpy().tobytes().decode()
            tokens = text.split("\n") if text else []
        else:
            tokens = json.loads(metadata["item_tokens"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: item tokens are missing or unreadable ({error!r}); {how}") from error
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{path}: item_tokens must be a list of strings; {how}")
    return tokens, tensors["vectors"]


def _checked(path: str | os.PathLike, tokens: Sequence[str], vectors: Tensor) -> Tensor:
    """Return `vectors` as float32 once they fit their tokens."""
    if vectors.dim() != 2 or not vectors.shape[1] or vectors.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise InputError(f"{path}: found {vectors.dtype} of shape {list(vectors.shape)}, expected numbers [items, D]")
    if len(tokens) != len(vectors):
        raise InputError(f"{path}: found {len(tokens)} item tokens for {len(vectors)} vectors, expected one for each")
    seen: dict[str, int] = {}
    for at, token in enumerate(tokens):
        if not token or "\n" in token:
            raise InputError(f"{path}: item token {at + 1} is {token!r}, expected a token; drop or mend its row")
        if seen.setdefault(token, at) != at:
            raise InputError(
                f"{path}: item token {token!r} is both row {seen[token] + 1} and {at + 1}; keep one of them"
            )
    matrix = vectors.to(torch.float32)
    finite = torch.isfinite(matrix).all(1)
    if not finite.all():
        at = int((~finite).nonzero()[0])
        raise InputError(
            f"{path}: the vector of item {tokens[at]!r} (row {at + 1}) holds a value that is not finite in float32; "
            "mend it, or drop its row and the item counts as missing"
        )
    return matrix.contiguous()
