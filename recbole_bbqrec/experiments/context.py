"""What codes as columns of items are worth to context-aware models: runs with and without them, and their page.

There are two tasks, each with its own trainings. With *labels* a model learns which of the items that a user has rated
the user likes; it learns nothing about unrated ones, so for *ranking* all items it is trained on sampled negatives.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from .. import registry, schema
from ..config import Config
from ..errors import InputError
from ..evaluation import report
from ..evaluation.configuration import name_of_split
from ..evaluation.labels import RARE, is_rare
from ..evaluation.statistics import holm
from ..layers import layered
from ..preparation.atomic import read_header
from ..settings import MAY_BE_UNUSED
from ..training.target_ranks import first_of_pairs
from ..training.validation import rows_of_users
from . import records, tables
from .runner import QUIET, Job, given_and_files, run_with_page, said
from .tables import SPLITS, short

MODELS = ("DeepFM", "DCNV2")
"""Models that are compared unless others are named."""
IDS = "IDs"
"""The row without codes, against which the others are tested."""
BOTH = ["prefixes", "vectors"]
ROWS: dict[str, dict[str, Any]] = {
    IDS: {"code_fields": []},
    "prefixes": {"code_fields": ["prefixes"]},
    "vectors": {"code_fields": ["vectors"]},
    "prefixes and vectors": {"code_fields": BOTH},
    "both, random codes": {"code_fields": BOTH, "codes": "random"},
    "both, shuffled codes": {"code_fields": BOTH, "codes": "shuffled"},
}
"""What the rows of a model change; the last two are controls."""
LABELS, RANKING = "labels", "ranking"
SPLIT = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "TO"}
"""Each user's last tenths are validation and test."""
RATED = 4
"""Rating from which a row is positive."""
RANKED, LABELLED = "ndcg@10", "auc"
GROUPS = {"all": "All items", RARE: "Items with fewer than five training interactions"}


def study(
    dataset: str,
    models: Sequence[str],
    n_seeds: int,
    arguments: Sequence[str],
    final: bool = False,
    results: Path = Path("results"),
) -> int:
    """Run each of the context-aware models, `MODELS` by default, with every row of `ROWS`.

    The split is `SPLIT` unless it is given. For parameters and exit code see `experiments`.
    """
    models = list(dict.fromkeys(models or MODELS))
    given, files = given_and_files(arguments, "the study of code fields", n_seeds)
    for model in models:
        if registry.kind_of(model) != schema.CONTEXT:
            raise InputError(f"--models: found {model}, expected context-aware models, such as {' and '.join(MODELS)}")
    given = {**QUIET, "text_encoder": "tfidf", **given, "dataset": dataset, "final": final}
    given = layered({"eval_args": SPLIT}, given)
    # All that a row may use is used by this one; what it would not use is refused.
    config = Config(arguments=files, config_dict={**given, "model": models[0], "code_fields": BOTH})
    data, folder = records.about_data(config), records.folder_of(results, dataset)
    tasks = tasks_of(config)
    jobs = [
        Job(
            name_of(task, model, row),
            {**layered(given, changes, of_task), "model": model, "seed": seed},
            files,
            data,
            folder,
        )
        for seed in range(config["seed"], config["seed"] + n_seeds)
        for task, of_task in tasks.items()
        for row, changes in ROWS.items()
        for model in models
    ]
    about = {"dataset": dataset, "data": data["data"], "models": models, "tasks": tasks}
    about["given"] = said(given, about)
    without = {**given, "model": models[0], MAY_BE_UNUSED: True}
    rare = rare_targets(Config(arguments=files, config_dict=without), final)
    return run_with_page(jobs, final, lambda: write(about, jobs, rare, results))


def tasks_of(config: Config) -> dict[str, dict[str, Any]]:
    """Return the settings of the tasks by name; without ratings there are no labels to learn."""
    ranking = {"metrics": ["Recall", "NDCG"], "valid_metric": "NDCG@10", "eval_args": {"mode": "full"}}
    path, rating = Path(config["data_path"]) / f"{config['dataset']}.inter", config["RATING_FIELD"]
    if rating not in read_header(path, config["field_separator"], config["encoding"] or "utf-8"):
        return {RANKING: ranking}
    labels = {
        "threshold": {rating: RATED},
        "load_col": {"inter": [*config["load_col"]["inter"], rating]},
        "metrics": ["AUC", "LogLoss"],
        "valid_metric": "AUC",
        "eval_args": {"mode": "labeled"},
    }
    return {LABELS: labels, RANKING: ranking}


def name_of(task: str, model: str, row: str) -> str:
    """Name of the runs of a row; no leaderboard shows it."""
    return f"context-{task}-{model}-{row.replace(', ', '-').replace(' ', '-')}"


def page_of(dataset: str, settings: Mapping[str, Any]) -> str:
    """Name of the page, followed by the split where that is not `SPLIT`."""
    split = name_of_split(settings)
    return tables.name_of("context", dataset, None if split == name_of_split({"eval_args": SPLIT}) else split or "LS")


def rare_targets(config: Config, final: bool) -> dict[str, np.ndarray]:
    """Return for each split which rows have a rare item, the rows of one user together, as records keep them.

    For validation these are the rows of `valid_users`. Where models read no more of a row than its user and item, a
    repeated pair counts once, as it is ranked.
    """
    train, *parts = registry.get_dataset(config["model"])(config).build()
    found = {}
    for split, part in zip(SPLITS if final else ("valid",), parts, strict=False):
        users, rows = part.inter_feat[part.uid_field].numpy(), np.arange(len(part.inter_feat))
        if split == "valid":
            drawn = rows_of_users(part, config["valid_users"])
            rows = rows if drawn is None else drawn
        if {*part.inter_feat.columns} <= {part.uid_field, part.iid_field, part.time_field, part.label_field}:
            rows = rows[first_of_pairs(part, rows)]
        found[split] = is_rare(train, part)[rows[np.argsort(users[rows], kind="stable")]]
    return found


def write(about: Mapping[str, Any], jobs: Sequence[Job], rare: Mapping[str, np.ndarray], results: Path) -> str:
    """Write the page as Markdown and JSON, and its figure, from the records of the jobs; return the page.

    Nothing is written until a run has succeeded.
    """
    found = content(about, jobs, rare)
    if not found["splits"]:
        return "no run has a record yet"
    name = page_of(about["dataset"], jobs[0].settings)
    split, judged = list(found["splits"].items())[-1]
    panels = {
        f"{title} {group}": {f"{row['model']} {row['row']}": row["groups"].get(group, {}).get(metric) for row in judged}
        for group in GROUPS
        for metric, title in ((RANKED, short(RANKED)), (LABELLED, "AUC"))
    }
    title = f"Code fields, {about['dataset']}, {SPLITS[split].lower()}"
    page = tables.page("context.md.jinja", **found, file=name, GROUPS=GROUPS, IDS=IDS)
    tables.write(results, name, found, {"png": report.bar_figure(title, panels), "md": page})
    return page


def content(about: Mapping[str, Any], jobs: Sequence[Job], rare: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Everything the page shows, as plain data; equal records give equal content."""
    keys = {job.name: job.key for job in jobs}
    found, failed = records.of_rows(jobs[0].folder, keys, rare)
    splits = {split: _rows(about["models"], runs, split, rare[split]) for split, runs in found.items() if runs}
    return {**about, "keys": keys, "failed": failed, "splits": splits}


def _rows(models: Sequence[str], runs: tables.Runs, split: str, rare: np.ndarray) -> list[tables.Row]:
    """The rows of a split's tables, by group of items, with Holm's correction over all tests."""
    kept = {"all": np.ones(len(rare), bool), **({RARE: rare} if rare.any() else {})}
    ranked = {name: of for name, of in runs.items() if name.startswith(f"context-{RANKING}-")}
    values = {group: tables.paired_values(ranked, split, [RANKED], rows) for group, rows in kept.items() if ranked}

    def metrics(group: str, model: str, row: str) -> Iterator[tuple[str, tables.Row]]:
        name, reference = name_of(RANKING, model, row), name_of(RANKING, model, IDS)
        if name in ranked:
            of_metric = values[group]["masked", RANKED]
            compared = row != IDS and reference in ranked
            yield RANKED, {**of_metric.estimate(name), "p": of_metric.p_value(name, reference) if compared else None}
        for metric in (LABELLED, "logloss"):
            found, others = (_labelled(runs, split, group, metric, model, of) for of in (row, IDS))
            if found:
                yield metric, {**_estimate(list(found.values())), "p": None if row == IDS else _paired_p(found, others)}

    found = []
    for model, row in itertools.product(models, ROWS):
        of_row = {name: runs[name] for task in (RANKING, LABELS) if (name := name_of(task, model, row)) in runs}
        if of_row:
            marks = [tables.cautions(runs, name) for name in of_row]
            summed = {key: max(of[key] for of in marks) for key in marks[0]}
            seeds = list(next(iter(of_row.values())))
            groups = {group: dict(metrics(group, model, row)) for group in kept}
            found.append({"model": model, "row": row, "seeds": seeds, **summed, "groups": groups})
    cells = [of for row in found for of in row["groups"].values()]
    holm([of[metric]] for of in cells for metric in (RANKED, LABELLED) if metric in of)
    return found


def _labelled(runs: tables.Runs, split: str, group: str, metric: str, model: str, row: str) -> dict[int, float]:
    """A metric of labels by seed."""
    of_row = runs.get(name_of(LABELS, model, row), {})
    found = {seed: run.record.get("labels", {}).get(split, {}).get(group, {}) for seed, run in of_row.items()}
    return {seed: of[metric] for seed, of in found.items() if metric in of}


def _estimate(values: list[float]) -> tables.Row:
    """Mean over seeds with its 95 % interval by Student's t; of one seed the interval is the value."""
    mean, n = float(np.mean(values)), len(values)
    reach = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else 0.0
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _paired_p(one: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """Two-sided p of a paired t-test over the seeds of both; none of fewer than two."""
    seeds = sorted(one.keys() & other.keys())
    differences = np.array([one[seed] - other[seed] for seed in seeds])
    if len(seeds) < 2:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue) if differences.any() else 1.0
