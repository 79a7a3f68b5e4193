"""One table and one picture over the leaderboards of several data sets."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..evaluation import report
from . import tables
from .leaderboard import RANKED_BY, REFERENCE
from .tables import TESTED, Row

NAME = "overview"
SPLIT = "test"


def write(results: Path) -> None:
    """Write `overview.md`, `.png` and `.json` where two data sets or more have a leaderboard of test.

    Only those under the plain name of their data set count: leave-one-out, among all items.
    """
    found = content(_boards(results))
    if len(found["sets"]) < 2:
        return
    panels = {
        dataset: {row["model"]: row["sets"].get(dataset, {}).get(RANKED_BY) for row in found["rows"]}
        for dataset in found["sets"]
    }
    figure = report.bar_figure("N@10 on test, seen items masked", panels, REFERENCE)
    tables.write(results, NAME, found, {"png": figure, "md": tables.page("overview.md.jinja", **found)})


def _boards(results: Path) -> dict[str, dict[str, Any]]:
    """Data set -> what its leaderboard of test contains; those of more rows first."""
    paths = (tables.file_of(results, folder.name, "json") for folder in sorted((results / "runs").iterdir()))
    boards = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    boards = [board for board in boards if board["split"] == SPLIT]
    return {board["dataset"]: board for board in sorted(boards, key=lambda board: -len(board["rows"]))}


def content(boards: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that the page shows, from the contents of leaderboards by data set, as plain data.

    Rows are in the order of `of_best`: N@10 as a share of the largest on the same set, a mean over the sets that have
    all rows, named `ranked_on`; where there is no such set, over those of the row.
    """
    found: dict[str, dict[str, Row]] = {}
    for dataset, board in boards.items():
        for row in board["rows"]:
            found.setdefault(row["model"], {})[dataset] = row
    best = {
        dataset: {metric: max(row["masked"][metric]["mean"] for row in board["rows"]) for metric in TESTED}
        for dataset, board in boards.items()
    }
    ranked_on = [dataset for dataset, board in boards.items() if len(board["rows"]) == len(found)]
    rows = [_row(model, by_set, best, ranked_on) for model, by_set in found.items()]
    return {
        "split": SPLIT,
        "sets": {dataset: board["data"] for dataset, board in boards.items()},
        "best": best,
        "ranked_on": ranked_on,
        "rows": sorted(rows, key=lambda row: (-row["of_best"], row["model"])),
        "pairs": _pairs(boards, found),
    }


def _row(
    model: str, by_set: Mapping[str, Row], best: Mapping[str, Mapping[str, float]], ranked_on: Sequence[str]
) -> Row:
    seeds = [row["seeds"] for row in by_set.values()]
    shares = (
        by_set[dataset]["masked"][RANKED_BY]["mean"] / (best[dataset][RANKED_BY] or 1.0)
        for dataset in ranked_on or by_set
    )
    return {
        "model": model,
        "second_stage": [dataset for dataset, row in by_set.items() if row["second_stage"]],
        "untrained": all(row["untrained"] for row in by_set.values()),
        "seeds": max(seeds, key=len),
        "fewest_seeds": min(map(len, seeds)),
        **{key: sum(row[key] for row in by_set.values()) for key in ("hit_cap", "other_code")},
        "of_best": fmean(shares),
        "sets": {
            dataset: {metric: {end: row["masked"][metric][end] for end in ("mean", "low", "high")} for metric in TESTED}
            for dataset, row in by_set.items()
        },
    }


def _pairs(boards: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Mapping[str, Row]]) -> list[Row]:
    """The pairs at the head of the leaderboards: their difference in N@10 by data set."""
    pairs: dict[tuple[str, str], Row] = {}
    for dataset, board in boards.items():
        for pair in board["headlines"]:
            model, other = (side["model"] for side in pair["sides"])
            of_pair = pairs.setdefault((model, other), {"models": [model, other], "sets": {}})
            difference = pair["metrics"][RANKED_BY]
            other_mean = rows[other][dataset]["masked"][RANKED_BY]["mean"]
            change = difference["difference"]["mean"] / other_mean if other_mean else None
            of_pair["sets"][dataset] = {**difference, "change": change}
    return list(pairs.values())
