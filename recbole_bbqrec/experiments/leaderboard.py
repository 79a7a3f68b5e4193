"""From the records of whole models to a leaderboard: which runs are shown, what they reached and cost, and its page.

The page has the form of RecBole's benchmarks; beside it come LaTeX, CSV, JSON and a figure.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole
import yaml

from ..errors import InputError
from ..evaluation import report
from ..evaluation.statistics import PairedValues, holm
from ..settings import PROPERTIES, property_files, settings_to_load
from . import ablation, records, tables
from .records import Run
from .tables import FULL, SPLITS, TESTED, Row, Runs, Values, short

SHOWN = [f"{metric}@{k}" for k in (5, 10, 20) for metric in ("recall", "ndcg")]
"""Metrics of the tables, in both columns; `TESTED` of the masked one are tested."""

RANKED_BY = "ndcg@10"
LEVEL = 0.01
"""A difference whose corrected p-value is not below this is none."""

CODES = ("SASRecPlusFT", "BBQRec")
"""The model with everything but semantic IDs, and the one that has them too."""

# RecBole's keys of training; its other shared files are about data and models that are not used here.
_TRAINING = ("learner", "learning_rate", "weight_decay", "train_batch_size", "MAX_ITEM_LIST_LENGTH")

_RECBOLE_MODELS = Path(str(recbole.__file__)).parent / "properties" / "model"

COSTS = ("parameters", *(f"{name}_seconds" for name in ("train", "epoch", "evaluate", "feature")))
COSTS += ("peak_memory_mib", "epochs")
"""What a row takes, see `_costs`."""


def write(dataset: str, results: Path = Path("results"), *shown: Any, **more: Any) -> str:
    """Write `<dataset>.md`, `.tex`, `.csv`, `.png` and `.json` from the records in `runs/`; return the page.

    `shown` and `more` say what they show, see `content`.
    """
    found = content(dataset, records.folder_of(results, dataset), *shown, **more)
    page, tex = pages(found)
    panels = {short(metric): {row["model"]: row["masked"][metric] for row in found["rows"]} for metric in TESTED}
    title = f"{dataset}, {SPLITS[found['split']].lower()}, seen items masked"
    figure = report.bar_figure(title, panels, found["reference"])
    files = {"png": figure, "tex": tex, "csv": csv_text(found), "md": page}
    tables.write(results, dataset, found, files)
    return page


def content(
    dataset: str,
    folder: Path,
    final: bool = False,
    models: Sequence[str] = (),
    keys: Sequence[str] = (),
    against: str | None = None,
    planned: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that the page shows, as plain data; equal records give equal content.

    Parameters
    ----------
    folder : of the records.
    final : show the test split instead of validation.
    models : rows to show; none means all that have a record.
    keys : run keys (or how they begin) to show instead of their models' latest ones.
    against : row that all others are compared with, instead of the best one.
    planned : model -> run key of runs that are on their way; until there is one of them the model has no row.
    """
    split = "test" if final else "valid"
    judged = [run for run in records.runs_in(folder) if split in run.splits]
    # Whole models, an ablation's `full` among them, the latest first and those without a date last.
    found = [run for run in judged if run.record["name"] in (run.model, FULL)]
    found.sort(key=lambda run: (run.record.get("finished", ""), run.key), reverse=True)
    # What the runs do about ties in time: the default, or where no record has it what the latest did.
    ties = [*(run.ties for run in found), default_ties(dataset)]
    usual = ties[-1] if ties[-1] in ties[:-1] else ties[0]
    chosen = choose(found, usual, models, keys, planned or {})
    if not chosen:
        raise InputError(
            f"{folder}: found no record of {dataset} to show that was judged on {split}; "
            f"run first: python run_recbole_bbqrec.py --model=... --dataset={dataset} --seeds=3{' --final' * final}"
        )
    runs = {model: records.by_seed(judged, run.key, split) for model, run in chosen.items()}
    values = tables.paired_values(runs, split, SHOWN)
    ranked = values["masked", RANKED_BY]
    if against not in (None, *runs):
        raise InputError(f"--against: found {against!r}, expected one of {', '.join(sorted(runs))}")
    reference = against or min(runs, key=lambda model: (-ranked.mean(model), model))
    rows = [_row(model, runs, values, reference) for model in runs]
    if final:
        for row in rows:
            row["valid_masked"] = {k: {"mean": mean} for k, mean in _means(runs[row["model"]], "valid", SHOWN).items()}
    holm(entry for row in rows for entry in row["masked"].values())
    rows.sort(key=lambda row: (-row["masked"][RANKED_BY]["mean"], row["model"]))
    # A family of tests of its own, chosen before any run.
    worth = {metric: _compared(*CODES, values["masked", metric]) for metric in TESTED if {*CODES} <= {*runs}}
    holm(worth.values())
    data = [chosen[row["model"]].record["data"] for row in rows]
    modalities = list(dict.fromkeys(name for of_row in data for name in of_row["modalities"]))
    return {
        "dataset": dataset,
        "split": split,
        "users": ranked.n_users,
        "data": functools.reduce(dict.__or__, [*data, {"modalities": modalities}]),
        "reference": reference,
        "against": against,
        "standing": {metric: _standing(rows, reference, metric) for metric in TESTED},
        "worth_of_codes": worth or None,
        "rows": rows,
        "total_seconds": _total_seconds(rows, runs),
        "other_ties": _other_ties(found, judged, chosen, split),
        "others": others_of(found, usual, chosen, models),
        "failed": [
            text
            for (name, _, key), text in records.failures_in(folder).items()
            if (chosen[name].key == key if name in chosen else not models and name not in ablation.definition()["rows"])
        ],
        "settings": {row["model"]: chosen[row["model"]].record["settings"] for row in rows},
    }


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
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in property_files("BBQRec", dataset)]
    return functools.reduce(lambda known, content: content.get("shuffle_ties", known), files, None)


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


def _row(model: str, runs: Runs, values: Values, reference: str) -> Row:
    found = [run.record for run in runs[model].values()]
    return {
        "model": model,
        "run_key": found[0]["run_key"],
        "seeds": list(runs[model]),
        "untrained": all(record["epochs"]["done"] == 0 for record in found),
        **tables.cautions(runs, model),
        "leakage_checks": [record.get("leakage_check", "not recorded") for record in found],
        "chosen": {str(record["seed"]): record["chosen"] for record in found if record.get("chosen")},
        **_costs(found),
        "memory_is_bound": any(record.get("peak_memory_is_bound", True) for record in found),
        **tables.metrics_of(model, values, functools.partial(_compared, reference)),
    }


def _costs(found: Sequence[Row]) -> dict[str, float | None]:
    """What a run takes: means over the seeds that tell, of memory the largest; none where no seed tells."""
    parts, nothing = pd.DataFrame(record["seconds"] for record in found).astype(float).mean(), 0.0
    costs = {
        "parameters": found[0].get("parameters"),
        "train_seconds": parts["train"] + parts.get("candidates", nothing),
        "epoch_seconds": parts.get("epoch"),
        "evaluate_seconds": parts.get("evaluate"),
        "feature_seconds": parts.get("features", nothing) + parts.get("tokenizer", nothing),
        "peak_memory_mib": max(record.get("peak_memory_mib") or np.nan for record in found),
        "epochs": np.mean([record["epochs"]["done"] for record in found]),
    }
    return {key: None if value is None or np.isnan(value) else float(value) for key, value in costs.items()}


def _total_seconds(rows: Sequence[Row], runs: Runs) -> float:
    """What all runs take together, a training that rows share once; what nobody has measured is not in it."""
    trainings, fitted = {}, 0.0
    for row in rows:
        for run in runs[row["model"]].values():
            seconds, folder = run.record["seconds"], run.record["run_dir"]
            # The trainer names it <Model>-<Set>-<seed>-<training>, then perhaps a key of what is fitted afterwards.
            key = re.search(r"-([0-9a-f]{16})(-[0-9a-f]{8})?$", folder)
            training = key[1] if key else folder
            trainings[training] = max(trainings.get(training, 0.0), seconds["train"] + (row["feature_seconds"] or 0.0))
            fitted += seconds.get("candidates") or 0.0
    return fitted + sum(trainings.values())


def _compared(reference: str, row: str, values: PairedValues) -> Row:
    """Comparison of a row with the reference, which has none with itself."""
    if row == reference:
        return {"difference": None, "p": None}
    return {"difference": values.difference(row, reference), "p": values.p_value(row, reference)}


def _standing(rows: Sequence[Row], reference: str, metric: str) -> dict[str, list[str]]:
    """Rows that are significantly worse than the reference in a metric, level with it, and significantly better."""
    places: dict[str, list[str]] = {"worse": [], "level": [], "better": []}
    for row in rows:
        entry = row["masked"][metric]
        if row["model"] != reference:
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
            means = _means(runs, split, TESTED)
            rows[run.key] = {"model": run.model, "shuffle_ties": run.ties, "seeds": list(runs), "masked": means}
    return sorted(rows.values(), key=lambda row: (row["model"], row["shuffle_ties"] is not None, row["shuffle_ties"]))


def _means(runs: Mapping[int, Run], split: str, metrics: Sequence[str]) -> dict[str, float]:
    """Metric -> mean over users and seeds, seen items masked."""
    return {
        metric: float(np.mean([tables.values_of(run, split, "masked", metric)[1].mean() for run in runs.values()]))
        for metric in metrics
    }


def pages(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return the page and the table of all metrics in both columns for LaTeX, which needs `booktabs`."""
    settings = list(content["settings"].values())
    shared, own = model_settings(content["dataset"], content["settings"])
    checks = dict.fromkeys(check for row in content["rows"] for check in row["leakage_checks"])
    shown = {
        **content,
        "of_all": lambda key: " or ".join(dict.fromkeys(str(one.get(key)) for one in settings)),
        "orders": dict.fromkeys("{split} in order {order}".format_map(one["eval_args"]) for one in settings),
        "is_bold": lambda model, metric: is_bold(content, model, metric),
        "checks": {of: [row["model"] for row in content["rows"] if of in row["leakage_checks"]] for of in checks},
        "shared": shared,
        "own": own,
        "inline": _inline,
        "yaml": _yaml,
        "has_own_file": (PROPERTIES / "dataset" / f"{content['dataset']}.yaml").is_file(),
    }
    return tables.page("leaderboard.md.jinja", **shown), tables.page("leaderboard.tex.jinja", **shown)


def is_bold(content: Mapping[str, Any], model: str, metric: str) -> bool:
    """Whether a row is the reference and significantly better than every other row by this metric."""
    places = content["standing"].get(metric, {})  # which metrics without a test lack
    return model == content["reference"] and [side for side, rows in places.items() if rows] == ["worse"]


def _inline(settings: Mapping[str, Any]) -> str:
    """Settings in one line."""
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in settings.items()}
    return ", ".join(f"{key}: {'~' if value is None else value}" for key, value in shown.items())


def model_settings(dataset: str, settings: Mapping[str, Row]) -> tuple[Row, dict[str, Row]]:
    """Split the rows' settings into those of all rows and those of each model, in the order of the property files.

    Keys of a model's own files, ours and RecBole's, and those of training stand with the model even where all agree.
    """
    # As they would be given: RecBole turns a few settings into forms of its own.
    given = {model: settings_to_load({**found, "data_path": ""}) for model, found in settings.items()}
    general, own = {}, {}
    for model in settings:
        files = property_files(model, dataset)
        about_model = [path for path in files if path.parent.name == "model"]
        general |= tables.keys_of(path for path in files if path not in about_model)
        own[model] = [*tables.keys_of([*about_model, _RECBOLE_MODELS / f"{model}.yaml"]), *_TRAINING]
    of_models, shared = {key for keys in own.values() for key in keys}, {}
    for key in general:
        values = [found[key] for found in given.values() if key in found]
        if key not in of_models and values and values.count(values[0]) == len(values):
            shared[key] = values[0]
    return shared, {
        model: {key: found[key] for key in dict.fromkeys([*own[model], *general]) if key in found and key not in shared}
        for model, found in given.items()
    }


def _yaml(settings: Mapping[str, Any]) -> str:
    # One line a key; of a bare value YAML writes a second line that ends the document.
    lines = [f"{key}: {yaml.safe_dump(value, default_flow_style=True, width=1000)}" for key, value in settings.items()]
    text = "\n".join(line.removesuffix("...\n").rstrip() for line in lines)
    return f"```yaml\n{text}\n```" if text else "None of its own."


def csv_text(content: Mapping[str, Any]) -> str:
    """Return all figures of the rows, unrounded; what there is none of is blank."""
    lines = []
    for row in content["rows"]:
        line: dict[str, Any] = {"model": row["model"], "split": content["split"], "seeds": len(row["seeds"])}
        for column in ("masked", "unmasked", "valid_masked"):
            line |= {f"{column} {metric}": entry["mean"] for metric, entry in row.get(column, {}).items()}
        for metric in TESTED:
            entry = row["masked"][metric]
            change = entry["difference"] or {}
            line |= {f"{metric} {end}": entry[end] for end in ("low", "high")}
            line |= {f"{metric} difference": change.get("mean")}
            line |= {f"{metric} difference {end}": change.get(end) for end in ("low", "high")}
            line |= {f"{metric} p (Holm)": entry.get("p_holm")}
        lines.append(line | {key: row[key] for key in (*COSTS, "hit_cap", "other_code", "times_tested", "run_key")})
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")
