"""A model with one part changed at a time: the rows of `properties/ablation.yaml`, their runs, and the page of them.

BBQRec has several forms, each a model of its own; an ablation is of one of them.
"""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from ..config import Config
from ..data.feature_sources import modalities
from ..errors import InputError, did_you_mean
from ..evaluation import report
from ..evaluation.configuration import name_of_split
from ..evaluation.statistics import PairedValues
from ..settings import ADDED_LATER, PROPERTIES
from . import records, tables
from .runner import QUIET, Job, given_and_files, run_with_page, say
from .tables import FULL, SPLITS, TESTED, short


class NotApplicableError(Exception):
    """A row means nothing under the given settings; the message says why."""


@functools.cache
def definition() -> dict[str, dict[str, Any]]:
    """Content of `properties/ablation.yaml`: forms, what rows may need, and rows by name in the order of the table."""
    return yaml.safe_load((PROPERTIES / "ablation.yaml").read_text(encoding="utf-8"))


def model_of(form: str) -> str:
    """The model whose parts an ablation of this form changes."""
    forms = definition()["forms"]
    if form not in forms:
        raise InputError(f"--form: found {form!r}, expected one of {', '.join(forms)}")
    return forms[form]["model"]


def kind_of(form: str) -> str:
    """What the name of an ablation's page begins with."""
    return "ablation" if form == FULL else f"ablation-{form}"


def chosen_rows(names: Sequence[str]) -> list[str]:
    """Return the named rows in the order of the table, `full` among them; all where none is named."""
    rows = definition()["rows"]
    for name in set(names).difference(rows):
        hint = did_you_mean(name, rows, f"choose some of {', '.join(rows)}")
        raise InputError(f"--rows: found {name!r}, no row of the ablation; {hint}")
    return [name for name in rows if not names or name in names or name == FULL]


def applicable(names: Iterable[str], full: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Split rows into those that apply, with their changes, and those that do not, with the reason."""
    found, left_out = {}, {}
    for name in names:
        try:
            found[name] = changes_of(name, full)
        except NotApplicableError as error:
            left_out[name] = str(error)
    return found, left_out


def changes_of(name: str, full: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that row `name` changes, given those of `full`; a `NotApplicableError` where it would mean nothing."""
    # As it was before there were other forms, and before there were the keys that came later.
    row, full = definition()["rows"][name], {"second_stage": "linear", **ADDED_LATER, **full}
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
    if later := [key for key in changes if key not in full]:
        raise NotApplicableError(f"these runs are older than the key {later[0]}")
    if name != FULL and all(full[key] == value for key, value in changes.items()):
        raise NotApplicableError("it changes nothing under these settings")
    return changes


def _as_many(full: Mapping[str, Any], changes: Mapping[str, Any]) -> int:
    """Levels with which an item has as many codes as in `full`."""

    def chains(settings: Mapping[str, Any]) -> int:  # of `sid_levels` codes each
        if settings["tokenizer"] != "behavior_bind" or settings["sid_mode"] == "fused":
            return 1
        return len(modalities(settings)) + bool(settings["sid_use_id"])

    codes, signals = full["sid_levels"] * chains(full), chains({**full, **changes})
    if not signals or codes % signals:
        raise NotApplicableError(f"{codes} codes per item cannot be shared by {signals} signals")
    return codes // signals


def _without(full: Mapping[str, Any], signal: str) -> list[str]:
    """Signals of the second stage without one of them."""
    signals = {*modalities(full), "behavior", *(["codes"] if full["codes"] != "none" else [])}
    if signal not in signals:
        raise NotApplicableError(f"the items have no {signal}")
    left = [name for name in full["candidate_similarity"] or [] if name != signal]
    if not signals & set(left):
        raise NotApplicableError("nothing is left of the second stage, see the row candidate-similarity")
    return left


def ablate(
    dataset: str,
    names: Sequence[str] = (),
    n_seeds: int = 3,
    arguments: Sequence[str] = (),
    final: bool = False,
    results: Path = Path("results"),
    form: str = FULL,
) -> int:
    """Run the rows `names` of a form, one of `forms` in `properties/ablation.yaml`, that have no record yet.

    For the other parameters and the exit code see `experiments`.
    """
    names = chosen_rows(names)
    given, files = given_and_files(arguments, "an ablation", n_seeds)
    given = {**QUIET, **given, "model": model_of(form), "dataset": dataset, "final": final}
    config = Config(arguments=files, config_dict=given)
    full, data = records.comparable_settings(config), records.about_data(config)
    found, left_out = applicable(names, full)
    for name, reason in left_out.items():
        say(f"row {name} is left out: {reason}")
    jobs = [
        Job(name, {**given, **changes, "seed": seed}, files, data, records.folder_of(results, dataset))
        for seed in range(config["seed"], config["seed"] + n_seeds)
        for name, changes in found.items()
    ]
    asked = tables.asked_of(config)
    return run_with_page(jobs, final, lambda: write(dataset, full, data, final, results, asked))


def remake(dataset: str, final: bool = False, results: Path = Path("results"), form: str = FULL) -> None:
    """Write table and figure again from the records alone; neither the data nor a model is needed.

    It is the study that the table on disk shows, or else the only one there are records of; an `InputError` where there
    is none, or several.
    """
    folder = records.folder_of(results, dataset)
    table = tables.file_of(results, tables.name_of(kind_of(form), dataset), "json")
    shown = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}
    # A leaderboard's run of the model serves as `full` too.
    model = model_of(form)
    full, whole = (
        {run.key: run for run in records.runs_in(folder, f"{name}-*") if run.model == model} for name in (FULL, model)
    )
    known = {**whole, **full}
    meant = [known[shown["run_key"]]] if shown.get("run_key") in known else list((full or whole).values())
    if len(meant) != 1:
        raise InputError(
            f"--table-only: found {len(meant)} ablations of {model} on {dataset} in {folder}, expected one; "
            "run the one that is meant once without --table-only"
        )
    record = meant[0].record
    data = {key: record[key] for key in ("data", "data_fingerprint")}
    print(write(dataset, record["settings"], data, final, results, shown.get("asked", {})))


def write(
    dataset: str,
    full: dict[str, Any],
    data: Mapping[str, Any],
    final: bool,
    results: Path,
    asked: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """Write the table as Markdown and JSON, and its figure, from the records; return the page.

    Nothing is written until a run has succeeded. `full` are the `records.comparable_settings` of that row, `asked`
    arguments of `tables.on_demand`.
    """
    found = content(dataset, full, data, final, records.folder_of(results, dataset), asked)
    if not found["splits"]:
        return "no run has a record yet"
    form, question = next(
        (form, of["question"]) for form, of in definition()["forms"].items() if of["model"] == full["model"]
    )
    name = tables.name_of(kind_of(form), dataset, name_of_split(full))
    shown = {"name": name, "question": question, "rows": definition()["rows"], "yaml": tables.yaml_of(full, dataset)}
    page = tables.page("ablation.md.jinja", **found, **shown)
    split, judged = list(found["splits"].items())[-1]
    panels = {short(metric): {row["row"]: row["masked"][metric] for row in judged} for metric in TESTED}
    for metric in TESTED:
        panels[f"Δ {short(metric)} in %"] = {row["row"]: row["masked"][metric]["change"] for row in judged}
    title = f"{full['model']} on {dataset}, {SPLITS[split].lower()}, seen items masked"
    figure = report.bar_figure(title, panels, FULL)
    tables.write(results, name, found, {"png": figure, "md": page})
    return page


def content(
    dataset: str,
    full: dict[str, Any],
    data: Mapping[str, Any],
    final: bool,
    folder: Path,
    asked: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Everything the table shows, as plain data; equal records give equal content."""
    changes, left_out = applicable(definition()["rows"], full)
    keys = {row: records.run_key({**full, **changed}, data["data_fingerprint"]) for row, changed in changes.items()}
    found, failed = records.of_rows(folder, keys, SPLITS if final else ("valid",))
    splits = {split: _rows(split, runs) for split, runs in found.items() if runs}
    more = {split: tables.on_demand(found[split], split, **asked) for split in splits}
    return {
        "model": full["model"],
        "dataset": dataset,
        "run_key": keys[FULL],
        "data": data["data"],
        "settings": full,
        "changes": {row: changed for row, changed in changes.items() if any(row in runs for runs in found.values())},
        "left_out": left_out,
        "failed": failed,
        "splits": splits,
        **({"asked": asked, "on_demand": more} if any(more.values()) else {}),
    }


def _rows(split: str, runs: tables.Runs) -> list[tables.Row]:
    """One entry per row of a split's table, with Holm's correction over all its tests."""

    def compared(row: str, values: PairedValues) -> tables.Row:
        if row == FULL or FULL not in runs:
            return {"change": None, "p": None}
        return {"change": values.change(row, FULL), "p": values.p_value(row, FULL)}

    values = tables.paired_values(runs, split, TESTED)
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
    tables.correct({row["row"]: row for row in found}, runs)
    return found
