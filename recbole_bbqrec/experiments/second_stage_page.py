"""The page of the second stage: what codes, counting and popularity bring to it, and each group of features."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..evaluation import report
from ..evaluation.statistics import PairedValues, holm
from . import records, tables
from .leaderboard_page import model_settings, yaml_block
from .records import Run
from .tables import TESTED, Row, short

OFF, LINEAR, GBDT = "off", "linear", "gbdt"
"""Variants that are values of the key `second_stage`; everything is compared with the last, with all its features."""
WITHOUT = "without "
"""Begins the names of variants that lack something."""
SCORES_ALONE, POPULARITY_ALONE, WITH_POPULARITY = "scores alone", "popularity alone", "with popularity"

Side = tuple[str, str]
"""A model and a variant."""

HEADLINES: Mapping[str, tuple[Side, Side]] = {
    "What codes and everything made of them add": (("BBQRec", GBDT), ("SASRecPlusFT", GBDT)),
    "What features of codes add inside the second stage": (("BBQRec", GBDT), ("BBQRec", f"{WITHOUT}codes")),
    "How far counting goes, where nothing is trained": (("TransitionGraph", GBDT), ("BBQRec", GBDT)),
}
"""Questions, and the two sides whose difference answers them; then comes one about popularity for every model."""
ARTEFACT = "How large the artefact of popularity is"

Runs = Mapping[str, Mapping[int, Run]]


def folder_of(results: Path, dataset: str) -> Path:
    """Folder of the records, apart from those of runs, which are found by their keys."""
    return records.folder_of(results, dataset) / "second-stage"


def splits_of(dataset: str, results: Path = Path("results")) -> list[str]:
    """Splits, as `name_of_split` has them, that there are records of."""
    return sorted({run.of_split for run in records.runs_in(folder_of(results, dataset))})


def write(dataset: str, results: Path = Path("results"), split: str = "") -> str:
    """Write page, JSON and figure of a split from the records; return the page."""
    found = content(dataset, folder_of(results, dataset), split)
    shared, own = model_settings(dataset, {model["model"]: model["settings"] for model in found["models"]})
    name = tables.name_of("second-stage", dataset, split)
    page = tables.page("second-stage.md.jinja", **found, name=name, shared=shared, own=own, yaml=yaml_block)
    # The panels share the labels of the first: the model with most variants.
    models = sorted(found["models"], key=lambda model: -len(model["rows"]))
    labels = [row["variant"] for row in models[0]["rows"]]
    panels = {
        f"{model['model']}, {short(metric)}": {
            row["variant"]: row["masked"][metric] for row in model["rows"] if row["variant"] in labels
        }
        for model in models
        for metric in TESTED
    }
    figure = report.bar_figure(f"Second stage on {dataset}, validation, seen items masked", panels, GBDT)
    tables.write(results, name, found, {"png": figure, "md": page})
    return page


def content(dataset: str, folder: Path, split: str = "") -> dict[str, Any]:
    """Everything that the page of a split shows, as plain data; equal records give equal content."""
    runs = _chosen([run for run in records.runs_in(folder) if run.of_split == split])
    if not runs:
        raise InputError(
            f"{folder}: found no record of {dataset}; run first: bbqrec second-stage --model=BBQRec --dataset={dataset}"
        )
    values = {metric: _values(runs, metric) for metric in TESTED}
    some = [next(iter(of_model.values())).record for of_model in runs.values()]
    return {
        "dataset": dataset,
        "users": values[TESTED[0]].n_users,
        "targets": [record["targets"] for record in some],
        "rows_of": some[0]["rows"][OFF],
        "data": some[0]["data"],
        "headlines": _headlines(runs, values),
        "models": [_model(model, runs, values) for model in runs],
    }


def _chosen(found: Sequence[Run]) -> Runs:
    """Model -> seed -> run: of each model the latest settings, all on the data of the latest record."""
    latest = sorted(found, key=lambda run: (run.record["finished"], run.key), reverse=True)
    keys: dict[str, str] = {}
    for run in latest:
        if run.data == latest[0].data:
            keys.setdefault(run.model, run.key)
    return {model: records.by_seed(found, keys[model], OFF) for model in sorted(keys)}


def _sides(runs: Runs) -> Iterator[tuple[Side, dict[int, Run]]]:
    """All models' variants, in the order of the records, with the runs that have them."""
    for model, of_model in runs.items():
        for variant in dict.fromkeys(name for run in of_model.values() for name in run.record["planned"]):
            if having := {seed: run for seed, run in of_model.items() if variant in run.splits}:
                yield (model, variant), having


def _values(runs: Runs, metric: str) -> PairedValues:
    """Values per user of all models' variants, seen items masked."""
    values, trainings = {}, dict[str, Hashable]()
    for side, having in _sides(runs):
        name = " ".join(side)
        values[name] = {seed: tables.values_of(run, side[1], "masked", metric) for seed, run in having.items()}
        trainings[name] = side[0], *having  # what a seed trains is shared by the variants
    return PairedValues(values, trainings)


def _compared(row: Side, reference: Side, values: PairedValues) -> Row:
    sides = " ".join(row), " ".join(reference)
    return {
        "means": [values.mean(side) for side in sides],
        "difference": values.difference(*sides),
        "change": values.change(*sides),
        "p": values.p_value(*sides),
    }


def _headlines(runs: Runs, values: Mapping[str, PairedValues]) -> list[Row]:
    """The questions that were asked before any run, a family of tests of its own."""
    asked = [(question, *sides) for question, sides in HEADLINES.items()]
    asked += [(ARTEFACT, (model, POPULARITY_ALONE), (model, SCORES_ALONE)) for model in runs]
    there, found = dict(_sides(runs)), []
    for question, row, reference in asked:
        sides = row, reference
        missing = [_name(side) for side in sides if side not in there]
        metrics = {} if missing else {metric: _compared(row, reference, one) for metric, one in values.items()}
        seeds = [] if missing else [len(there[side]) for side in sides]
        names = [_name(side) for side in sides]
        found.append({"question": question, "sides": names, "missing": missing, "seeds": seeds, "metrics": metrics})
    holm([entry] for headline in found for entry in headline["metrics"].values())
    return found


def _name(side: Side) -> str:
    model, variant = side
    return f"{model} with {GBDT}{f', {variant}' if variant != GBDT else ''}"


def _model(model: str, runs: Runs, values: Mapping[str, PairedValues]) -> Row:
    """The table of a model, with Holm's correction over all its tests."""
    first = next(iter(runs[model].values())).record
    there = {side: having for side, having in _sides(runs) if side[0] == model}
    rows = [_row(side, there, values) for side in there]
    holm([entry] for row in rows for entry in row["masked"].values())
    of_trees = [run.record["variants"][GBDT] for run in runs[model].values() if GBDT in run.splits]
    return {
        "model": model,
        "run_key": first["run_key"],
        "seeds": list(runs[model]),
        "untrained": all(run.record["epochs"]["done"] == 0 for run in runs[model].values()),
        **tables.cautions(runs, model),
        "rows": rows,
        "left_out": first["left_out"],
        "not_better": sum(not variant["is_better"] for variant in of_trees),
        "work": {part: _mean([run.record["work"][part] for run in runs[model].values()]) for part in first["work"]},
        "versions": first["versions"],
        "settings": first["settings"],
    }


def _row(side: Side, there: Mapping[Side, Mapping[int, Run]], values: Mapping[str, PairedValues]) -> Row:
    """A line of a model's table; the comparison with all features is none where they have no record yet."""
    usual, variant = (side[0], GBDT), side[1]
    fits, masked = [run.record["variants"][variant] for run in there[side].values()], {}
    for metric, of_metric in values.items():
        is_compared = side != usual and usual in there
        against = _compared(side, usual, of_metric) if is_compared else {"change": None, "p": None}
        masked[metric] = of_metric.estimate(" ".join(side)) | {key: against[key] for key in ("change", "p")}
    about = {"variant": variant, "seeds": list(there[side]), "features": fits[0]["features"], **_mean(fits)}
    return {**about, "masked": masked}


def _mean(spent: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of `seconds` and `cpu_seconds`."""
    return {key: float(np.mean([one[key] for one in spent])) for key in ("seconds", "cpu_seconds")}
