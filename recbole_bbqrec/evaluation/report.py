"""What runs show: the record of one as plain data, tables and figures of one or many."""

import contextlib
import io
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from .. import storage
from ..data.splitting import shares_of_time


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    packages = "torch", "numpy", "scipy", "pandas", "scikit-learn", "lightgbm", "transformers"
    for name in ("recbole-bbqrec", "recbole", *packages):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def result_table(record: dict[str, Any]) -> str:
    """Return the record's metrics as a Markdown table: a row per split and column, a column per metric.

    Where targets are told apart by groups, a row per group too; what is shown as a whole belongs to none.
    """
    found = {(split, column): of for split, columns in record["metrics"].items() for column, of in columns.items()}
    names = next(iter(found.values()), {})
    if groups := record.get("groups"):
        found = {
            (split, column, f"{name} ({group['rows']})"): group["metrics"][column]
            for split, column in found
            for name, group in groups[split].items()
        }
    among = {split: f"{split}, among {words}" for split, words in record.get("ranked_among", {}).items()}
    rows = [
        [among.get(split, split), *place, *(f"{of[name]:.4f}" if name in of else "" for name in names)]
        for (split, *place), of in found.items()
    ]
    epochs, users, rows_of = record["epochs"], record["users"], record["rows"]
    times = ", ".join(f"{name} {_shown(value, '.1f')}" for name, value in record["seconds"].items())
    drawn = {split: f" of {count}" for split, count in record.get("drawn_from", {}).items()}
    judged = ", ".join(f"{count}{drawn.get(split, '')} {split}" for split, count in users.items()) or "none judged"
    if rows_of != users:
        judged += "; judged rows: " + ", ".join(f"{count} {split}" for split, count in rows_of.items())
        judged += f", and metrics are means over the {'users' if record.get('per_user') else 'rows'}, as in RecBole"
    header = ["split", "seen items", *["targets"] * bool(groups), *names]
    spent = f"best epoch {epochs['best']} of {epochs['done']}" if "valid" in users else f"{epochs['done']} epochs"
    on_all, marked = record["settings"].get("train_on") == "all", "*" * epochs["hit_cap"]
    lines = [
        f"{record['model']}{marked} on {record['dataset']}, seed {record['seed']}{_split_of(record)}\n",
        *([tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n"] if any(found.values()) else []),
        *([_label_table(labels) + "\n"] if (labels := record.get("labels")) else []),
        f"users: {judged}; {spent}; "
        f"{record['parameters']} parameters; peak memory {_shown(record['peak_memory_mib'], '.0f')} MiB",
        f"seconds: {times}",
    ]
    if epochs["hit_cap"] and on_all:
        lines.append("* the ordinary run, which chose the number of epochs, ended at its cap; raise epochs")
    elif epochs["hit_cap"]:
        lines.append("* training ended at the cap on epochs, not by early stopping; raise epochs to judge the model")
    if among:
        lines.append("metrics among sampled items are higher than among all, and may rank models differently")
    if on_all:
        lines.append("no metrics: trained on all interactions (train_on), so nothing is left to judge this model on")
    elif "valid" not in record["metrics"]:
        lines.append(
            "no validation in eval_args.split: nothing was chosen or fitted on it, and training went to its last epoch"
        )
    is_sequential = "SEQUENTIAL" in str(record["settings"].get("MODEL_TYPE"))
    if is_sequential and shares_of_time(record["settings"].get("eval_args", {})):
        lines.append(
            "split by time over all users: a target's history is all before it, earlier targets of its part too"
        )
    if "test" not in record["metrics"] and not on_all:
        lines.append("test is not evaluated here; add --final")
    return "\n".join(lines)


def _split_of(record: dict[str, Any]) -> str:
    """In words, a split that is not leave-one-out."""
    how = record["settings"].get("eval_args", {}).get("split")
    kind, parts = next(iter(how.items())) if isinstance(how, dict) and how else ("", "")
    words = {"TS": "by time", "RS": "by ratio"}.get(kind)
    return f", split {words} {parts}" if words else ""


def next_steps(folder: Path, items: Sequence[str]) -> str:
    """Where the run is kept, and what to do with it next; `items` are two tokens, where it recommends by itself."""
    lines = [f"\nkept in {folder}"]
    if items:
        history = shlex.quote(",".join(items))
        lines += [f"recommend:  bbqrec recommend {folder} --history={history}", f"try it:     bbqrec serve {folder}"]
    else:
        lines.append(f"in Python:  recbole_bbqrec.load_data_and_model({str(folder)!r})")
    return "\n".join(lines)


def _label_table(labels: dict[str, dict[str, dict[str, float]]]) -> str:
    """Metrics of labelled rows as a Markdown table: a row per split and group of rows."""
    names = [name for name in next(iter(labels.values()))["all"] if name not in ("rows", "positives")]
    rows = [
        [split, f"{group} ({of['rows']}, {of['positives']} positive)", *(f"{of[name]:.4f}" for name in names)]
        for split, groups in labels.items()
        for group, of in groups.items()
    ]
    return tabulate(rows, ["split", "labelled rows", *names], tablefmt="github", disable_numparse=True)


def _shown(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table of ready texts; the first columns, `left` of them, are aligned left, the others right."""
    align = ["left"] * left + ["right"] * (len(header) - left)
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)


def bar_figure(title: str, panels: Mapping[str, Mapping[str, Any]], reference: str | None = None) -> bytes:
    """Draw horizontal bars with intervals, more than four panels in two rows; return a PNG, equal for equal input.

    Panels are title -> label -> `mean`, `low` and `high`, or none where there is no bar; one without any is left out.
    All share their labels, in the order of the panels; two rows are filled column by column. The mean of `reference` is
    drawn through all bars of a panel.
    """
    from matplotlib.figure import Figure

    drawn = {name: {label: bar for label, bar in bars.items() if bar} for name, bars in panels.items()}
    drawn = {name: bars for name, bars in drawn.items() if bars}
    labels = [
        label for label in dict.fromkeys(chain(*panels.values())) if any(label in bars for bars in drawn.values())
    ]
    rows = 1 if len(drawn) <= 4 else 2
    columns = -(-len(drawn) // rows)
    size = min(1.6 + 3.6 * columns, 10.0), 0.3 + rows * (0.8 + 0.3 * len(labels))  # letters of wider ones are too small
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.suptitle(title)
    all_axes = figure.subplots(rows, columns, sharey=True, squeeze=False).T.flatten()
    for axes in all_axes[len(drawn) :]:
        axes.remove()
    for axes, (name, bars) in zip(all_axes, drawn.items(), strict=False):
        places = [labels.index(label) for label in bars]
        value, low, high = (np.array([bar[end] for bar in bars.values()]) for end in ("mean", "low", "high"))
        reach = [value - low, high - value]
        axes.barh(places, value, color=["#4477aa" if label == reference else "#99bbdd" for label in bars])
        axes.errorbar(value, places, xerr=reach, fmt="none", ecolor="black", elinewidth=1, capsize=2)
        if reference in bars:
            axes.axvline(bars[reference]["mean"], color="#4477aa", linewidth=1, linestyle=":")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel(name)
        axes.locator_params(axis="x", nbins=max(7 - columns, 2))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    return _png(figure)


def line_figure(title: str, x: str, y: str, lines: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]]) -> bytes:
    """Draw values with intervals against what they cost, on a logarithmic axis; return a PNG, equal for equal input.

    Lines are name -> points of a place on the axis and `mean`, `low` and `high`; one without any is left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(lines.items(), "osD^vPX", strict=False):
        if points:
            places = [place for place, _ in points]
            value, low, high = (np.array([point[end] for _, point in points]) for end in ("mean", "low", "high"))
            axes.errorbar(
                places, value, [value - low, high - value], marker=marker, markersize=4, capsize=2, label=name
            )
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log")
    axes.xaxis.set_major_formatter(LogFormatter())  # 0.5, not a power of ten
    axes.xaxis.set_minor_formatter(LogFormatter())
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a text or bytes to `path` in one atomic step."""
    with storage.replacing(path) as temporary:
        Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)
