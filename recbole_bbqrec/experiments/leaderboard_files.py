"""A leaderboard's content as LaTeX, as CSV and as a figure."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from ..evaluation import report
from .leaderboard_page import COST, TESTED, is_bold, marks_of, short
from .study import SPLITS


def csv_text(content: Mapping[str, Any]) -> str:
    """Return all figures of the rows, unrounded; what there is none of is blank."""
    lines = []
    for row in content["rows"]:
        line: dict[str, Any] = {"model": row["model"], "split": content["split"], "seeds": len(row["seeds"])}
        for column in ("masked", "unmasked", "valid_masked"):
            line |= {f"{column} {name}": entry["mean"] for name, entry in row.get(column, {}).items()}
        for name in TESTED:
            entry, change = row["masked"][name], row["masked"][name]["difference"] or {}
            line |= {f"{name} {end}": entry[end] for end in ("low", "high")}
            line |= {f"{name} difference{end}": change.get(key) for end, key in (("", "mean"), (" low", "low"))}
            line |= {f"{name} difference high": change.get("high"), f"{name} p (Holm)": entry.get("p_holm")}
        line |= {key: row[key] for key, _, _ in COST}
        line |= {key: row[key] for key in ("hit_cap", "other_code", "times_tested", "run_key")}
        lines.append(line)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def tex(content: Mapping[str, Any]) -> str:
    """Return the table of all metrics in both columns, for `booktabs`."""
    rows = content["rows"]
    names = list(rows[0]["masked"])
    n = len(names)
    lines = [
        f"% {content['dataset']}, {content['split']}; bold: significantly better than every other row, p < 0.01 (Holm)",
        f"\\begin{{tabular}}{{l{'r' * 2 * n}}}",
        "\\toprule",
        f" & \\multicolumn{{{n}}}{{c}}{{seen items masked}} & \\multicolumn{{{n}}}{{c}}{{not masked}} \\\\",
        f"\\cmidrule(lr){{2-{n + 1}}} \\cmidrule(lr){{{n + 2}-{2 * n + 1}}}",
        " & ".join(["model", *map(short, names * 2)]) + " \\\\",
        "\\midrule",
    ]
    for row in rows:
        cells = [row["model"].replace("_", "\\_") + _tex_marks(row)]
        for name, entry in row["masked"].items():
            text = f"{entry['mean']:.4f}"
            cells.append(f"\\textbf{{{text}}}" if is_bold(content, row["model"], name) else text)
        cells += [f"{entry['mean']:.4f}" for entry in row["unmasked"].values()]
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _tex_marks(row: Mapping[str, Any]) -> str:
    marks = marks_of(row).replace("\\*", "*").replace("†", "\\dagger").replace("‡", "\\ddagger")
    return f"$^{{{marks}}}$" if marks else ""


def figure(content: Mapping[str, Any]) -> bytes:
    """Draw the tested metrics as bars with intervals; returns a PNG."""
    panels = {
        short(name): {
            row["model"]: report.Bar(*(row["masked"][name][key] for key in ("mean", "low", "high")))
            for row in content["rows"]
        }
        for name in TESTED
    }
    title = f"{content['dataset']}, {SPLITS[content['split']].lower()}, seen items masked"
    return report.bar_figure(title, panels, content["reference"])
