"""Encoding in batches, some seconds of which are kept at a time: an interrupted encoding goes on where it stopped.

Batches depend on the items alone, never on where an encoding began, so that one in several goes ends with the same
numbers as one in a single go.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import storage
from ..errors import InputError

SECONDS_PER_PART = 10.0
"""Work of so many seconds is kept at a time: a kill costs no more, and writing costs next to nothing."""

Device = str | torch.device

Piece = tuple[Tensor, Tensor, dict[int, str]]
"""What some batches gave: rows [n], their features float32 [n, D], and row -> why it has none."""


def encode_in_batches(
    order: Sequence[int],
    n_rows: int,
    encode: Callable[[list[int]], tuple[list[int], Tensor, dict[int, str]]],
    model: Path,
    device: Device,
    batch_size: int = 32,
    parts: Path | None = None,
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Encode the rows `order` of `n_rows`: features [n_rows, D], whether a row has them [n_rows], row -> why not.

    Parameters
    ----------
    encode : rows of a batch -> rows encoded, their features [n, D] (`zeros(0)` without any), row -> why it has none.
    model : its folder, for messages.
    parts : folder where pieces are kept on the way, named by all that the encoding depends on; `None` keeps nothing.

    Raises
    ------
    InputError : a feature is not finite.
    """
    pieces = read_parts(parts) if parts else []
    done = {row for rows, _, bad in pieces for row in (*rows.tolist(), *bad)}
    starts = range(0, len(order), batch_size)
    todo = [start for start in starts if order[start] not in done]
    kept, began = len(pieces), time.monotonic()
    bar = tqdm(todo, f"encode with {model.name}", len(starts), initial=len(starts) - len(todo), disable=not starts)
    kind = torch.device(device).type
    # Half precision pays on a GPU only; autocast keeps the sums that need it in full precision.
    with bar, torch.inference_mode(), torch.autocast(kind, torch.float16, enabled=kind == "cuda"):
        try:
            for start in bar:
                if time.monotonic() - began > SECONDS_PER_PART:
                    _keep(pieces[kept:], parts)
                    kept, began = len(pieces), time.monotonic()
                rows, features, bad = encode(list(order[start : start + batch_size]))
                if not torch.isfinite(features).all():
                    raise InputError(
                        f"{model}: its features are not finite; expected numbers, use another model or device"
                    )
                pieces.append((torch.tensor(rows, dtype=torch.long), features.float().cpu(), bad))
        except BaseException:
            _keep(pieces[kept:], parts)
            raise
    # What is left is not kept as a part: the whole is written next.
    width = max((features.shape[1] for rows, features, _ in pieces if len(rows)), default=0)
    matrix, known = torch.zeros(n_rows, width), torch.zeros(n_rows, dtype=torch.bool)
    for rows, features, _ in pieces:
        if len(rows):
            matrix[rows], known[rows] = features, True
    return matrix, known, dict(sorted((row, why) for *_, bad in pieces for row, why in bad.items()))


def read_parts(folder: Path) -> list[Piece]:
    """Return the pieces in `folder` that can be trusted; what is damaged, or of another folder, is computed again."""
    pieces: list[Piece] = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors, header = storage.load(path, "encoding part")
            piece = tensors["rows"], tensors["features"], {int(row): why for row, why in header["bad"].items()}
        except (InputError, KeyError, ValueError, AttributeError):
            piece = None
        if piece is not None and path.stem == storage.fingerprint(folder.name, *piece):
            pieces.append(piece)
        else:
            logging.getLogger().warning(f"{path}: not a part of this encoding, or damaged; it is computed again")
    return pieces


def _keep(pieces: Sequence[Piece], folder: Path | None) -> None:
    """Write pieces as one file, called by the fingerprint of its content; where that fails the encoding goes on."""
    if not folder or not pieces:
        return
    rows, features = (torch.cat([piece[at] for piece in pieces]) for at in (0, 1))  # type: ignore[misc]
    bad = {row: why for *_, reasons in pieces for row, why in reasons.items()}
    path = folder / f"{storage.fingerprint(folder.name, rows, features, bad)}.safetensors"
    try:
        storage.save(path, "encoding part", {"rows": rows, "features": features}, {"bad": bad})
    except OSError as error:
        logging.getLogger().warning(f"{folder}: a part of the encoding could not be kept ({error.strerror or error})")
