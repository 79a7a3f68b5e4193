"""Whether the semantic IDs of a data set are sound whatever the seed: report cards of the item tokenizer side by side.

Tokenizers and cards are kept in the cache of the runs, so a stopped study goes on, and runs find what it has fitted.
Several processes that share the cache share the fits.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import claims, compat, registry, storage
from ..config import Config
from ..data.semantic_ids import compared_card
from ..errors import InputError
from ..evaluation import report
from ..settings import MAY_BE_UNUSED
from ..tokenizer.registry import load
from . import records, tables
from .runner import QUIET, check_judged, given_and_files

AS_SET, NO_PROBE = "as set", "without the probe"

CODES = {"lowest utilisation": ".3f", "lowest perplexity": ".1f", "sharing": ",.0f", "moved": ",.0f"}
CODES |= {"fit s": ".0f", "encode s": ".2f"}
PARTS = {"r2": "probe R2", "club": "CLUB", "reconstruction": "reconstruction", "dimensions": "dimensions of z_S"}
"""Columns of the two tables: of the first with their format, of the second by their name in a card."""


def study(dataset: str, n_seeds: int, arguments: Sequence[str], results: Path) -> dict[str, Any]:
    """Fit the item tokenizer with several seeds, write and print the table, and return what was measured.

    Where the tokenizer trains against a probe, it is fitted without it as well. For the parameters see `experiments`.
    """
    given, files = given_and_files(arguments, "the study", n_seeds)
    given = {**QUIET, **given, "model": "BBQRec", "dataset": dataset, "report_card": True}
    config = Config(arguments=files, config_dict=given)
    check_judged(config)
    if config["codes"] == "none":
        raise InputError("codes: found none, which fits no tokenizer; drop the setting")
    rows: dict[str, dict[str, Any]] = {AS_SET: {}}
    if config["tokenizer"] == "behavior_bind" and config["sid_independence_weight"]:
        rows[NO_PROBE] = {"sid_independence_weight": 0.0}
    plan = [(row, config["seed"] + index) for row in rows for index in range(n_seeds)]
    fitted = {(row, seed): {**given, **rows[row], "seed": seed, MAY_BE_UNUSED: True} for row, seed in plan}
    work = records.folder_of(results, dataset) / "claims" / f"ids-{storage.fingerprint(given, list(rows))}"
    cards, bar = {}, tqdm(total=len(plan), desc="Tokenizers", ncols=100)
    with bar:
        for row, seed in claims.in_turn(plan, lambda fit: work.with_name(f"{work.name}-{plan.index(fit)}")):
            cards[row, seed] = _card(Config(arguments=files, config_dict=fitted[row, seed]))
            bar.update()
    found = {row: [cards[one] for one in plan if one[0] == row] for row in rows}
    measured = {"dataset": dataset, "versions": report.versions()}
    measured |= {"settings": records.comparable_settings(config), "rows": found}
    page = markdown(measured)
    tables.write(results, f"semantic-ids-{dataset}", measured, {"md": page})
    print(page)
    return measured


def _card(config: Config) -> dict[str, Any]:
    """The report card of one fit, without what only a page of one fit shows; with the time `encode` takes."""
    compat.init_seed(config)
    data = registry.get_dataset(config["model"])(config)
    data.build()
    assert data.tokenizer_file is not None, "the codes are learned, so a tokenizer is kept"
    assert data.train_sequences is not None, "they are known once the data is split"
    card = compared_card(data.catalogue, data.train_sequences, data.tokenizer_file)
    kept = ("items", "codebook_size", "codes", "collisions", "disentanglement", "cost", "warnings")
    rqvae = {key: card["rqvae"][key] for key in ("codes", "collisions", "skipped") if key in card["rqvae"]}
    features, seconds = data.catalogue.features, None
    if features is not None and features.matrices:  # else there is nothing to encode the catalogue from
        fitted, both = load(data.tokenizer_file), (features.matrices, features.present)
        matrices, present = ({name: rows[1:] for name, rows in part.items()} for part in both)
        started = time.perf_counter()
        fitted.encode(matrices, present)
        seconds = time.perf_counter() - started
    return {"seed": config["seed"], **{key: card[key] for key in kept}, "rqvae": rqvae, "encode_seconds": seconds}


def markdown(measured: Mapping[str, Any]) -> str:
    """Return the page of a study."""
    rows = measured["rows"]
    first = rows[AS_SET]
    of_codes = {row: [_of_codes(card) for card in cards] for row, cards in rows.items()}
    compared = [_of_codes(card["rqvae"]) for card in first if "skipped" not in card["rqvae"]]
    if compared:
        of_codes["RQ-VAE"] = compared
    modalities = [] if "skipped" in first[0]["disentanglement"] else first[0]["disentanglement"]
    of_parts = {
        (modality, row): [card["disentanglement"][modality]["after"] for card in cards]
        for modality in modalities
        for row, cards in rows.items()
    }
    shown = {
        "of_codes": [(row, len(found), _over(found, CODES)) for row, found in of_codes.items()],
        "of_parts": [(*names, _over(found, dict.fromkeys(PARTS, ".3f"))) for names, found in of_parts.items()],
    }
    return tables.page(
        "ids.md.jinja", **measured, **shown, first=first, code_columns=CODES, part_columns=PARTS.values()
    )


def _of_codes(card: Mapping[str, Any]) -> dict[str, float | None]:
    """What the first table shows of one fit; nothing of the times of a comparison."""
    return {
        **{f"lowest {key}": min(code[key] for code in card["codes"]) for key in ("utilisation", "perplexity")},
        "sharing": card["collisions"]["before"]["sharing"],
        "moved": card["collisions"]["moved"],
        "fit s": card.get("cost", {}).get("seconds"),
        "encode s": card.get("encode_seconds"),
    }


def _over(found: Sequence[Mapping[str, Any]], formats: Mapping[str, str]) -> list[str]:
    """Mean, least and most by key; the mean alone where they show as the same, empty where nothing was measured."""
    cells = []
    for key, form in formats.items():
        numbers = [one[key] for one in found if one.get(key) is not None]
        mean, *reach = (format(of(numbers), form) for of in (statistics.mean, min, max)) if numbers else ("",)
        cells.append(mean if set(reach) <= {mean} else f"{mean} [{', '.join(reach)}]")
    return cells
