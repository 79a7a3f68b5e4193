"""Files that the next run may trust: tensors plus a JSON header, written whole or not at all.

Features, tokenizers, checkpoints and bundles are all kept in this one form (safetensors), so that reading one never
runs code from it and a killed run leaves either the old file, the new file or none.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import InputError

FORMAT = 2
"""Version of the files written here; a file of another version is refused."""

_KEY = "recbole_bbqrec"


def save(path: str | os.PathLike, kind: str, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Write `tensors` and the JSON-serialisable `header` to `path` in one atomic step; its folder is made.

    `kind` says what the file is (`features`, `tokenizer`, ...) and is checked again by `load`.
    """
    # One entry: safetensors writes several in an order of its own, and equal content should give equal files.
    metadata = {_KEY: json.dumps({"kind": kind, "format": FORMAT, "header": header}, sort_keys=True)}
    plain = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, among others
            raise OSError(f"{path}: {error}") from error


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, with a copy of those that share memory with one before them: safetensors refuses these."""
    met: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in met else tensor
        met.add(memory)
    return found


def load(path: str | os.PathLike, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save` wrote: `(tensors, header)`, tensors on the CPU.

    A file that is missing, damaged, of another kind or of another format version is an `InputError`.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; expected a {kind} file written by recbole_bbqrec")
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); delete it and run again") from error
    metadata = found if isinstance(found, dict) and isinstance(found.get("header"), dict) else {}
    if metadata.get("kind") != kind or metadata.get("format") != FORMAT:
        found = f"{metadata.get('kind', 'unknown')} file of format {metadata.get('format', '?')}"
        raise InputError(f"{path}: found a {found}, expected a {kind} file of format {FORMAT}; delete it and run again")
    return tensors, metadata["header"]


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Write `data` as indented JSON to `path` in one atomic step."""
    with replacing(path) as temporary:
        Path(temporary).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary path beside `path` that takes its place once the block has ended well."""
    folder = Path(path).resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{Path(path).name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; what we keep should be as readable as any file of the user.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def fingerprint(*parts: Any) -> str:
    """16 hex digits that change whenever any of `parts` does.

    Plain data counts by its JSON form, tensors and arrays by dtype, shape and content, bytes as they are, paths by the
    content of their file; anything else is a TypeError.
    """
    digest = hashlib.sha256()
    for part in parts:
        _update(digest, part)
    return digest.hexdigest()[:16]


def _update(digest: Any, part: Any) -> None:
    digest.update(type(part).__name__.encode())
    if isinstance(part, torch.Tensor):
        part = part.detach().cpu().numpy()
    if isinstance(part, np.ndarray):
        if part.dtype == object:
            raise TypeError("an array of objects has no fingerprint; give its values as a list")
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    elif isinstance(part, bytes):
        digest.update(part)
    elif isinstance(part, Path):
        with open(part, "rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                digest.update(chunk)
    elif isinstance(part, Mapping):
        for key in sorted(part):
            digest.update(repr(key).encode())
            _update(digest, part[key])
    else:
        digest.update(json.dumps(part, sort_keys=True).encode())


@functools.cache
def source_fingerprint(*modules: str, without: str = "") -> str:
    """Fingerprint of what the given modules of this package run: their code and that of all they import from it.

    Modules that begin with `without` are left out where that is given, and what they alone import.

    It stands in every cache key, so that a change of the code never meets a file made by the code before it. Comments,
    docstrings and formatting do not count. Modules are read once a process: what is edited meanwhile does not run.
    """
    waiting, found = set(modules), {}
    while waiting:
        name = waiting.pop()
        tree = ast.parse(_file_of(name).read_bytes())
        found[name] = ""
        more = _imported(tree, name) - found.keys()
        waiting |= {other for other in more if not (without and other.startswith(without))}
        found[name] = ast.dump(_WithoutDocstrings().visit(tree))
    return fingerprint(found)


def _file_of(module: str) -> Path:
    path = Path(__file__).parent.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(tree: ast.Module, module: str) -> set[str]:
    """Modules of this package that the module `module` imports, on top or inside functions."""
    package = module if _file_of(module).name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
    # The package itself is left out: its functions import from all over it.
    return {name for name in names if name.startswith(f"{__package__}.") and _file_of(name).is_file()}


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
