"""Whether the semantic IDs of a data set are sound whatever the seed: report cards of the item tokenizer side by side.

Tokenizers and cards are kept in the cache of the runs, so a stopped study goes on, and runs find what it has fitted.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recbole.utils import init_seed
from tqdm import tqdm

from .. import registry, storage
from ..config import Config
from ..data.features import ItemFeatures
from ..errors import InputError
from ..evaluation import report
from ..tokenizer.registry import load
from . import records
from .runner import QUIET, given_and_files

AS_SET, NO_CLUB = "as set", "without CLUB"

Cards = dict[str, list[dict[str, Any]]]
"""Report cards by row, a card a seed."""


def study(
    dataset: str, seeds: int = 5, arguments: Sequence[str] = (), results: Path = Path("results")
) -> dict[str, Any]:
    """Fit the item tokenizer with several seeds, write and print the table, and return what was measured.

    Where the tokenizer has a CLUB term, it is fitted without it as well.

    Parameters
    ----------
    seeds : number of seeds, from the configured one upwards.
    arguments : `--key=value` settings of all fits.

    Raises
    ------
    InputError : no seeds, or settings without learned IDs.
    """
    if seeds < 1:
        raise InputError(f"--seeds: found {seeds}, expected at least 1")
    given, files = given_and_files(arguments, "the study")
    given = {**QUIET, **given, "model": "BBQRec", "dataset": dataset, "report_card": True}
    config = Config(arguments=files, config_dict=given)
    if config["codes"] == "none":
        raise InputError("codes: found none, which fits no tokenizer; drop the setting")
    rows: dict[str, dict[str, Any]] = {AS_SET: {}}
    if config["tokenizer"] == "behavior_bind" and config["sid_club_weight"]:
        rows[NO_CLUB] = {"sid_club_weight": 0.0}
    plan = [(row, config["seed"] + index) for row in rows for index in range(seeds)]
    found: Cards = {row: [] for row in rows}
    for row, seed in tqdm(plan, "Tokenizers", ncols=100):
        found[row].append(_card(Config(arguments=files, config_dict={**given, **rows[row], "seed": seed})))
    measured = {
        "dataset": dataset,
        "versions": report.versions(),
        "settings": records.comparable_settings(config),
        "rows": found,
    }
    stem, page = results / f"semantic-ids-{dataset}", markdown(measured)
    report.write_file(stem.with_suffix(".md"), page)
    storage.write_json(stem.with_suffix(".json"), measured)
    print(page)
    return measured


def _card(config: Config) -> dict[str, Any]:
    """The report card of one fit, without what only a page of one fit shows; with the time `encode` takes."""
    init_seed(config["seed"], config["reproducibility"])
    data = registry.get_dataset(config["model"])(config)
    data.build()
    tokenizer_file = data.tokenizer_file
    assert tokenizer_file is not None, "the codes are learned, so a tokenizer is kept"
    card = json.loads(tokenizer_file.with_suffix(".json").read_text(encoding="utf-8"))
    kept = ("items", "codebook_size", "codes", "collisions", "disentanglement", "cost", "warnings")
    rqvae = {key: card["rqvae"][key] for key in ("codes", "collisions", "skipped") if key in card["rqvae"]}
    return {
        "seed": config["seed"],
        **{key: card[key] for key in kept},
        "rqvae": rqvae,
        "encode_seconds": _encode_seconds(tokenizer_file, data.catalogue.features),
    }


def _encode_seconds(tokenizer_file: Path, features: ItemFeatures | None) -> float | None:
    """Time of encoding the whole catalogue anew from its features; `None` where items have none."""
    if features is None or not features.matrices:
        return None
    fitted = load(tokenizer_file)
    matrices, present = (
        {name: rows[1:] for name, rows in part.items()} for part in (features.matrices, features.present)
    )
    started = time.perf_counter()
    fitted.encode(matrices, present)
    return time.perf_counter() - started


def markdown(measured: dict[str, Any]) -> str:
    """Return the page of a study."""
    cards: Cards = measured["rows"]
    first = cards[AS_SET]
    settings, seeds = measured["settings"], [str(card["seed"]) for card in first]
    parts = [
        f"# Semantic IDs of {measured['dataset']}",
        f"{first[0]['items']} items, {first[0]['codebook_size']} codes a codebook, {len(first[0]['codes'])} codes an "
        f"item ({settings['tokenizer']}, {settings['sid_mode']}); seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}. "
        "Where seeds differ: mean [least, most].",
        "## Before collisions are resolved",
        _codes_table(cards),
        "utilisation: share of a codebook's codes in use; perplexity: how many codes an even use would need; both at "
        "the position where they are lowest. sharing: items whose ID another item has too. moved: items that got "
        "another ID, after which none share. RQ-VAE: fitted on the same features, with as many codes an item and codes "
        "a codebook. encode: all items anew from their features, one call.",
    ]
    if "skipped" not in first[0]["disentanglement"]:
        parts += [
            "## Specific and behaviour part",
            _parts_table(cards),
            "Judges fitted afresh on three quarters of the items and asked about the rest. probe R2: share of the "
            "variance of the behaviour part that the specific part predicts; CLUB: bound on what they share, in nats; "
            "reconstruction: mean squared error, 1 is the error of the mean item.",
        ]
    return "\n\n".join([*parts, "## Warnings", _warnings(cards)]) + "\n"


def _codes_table(cards: Cards) -> str:
    rows = []
    for row, of in cards.items():
        fit = _over(of, lambda card: card["cost"]["seconds"], "{:.0f}")
        encode = _over(of, lambda card: card["encode_seconds"], "{:.2f}")
        rows.append([row, str(len(of)), *_code_cells(of), fit, encode])
    compared = [card["rqvae"] for card in cards[AS_SET] if "skipped" not in card["rqvae"]]
    if compared:
        rows.append(["RQ-VAE", str(len(compared)), *_code_cells(compared), "", ""])
    header = ["tokenizer", "seeds", "lowest utilisation", "lowest perplexity", "sharing", "moved", "fit s", "encode s"]
    return report.markdown_table(header, rows)


def _code_cells(cards: Sequence[dict[str, Any]]) -> list[str]:
    return [
        _over(cards, lambda card: min(code["utilisation"] for code in card["codes"]), "{:.3f}"),
        _over(cards, lambda card: min(code["perplexity"] for code in card["codes"]), "{:.1f}"),
        _over(cards, lambda card: card["collisions"]["before"]["sharing"], "{:,.0f}"),
        _over(cards, lambda card: card["collisions"]["moved"], "{:,.0f}"),
    ]


def _parts_table(cards: Cards) -> str:
    names = {"r2": "probe R2", "club": "CLUB", "reconstruction": "reconstruction", "dimensions": "dimensions of z_S"}
    rows = []
    for modality in cards[AS_SET][0]["disentanglement"]:
        for row, of in cards.items():
            parts = [card["disentanglement"][modality]["after"] for card in of]
            cells = [_over(parts, lambda part, key=key: part.get(key), "{:.3f}") for key in names]
            rows.append([modality, row, *cells])
    return report.markdown_table(["modality", "tokenizer", *names.values()], rows)


def _warnings(cards: Cards) -> str:
    lines = [
        f"- {row}, seed {card['seed']}: {'; '.join(card['warnings'])}"
        for row, of in cards.items()
        for card in of
        if card["warnings"]
    ]
    return "\n".join(lines) or "None."


def _over(cards: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None], form: str) -> str:
    """Mean, least and most over cards; the mean alone where they show as the same, empty where nothing was measured."""
    found = [number for number in map(value, cards) if number is not None]
    if not found:
        return ""
    mean, least, most = (form.format(of(found)) for of in (statistics.mean, min, max))
    return mean if least == most else f"{mean} [{least}, {most}]"
