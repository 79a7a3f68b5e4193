"""The model card of a bundle on a hub: what it is, its data and their terms, what it has reached, how to load it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.feature_sources import modalities
from ..errors import InputError
from ..evaluation.report import markdown_table
from ..settings import public_source
from ..tokenizer.report_card import report_card_table
from .folder import REPORT_CARD

CARD = "README.md"

_HEAD = """---
library_name: recbole_bbqrec
tags:
- recommendation
- sequential-recommendation
- semantic-ids
---
"""


def model_card(folder: Path, content: dict[str, Any], files: Sequence[str], repo: str, results: str | None) -> str:
    """Return the card of the bundle in a folder, as Markdown.

    Parameters
    ----------
    content : of its `bundle.json`.
    files : names of those that go with it.
    repo : `org/name` that it gets.
    results : what the run has reached, as Markdown; none where that is not known.
    """
    settings = content["settings"]
    parts = {
        "": _about(content),
        "Data and terms": _data(settings["dataset"]),
        "Results": results or "There was no record of this run when the card was written, so it has no figures here.",
        "Codes": _codes(folder),
        "How to load it": _loading(repo, content),
        "Files": markdown_table(
            ["file", "bytes", "SHA-256"],
            [[name, str((folder / name).stat().st_size), _sha256(folder / name)] for name in files],
        ),
    }
    title = f"# {settings['model']} on {settings['dataset']}"
    sections = [f"## {name}\n\n{text}" if name else text for name, text in parts.items() if text]
    return _HEAD + "\n\n".join([title, *sections]) + "\n"


def _about(content: dict[str, Any]) -> str:
    settings = content["settings"]
    facts = {
        "items": str(len(content["item_tokens"]) - 1),
        "reads": f"the last {settings['MAX_ITEM_LIST_LENGTH']} items of a history",
        "scoring": settings.get("scoring"),
        "item features": ", ".join(f"{name} ({encoder})" for name, encoder in modalities(settings).items()),
        "second stage": settings.get("second_stage"),
        "seed": str(settings["seed"]),
        "version": content["version"],
    }
    rows = [[name, value] for name, value in facts.items() if value]
    return (
        "Ranks the items that come next after a history. Trained with recbole_bbqrec, a plugin for RecBole "
        f"(BBQRec: arXiv 2504.06636).\n\n{markdown_table(['', ''], rows)}"
    )


def _data(dataset: str) -> str:
    source = public_source(dataset)
    if source is None:
        return (
            f"{dataset} is no public set that recbole_bbqrec knows: whoever publishes this model adds its terms here."
        )
    lines = {"Data": source.get("about"), "Terms": source.get("terms"), "Cite": source.get("cite")}
    return "\n\n".join(f"{name}: {' '.join(text.split())}" for name, text in lines.items() if text)


def _codes(folder: Path) -> str:
    """Report card of the item tokenizer, where the run has made one."""
    path = folder / REPORT_CARD
    if not path.is_file():
        return ""
    try:
        return report_card_table(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a report card that can be read ({error!r}); delete it") from error


def _loading(repo: str, content: dict[str, Any]) -> str:
    history = json.dumps(content["item_tokens"][1:3])
    return (
        "```python\n"
        "from recbole_bbqrec import load_bundle\n\n"
        f'bundle = load_bundle("hf://{repo}")\n'
        f"bundle.recommend([{history}], k=10)\n"
        "```\n\n"
        "Its files are tensors and JSON; loading runs no code from them."
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()
