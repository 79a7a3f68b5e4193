"""From the records of an ablation to its table: statistics, Markdown, figure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..evaluation import report
from ..evaluation.ranking import per_row
from ..evaluation.statistics import PairedValues, holm
from ..settings import property_files, settings_to_load
from . import records
from .records import Run

FULL = "full"
"""The row that all others are compared with."""

METRICS = (("recall", 10), ("ndcg", 10))
"""Metrics that are shown and tested."""

SHORT = {"recall@10": "R@10", "ndcg@10": "N@10"}
SPLITS = {"valid": "Validation", "test": "Test"}


@dataclass(frozen=True)
class Study:
    """What the rows of one table share.

    Attributes
    ----------
    full : settings of the row `full`, as `records.comparable_settings` gives them.
    data, statistics : `records.data_fingerprint` and `records.data_statistics`.
    final : whether the test split is shown.
    """

    model: str
    dataset: str
    full: dict[str, Any]
    data: str
    statistics: dict[str, Any]
    final: bool

    @property
    def name(self) -> str:
        """Stem of the table's files."""
        return f"ablation-{self.dataset}"

    def run_key(self, changes: Mapping[str, Any]) -> str:
        """Key of the runs of a row with these changes."""
        return records.run_key({**self.full, **changes}, self.data)


def content(
    study: Study, changes: Mapping[str, dict[str, Any]], left_out: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    """Everything the table shows, as plain data; equal records give equal content.

    Parameters
    ----------
    changes : row -> settings it changes, in the order of the table.
    left_out : row -> why it does not apply.
    folder : of the records.
    """
    keys = {name: study.run_key(changed) for name, changed in changes.items()}
    runs = {name: found for name, key in keys.items() if (found := records.runs_of(folder, key))}
    judged = {
        split: {name: {seed: run for seed, run in found.items() if split in run.ranks} for name, found in runs.items()}
        for split in SPLITS
        if split == "valid" or study.final
    }
    splits = {split: {name: found for name, found in rows.items() if found} for split, rows in judged.items()}
    return {
        "model": study.model,
        "dataset": study.dataset,
        "run_key": study.run_key({}),
        "data": study.statistics,
        "settings": study.full,
        "changes": {name: changes[name] for name in runs},
        "left_out": dict(left_out),
        "failed": _failed(folder, keys),
        "splits": {split: _rows(split, rows) for split, rows in splits.items() if rows},
    }


def _failed(folder: Path, keys: Mapping[str, str]) -> list[str]:
    """Runs whose last attempt failed: row, seed, and the last line of the error."""
    found = []
    for name, key in keys.items():
        for seed, text in records.errors_of(folder, name, key).items():
            found.append(f"{name}, seed {seed}: {text.strip().splitlines()[-1]}")
    return found


def _rows(split: str, runs: Mapping[str, Mapping[int, Run]]) -> list[dict[str, Any]]:
    """One entry per row of a split's table, with Holm's correction over all its tests."""
    values = paired_values(runs, split, METRICS)
    version = version_of(runs)
    rows = [_row(name, found, values, version) for name, found in runs.items()]
    correct(entry for row in rows for entry in row["masked"].values())
    return rows


def correct(entries: Iterable[dict[str, Any]]) -> None:
    """Add `p_holm` to those that have a `p`: Holm's correction, all of them being one family of tests."""
    tested = [entry for entry in entries if entry.get("p") is not None]
    for entry, adjusted in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
        entry["p_holm"] = float(adjusted)


def paired_values(
    runs: Mapping[str, Mapping[int, Run]], split: str, metrics: Sequence[tuple[str, int]]
) -> dict[tuple[str, str, int], PairedValues]:
    """Values per user of all rows, by column, metric and cut-off."""
    return {
        (column, metric, k): PairedValues(
            {
                name: {seed: values_of(run, split, column, metric, k) for seed, run in found.items()}
                for name, found in runs.items()
            }
        )
        for column in ("masked", "unmasked")
        for metric, k in metrics
    }


def values_of(run: Run, split: str, column: str, metric: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Users and values [R] of one metric of a run, as `PairedValues` takes them."""
    ranks = run.ranks[split]
    return ranks.users, per_row(getattr(ranks, column), metric, k)


def version_of(runs: Mapping[str, Mapping[int, Run]]) -> str:
    """The version of the code that a table is about: that of most runs of `full`, or where it has none of all rows."""
    compared = runs[FULL].values() if FULL in runs else [run for found in runs.values() for run in found.values()]
    return Counter(run.record["source"] for run in compared).most_common(1)[0][0]


def _row(
    name: str, runs: Mapping[int, Run], values: Mapping[tuple[str, str, int], PairedValues], version: str
) -> dict[str, Any]:
    found = [run.record for run in runs.values()]
    row: dict[str, Any] = {
        "row": name,
        "seeds": sorted(runs),
        "hit_cap": sum(record["epochs"]["hit_cap"] for record in found),
        "other_code": sum(record["source"] != version for record in found),
        "times_tested": max(record["times_tested"] for record in found),
        "fit_seconds": float(np.mean([record["seconds"]["train"] for record in found])),
        "masked": {},
        "unmasked": {},
    }
    for (column, metric, k), of_metric in values.items():
        row[column][f"{metric}@{k}"] = {"mean": of_metric.mean(name)}
        if column == "masked":  # all claims are made on this column
            row[column][f"{metric}@{k}"] |= _claims(name, of_metric)
    return row


def _claims(name: str, values: PairedValues) -> dict[str, Any]:
    """Interval of a row's mean, and its comparison with `full` where there is one."""
    low, high = values.interval(name)
    compared = name != FULL and FULL in values.rows
    change = values.change(name, FULL) if compared else None
    return {
        "low": low,
        "high": high,
        "change": change and {"mean": change[0], "low": change[1][0], "high": change[1][1]},
        "p": values.p_value(name, FULL) if compared else None,
    }


def markdown(content: Mapping[str, Any], what: Mapping[str, str]) -> str:
    """Return the page of a study; `what` says what each row is."""
    parts = [f"# Ablation of {content['model']} on {content['dataset']}", _data_line(content["data"])]
    for split, rows in content["splits"].items():
        parts += [f"## {SPLITS[split]}", _table(rows), *_footnotes(split, rows)]
    parts += [f"![Metrics of the rows with their intervals](ablation-{content['dataset']}.png)", "## Rows"]
    parts.append("\n".join(_row_line(name, what[name], changed) for name, changed in content["changes"].items()))
    for title, lines in (
        ("Left out:", [f"{name}: {reason}" for name, reason in content["left_out"].items()]),
        ("Failed and not in the table:", content["failed"]),
    ):
        if lines:
            parts += [title, "\n".join(f"- {line}" for line in lines)]
    # As they would be given: RecBole turns a few settings into forms of its own.
    given = settings_to_load({**content["settings"], "data_path": ""})
    shared = {key: given[key] for key in _our_keys(content)}
    parts += [
        f"## Settings of `{FULL}`",
        "Every other row has the same but for its changes.",
        f"```yaml\n{yaml.safe_dump(shared, sort_keys=False, default_flow_style=None, width=110).rstrip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _data_line(data: Mapping[str, Any]) -> str:
    modalities = ", ".join(data["modalities"]) or "none"
    return (
        f"{data['users']} users, {data['items']} items, {data['interactions']} interactions "
        f"({data['interactions_per_user']:.2f} per user, density {100 * data['density']:.3f} %), "
        f"modalities: {modalities}."
    )


def _row_line(name: str, what: str, changes: Mapping[str, Any]) -> str:
    changed = ", ".join(f"{key}: {'~' if value is None else value}" for key, value in changes.items())
    return f"- **{name}**: {what}" + (f" (`{changed}`)" if changed else "")


def _our_keys(content: Mapping[str, Any]) -> list[str]:
    """Keys of our property files that the settings have, in the order of the files."""
    keys: dict[str, None] = {}
    for path in property_files(content["model"], content["dataset"]):
        keys.update(dict.fromkeys(yaml.safe_load(path.read_text(encoding="utf-8")) or ()))
    return [key for key in keys if key in content["settings"]]


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["row", "seeds"]
    for name in rows[0]["masked"]:
        short = SHORT[name]
        header += [f"{short} [95 %]", f"Δ {short} in % [95 %]", "p (Holm)"]
    header += [f"unmasked {SHORT[name]}" for name in rows[0]["unmasked"]] + ["fit s"]
    return report.markdown_table(header, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    marks = "\\*" * bool(row["hit_cap"]) + "†" * (len(row["seeds"]) == 1) + "‡" * bool(row["other_code"])
    cells = [row["row"] + marks, str(len(row["seeds"]))]
    for entry in row["masked"].values():
        cells.append(f"{entry['mean']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]")
        change, p_value = entry["change"], entry.get("p_holm")
        cells.append("" if change is None else f"{change['mean']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]")
        cells.append(p_text(p_value))
    return [*cells, *(f"{entry['mean']:.4f}" for entry in row["unmasked"].values()), f"{row['fit_seconds']:.0f}"]


def p_text(p_value: float | None) -> str:
    """A p-value as tables show it; nothing for none."""
    return "" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _footnotes(split: str, rows: list[dict[str, Any]]) -> list[str]:
    """What one has to know to read a split's table; the last entry holds the marks that occur in it."""
    seen = "seen items masked, unmasked in the columns of that name"
    notes = [
        f"All ranks are among all items, {seen}. Intervals: 95 %, bootstrap over users and seeds. Δ and p: against "
        f"`{FULL}` over the seeds both have; p of a two-sided sign-flip test per user, values averaged over seeds "
        "first, Holm-corrected over all tests of the table. fit s: training with its validation; tokenizer and "
        "features are not counted, as rows share them."
    ]
    marks = []
    if capped := [f"{row['row']} {row['hit_cap']} of {len(row['seeds'])}" for row in rows if row["hit_cap"]]:
        marks.append(f"- \\* runs that ended at the cap on epochs, not by early stopping: {', '.join(capped)}")
    if any(len(row["seeds"]) == 1 for row in rows):
        marks.append("- † one seed: screening; neither interval nor p knows how much seeds differ")
    if other := [f"{row['row']} {row['other_code']} of {len(row['seeds'])}" for row in rows if row["other_code"]]:
        marks.append(f"- ‡ runs made by another version of the code than `{FULL}`: {', '.join(other)}")
    if FULL not in {row["row"] for row in rows}:
        marks.append(f"- `{FULL}` has no run yet, so there is nothing to compare with")
    if split == "test":
        often = max(row["times_tested"] for row in rows)
        marks.append(f"- no configuration of the table was judged on test more than {often} times")
    return notes + ["\n".join(marks)] * bool(marks)


def figure(content: Mapping[str, Any]) -> bytes:
    """Draw the last split's metrics and the changes against `full` as bars with intervals; returns a PNG."""
    split, rows = list(content["splits"].items())[-1]
    panels: dict[str, dict[str, report.Bar]] = {}
    for name, short in SHORT.items():
        panels[short] = {row["row"]: _bar(row["masked"][name]) for row in rows}
    for name, short in SHORT.items():
        changes = {row["row"]: row["masked"][name]["change"] for row in rows}
        if any(changes.values()):
            panels[f"Δ {short} in %"] = {row: _bar(change) for row, change in changes.items() if change}
    title = f"{content['model']} on {content['dataset']}, {SPLITS[split].lower()}, seen items masked"
    return report.bar_figure(title, panels, FULL)


def _bar(entry: Mapping[str, float]) -> report.Bar:
    return report.Bar(entry["mean"], entry["low"], entry["high"])
