"""The files of a bundle's folder, and what `bundle.json` says."""

import json
from pathlib import Path
from typing import Any

from .. import storage
from ..errors import InputError
from ..model.catalogue import PADDING
from ..model.protocol import NeedsDataError
from ..training import checkpoint

BUNDLE, WEIGHTS, FEATURES = "bundle.json", checkpoint.WEIGHTS_FILE, "features.safetensors"
SEMANTIC_IDS, TOKENIZER, ITEMS = "semantic_ids.safetensors", "tokenizer.safetensors", "items.safetensors"
ENCODERS, STAND_IN_FILE, REPORT_CARD = "encoders.safetensors", "stand_in.safetensors", "report_card.json"
SCHEME = "hf://"
"""Begins the address of a bundle on the Hugging Face hub."""


def runs_of(folder: Path) -> list[str]:
    """Names of the finished runs that share the training in `folder`, where it is not a run itself."""
    runs = sorted(folder.parent.glob(f"{folder.name}-*/{BUNDLE}"))
    return [] if (folder / BUNDLE).is_file() else [found.parent.name for found in runs]


def content_of(folder: Path) -> dict[str, Any]:
    """What `bundle.json` says; an `InputError` where there is none that can be used."""
    try:
        content = json.loads((folder / BUNDLE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        finished = runs_of(folder)
        hint = f"this is a training, finished runs of it are {', '.join(finished)}; " if finished else ""
        if (folder / WEIGHTS).is_file() and not finished:
            hint = "the run is not finished, or its model needs its data set, see load_data_and_model; "
        raise InputError(
            f"{folder / BUNDLE}: {why}; {hint}give the folder of a finished run, such as saved/BBQRec-..."
        ) from error
    content = content if isinstance(content, dict) else {}
    if content.get("format") != storage.FORMAT:
        raise InputError(f"{folder / BUNDLE}: format {content.get('format')}, expected {storage.FORMAT}; train again")
    if "needs" in content:
        raise NeedsDataError(f"{folder}: {content['needs']}")
    settings, tokens = content.get("settings"), content.get("item_tokens")
    named = isinstance(settings, dict) and all(isinstance(settings.get(key), str) for key in ("model", "dataset"))
    if not named or not isinstance(tokens, list) or tokens[:1] != [PADDING]:
        expected = "expected settings with model and dataset, and item_tokens"
        raise InputError(f"{folder / BUNDLE}: not what a finished run writes, {expected}; copy the folder again")
    return content
