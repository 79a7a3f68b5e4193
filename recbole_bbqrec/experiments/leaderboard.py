"""From the records of whole models to a leaderboard: which runs are shown, their statistics, and the files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import storage
from ..errors import InputError
from ..evaluation import report
from ..evaluation.statistics import PairedValues
from . import leaderboard_files, leaderboard_page, records
from .records import Run
from .selection import Record, choose, failed_of, others_of, recorded, ties_of, usual_ties
from .study import METRICS, correct, paired_values, values_of, version_of

SHOWN = [(metric, k) for k in (5, 10, 20) for metric in ("recall", "ndcg")]
"""Metrics of the tables, in both columns; `study.METRICS` of the masked one are tested."""

RANKED_BY = "ndcg@10"
LEVEL = 0.01
"""A difference whose corrected p-value is not below this is none."""

CODES = ("BBQRec", "SASRecPlusFT")
"""The model with semantic IDs, and the one with everything but them."""

Runs = Mapping[str, Mapping[int, Run]]


def write(
    dataset: str,
    results: Path = Path("results"),
    final: bool = False,
    models: Sequence[str] = (),
    keys: Sequence[str] = (),
    against: str | None = None,
    planned: Mapping[str, str] | None = None,
) -> str:
    """Write `<dataset>.md`, `.tex`, `.csv`, `.png` and `.json` from the records alone; return the page.

    Parameters
    ----------
    results : folder of the files, and of the records in `runs/<dataset>/`.
    final : show the test split instead of validation.
    models : rows to show; none means all that have a record.
    keys : run keys (or how they begin) to show instead of their models' latest ones.
    against : row that all others are compared with, instead of the best one.
    planned : model -> run key of runs that are on their way; until there is one of them the model has no row.

    Raises
    ------
    InputError : there is no record to show, no such row or key, or rows were judged on different users.
    """
    found = content(dataset, records.folder_of(results, dataset), final, models, keys, against, planned)
    page = leaderboard_page.markdown(found)
    report.write_file(results / f"{dataset}.png", leaderboard_files.figure(found))
    report.write_file(results / f"{dataset}.tex", leaderboard_files.tex(found))
    report.write_file(results / f"{dataset}.csv", leaderboard_files.csv_text(found))
    report.write_file(results / f"{dataset}.md", page)
    storage.write_json(results / f"{dataset}.json", found)
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
    """Everything that the page shows, as plain data; equal records give equal content. See `write`."""
    split = "test" if final else "valid"
    found = recorded(folder, split)
    usual = usual_ties(dataset, found)
    chosen = choose(found, usual, models, keys, planned or {})
    if not chosen:
        raise InputError(
            f"{folder}: found no record of {dataset} to show that was judged on {split}; "
            f"run first: python run_recbole_bbqrec.py --model=... --dataset={dataset} --seeds=3{' --final' * final}"
        )
    runs = {model: _runs(folder, record["run_key"], split) for model, record in chosen.items()}
    n_users = _same_users(runs, split)
    values = paired_values(runs, split, SHOWN)
    reference = _reference(values["masked", "ndcg", 10], against)
    version = version_of(runs)
    rows = [_row(model, of_model, values, reference, version) for model, of_model in runs.items()]
    if final:
        for row in rows:
            means = _means(runs[row["model"]], "valid", SHOWN)
            row["valid_masked"] = {name: {"mean": mean} for name, mean in means.items()}
    correct(entry for row in rows for entry in row["masked"].values())
    rows.sort(key=lambda row: (-row["masked"][RANKED_BY]["mean"], row["model"]))
    return {
        "dataset": dataset,
        "split": split,
        "users": n_users,
        "data": _statistics(rows, chosen),
        "reference": reference,
        "against": against,
        "standing": _standing(rows, reference),
        "worth_of_codes": _worth(values) if set(CODES) <= set(runs) else None,
        "rows": rows,
        "total_seconds": _total_seconds(rows, runs),
        "other_ties": _other_ties(found, chosen, folder, split),
        "others": others_of(found, usual, chosen, models),
        "failed": failed_of(folder, chosen, models),
        "settings": {row["model"]: chosen[row["model"]]["settings"] for row in rows},
    }


def _runs(folder: Path, key: str, split: str) -> dict[int, Run]:
    return {seed: run for seed, run in records.runs_of(folder, key).items() if split in run.ranks}


def _same_users(runs: Runs, split: str) -> int:
    """Number of users that all rows were judged on."""
    users = {
        f"{model}, seed {seed}": np.unique(run.ranks[split].users)
        for model, of_model in runs.items()
        for seed, run in of_model.items()
    }
    first_title, first = next(iter(users.items()))
    for title, found in users.items():
        if not np.array_equal(found, first):
            raise InputError(
                f"{title}: found {len(found)} users, expected the {len(first)} of {first_title}; settings that "
                "change the data cannot be compared user by user: leave a row out with --models, or choose with --keys"
            )
    return len(first)


def _reference(values: PairedValues, against: str | None) -> str:
    if against is None:
        return min(values.rows, key=lambda row: (-values.mean(row), row))
    if against not in values.rows:
        raise InputError(f"--against: found {against!r}, expected one of {', '.join(sorted(values.rows))}")
    return against


def _row(
    model: str,
    runs: Mapping[int, Run],
    values: Mapping[tuple[str, str, int], PairedValues],
    reference: str,
    version: str,
) -> dict[str, Any]:
    found = [run.record for _, run in sorted(runs.items())]
    row: dict[str, Any] = {
        "model": model,
        "run_key": found[0]["run_key"],
        "seeds": sorted(runs),
        "untrained": all(record["epochs"]["done"] == 0 for record in found),
        "hit_cap": sum(record["epochs"]["hit_cap"] for record in found if record["epochs"]["done"]),
        "other_code": sum(record["source"] != version for record in found),
        "times_tested": max(record["times_tested"] for record in found),
        "leakage_checks": [record.get("leakage_check", "not recorded") for record in found],
        "chosen": {str(record["seed"]): record["chosen"] for record in found if record.get("chosen")},
        **_costs(found),
        "masked": {},
        "unmasked": {},
    }
    for (column, metric, k), of_metric in values.items():
        row[column][f"{metric}@{k}"] = {"mean": of_metric.mean(model)}
        if column == "masked" and (metric, k) in METRICS:
            row[column][f"{metric}@{k}"] |= _claims(model, reference, of_metric)
    return row


def _costs(found: Sequence[Record]) -> dict[str, float | None]:
    """What a run takes: means over the seeds; of what a cache or another run may have spared, the largest."""

    def over(values: Sequence[float | None], how: Any) -> float | None:
        known = [value for value in values if value is not None]
        return float(how(known)) if known else None

    seconds = [record["seconds"] for record in found]
    return {
        "parameters": over([record.get("parameters") for record in found], max),
        "train_seconds": over([one["train"] + one.get("candidates", 0.0) for one in seconds], np.mean),
        "epoch_seconds": over([one.get("epoch") for one in seconds], np.mean),
        "evaluate_seconds": over([one.get("evaluate") for one in seconds], np.mean),
        "feature_seconds": over([one.get("features", 0.0) + one.get("tokenizer", 0.0) for one in seconds], max),
        "peak_memory_mib": over([record.get("peak_memory_mib") for record in found], max),
        "epochs": over([record["epochs"]["done"] for record in found], np.mean),
    }


def _total_seconds(rows: Sequence[Mapping[str, Any]], runs: Runs) -> float:
    """What all runs take together, a training that rows share once; no cache spares features or tokenizer."""
    trainings: dict[str, float] = {}
    fitted = 0.0
    for row in rows:
        for run in runs[row["model"]].values():
            seconds, folder = run.record["seconds"], run.record["run_dir"]
            # The trainer names it <Model>-<Set>-<seed>-<training>, then perhaps a key of what is fitted afterwards.
            key = re.search(r"-([0-9a-f]{16})(-[0-9a-f]{8})?$", folder)
            training = key[1] if key else folder
            trainings[training] = max(trainings.get(training, 0.0), seconds["train"] + row["feature_seconds"])
            fitted += seconds.get("candidates", 0.0)
    return fitted + sum(trainings.values())


def _claims(model: str, reference: str, values: PairedValues) -> dict[str, Any]:
    """Interval of a row's mean, and its comparison with the reference."""
    low, high = values.interval(model)
    compared = {} if model == reference else _difference(values, model, reference)
    return {"low": low, "high": high, "difference": compared.pop("difference", None), "p": compared.pop("p", None)}


def _difference(values: PairedValues, row: str, reference: str) -> dict[str, Any]:
    mean, (low, high) = values.difference(row, reference)
    return {"difference": {"mean": mean, "low": low, "high": high}, "p": values.p_of_difference(row, reference)}


def _standing(rows: Sequence[dict[str, Any]], reference: str) -> dict[str, dict[str, list[str]]]:
    """Metric -> rows that are significantly worse than the reference, level with it, and significantly better."""
    standing: dict[str, dict[str, list[str]]] = {}
    for metric, k in METRICS:
        places = standing[f"{metric}@{k}"] = {"worse": [], "level": [], "better": []}
        for row in rows:
            entry = row["masked"][f"{metric}@{k}"]
            if row["model"] != reference:
                side = "better" if entry["difference"]["mean"] > 0 else "worse"
                places[side if entry["p_holm"] < LEVEL else "level"].append(row["model"])
    return standing


def _worth(values: Mapping[tuple[str, str, int], PairedValues]) -> dict[str, Any]:
    """Metric -> difference of the two `CODES` rows; a family of tests of its own, chosen before any run."""
    worth = {f"{metric}@{k}": _difference(values["masked", metric, k], *CODES) for metric, k in METRICS}
    correct(worth.values())
    return worth


def _statistics(rows: Sequence[dict[str, Any]], chosen: Mapping[str, Record]) -> dict[str, Any]:
    """Statistics of the data, with the modalities that any row has."""
    found = [chosen[row["model"]]["data"] for row in rows]
    modalities = dict.fromkeys(name for data in found for name in data["modalities"])
    merged = {key: value for data in found for key, value in data.items()}
    return {**merged, "modalities": list(modalities)}


def _other_ties(
    found: Sequence[Record], chosen: Mapping[str, Record], folder: Path, split: str
) -> list[dict[str, Any]]:
    """Rows whose settings are those of a row shown, but for what they do about ties in time."""
    rows = []
    for record in {one["run_key"]: one for one in found}.values():
        shown = chosen.get(record["model"])
        if shown is None or ties_of(shown) == ties_of(record):
            continue
        if shown["settings"] != {**record["settings"], "shuffle_ties": ties_of(shown)}:
            continue
        runs = _runs(folder, record["run_key"], split)
        means = _means(runs, split, METRICS)
        rows.append({"model": record["model"], "shuffle_ties": ties_of(record), "seeds": sorted(runs), "masked": means})
    return sorted(rows, key=lambda row: (row["model"], row["shuffle_ties"] is not None, row["shuffle_ties"]))


def _means(runs: Mapping[int, Run], split: str, metrics: Sequence[tuple[str, int]]) -> dict[str, float]:
    """Metric -> mean over users and seeds, seen items masked."""
    return {
        f"{metric}@{k}": float(np.mean([values_of(run, split, "masked", metric, k)[1].mean() for run in runs.values()]))
        for metric, k in metrics
    }
