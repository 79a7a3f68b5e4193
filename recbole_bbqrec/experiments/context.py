"""What codes as columns of items are worth to context-aware models: runs with and without them, and their page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from .. import registry, schema
from ..config import Config
from ..errors import InputError
from ..evaluation import report
from ..evaluation.labels import RARE, is_rare
from ..evaluation.statistics import holm
from ..preparation.atomic import read_header
from ..settings import MAY_BE_UNUSED, NOT_LEARNED_FROM
from . import records, tables
from .runner import QUIET, Job, check_seeds, exit_code, given_and_files, run_jobs
from .tables import SPLITS, short

MODELS = ("DeepFM", "DCNV2")
"""Models that are compared unless others are named."""
IDS = "IDs"
"""The row without codes, that the others are tested with."""
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
RATED = 4
"""A rating from which a row is a positive one."""
RANKED, LABELLED = "ndcg@10", "auc"
GROUPS = {"all": "All items", RARE: "Items with fewer than five training interactions"}


def study(
    dataset: str,
    models: Sequence[str] = (),
    n_seeds: int = 3,
    arguments: Sequence[str] = (),
    final: bool = False,
    results: Path = Path("results"),
) -> int:
    """Run each model with every row of `ROWS`; write the page after every run.

    Parameters
    ----------
    models : names of context-aware models; none means `MODELS`.
    n_seeds : runs of each row, from the base seed upwards; the first seed of all rows comes first.
    arguments : `--key=value` settings of all runs. Unless given, rows are labelled by their ratings, where there are
        ratings, and each user's last tenths are validation and test.
    final : also judge the test split.
    results : folder of pages and records.

    Returns
    -------
    Exit code: 0, or 1 where a run failed.
    """
    check_seeds(n_seeds)
    models = list(dict.fromkeys(models or MODELS))
    given, files = given_and_files(arguments, "the study of code fields")
    for model in models:
        if registry.kind_of(model) != schema.CONTEXT:
            raise InputError(f"--models: found {model}, expected context-aware models, such as {' and '.join(MODELS)}")
    given = {**QUIET, "text_encoder": "tfidf", **given, "dataset": dataset, "final": final}
    # All that a row may use is used by this one; what it would not use is refused.
    full = {"model": models[0], "code_fields": BOTH}
    given = {**labelled(Config(arguments=files, config_dict={**given, **full})), **given}
    config = Config(arguments=files, config_dict={**given, **full})
    data, folder = records.about_data(config), records.folder_of(results, dataset)
    jobs = [
        Job(name_of(model, row), {**given, **changes, "model": model, "seed": seed}, files, data, folder)
        for seed in range(config["seed"], config["seed"] + n_seeds)
        for row, changes in ROWS.items()
        for model in models
    ]
    about = {"dataset": dataset, "data": data["data"], "models": models}
    about["given"] = {key: value for key, value in given.items() if key not in {*NOT_LEARNED_FROM, *QUIET, *about}}
    without = {**given, "model": models[0], MAY_BE_UNUSED: True}
    rare = rare_targets(Config(arguments=files, config_dict=without), final)
    failures = run_jobs(jobs, final, lambda _: write(about, jobs, rare, results))
    print(write(about, jobs, rare, results))
    return exit_code(failures)


def labelled(config: Config) -> dict[str, Any]:
    """Settings under which rows have labels; none where the data set has no ratings."""
    path, rating = Path(config["data_path"]) / f"{config['dataset']}.inter", config["RATING_FIELD"]
    if rating not in read_header(path, config["field_separator"], config["encoding"] or "utf-8"):
        return {}
    columns = [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"], rating, config["TIME_FIELD"]]
    return {
        "threshold": {rating: RATED},
        "load_col": {"inter": [column for column in columns if column]},
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "TO", "mode": "labeled"},
        "metrics": ["AUC", "LogLoss", "Recall", "NDCG"],
        "valid_metric": "AUC",
    }


def name_of(model: str, row: str) -> str:
    """Name of the runs of a row; no leaderboard shows it."""
    return f"context-{model}-{row.replace(', ', '-').replace(' ', '-')}"


def rare_targets(config: Config, final: bool) -> dict[str, np.ndarray]:
    """Of each split, which ranked rows have a rare item; rows of one user together, as records keep them."""
    train, *parts = registry.get_dataset(config["model"])(config).build()
    found = {}
    for split, part in zip(SPLITS if final else ("valid",), parts, strict=False):
        rows = part.positive_rows
        users = part.inter_feat[part.uid_field].numpy()[rows]
        found[split] = is_rare(train, part)[rows][np.argsort(users, kind="stable")]
    return found


def write(about: Mapping[str, Any], jobs: Sequence[Job], rare: Mapping[str, np.ndarray], results: Path) -> str:
    """Write the page as Markdown and JSON, and its figure, from the records of the jobs; return the page.

    Where no run has ended well yet nothing is written.
    """
    found = content(about, jobs, rare)
    if not found["splits"]:
        return "no run has a record yet"
    name = f"context-{about['dataset']}"
    split, judged = list(found["splits"].items())[-1]
    panels = {
        f"{title} {group}": {
            f"{row['model']} {row['row']}": row["groups"][group][metric] for row in judged if group in row["groups"]
        }
        for group in GROUPS
        for metric, title in ((RANKED, short(RANKED)), (LABELLED, "AUC"))
    }
    title = f"Code fields, {about['dataset']}, {SPLITS[split].lower()}"
    page = tables.page("context.md.jinja", **found, GROUPS=GROUPS, IDS=IDS)
    tables.write(results, name, found, {"png": report.bar_figure(title, panels), "md": page})
    return page


def content(about: Mapping[str, Any], jobs: Sequence[Job], rare: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Everything the page shows, as plain data; equal records give equal content."""
    folder, keys = jobs[0].folder, {job.name: job.key for job in jobs}
    recorded, failed, splits = records.runs_in(folder), records.failures_in(folder).items(), {}
    for split, is_rare_row in rare.items():
        runs = {name: records.by_seed(recorded, key, split) for name, key in keys.items()}
        runs = {name: of_name for name, of_name in runs.items() if of_name}
        if runs:
            splits[split] = _rows(about["models"], runs, split, is_rare_row)
    return {
        **about,
        "keys": keys,
        "failed": [text for (name, _, key), text in failed if keys.get(name) == key],
        "splits": splits,
    }


def _rows(models: Sequence[str], runs: tables.Runs, split: str, rare: np.ndarray) -> list[tables.Row]:
    """The rows of a split's tables, by group of items, with Holm's correction over all tests."""
    kept = {"all": np.ones(len(rare), bool), RARE: rare}
    values = {group: tables.paired_values(runs, split, [RANKED], rows) for group, rows in kept.items() if rows.any()}

    def metrics(group: str, model: str, row: str) -> Iterator[tuple[str, tables.Row]]:
        name, reference = name_of(model, row), name_of(model, IDS)
        compared, of_metric = row != IDS and reference in runs, values[group]["masked", RANKED]
        yield RANKED, {**of_metric.estimate(name), "p": of_metric.p_value(name, reference) if compared else None}
        for metric in (LABELLED, "logloss"):
            found = _labelled(runs[name], split, group, metric)
            if found:
                p = _paired_p(found, _labelled(runs[reference], split, group, metric)) if compared else None
                yield metric, {**_estimate(list(found.values())), "p": p}

    found = [
        {
            "model": model,
            "row": row,
            "seeds": list(runs[name_of(model, row)]),
            **tables.cautions(runs, name_of(model, row)),
            "groups": {group: dict(metrics(group, model, row)) for group in values},
        }
        for model in models
        for row in ROWS
        if name_of(model, row) in runs
    ]
    cells = [of for row in found for of in row["groups"].values()]
    holm([of[metric]] for of in cells for metric in (RANKED, LABELLED) if metric in of)
    return found


def _labelled(runs: Mapping[int, records.Run], split: str, group: str, metric: str) -> dict[int, float]:
    """A metric of labels by seed."""
    found = {seed: run.record.get("labels", {}).get(split, {}).get(group, {}) for seed, run in runs.items()}
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
