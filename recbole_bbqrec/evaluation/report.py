"""What runs show: the record of one as plain data, tables and figures of one or many."""

import io
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from .. import storage

PACKAGES = ("recbole-bbqrec", "recbole", "torch", "numpy", "scipy", "pandas", "scikit-learn", "transformers")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def result_table(record: dict[str, Any]) -> str:
    """Return the record's metrics as a Markdown table: a row per split and column, a column per metric."""
    rows, names = [], []
    for split, columns in record["metrics"].items():
        for column, values in columns.items():
            names = list(values)
            rows.append([split, column, *(f"{value:.4f}" for value in values.values())])
    mark = "*" if record["epochs"]["hit_cap"] else ""
    title = f"{record['model']}{mark} on {record['dataset']}, seed {record['seed']}"
    lines = [title, "", tabulate(rows, ["split", "seen items", *names], tablefmt="github", disable_numparse=True)]
    seconds = record["seconds"]
    times = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    users = ", ".join(f"{count} {split}" for split, count in record["users"].items())
    lines += [
        "",
        f"users: {users}; best epoch {record['epochs']['best']} of {record['epochs']['done']}; "
        f"{record['parameters']} parameters; peak memory {record['peak_memory_mib']:.0f} MiB",
        f"seconds: {times}",
    ]
    if mark:
        lines.append("* training ended at the cap on epochs, not by early stopping; raise epochs to judge the model")
    if "test" not in record["metrics"]:
        lines.append("test is looked at last: add --final to judge it")
    return "\n".join(lines)


class Bar(NamedTuple):
    """One bar of a figure: its value and the interval around it."""

    value: float
    low: float
    high: float


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of ready texts; the first column is aligned left, the others right."""
    align = ("left", *["right"] * (len(header) - 1))
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)


def bar_figure(title: str, panels: Mapping[str, Mapping[str, Bar]], reference: str | None = None) -> bytes:
    """Draw horizontal bars with intervals, a panel beside the other, and return the figure as PNG.

    Equal input gives an equal file.

    Parameters
    ----------
    panels : panel title -> label -> bar. All panels share the labels, in the order of the first one.
    reference : label whose value is drawn through all bars of a panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = list(next(iter(panels.values())))
    figure = Figure(figsize=(1.6 + 3.6 * len(panels), 1.1 + 0.3 * len(labels)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, bars) in zip(all_axes, panels.items(), strict=True):
        places = [labels.index(label) for label in bars]
        values = [bar.value for bar in bars.values()]
        # A percentile interval need not hold the value itself, and a length cannot be negative.
        reach = [[max(0.0, bar.value - bar.low) for bar in bars.values()]]
        reach += [[max(0.0, bar.high - bar.value) for bar in bars.values()]]
        axes.barh(places, values, color=["#4477aa" if label == reference else "#99bbdd" for label in bars])
        axes.errorbar(values, places, xerr=reach, fmt="none", ecolor="black", elinewidth=1, capsize=2)
        if reference is not None and reference in bars:
            axes.axvline(bars[reference].value, color="#4477aa", linewidth=1, linestyle=":")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel(name)
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a text or bytes to `path` in one atomic step."""
    with storage.replacing(path) as temporary:
        Path(temporary).write_bytes(content.encode() if isinstance(content, str) else content)
