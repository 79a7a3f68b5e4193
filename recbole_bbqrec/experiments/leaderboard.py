"""What a leaderboard contains: which runs are shown, what they reached and cost, and what is compared with what."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from .. import registry, schema
from ..errors import InputError
from ..evaluation.candidates import sampling_of
from ..evaluation.statistics import PairedValues, holm
from ..settings import property_files
from . import records, tables
from .records import Run
from .tables import FULL, SHOWN, TESTED, Row, Runs, Values

RANKED_BY = "ndcg@10"
FULL_RANKING = "full"
LEVEL = 0.01
"""A difference counts only if its corrected p-value is below this."""

REFERENCE = "BBQRec"
"""The row that others are compared with, where the page has it."""
HEADLINES = (("BBQRecWithoutCandidates", "SASRecPlus"), ("BBQRec", "SASRecPlusFT"))
"""Pairs that stand at the head of a page, row and reference: both without a second stage, and both with one."""

HEADLINE_SEEDS = 3
"""Seeds that the rows of headline pairs are to have."""


def content(
    dataset: str,
    folder: Path,
    final: bool = False,
    models: Sequence[str] = (),
    keys: Sequence[str] = (),
    against: str | None = None,
    planned: Mapping[str, str] | None = None,
    metrics: Sequence[str] = (),
    groups: Sequence[str] = (),
    mode: str = FULL_RANKING,
    of_split: str = "",
    before: str | None = None,
) -> dict[str, Any]:
    """Everything that the page shows, as plain data; equal records give equal content.

    Parameters
    ----------
    folder : of the records.
    final : show the test split instead of validation.
    models : rows to show; none means all that have a record.
    keys : run keys (or how they begin) to show instead of their models' latest ones.
    against : row that all others are compared with; by default `BBQRec`, or where it has no row, the first of `models`
        or of `planned` that has one, or that of `before`. Never a row that this split has chosen: of many, the best is
        too good by chance.
    planned : model -> run key of runs that are on their way; until there is one of them the model has no row.
    metrics : further ones to show, such as `map@10` and `giniindex@10`.
    groups : what to show by groups of targets, of `popularity`, `length` and `cold`.
    mode : rows whose targets are ranked among these items, `full` or such as `uni100`; others have pages of their own.
    of_split : which records count, by `name_of_split`: what is judged on other targets is on a page of its own too.
    before : row that others were compared with when the page was written last.
    """
    split = "test" if final else "valid"
    sampling = sampling_of({"eval_args": {"mode": mode}}, split)
    among = sampling.words if sampling else None
    every = [run for run in records.runs_in(folder) if split in run.splits and run.among(split) == among]
    judged = [run for run in every if run.of_split == of_split]
    # Whole models that know all items, an ablation's `full` among them, the latest first and those without a date last.
    whole = [run for run in judged if not run.record["settings"].get("cold_items")]
    found = [run for run in whole if run.record["name"] in (run.model, FULL)]
    found.sort(key=lambda run: (run.record.get("finished", ""), run.key), reverse=True)
    # What the runs do about ties in time: the default, or where no record has it what the latest did.
    ties = [*(run.ties for run in found), default_ties(dataset)]
    usual = ties[-1] if ties[-1] in ties[:-1] else ties[0]
    chosen = choose(found, usual, models, keys, planned or {})
    if not chosen:
        splits = {run.of_split for run in every} - {""}
        others = f" (of the splits {', '.join(sorted(splits))} there are some: --split)" if splits else ""
        raise InputError(
            f"{folder}: found no record of {dataset} to show that was judged on {split}{others}; "
            f"run first: bbqrec train --model=... --dataset={dataset} --seeds={HEADLINE_SEEDS}"
            + (f" --eval_args=\"{{'mode': '{mode}'}}\"" if sampling else "")
            + " --final" * final
        )
    runs = {model: records.by_seed(judged, run.key, split) for model, run in chosen.items()}
    values = tables.paired_values(runs, split, SHOWN)
    ranked = values["masked", RANKED_BY]
    if against not in (None, *runs):
        raise InputError(f"--against: found {against!r}, expected one of {', '.join(sorted(runs))}")
    named = (REFERENCE, *models, *(planned or ()), before)
    reference = against or next((model for model in named if model in runs), None)
    rows = [_row(model, runs, values, reference) for model in runs]
    if final:
        on_valid = _valid_means(runs)
        for row in rows:
            row["valid_masked"] = {metric: {"mean": means[row["model"]]} for metric, means in on_valid.items()}
    tables.correct({row["model"]: row for row in rows}, runs)
    rows.sort(key=lambda row: (-row["masked"][RANKED_BY]["mean"], row["model"]))
    data = [chosen[row["model"]].record["data"] for row in rows]
    drawn = max(run.record.get("drawn_from", {}).get(split, 0) for run in chosen.values())
    modalities = list(dict.fromkeys(name for of_row in data for name in of_row["modalities"]))
    return {
        "dataset": dataset,
        **({"of_split": of_split} if of_split else {}),
        "split": split,
        "users": ranked.n_users,
        **({"targets": ranked.n_values} if ranked.n_values != ranked.n_users else {}),
        **({"drawn_from": drawn} if drawn else {}),
        **({"mode": mode, "among": among} if among else {}),
        **({"is_mixed": True} if tables.is_mixed(runs, split) else {}),
        # Under another split, histories of the two kinds do not end at the same place: their groups are not the same.
        **tables.on_demand(runs, split, metrics, () if of_split and tables.is_mixed(runs, split) else groups),
        "data": functools.reduce(dict.__or__, [*data, {"modalities": modalities}]),
        "reference": reference,
        "against": against,
        "standing": {metric: _standing(rows, metric) for metric in TESTED},
        "headlines": _headlines(runs, values),
        "rows": rows,
        "total_seconds": _total_seconds(rows, runs),
        "other_ties": _other_ties(found, judged, chosen, split),
        "others": others_of(found, usual, chosen, models),
        "failed": [
            text
            for (name, _, key), text in records.failures_in(folder).items()
            if (chosen[name].key == key if name in chosen else not models and _is_model(name))
        ],
        "settings": {row["model"]: chosen[row["model"]].record["settings"] for row in rows},
    }


def _is_model(name: str) -> bool:
    """Whether runs of this name are a leaderboard's; those of studies are called otherwise."""
    try:
        return bool(registry.get_model(name))
    except InputError:
        return False


def choose(
    found: Sequence[Run], usual: int | None, models: Sequence[str], keys: Sequence[str], planned: Mapping[str, str]
) -> dict[str, Run]:
    """Model -> a run of the settings to show: those of a key that is named, else the latest on the same data.

    Runs that do something else about ties than `usual` are shown only where their key is named.
    """
    chosen: dict[str, Run] = {}
    for start in keys:
        meant = {run.key: run for run in found if run.key.startswith(start)}
        if len(meant) != 1:
            text = f"found {len(meant)} keys that begin with {start!r}, expected one; the page lists them"
            raise InputError(f"--keys: {text}")
        (run,) = meant.values()
        if chosen.setdefault(run.model, run).key != run.key:
            raise InputError(f"--keys: found two keys of {run.model}, expected one a model; keep one")
    for run in found:
        if planned.get(run.model) == run.key:
            chosen.setdefault(run.model, run)
    plain = [run for run in found if run.ties == usual and run.model not in planned]
    data = {run.data for run in [*chosen.values()] or plain[:1]}
    for run in plain:
        if run.data in data:
            chosen.setdefault(run.model, run)
    for model in models:
        if model not in chosen:
            raise InputError(f"--models: found {model!r}, expected some of {', '.join(sorted(chosen)) or 'none'}")
    return {model: run for model, run in chosen.items() if not models or model in models}


def default_ties(dataset: str) -> int | None:
    """What runs on a data set do about ties unless told otherwise: a seed to shuffle them by, or none."""
    found = None
    for path in property_files("BBQRec", dataset):
        found = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("shuffle_ties", found)
    return found


def others_of(found: Sequence[Run], usual: int | None, chosen: Mapping[str, Run], models: Sequence[str]) -> list[Row]:
    """Settings that have records but are not shown, with what they change; other ties have a place of their own."""
    others: dict[str, dict[str, Any]] = {}
    data = {run.data for run in chosen.values()}
    for run in found:
        shown = chosen.get(run.model)
        if run.ties != usual or (shown.key == run.key if shown else models):
            continue
        here, there = (shown or run).record["settings"], run.record["settings"]
        others[run.key] = {
            "model": run.model,
            "run_key": run.key,
            "seeds": sorted({run.seed, *others.get(run.key, {}).get("seeds", ())}),
            "changes": {key: there.get(key) for key in sorted({*here, *there}) if here.get(key) != there.get(key)},
            "other_data": run.data not in data,
        }
    return sorted(others.values(), key=lambda entry: (entry["model"], entry["run_key"]))


def _row(model: str, runs: Runs, values: Values, reference: str | None) -> Row:
    found = [run.record for run in runs[model].values()]

    def compared(row: str, of_metric: PairedValues) -> Row:
        """Compare with the reference; none for the reference itself and for a row that cannot differ from it."""
        if reference is None or tables.hypothesis(runs[row]) == tables.hypothesis(runs[reference]):
            return {"difference": None, "p": None}
        return _compared(row, reference, of_metric)

    return {
        "model": model,
        "run_key": found[0]["run_key"],
        "seeds": list(runs[model]),
        "seeds_due": HEADLINE_SEEDS if any(model in pair for pair in HEADLINES) else None,
        "untrained": all(tables.training_of(run) is None for run in runs[model].values()),
        "second_stage": _has_second_stage(found[0]),
        **tables.cautions(runs, model),
        "leakage_checks": [record.get("leakage_check", "not recorded") for record in found],
        "chosen": {str(record["seed"]): record["chosen"] for record in found if record.get("chosen")},
        **_costs(found),
        "memory_is_bound": any(record.get("peak_memory_is_bound", True) for record in found),
        **tables.metrics_of(model, values, compared),
    }


def _costs(found: Sequence[Row]) -> dict[str, float | None]:
    """What a run takes: means over the seeds that recorded it, for memory the largest; none where no seed did."""
    parts, nothing = pd.DataFrame(record["seconds"] for record in found).astype(float).mean(), 0.0
    costs = {
        "parameters": found[0].get("parameters"),
        "train_seconds": parts["train"] + parts.get("second stage", nothing),
        "epoch_seconds": parts.get("epoch"),
        "evaluate_seconds": parts.get("evaluate"),
        "feature_seconds": parts.get("features", nothing) + parts.get("tokenizer", nothing),
        "peak_memory_mib": pd.Series([record.get("peak_memory_mib") for record in found], dtype=float).max(),
        "epochs": np.mean([record["epochs"]["done"] for record in found]),
    }
    return {key: None if value is None or np.isnan(value) else float(value) for key, value in costs.items()}


def _total_seconds(rows: Sequence[Row], runs: Runs) -> float:
    """Seconds of all runs together; a training that rows share counts once, and what nobody has measured does not."""
    trainings, fitted = {}, 0.0
    for row in rows:
        of_row = runs[row["model"]].values()
        parts = pd.DataFrame(run.record["seconds"] for run in of_row).astype(float).mean()
        before = parts.reindex(["features", "tokenizer"]).sum()
        for run in of_row:
            seconds, training = run.record["seconds"], tables.training_of(run) or run.path.name
            trainings[training] = max(trainings.get(training, 0.0), seconds["train"] + before)
            fitted += seconds.get("second stage") or 0.0
    return fitted + sum(trainings.values())


def _has_second_stage(record: Row) -> bool:
    """Whether something is fitted on validation targets after training; older records tell by their settings."""
    if "second_stage" in record:
        return record["second_stage"] is not None
    settings = record["settings"]
    return schema.second_stage({"second_stage": "linear", **settings}) != "off"


def _compared(row: str, reference: str, values: PairedValues) -> Row:
    return {"difference": values.difference(row, reference), "p": values.p_value(row, reference)}


def _headlines(runs: Runs, values: Values) -> list[Row]:
    """The headline pairs whose rows there are; a family of tests of its own, chosen before any run."""
    found = []
    for pair in HEADLINES:
        if {*pair} <= {*runs}:
            sides = [
                {
                    "model": model,
                    "seeds": len(runs[model]),
                    "second_stage": _has_second_stage(next(iter(runs[model].values())).record),
                }
                for model in pair
            ]
            metrics = {metric: _compared(*pair, values["masked", metric]) for metric in TESTED}
            found.append({"sides": sides, "seeds_due": HEADLINE_SEEDS, "metrics": metrics})
    holm([entry] for pair in found for entry in pair["metrics"].values())
    return found


def _standing(rows: Sequence[Row], metric: str) -> dict[str, list[str]]:
    """Rows that are significantly worse than the reference in a metric, level with it, and significantly better."""
    places: dict[str, list[str]] = {"worse": [], "level": [], "better": []}
    for row in rows:
        entry = row["masked"][metric]
        if entry["difference"]:
            side = "better" if entry["difference"]["mean"] > 0 else "worse"
            places[side if entry["p_holm"] < LEVEL else "level"].append(row["model"])
    return places


def _other_ties(found: Sequence[Run], judged: Sequence[Run], chosen: Mapping[str, Run], split: str) -> list[Row]:
    """Rows whose settings are those of a row shown, but for what they do about ties in time."""
    rows = {}
    for run in found:
        shown = chosen.get(run.model)
        if not shown or shown.ties == run.ties:
            continue
        if shown.record["settings"] == {**run.record["settings"], "shuffle_ties": shown.ties}:
            runs = records.by_seed(judged, run.key, split)
            means = tables.further({run.key: runs}, split, TESTED)["masked"]
            masked = {metric: of_metric[run.key] for metric, of_metric in means.items()}
            rows[run.key] = {"model": run.model, "shuffle_ties": run.ties, "seeds": list(runs), "masked": masked}
    return sorted(rows.values(), key=lambda row: (row["model"], row["shuffle_ties"] is not None, row["shuffle_ties"]))


def _valid_means(runs: Runs) -> dict[str, dict[str, float | None]]:
    """Metric -> row -> what its runs reached on validation, none where they rank other items there."""
    try:
        return tables.further(runs, "valid", SHOWN)["masked"]
    except InputError:
        return {metric: dict.fromkeys(runs) for metric in SHOWN}
