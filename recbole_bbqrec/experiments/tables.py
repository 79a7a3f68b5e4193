"""The one builder of leaderboards and ablations: from runs to the rows of a table, and from these to a page.

A row is plain data: its name (`model` or `row`), `seeds`, what the marks beside the name say, and for each of
`metrics.COLUMNS` metric -> `mean`; tested metrics have an interval, a comparison, `p` and `p_holm` too.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from .. import schema, storage
from ..errors import InputError, did_you_mean
from ..evaluation import report
from ..evaluation.groups import COLD, EDGES
from ..evaluation.labels import of_rankings
from ..evaluation.metrics import COLUMNS, LIST_METRICS, METRICS
from ..evaluation.ranking import Ranks
from ..evaluation.statistics import PairedValues, holm
from ..recbole_keys import METRICS as NAMES
from ..settings import property_files, settings_to_load
from .records import Run

FULL = "full"
"""The row of an ablation that all others are compared with."""

TESTED = ("recall@10", "ndcg@10")
"""Metrics that claims are made on, seen items masked."""

SHOWN = tuple(f"{metric}@{k}" for k in (5, 10, 20) for metric in ("recall", "ndcg"))
"""Metrics of leaderboards, in both columns; `TESTED` of the masked one are tested."""

SPLITS = {"valid": "Validation", "test": "Test"}

Row = dict[str, Any]
Runs = Mapping[str, Mapping[int, Run]]
Values = Mapping[tuple[str, str], PairedValues]


def values_of(run: Run, split: str, column: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Users and values [R] of one metric of a run, such as `ndcg@10`, as `PairedValues` takes them."""
    name, _, k = metric.partition("@")
    return run.ranks[split].values(column, name, int(k))


def results_of(run_dir: Path, results: Path) -> str | None:
    """What the run in a folder has reached by its record, as Markdown with intervals; none where there is no record."""
    name = run_dir.resolve().name
    found = (path for path in sorted(results.glob("runs/*/*.json")) if name in path.read_text(encoding="utf-8"))
    run = next((run for run in map(Run, found) if run.record["run_dir"] == name), None)
    if run is None or not run.splits:
        return None
    splits, rows = [split for split in SPLITS if split in run.splits], []
    for metric in run.record["metrics"][splits[0]]["masked"]:
        if metric.partition("@")[0] in LIST_METRICS:
            shown = (run.record["metrics"][split]["masked"].get(metric) for split in splits)
            rows.append([metric, *("-" if value is None else f"{value:.4f}" for value in shown)])
            continue
        cells = (values_of(run, split, "masked", metric) for split in splits)
        estimates = [PairedValues({"": {run.seed: cell}}).estimate("") for cell in cells]
        rows.append([metric, *(f"{each['mean']:.4f} {_interval(each)}" for each in estimates)])
    drawn = {split: f" drawn from {count}" for split, count in run.record.get("drawn_from", {}).items()}
    counts = run.record["users"].items()
    users = ", ".join(f"{count} users of {split}{drawn.get(split, '')}" for split, count in counts)
    among = ", ".join(f"{SPLITS[split].lower()} among {words}" for split in splits if (words := run.among(split)))
    note = f"Seen items left out, seed {run.seed}; means over {users}, with 95 % intervals over the users alone."
    note += f" Targets are ranked: {among}." if among else ""
    return f"{report.markdown_table(['', *(SPLITS[split] for split in splits)], rows)}\n\n{note}"


def training_of(run: Run) -> str | None:
    """What a run has trained, none where nothing; runs that differ in what is fitted afterwards share it."""
    if run.record["epochs"]["done"] == 0:
        return None
    # The trainer names the folder <Model>-<Set>-<seed>-<training>, then perhaps a key of what is fitted afterwards.
    found = re.search(r"-([0-9a-f]{16})(-[0-9a-f]{8})?$", run.record["run_dir"])
    return found[1] if found else f"{run.key}-{run.seed}"


def _trainings(runs: Mapping[int, Run]) -> tuple[str, ...] | None:
    """Trainings of a row by seed; none where nothing in it is random."""
    found = [training_of(run) for run in runs.values()]
    return None if None in found else tuple(filter(None, found))


def hypothesis(runs: Mapping[int, Run]) -> Hashable:
    """What a row's tests are about, seen items masked; rows with the same cannot differ there.

    These are rows of the same trainings whose second stage weighs nothing, or only `seen` items, which the column
    leaves out.
    """
    first, trainings = next(iter(runs.values())), _trainings(runs)
    settings = {"second_stage": "linear", **first.record["settings"]}  # before there were others
    fitted = {*settings.get("candidate_similarity", ())} - {"seen"} if schema.second_stage(settings) != "off" else set()
    return first.key if fitted or trainings is None else trainings


def correct(rows: Mapping[str, Row], runs: Runs) -> None:
    """Add `p_holm` to the tested metrics of the rows, over all their hypotheses."""
    cells: dict[Hashable, list[Row]] = {}
    for name, row in rows.items():
        for metric in TESTED:
            cells.setdefault((hypothesis(runs[name]), metric), []).append(row["masked"][metric])
    holm(cells.values())


def is_mixed(runs: Runs, split: str) -> bool:
    """Whether some rows judge each target by itself, sequential models, and others all targets of a user together."""
    return len({run.ranks[split].per_user for of in runs.values() for run in of.values()}) > 1


def ranks_of(runs: Runs, split: str) -> dict[str, dict[int, Ranks]]:
    """Ranks of all rows by seed, in a form in which they can be compared: where they differ, each target by itself.

    Ranks among all items and among sampled ones cannot be, which is an `InputError`.
    """
    among = {run.among(split): run.path for of in runs.values() for run in of.values()}
    if len(among) > 1:
        found = "; ".join(f"{path.name} among {words or 'all items'}" for words, path in among.items())
        raise InputError(f"{split}: found targets ranked among different items ({found}); compare those of one kind")
    found = {row: {seed: run.ranks[split] for seed, run in of.items()} for row, of in runs.items()}
    if not is_mixed(runs, split):
        return found
    return {row: {seed: replace(one, per_user=False) for seed, one in of.items()} for row, of in found.items()}


def named(names: Sequence[str], topk: Sequence[int] = (10,)) -> list[str]:
    """Metrics of records by their names, `GiniIndex` or `GiniIndex@5`; without a cut-off at 10, or the last of `topk`.

    Those that every page shows are left out; an `InputError` where there is no such metric.
    """
    found, cut_off = [], 10 if 10 in topk else topk[-1]
    for text in names:
        name, _, k = text.lower().partition("@")
        if name not in (*METRICS, *LIST_METRICS) or not (k or str(cut_off)).isdigit():
            expected = f"expected some of {', '.join(NAMES)}, or such as MAP@5"
            raise InputError(f"--metrics: found {text!r}, {did_you_mean(name, NAMES, expected)}")
        found.append(f"{name}@{k or cut_off}")
    return [metric for metric in dict.fromkeys(found) if metric not in SHOWN]


def grouped(names: Sequence[str]) -> list[str]:
    """Names of groups, checked."""
    for name in names:
        if name not in (*EDGES, COLD):
            raise InputError(f"--group_metrics: found {name!r}, expected some of {', '.join((*EDGES, COLD))}")
    return list(names)


def asked_of(config: Any) -> dict[str, list[str]]:
    """What a run of these settings asks pages for, beside what they always show: arguments of `on_demand`.

    Pages rank items, and show no metrics of labels.
    """
    metrics = named(of_rankings(config["metrics"]), config["topk"])
    return {"metrics": metrics, "groups": list(config["group_metrics"] or ())}


def on_demand(runs: Runs, split: str, metrics: Sequence[str] = (), groups: Sequence[str] = ()) -> dict[str, Any]:
    """What a page shows where it is asked for: `further` metrics, and the tested ones by `groups` of targets."""
    found = {"further": further(runs, split, metrics)} if metrics else {}
    by_group = {"groups": {metric: by_groups(runs, split, groups, metric) for metric in TESTED}} if groups else {}
    return found | by_group


def further(runs: Runs, split: str, metrics: Iterable[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Column -> metric -> row -> mean over its seeds; none where records, which have metrics of lists, do not tell."""
    ranks, found = ranks_of(runs, split), {}
    for column in COLUMNS:
        found[column] = {}
        for metric in metrics:
            name, _, k = metric.partition("@")
            found[column][metric] = {
                row: _mean(run.record["metrics"][split].get(column, {}).get(metric) for run in of.values())
                if name in LIST_METRICS
                else _mean(one.values(column, name, int(k))[1].mean() for one in ranks[row].values())
                for row, of in runs.items()
            }
    return found


def by_groups(runs: Runs, split: str, kinds: Iterable[str], metric: str) -> dict[str, dict[str, Any]]:
    """Group -> its number of targets and, by row, the mean of a masked metric over the seeds; none where not told."""
    of_runs = {row: [run.record.get("groups", {}).get(split, {}) for run in of.values()] for row, of in runs.items()}
    sizes = {name: group["rows"] for of_row in of_runs.values() for of in of_row for name, group in of.items()}
    begins = tuple(f"{kind} " for kind in kinds)
    return {
        group: {
            "rows": size,
            "means": {
                row: _mean(of.get(group, {}).get("metrics", {}).get("masked", {}).get(metric) for of in of_row)
                for row, of_row in of_runs.items()
            },
        }
        for group, size in sizes.items()
        if group.startswith(begins) or (group in ("warm", COLD) and f"{COLD} " in begins)
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of values, none where one of them is not known."""
    found = [*values]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known and len(known) == len(found) else None


def paired_values(runs: Runs, split: str, metrics: Iterable[str], rows: np.ndarray | None = None) -> Values:
    """Values per user of all rows, by column and metric; of the judged `rows`, bool [R], alone where there are any."""
    trainings = {row: _trainings(of) for row, of in runs.items()}
    ranks = ranks_of(runs, split)
    if rows is not None:
        ranks = {row: {seed: one.of(rows) for seed, one in by_seed.items()} for row, by_seed in ranks.items()}
    return {
        (column, metric): PairedValues(
            {
                row: {seed: one.values(column, name, int(k)) for seed, one in by_seed.items()}
                for row, by_seed in ranks.items()
            },
            trainings,
        )
        for column in COLUMNS
        for metric in metrics
        for name, _, k in [metric.partition("@")]
    }


def metrics_of(row: str, values: Values, compared: Callable[[str, PairedValues], Row]) -> Row:
    """Column -> metric -> what a row reached; `compared` gives its comparison in a tested metric."""
    found: Row = {column: {} for column in COLUMNS}
    for (column, metric), of_metric in values.items():
        is_tested = column == "masked" and metric in TESTED
        claims = {**of_metric.estimate(row), **compared(row, of_metric)} if is_tested else {}
        found[column][metric] = {"mean": of_metric.mean(row), **claims}
    return found


def cautions(runs: Runs, row: str) -> Row:
    """What a row must not be taken for: runs at the cap on epochs or of other code, and how often test was judged.

    The version of the code that a table is about is that of most runs of `full`, or, where it has none, of all rows. A
    run of another one counts as of this version where both were seen to give the same ranks, after `compared_epochs`
    epochs (benchmarks/same_ranks.py).
    """
    compared = [runs[FULL]] if FULL in runs else runs.values()
    ((version, _),) = Counter(run.record["source"] for of in compared for run in of.values()).most_common(1)
    found = [run.record for run in runs[row].values()]
    others = [record.get("same_ranks", {}) for record in found if record["source"] != version]
    return {
        "hit_cap": sum(record["epochs"]["hit_cap"] for record in found if record["epochs"]["done"]),
        "other_code": sum(same.get("source") != version for same in others),
        "compared_epochs": min((same["epochs"] for same in others if same.get("source") == version), default=0),
        "times_tested": max(record["times_tested"] for record in found),
    }


def keys_of(paths: Iterable[Path]) -> dict[str, None]:
    """Keys of the YAML files that there are, each once, in their order."""
    found = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    return dict.fromkeys(key for content in found for key in content or ())


def name_of(*parts: str | None) -> str:
    """Name of a page, of those parts that say something: a study, the data set, the split as `name_of_split` has it."""
    return "-".join(filter(None, parts))


def yaml_of(settings: Mapping[str, Any], dataset: str) -> str:
    """Settings of a run as YAML, those that our property files have, as they would be given: RecBole turns a few."""
    given = settings_to_load({**settings, "data_path": ""})
    shown = {key: given[key] for key in keys_of(property_files(settings["model"], dataset)) if key in given}
    return yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=110).rstrip()


def file_of(results: Path, name: str, suffix: str) -> Path:
    """Where a file of a page is: pages are in `results`, all that goes with them in `results/files`."""
    return results / f"{name}.md" if suffix == "md" else results / "files" / f"{name}.{suffix}"


def write(results: Path, name: str, content: Mapping[str, Any], files: Mapping[str, str | bytes]) -> None:
    """Write a page, `md`, and the files that go with it by suffix; its content as JSON is one of these."""
    for suffix, text in files.items():
        if isinstance(text, str) and suffix == "md" and not (results.parent / "docs").is_dir():
            text = outside_checkout(text)
        report.write_file(file_of(results, name, suffix), text)
    storage.write_json(file_of(results, name, "json"), content)


def outside_checkout(page: str) -> str:
    """Return a page without its links to the docs and properties of a checkout, which lead nowhere elsewhere."""
    return re.sub(r"\[([^]]+)\]\(\.\./[^)]*\)", r"\1", page)


def page(template: str, **shown: Any) -> str:
    """Fill one of the templates beside this module; paragraphs that come to nothing leave no gap."""
    loader, undefined = jinja2.FileSystemLoader(Path(__file__).parent / "templates"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, undefined=undefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"table": _table, "interval": _interval, "p": _p_value, "short": short, "marks": marks}
    environment.filters |= {"form": lambda value, form: "-" if value is None else format(value, form)}
    text = environment.get_template(template).render(shown, SPLITS=SPLITS, TESTED=TESTED)
    return "\n\n".join(filter(None, (part.strip("\n") for part in text.split("\n\n")))) + "\n"


def _table(text: str) -> str:
    """Align a Markdown table of lines such as `model | seeds`, its header first."""
    header, *rows = ([cell.strip() for cell in line.split("|")] for line in text.splitlines() if line)
    return report.markdown_table(header, rows) + "\n"


def _interval(entry: Row, form: str = ".4f") -> str:
    return f"[{entry['low']:{form}}, {entry['high']:{form}}]"


def _p_value(value: Any) -> str:
    return "" if isinstance(value, jinja2.Undefined) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def short(metric: str) -> str:
    """`ndcg@10` -> `N@10`."""
    name, _, k = metric.partition("@")
    return f"{name[0].upper()}@{k}"


def marks(row: Row) -> str:
    """Marks of what a row must not be taken for; the template `legend` says what they mean."""
    one_seed = len(row["seeds"]) == 1 and not row.get("untrained")
    return "\\*" * bool(row["hit_cap"]) + "†" * one_seed + "‡" * bool(row["other_code"])
