"""What a run shows: its record as plain data, and a table of it."""

import platform
import sys
from importlib import metadata
from typing import Any

from tabulate import tabulate

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


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


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
