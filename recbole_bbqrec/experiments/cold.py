"""How models rank items that training did not know, and what these cost the others: runs over seeds, and their page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..config import Config
from ..errors import InputError
from ..evaluation import report
from ..evaluation.configuration import name_of_split
from ..evaluation.statistics import PairedValues, holm
from . import records, tables
from .runner import QUIET, Job, given_and_files, run_with_page, said
from .tables import SPLITS, TESTED, short

MODELS = ("BBQRec", "SASRecPlusFT", "UniSRec", "TIGER", "ContentNeighbors")
"""Models that are compared unless others are named; the others are tested against the first one that has a run."""

SHARE = 0.1
GROUPS = {"cold": "Cold targets", "warm": "Warm targets", "all": "All targets"}


def study(
    dataset: str,
    models: Sequence[str],
    n_seeds: int,
    arguments: Sequence[str],
    final: bool = False,
    results: Path = Path("results"),
) -> int:
    """Run each of the models, `MODELS` by default, with items held out and, for what that costs, with all items.

    Of each seed the runs that hold items out come first. `cold_items` is `SHARE` and `second_stage` off unless given.
    For parameters and exit code see `experiments`.
    """
    models = list(dict.fromkeys(models or MODELS))
    given, files = given_and_files(arguments, "the study of cold items", n_seeds)
    given = {**QUIET, "cold_items": SHARE, "second_stage": "off", **given, "dataset": dataset, "final": final}
    for model in models:
        registry.get_model(model)
    config = Config(arguments=files, config_dict={**given, "model": models[0]})
    if not config["cold_items"]:
        raise InputError("cold_items: found 0, expected a share of the items, such as 0.1")
    data, folder = records.about_data(config), records.folder_of(results, dataset)
    jobs = [
        Job(name(model), {**given, **changes, "model": model, "seed": seed}, files, data, folder)
        for seed in range(config["seed"], config["seed"] + n_seeds)
        for name, changes in ((held_out, {}), (knowing, {"cold_items": 0.0}))
        for model in models
    ]
    about = {"dataset": dataset, "share": config["cold_items"], "data": data["data"], "models": models}
    about["given"] = said(given, about)
    return run_with_page(jobs, final, lambda: write(about, jobs, final, results))


def held_out(model: str) -> str:
    """Name of a model's runs that do not know all items; no leaderboard shows it, nor that of `knowing`."""
    return f"cold-{model}"


def knowing(model: str) -> str:
    """Name of a model's runs that know all items."""
    return f"all-items-{model}"


def write(about: Mapping[str, Any], jobs: Sequence[Job], final: bool, results: Path) -> str:
    """Write the page as Markdown and JSON, and its figure, from the records of the jobs; return the page.

    Nothing is written until a run with cold items has succeeded.
    """
    found = content(about, jobs, final)
    if not found["splits"]:
        return "no run has a record yet"
    name = tables.name_of("cold", about["dataset"], name_of_split(jobs[0].settings))
    split, judged = list(found["splits"].items())[-1]
    panels = {
        f"{group} {short(metric)}": {row["model"]: row["groups"][group][metric] for row in judged["rows"]}
        for group in ("cold", "warm")
        for metric in TESTED
    }
    title = f"Items held out of training, {about['dataset']}, {SPLITS[split].lower()}, seen items masked"
    page = tables.page("cold.md.jinja", **found, file=name, GROUPS=GROUPS)
    tables.write(results, name, found, {"png": report.bar_figure(title, panels, judged["reference"]), "md": page})
    return page


def content(about: Mapping[str, Any], jobs: Sequence[Job], final: bool) -> dict[str, Any]:
    """Everything the page shows, as plain data; equal records give equal content."""
    keys, models = {job.name: job.key for job in jobs}, about["models"]
    found, failed = records.of_rows(jobs[0].folder, keys, SPLITS if final else ("valid",))
    splits = {
        split: _judged(models, runs, split)
        for split, runs in found.items()
        if any(held_out(model) in runs for model in models)
    }
    return {**about, "keys": keys, "failed": failed, "splits": splits}


def _judged(models: Sequence[str], runs: tables.Runs, split: str) -> dict[str, Any]:
    """The rows of a split's tables, by group of targets, with Holm's correction over all tests."""
    shown = [model for model in models if held_out(model) in runs]
    first = next(iter(runs[held_out(shown[0])].values()))
    cold = first.ranks[split].cold
    assert cold is not None, "a run with cold items keeps which targets they are"
    rows_of = {"cold": cold, "warm": ~cold, "all": np.ones(len(cold), bool)}
    values = {group: tables.paired_values(runs, split, TESTED, rows) for group, rows in rows_of.items()}
    rows = [_row(model, shown[0], runs, values) for model in shown]
    holm([entry] for row in rows for metrics in row["groups"].values() for entry in metrics.values())
    return {"reference": shown[0], "targets": {group: int(kept.sum()) for group, kept in rows_of.items()}, "rows": rows}


def _row(model: str, reference: str, runs: tables.Runs, values: Mapping[str, tables.Values]) -> tables.Row:
    """What a model reached in each group of targets, and in the warm one what it reaches where it knows all items."""
    name, whole = held_out(model), knowing(model)

    def metrics(group: str) -> Iterator[tuple[str, tables.Row]]:
        for metric in TESTED:
            of_metric: PairedValues = values[group]["masked", metric]
            p = None if model == reference else of_metric.p_value(name, held_out(reference))
            yield metric, {**of_metric.estimate(name), "p": p}

    def price(metric: str) -> tables.Row:
        of_metric = values["warm"]["masked", metric]
        return {"mean": of_metric.mean(whole), "change": of_metric.change(name, whole)}

    return {
        "model": model,
        "seeds": list(runs[name]),
        "untrained": all(tables.training_of(run) is None for run in runs[name].values()),
        **tables.cautions(runs, name),
        "groups": {group: dict(metrics(group)) for group in GROUPS},
        "knowing_all": {metric: price(metric) for metric in TESTED} if whole in runs else None,
    }
