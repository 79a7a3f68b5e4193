"""What codes and features are worth in the item tables of RecBole's own models: runs over seeds, and their page.

Each model is trained with IDs alone and with what `item_semantics` adds, with random and with shuffled codes as
controls: what those bring comes from more parameters, not from what codes say.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..config import Config
from ..data.dataloader import split_loaders
from ..data.feature_sources import modalities
from ..errors import InputError
from ..evaluation import report
from ..evaluation.configuration import name_of_split
from ..evaluation.statistics import holm
from ..training.target_ranks import first_of_pairs
from . import records, tables
from .runner import QUIET, Job, given_and_files, run_with_page, said, say
from .tables import SPLITS, TESTED, short

MODELS = ("BPR", "LightGCN")
"""Models of the study unless others are named."""

IDS = "IDs"
FORMS: dict[str, dict[str, Any]] = {
    IDS: {"item_semantics": []},
    "codes": {"item_semantics": ["codes"]},
    "features": {"item_semantics": ["features"]},
    "codes and features": {"item_semantics": ["codes", "features"]},
    "random codes": {"item_semantics": ["codes"], "codes": "random"},
    "shuffled codes": {"item_semantics": ["codes"], "codes": "shuffled"},
}
"""What is known of an item, and the settings that say so."""

ADDED = [form for form, changes in FORMS.items() if form != IDS and "codes" not in changes]
"""Forms that add what is known of an item, no controls."""

SAYING = ("codes", "random codes")
"""Forms whose difference is what codes say, apart from the parameters that they bring."""

FEW = 5
GROUPS = {"all": "All targets", "few": f"Targets with fewer than {FEW} training interactions"}


def study(
    dataset: str,
    models: Sequence[str],
    n_seeds: int,
    arguments: Sequence[str],
    final: bool = False,
    results: Path = Path("results"),
) -> int:
    """Run each of RecBole's own models, `MODELS` by default, in each of `FORMS`.

    For parameters and exit code see `experiments`.
    """
    models = list(dict.fromkeys(models or MODELS))
    given, files = given_and_files(arguments, "the study of item semantics", n_seeds)
    for key in ("item_semantics", "codes"):
        if key in given:
            raise InputError(f"{key}: the study sets it for its rows; drop it")
    if ours := [model for model in models if registry.get_model(model) and model in registry.MODELS]:
        raise InputError(f"--models: found {ours[0]}, expected models of RecBole's own; for ours see bbqrec ablate")
    given = {**QUIET, **given, "dataset": dataset, "final": final}
    config = Config(arguments=files, config_dict={**given, "model": models[0], **FORMS["codes"]})
    forms = {form: changes for form, changes in FORMS.items() if modalities(config) or "features" not in form}
    for form in FORMS.keys() - forms:
        say(f"{form}: left out, the items of {dataset} have neither text_encoder nor image_encoder")
    data, folder = records.about_data(config), records.folder_of(results, dataset)
    jobs = [
        Job(name(model, form), {**given, **changes, "model": model, "seed": seed}, files, data, folder)
        for seed in range(config["seed"], config["seed"] + n_seeds)
        for form, changes in forms.items()
        for model in models
    ]
    about = {"dataset": dataset, "data": data["data"], "models": models, "forms": list(forms)}
    about["given"] = said(given, about)
    config["item_semantics"] = []
    few = few_interactions(config)
    return run_with_page(jobs, final, lambda: write(about, jobs, few, final, results))


def name(model: str, form: str) -> str:
    """Name of the runs of a row; with IDs alone they are what a leaderboard shows, too."""
    return model if form == IDS else f"{form.replace(' ', '-')}-{model}"


def few_interactions(config: Config) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By split, the users [R] of its targets, ascending, and whether [R] training has fewer than `FEW` of the item.

    Targets of one list are a set, as they are ranked: an item that a user has several times in a part counts once.
    """
    dataset = registry.get_dataset(config["model"])(config)
    train, *judged = (loader._dataset for loader in split_loaders(config, dataset))
    counts = np.bincount(train.train_sequences.items, minlength=train.item_num)
    found = {}
    for split, part in zip(SPLITS, judged, strict=True):
        rows = np.arange(len(part.inter_feat))
        rows = first_of_pairs(part, rows) if part.rows_are_interactions else rows
        users, items = (part.inter_feat[field].numpy()[rows] for field in (part.uid_field, part.iid_field))
        order = np.argsort(users, kind="stable")
        found[split] = users[order], counts[items[order]] < FEW
    return found


def write(
    about: Mapping[str, Any],
    jobs: Sequence[Job],
    few: Mapping[str, tuple[np.ndarray, np.ndarray]],
    final: bool,
    results: Path,
) -> str:
    """Write the page as Markdown and JSON, and its figure, from the records of the jobs; return the page.

    Nothing is written until a run has succeeded.
    """
    found = content(about, jobs, few, final)
    if not found["splits"]:
        return "no run has a record yet"
    split, judged = list(found["splits"].items())[-1]
    panels = {
        f"{group} {short(metric)}": {row["row"]: row["groups"][group][metric] for row in judged["rows"]}
        for group in GROUPS
        if judged["targets"][group]
        for metric in TESTED
    }
    title = f"What is known of an item, {about['dataset']}, {SPLITS[split].lower()}, seen items masked"
    file = tables.name_of("general", about["dataset"], name_of_split(jobs[0].settings))
    page = tables.page("general.md.jinja", **found, file=file, GROUPS=GROUPS, IDS=IDS, ADDED=ADDED)
    tables.write(results, file, found, {"png": report.bar_figure(title, panels), "md": page})
    return page


def content(
    about: Mapping[str, Any],
    jobs: Sequence[Job],
    few: Mapping[str, tuple[np.ndarray, np.ndarray]],
    final: bool,
) -> dict[str, Any]:
    """Everything the page shows, as plain data; equal records give equal content."""
    keys = {job.name: job.key for job in jobs}
    found, failed = records.of_rows(jobs[0].folder, keys, SPLITS if final else ("valid",))
    splits = {split: _judged(about, runs, split, few[split]) for split, runs in found.items() if runs}
    return {**about, "keys": keys, "failed": failed, "splits": splits}


def _judged(
    about: Mapping[str, Any], runs: tables.Runs, split: str, few: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """The rows of a split's tables, by group of targets, with Holm's correction over all tests."""
    first = next(iter(next(iter(runs.values())).values()))
    judged = np.isin(few[0], first.ranks[split].users)  # all, or those of `valid_users`
    kept = {"all": np.ones(int(judged.sum()), bool), "few": few[1][judged]}
    values = {group: tables.paired_values(runs, split, TESTED, rows) for group, rows in kept.items() if rows.any()}
    rows = [
        _row(model, form, runs, values)
        for model in about["models"]
        for form in about["forms"]
        if name(model, form) in runs
    ]
    controls = [
        _control(model, values) for model in about["models"] if {name(model, form) for form in SAYING} <= {*runs}
    ]
    holm([entry] for part in (*rows, *controls) for metrics in part["groups"].values() for entry in metrics.values())
    targets = {group: int(rows.sum()) for group, rows in kept.items()}
    return {"targets": targets, "rows": rows, "controls": controls}


def _control(model: str, values: Mapping[str, tables.Values]) -> dict[str, Any]:
    """What learned codes are worth against random ones, by group of targets: the part that comes from what they say."""
    row, reference = (name(model, form) for form in SAYING)
    found = {group: {metric: of_group["masked", metric] for metric in TESTED} for group, of_group in values.items()}
    groups = {
        group: {
            metric: {"change": of.change(row, reference), "p": of.p_value(row, reference)}
            for metric, of in metrics.items()
        }
        for group, metrics in found.items()
    }
    return {"model": model, "groups": groups}


def _row(model: str, form: str, runs: tables.Runs, values: Mapping[str, tables.Values]) -> tables.Row:
    """What a model has reached in each group of targets, beside what it reaches with IDs alone."""
    row, reference = name(model, form), name(model, IDS)
    groups: dict[str, dict[str, Any]] = {}
    for group, of_group in values.items():
        for metric in TESTED:
            of_metric = of_group["masked", metric]
            compared = row != reference and reference in runs
            groups.setdefault(group, {})[metric] = {
                **of_metric.estimate(row),
                "change": of_metric.change(row, reference) if compared else None,
                "p": of_metric.p_value(row, reference) if compared else None,
            }
    return {
        "model": model,
        "form": form,
        "row": f"{model}, {form}",
        "seeds": list(runs[row]),
        **tables.cautions(runs, row),
        "groups": groups,
        "epochs": float(np.mean([run.record["epochs"]["best"] for run in runs[row].values()])),
        "seconds": float(np.mean([run.record["seconds"]["train"] for run in runs[row].values()])),
    }
