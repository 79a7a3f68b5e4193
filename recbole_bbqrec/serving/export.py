"""A bundle's model for other runtimes: the encoder of histories as ONNX, item vectors and the rest as plain files.

What a caller does with them stands in `export.json`, and as code in docs/serving.md. Only models whose scores are dot
products have this form, see `dot_product`.

Shapes: B histories, T items of the longest, N items (row 0 = padding), W width of the vectors.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__, storage
from ..errors import InputError
from ..evaluation.ranking import tie_order
from ..preparation.build import new_folder
from ..second_stage.socket import form_of
from ..second_stage.trees import DIGEST, Trees
from .bundle import Bundle
from .dot_product import dot_product

ENCODER, ITEMS, STAGE, ABOUT = "encoder.onnx", "item_vectors.safetensors", "second_stage.safetensors", "export.json"
HOW = [
    "histories: int64 [B, T], places of items in item_tokens in time order, padded with 0 on the right; at least one "
    "item each, of more than max_length the last ones",
    "scores [B, N] = vectors of the histories @ vectors of the items, transposed; temperature and norms are in them",
    "left out: item 0, which is padding, and as a rule the items of the history",
    "of equal scores the item with the smaller number in tie_order comes first",
]


def export(bundle: Bundle, folder: str | Path) -> None:
    """Write a bundle's model for other runtimes into a new folder, whole or not at all.

    `encoder.onnx` turns `histories` (int64 [B, T], any B and T) into `vectors` [B, W]. `item_vectors.safetensors` has
    the `vectors` [N, W] of the items and their `tie_order` [N]; `export.json` the tokens and what to do. The numbers of
    a second stage come as they are: `second_stage.safetensors`, and LightGBM's text of its trees.

    Raises
    ------
    InputError : the scores are no dot products, ONNX is not installed, or the folder is there already.
    """
    target = Path(folder)
    encoder, items = dot_product(bundle.ranker, "export")
    settings, n_items = bundle.settings, len(bundle.item_tokens)
    with new_folder(target) as place:
        _write_encoder(encoder, items.device, settings["MAX_ITEM_LIST_LENGTH"], place / ENCODER)
        ties = tie_order(n_items, settings["seed"])
        storage.save(place / ITEMS, "export", {"vectors": items, "tie_order": ties}, {})
        about = {
            "format": 1,
            "version": __version__,
            "model": settings["model"],
            "dataset": settings["dataset"],
            "max_length": settings["MAX_ITEM_LIST_LENGTH"],
            "width": items.shape[1],
            "how": HOW,
            "second_stage": _write_stage(bundle.model.second_stage, place),
            "item_tokens": bundle.item_tokens,
        }
        storage.write_json(place / ABOUT, about)


def _write_encoder(encoder: nn.Module, device: torch.device, max_length: int, path: Path) -> None:
    _check_installed()
    size = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=max_length)}
    # Sizes of 0 and 1 are taken for fixed ones.
    example = torch.ones(2, min(2, max_length), dtype=torch.long, device=device)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            encoder.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=(size if max_length > 1 else {0: size[0]},),
            input_names=["histories"],
            output_names=["vectors"],
            verbose=False,
        )
        assert program is not None  # with `dynamo` it never is
        program.save(path)


def _write_stage(stage: nn.Module | None, place: Path) -> dict[str, Any] | None:
    """Write the numbers of a second stage; what there is, for `export.json`."""
    if stage is None:
        return None
    texts, tensors = [], dict(stage.state_dict())
    for name, part in stage.named_modules():
        if isinstance(part, Trees):
            content = bytes(tensors.pop(f"{name}.content").cpu().numpy())
            texts.append(f"{name}.txt")
            (place / texts[-1]).write_bytes(content[DIGEST:])
    storage.save(place / STAGE, "export", tensors, {})
    note = "the scores are those of the model without it; how it ranks candidates: recbole_bbqrec/second_stage"
    return {"form": form_of(stage), "tensors": STAGE, "trees": texts, "note": note}


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"export: found no {error.name}; pip install 'recbole-bbqrec[export]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch's exporter says of packages that are not installed, and of its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
