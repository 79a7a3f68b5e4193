"""Encoding in batches, some seconds of which are kept at a time: an interrupted encoding goes on where it stopped.

Batches depend on the items alone, never on where an encoding began, so that one in several goes ends with the same
numbers as one in a single go.
"""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import storage
from ..errors import InputError

SECONDS_PER_PART = 10.0
"""Work of so many seconds is kept at a time: a kill costs no more, and writing costs next to nothing."""


class Encoded(NamedTuple):
    """Features of N items: float32 [N, D], bool [N] (whether an item has them), and plain data about the encoding."""

    matrix: Tensor
    known: Tensor
    notes: dict[str, Any]


class Piece(NamedTuple):
    """What the batches from `start` to before `stop` gave: rows [n], features [n, D], and row -> why it has none."""

    start: int
    stop: int
    rows: Tensor
    features: Tensor
    bad: dict[int, str]


@dataclass(frozen=True)
class Parts:
    """Pieces of an encoding that is under way, one file each.

    Attributes
    ----------
    folder : theirs alone; `drop` removes it once the whole is in place.
    inputs : fingerprint of all that the encoding depends on; a file of another one is not trusted.
    """

    folder: Path
    inputs: str

    def keep(self, piece: Piece) -> None:
        """Write a piece; where that fails the encoding goes on without."""
        path = self.folder / f"{piece.start:06d}.safetensors"
        header = {"inputs": self.inputs, "start": piece.start, "stop": piece.stop, "bad": list(piece.bad.items())}
        header["content"] = _content(piece)
        try:
            storage.save(path, "encoding part", {"rows": piece.rows, "features": piece.features}, header)
        except OSError as error:
            logging.getLogger().warning(
                f"{self.folder}: a part of the encoding could not be kept ({error.strerror or error})"
            )

    def read(self, n_batches: int) -> list[Piece]:
        """Return the pieces that can be trusted, in order and without overlap; what is damaged is computed again."""
        pieces: list[Piece] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            piece = self._read(path)
            if piece is None or not (pieces[-1].stop if pieces else 0) <= piece.start < piece.stop <= n_batches:
                logging.getLogger().warning(f"{path}: not a part of this encoding, or damaged; it is computed again")
            else:
                pieces.append(piece)
        return pieces

    def _read(self, path: Path) -> Piece | None:
        try:
            tensors, header = storage.load(path, "encoding part")
            bad = {int(row): str(reason) for row, reason in header["bad"]}
            piece = Piece(header["start"], header["stop"], tensors["rows"], tensors["features"], bad)
            return piece if [header["inputs"], header["content"]] == [self.inputs, _content(piece)] else None
        except (InputError, KeyError, TypeError, ValueError):
            return None

    def drop(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _content(piece: Piece) -> str:
    return storage.fingerprint(piece.start, piece.stop, piece.rows, piece.features, list(piece.bad.items()))


def count_batches(n_rows: int, batch_size: int) -> int:
    """Return the number of batches for `n_rows` items."""
    return -(-n_rows // batch_size)


def in_batches(
    order: Sequence[int],
    batch_size: int,
    encode: Callable[[list[int]], tuple[list[int], Tensor | None, dict[int, str]]],
    model: str,
    device: str | torch.device,
    parts: Parts | None = None,
) -> list[Piece]:
    """Encode the rows `order` in batches, but for those that `parts` has already.

    Parameters
    ----------
    encode : rows of a batch -> rows encoded, their features [n, D] (`None` without any), row -> why it has none.
    model : its name, for messages.
    parts : where pieces are kept on the way; `None` keeps nothing.

    Returns
    -------
    Pieces that hold every batch once.

    Raises
    ------
    InputError : a feature is not finite.
    """
    from tqdm import tqdm

    n_batches = count_batches(len(order), batch_size)
    pieces = parts.read(n_batches) if parts else []
    done = {at for piece in pieces for at in range(piece.start, piece.stop)}
    kind = torch.device(device).type
    bar = tqdm(total=n_batches, initial=len(done), desc=f"encode with {Path(model).name}", disable=not n_batches)
    fresh: list[Piece] = []
    # Half precision pays on a GPU only; autocast keeps the sums that need it in full precision.
    with bar, torch.inference_mode(), torch.autocast(kind, torch.float16, enabled=kind == "cuda"):
        began = time.monotonic()
        try:
            for at in (at for at in range(n_batches) if at not in done):
                if fresh and (fresh[-1].stop != at or time.monotonic() - began > SECONDS_PER_PART):
                    pieces.append(_keep(fresh, parts))
                    fresh, began = [], time.monotonic()
                rows, features, bad = encode(list(order[at * batch_size : (at + 1) * batch_size]))
                if features is not None and not torch.isfinite(features).all():
                    raise InputError(
                        f"{model}: its features are not finite; expected numbers, use another model or device"
                    )
                found = torch.zeros(0, 0) if features is None else features.float().cpu()
                fresh.append(Piece(at, at + 1, torch.tensor(rows, dtype=torch.long), found, bad))
                bar.update()
        except BaseException:
            if fresh:
                _keep(fresh, parts)
            raise
    # What is left is not kept as a part: the whole is written next.
    return [*pieces, _join(fresh)] if fresh else pieces


def _keep(pieces: list[Piece], parts: Parts | None) -> Piece:
    joined = _join(pieces)
    if parts:
        parts.keep(joined)
    return joined


def _join(pieces: Sequence[Piece]) -> Piece:
    features = [piece.features for piece in pieces if len(piece.rows)] or [torch.zeros(0, 0)]
    bad = {row: reason for piece in pieces for row, reason in piece.bad.items()}
    rows = torch.cat([piece.rows for piece in pieces])
    return Piece(pieces[0].start, pieces[-1].stop, rows, torch.cat(features), bad)


def assemble(pieces: Sequence[Piece], n_rows: int) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Return features [n_rows, D], whether a row has them [n_rows], and row -> why it has none, in order."""
    known = torch.zeros(n_rows, dtype=torch.bool)
    width = max((piece.features.shape[1] for piece in pieces), default=0)
    matrix = torch.zeros(n_rows, width)
    for piece in pieces:
        known[piece.rows] = True
        if len(piece.rows):
            matrix[piece.rows] = piece.features
    return matrix, known, dict(sorted((row, why) for piece in pieces for row, why in piece.bad.items()))
