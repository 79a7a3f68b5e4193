"""BBQRec with one part changed at a time: the rows of `properties/ablation.yaml`, their runs, and the page of them."""

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..data.feature_sources import modalities
from ..errors import InputError
from ..evaluation.statistics import PairedValues, holm
from ..settings import PROPERTIES, property_files, settings_to_load
from . import records, tables
from .runner import QUIET, Execute, Job, Planned, exit_code, given_and_files, run_jobs, say
from .tables import FULL, SPLITS, TESTED, short

MODEL = "BBQRec"

Settings = Mapping[str, Any]


class NotApplicableError(Exception):
    """A row means nothing under the given settings; the message says why."""


@functools.cache
def definition() -> dict[str, dict[str, Any]]:
    """Content of `properties/ablation.yaml`: rows by name, in the order of the table, and what they may need.

    Each row changes `full` in one respect; what it is compared with is always `full`.
    """
    return yaml.safe_load((PROPERTIES / "ablation.yaml").read_text(encoding="utf-8"))


def rows() -> list[str]:
    """Names of all rows, in the order of the table."""
    return list(definition()["rows"])


def chosen_rows(names: Sequence[str]) -> list[str]:
    """Return the named rows in the order of `rows`, `full` among them; all where none is named.

    Raises
    ------
    InputError : there is no such row; the nearest is given.
    """
    for name in set(names).difference(rows()):
        near = difflib.get_close_matches(name, rows(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"choose some of {', '.join(rows())}"
        raise InputError(f"--rows: found {name!r}, no row of the ablation; {hint}")
    return [name for name in rows() if not names or name in names or name == FULL]


def applicable(names: Sequence[str], full: Settings) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Split rows into those that apply, with their changes, and those that do not, with the reason."""
    found, left_out = {}, {}
    for name in names:
        try:
            found[name] = changes_of(name, full)
        except NotApplicableError as error:
            left_out[name] = str(error)
    return found, left_out


def changes_of(name: str, full: Settings) -> dict[str, Any]:
    """Settings that row `name` changes, given those of `full`.

    Raises
    ------
    NotApplicableError : under these settings the row would be another one, or would mean nothing.
    """
    row = definition()["rows"][name]
    for need in (definition()["needs"][name] for name in row.get("needs", ())):
        wrong = [key for key, value in need.get("is", {}).items() if full[key] != value]
        wrong += [key for key, values in need.get("not", {}).items() if full[key] in values]
        if wrong or len(modalities(full)) < need.get("modalities", 0):
            raise NotApplicableError(need["reason"].format_map(full))
    changes = dict(row.get("changes", {}))
    for key, value in changes.items():
        if value == "as many":
            changes[key] = _as_many(full, changes)
        elif isinstance(value, dict):
            changes[key] = _without(full, value["without"])
    if name != FULL and all(full[key] == value for key, value in changes.items()):
        raise NotApplicableError("it changes nothing under these settings")
    return changes


def _as_many(full: Settings, changes: Settings) -> int:
    """Levels with which an item has as many codes as in `full`."""

    def chains(settings: Settings) -> int:  # of `sid_levels` codes each
        if settings["tokenizer"] != "behavior_bind" or settings["sid_mode"] == "fused":
            return 1
        return len(modalities(settings)) + bool(settings["sid_use_id"])

    codes, signals = full["sid_levels"] * chains(full), chains({**full, **changes})
    if not signals or codes % signals:
        raise NotApplicableError(f"{codes} codes per item cannot be shared by {signals} signals")
    return codes // signals


def _without(full: Settings, signal: str) -> list[str]:
    """Candidate similarity without one of its signals."""
    signals = {*modalities(full), "behavior"}
    if signal not in signals:
        raise NotApplicableError(f"the items have no {signal}")
    left = [name for name in full["candidate_similarity"] or [] if name != signal]
    if not signals & set(left):
        raise NotApplicableError("nothing is left of the candidate similarity, see the row candidate-similarity")
    return left


def ablate(
    dataset: str,
    names: Sequence[str] = (),
    n_seeds: int = 3,
    arguments: Sequence[str] = (),
    final: bool = False,
    results: Path = Path("results"),
    execute: Execute | None = None,
) -> int:
    """Run the rows that have no record yet, screening first, and write the table after every run.

    Parameters
    ----------
    names : rows; none means all.
    n_seeds : runs of each row, from the base seed upwards; the first seed of all rows comes first.
    arguments : `--key=value` settings of all rows.
    final : also judge the test split.
    results : folder of tables and records.
    execute : stands in for `quick_start.execute`.

    Returns
    -------
    Exit code: 0, or 1 where a run failed.
    """
    names = chosen_rows(names)
    if n_seeds < 1:
        raise InputError(f"--seeds: found {n_seeds}, expected at least 1")
    given, files = given_and_files(arguments, "an ablation")
    given = {**QUIET, **given, "model": MODEL, "dataset": dataset, "final": final}
    config = Planned(FULL, given, files).config()
    full, data = records.comparable_settings(config), records.Data.of(config)
    found, left_out = applicable(names, full)
    for name, reason in left_out.items():
        say(f"row {name} is left out: {reason}")
    jobs = [
        Job(Planned(name, {**given, **changes, "seed": seed}, files), data, records.folder_of(results, dataset))
        for seed in range(config["seed"], config["seed"] + n_seeds)
        for name, changes in found.items()
    ]
    failures = run_jobs(jobs, final, lambda _: write(dataset, full, data, final, results), execute)
    print(write(dataset, full, data, final, results))
    return exit_code(failures)


def remake(dataset: str, final: bool = False, results: Path = Path("results")) -> None:
    """Write table and figure again from the records alone; neither the data nor a model is needed.

    It is the study that the table on disk shows, or else the only one there are records of.

    Raises
    ------
    InputError : there is no ablation of this data set among the records, or it is not clear which of several.
    """
    folder, table = records.folder_of(results, dataset), results / f"ablation-{dataset}.json"
    shown = json.loads(table.read_text(encoding="utf-8"))["run_key"] if table.is_file() else None
    # A leaderboard's run of the model serves as `full` too.
    full, whole = ({run.key: run for run in records.runs_in(folder, f"{name}-*")} for name in (FULL, MODEL))
    known = {**whole, **full}
    meant = [known[shown]] if shown in known else list((full or whole).values())
    if len(meant) != 1:
        raise InputError(
            f"--table-only: found {len(meant)} ablations of {dataset} in {folder}, expected one; "
            "run the one that is meant once without --table-only"
        )
    record = meant[0].record
    data = records.Data(record["data_fingerprint"], record["data"])
    print(write(dataset, record["settings"], data, final, results))


def write(dataset: str, full: dict[str, Any], data: records.Data, final: bool, results: Path) -> str:
    """Write the table as Markdown and JSON, and its figure, from the records; return the page.

    Where no run has ended well yet nothing is written.

    Parameters
    ----------
    full : settings of the row `full`, see `records.comparable_settings`.
    """
    found = content(dataset, full, data, final, records.folder_of(results, dataset))
    if not found["splits"]:
        return "no run has a record yet"
    page = tables.page(
        "ablation.md.jinja",
        **found,
        rows=definition()["rows"],
        yaml=_settings_of_full(found),
    )
    tables.write(results, f"ablation-{dataset}", found, {"png": figure(found), "md": page})
    return page


def content(dataset: str, full: dict[str, Any], data: records.Data, final: bool, folder: Path) -> dict[str, Any]:
    """Everything the table shows, as plain data; equal records give equal content."""
    changes, left_out = applicable(rows(), full)
    keys = {row: records.run_key({**full, **changed}, data.fingerprint) for row, changed in changes.items()}
    recorded = records.runs_in(folder)
    runs = {row: [run for run in recorded if run.key == key] for row, key in keys.items()}
    failed = records.failures_in(folder).items()
    splits = {}
    for split in SPLITS if final else ("valid",):
        judged = {row: records.by_seed(run for run in found if split in run.splits) for row, found in runs.items()}
        splits[split] = _rows(split, {row: found for row, found in judged.items() if found})
    return {
        "model": MODEL,
        "dataset": dataset,
        "run_key": keys[FULL],
        "data": data.statistics,
        "settings": full,
        "changes": {row: changes[row] for row, found in runs.items() if found},
        "left_out": left_out,
        "failed": [text for row in keys for (name, _, key), text in failed if (name, key) == (row, keys[row])],
        "splits": {split: judged for split, judged in splits.items() if judged},
    }


def _rows(split: str, runs: tables.Runs) -> list[tables.Row]:
    """One entry per row of a split's table, with Holm's correction over all its tests."""

    def compared(row: str, values: PairedValues) -> tables.Row:
        seeds = values.common_seeds(row, FULL) if row != FULL and FULL in runs else []
        change, p_value = (values.change(row, FULL), values.p_value(row, FULL, seeds)) if seeds else (None, None)
        return {"change": change, "p": p_value}

    values = tables.paired_values(runs, split, TESTED) if runs else {}
    found = [
        {
            "row": row,
            "seeds": list(of_row),
            **tables.cautions(runs, row),
            "fit_seconds": float(np.mean([run.record["seconds"]["train"] for run in of_row.values()])),
            **tables.metrics_of(row, values, compared),
        }
        for row, of_row in runs.items()
    ]
    holm(entry for row in found for entry in row["masked"].values())
    return found


def _settings_of_full(content: Settings) -> str:
    """Settings of `full` that our property files have, in their order, as they would be given."""
    given = settings_to_load({**content["settings"], "data_path": ""})  # RecBole turns a few into forms of its own
    keys = tables.keys_of(property_files(MODEL, content["dataset"]))
    shown = {key: given[key] for key in keys if key in content["settings"]}
    return yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=110).rstrip()


def figure(content: Mapping[str, Any]) -> bytes:
    """Draw the last split's metrics and the changes against `full` as bars with intervals; returns a PNG."""
    split, judged = list(content["splits"].items())[-1]
    masked = {row["row"]: row["masked"] for row in judged}
    panels = {short(metric): {row: found[metric] for row, found in masked.items()} for metric in TESTED}
    for metric in TESTED:
        panels[f"Δ {short(metric)} in %"] = {row: found[metric]["change"] for row, found in masked.items()}
    title = f"{MODEL} on {content['dataset']}, {SPLITS[split].lower()}, seen items masked"
    return tables.figure(title, panels, FULL)
