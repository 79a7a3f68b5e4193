"""Small tables: which accuracy so many bytes of item parameters buy, as ID tables of several widths and as codes.

All rows are the same model with the same encoder, `dense` scoring, neither features nor second stage: only what an item
is looked up in differs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml

from ..config import Config, refuse_unused
from ..data.feature_sources import modalities
from ..errors import InputError
from ..evaluation import report
from ..evaluation.statistics import PairedValues, holm
from ..model.catalogue import Catalogue, SemanticIds
from ..model.item_table import ItemTable
from ..settings import ADDED_LATER, MAY_BE_UNUSED, property_files, settings_to_load
from . import records, tables
from .runner import QUIET, Job, exit_code, given_and_files, run_jobs, say
from .tables import TESTED, short

ID_MODEL, CODES_MODEL = "SASRecPlus", "BBQRecCodesDense"

KINDS = {
    "id": "ID table, {} wide",
    "hashed": "hashed IDs: {} random codes an item",
    "kmeans": "{} codes an item of residual k-means over features",
    "codes": "{} codes an item, bound to behaviour",
}
"""Kinds of rows, in the order of the table."""

SET = ("final", "id_dim", "use_item_id", "use_code_embedding", "use_features", "scoring", "similarity_attention")
SET += ("codes", "tokenizer", "sid_levels", "second_stage")
"""Settings that make the rows what they are, and `final`: the study never looks at test."""

LARGER = (10**6, 10**7, 10**8)
"""Items of the catalogues that the bytes are also reckoned for."""


class Row(NamedTuple):
    """A row of the table: its kind and how much an item has, the width of its ID or its number of codes."""

    kind: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.size}"


def rows_of(hidden_size: int) -> list[Row]:
    """All rows, the most telling first; the first is the ID table of full width, which the others are compared with."""
    first = [Row("id", hidden_size), Row("codes", 16), Row("codes", 4), Row("hashed", 16), Row("id", 8)]
    first += [Row("kmeans", 16), Row("id", 32), Row("id", 16), Row("id", 4), Row("codes", 8), Row("hashed", 4)]
    first += [Row("hashed", 8), Row("kmeans", 4), Row("kmeans", 8)]
    return first[:1] + [row for row in first[1:] if row.kind != "id" or row.size < hidden_size]


def changes_of(row: Row, n_signals: int, hidden_size: int) -> dict[str, Any] | str:
    """Model and settings of a row, or the reason why it cannot be; codes bound to behaviour are of `n_signals`."""
    if row.kind == "id":
        return {"model": ID_MODEL, "id_dim": None if row.size == hidden_size else row.size}
    signals = 1 if row.kind == "kmeans" else n_signals
    if row.size % signals:
        return f"{row.size} codes an item cannot be shared by {signals} signals"
    of_kind = {
        "codes": ("learned", "behavior_bind"),
        "hashed": ("random", "behavior_bind"),
        "kmeans": ("learned", "kmeans"),
    }
    codes, tokenizer = of_kind[row.kind]
    return {"model": CODES_MODEL, "codes": codes, "tokenizer": tokenizer, "sid_levels": row.size // signals}


def item_bytes(settings: Mapping[str, Any], n_items: int, n_codes: int) -> int:
    """Bytes that are kept of `n_items` items: float32 parameters of the item table, and `n_codes` codes an item.

    A code takes one byte, two where a codebook has more than 256; that an item may lack a signal is not counted. The
    padding row is. The table is built in full, but on torch's device `meta`, where tensors have sizes and no content:
    any number of items will do.
    """
    size = settings.get("sid_codebook_size", 0)
    with torch.device("meta"):
        codes = torch.zeros(n_items + 1, n_codes, dtype=torch.uint8 if size <= 256 else torch.int16)
        ids = SemanticIds(codes, *torch.empty(2, 0), signals=[], codebook_size=size) if n_codes else None
        tokens = cast(list[str], range(n_items + 1))  # of which only the number counts
        table = ItemTable({**ADDED_LATER, **settings}, Catalogue(tokens, semantic_ids=ids))
    return sum(tensor.nbytes for tensor in (*table.parameters(), codes))


def study(dataset: str, n_seeds: int = 1, arguments: Sequence[str] = (), results: Path = Path("results")) -> int:
    """Train the rows that have no record yet, the first seed of all of them first, and write the page after every run.

    Parameters
    ----------
    n_seeds : trainings of each row, from the base seed upwards.
    arguments : `--key=value` settings of all rows.
    results : folder of page and records.

    Returns
    -------
    Exit code: 0, or 1 where a run failed.
    """
    if n_seeds < 1:
        raise InputError(f"--seeds: found {n_seeds}, expected at least 1")
    given, files = given_and_files(arguments, "the study")
    for key in SET:
        if key in given:
            raise InputError(f"--{key}: the study sets it for its rows, and never looks at test; drop it")
    given = {**QUIET, **given, "dataset": dataset, "final": False}
    both = {"id": ID_MODEL, "codes": CODES_MODEL}
    configs = {
        kind: Config(arguments=files, config_dict={**given, "model": model, MAY_BE_UNUSED: True})
        for kind, model in both.items()
    }
    refuse_unused([config.unused for config in configs.values()])
    settings = {kind: records.comparable_settings(config) for kind, config in configs.items()}
    data, folder = records.about_data(configs["codes"]), records.folder_of(results, dataset)
    first = configs["id"]["seed"]
    found, left_out = applicable(settings["codes"])
    for name, reason in left_out.items():
        say(f"row {name} is left out: {reason}")
    jobs = {
        (seed, row): Job(row.name, {**given, **changes, "seed": seed}, files, data, folder)
        for seed in range(first, first + n_seeds)
        for row, changes in found.items()
    }
    of_rows = {row: jobs[first, row] for row in found}
    failures = run_jobs(list(jobs.values()), False, lambda _: write(of_rows, left_out, results))
    print(write(of_rows, left_out, results))
    return exit_code(failures)


def applicable(settings: Mapping[str, Any]) -> tuple[dict[Row, dict[str, Any]], dict[str, str]]:
    """Rows with their changes, and the names of those that cannot be, with the reason; from settings of codes."""
    names = modalities(settings)
    n_signals = 1 if settings["sid_mode"] == "fused" else len(names) + bool(settings["sid_use_id"])
    found, left_out = {}, {}
    for row in rows_of(settings["hidden_size"]):
        changes = changes_of(row, n_signals, settings["hidden_size"])
        if row.kind == "kmeans" and not names:
            changes = "there are no features"
        if isinstance(changes, str):
            left_out[row.name] = changes
        else:
            found[row] = changes
    return found, left_out


def write(jobs: Mapping[Row, Job], left_out: Mapping[str, str], results: Path) -> str:
    """Write the page, its content as JSON, and the figure, from the records of the jobs; return the page.

    Where no run has ended well yet nothing is written.
    """
    found = content(jobs, left_out)
    if not found["rows"]:
        return "no run has a record yet"
    full = next(iter(jobs.values()))
    given = settings_to_load({**full.settings, "data_path": ""})
    shown = {key: given[key] for key in tables.keys_of(property_files(ID_MODEL, full.dataset)) if key in full.settings}
    text = yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=110).rstrip()
    page = tables.page("item-bytes.md.jinja", **found, yaml=text)
    lines = {
        KINDS[kind].format("").replace("  ", " ").strip(", "): [
            (row["bytes"] / 2**20, row["masked"]["ndcg@10"]) for row in found["rows"] if row["kind"] == kind
        ]
        for kind in KINDS
    }
    title = f"{full.dataset}, validation, seen items masked"
    figure = report.line_figure(title, "MiB of item parameters", short("ndcg@10"), lines)
    tables.write(results, f"item-bytes-{full.dataset}", found, {"png": figure, "md": page})
    return page


def content(jobs: Mapping[Row, Job], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Everything the page shows, as plain data; equal records give equal content."""
    full, *_ = jobs
    folder, data = jobs[full].folder, jobs[full].data["data"]
    recorded, failed = records.runs_in(folder), records.failures_in(folder).items()
    of_rows = {row: records.by_seed(recorded, job.key, "valid") for row, job in jobs.items()}
    runs = {row.name: found for row, found in of_rows.items() if found}
    values = tables.paired_values(runs, "valid", TESTED) if runs else {}

    def compared(row: str, of_metric: PairedValues) -> tables.Row:
        if row == full.name or full.name not in runs:
            return {"change": None, "p": None}
        return {"change": of_metric.change(row, full.name), "p": of_metric.p_value(row, full.name)}

    rows = [
        {
            "row": row.name,
            "kind": row.kind,
            "size": row.size,
            "bytes": _bytes(row, jobs[row], data["items"]),
            "seeds": list(runs[row.name]),
            "parameters": next(iter(runs[row.name].values())).record["parameters"],
            **tables.cautions(runs, row.name),
            **tables.metrics_of(row.name, values, compared),
        }
        for row in sorted(jobs, key=lambda row: (list(KINDS).index(row.kind), row.size))
        if row.name in runs
    ]
    pairs = _pairs({row["row"]: row for row in rows}, values)
    holm([[entry] for row in rows for entry in row["masked"].values()] + [[pair] for pair in pairs])
    return {
        "dataset": jobs[full].dataset,
        "data": data,
        "full": full.name,
        "hidden_size": jobs[full].settings["hidden_size"],
        "codebook_size": jobs[full].settings["sid_codebook_size"],
        "changes": {row.name: _changes(jobs[row], jobs[full]) for row in jobs if row.name in runs},
        "what": {row.name: KINDS[row.kind].format(row.size) for row in jobs},
        "rows": rows,
        "pairs": pairs,
        "larger": {
            row.name: [_bytes(row, job, n_items) for n_items in (data["items"], *LARGER)]
            for row, job in sorted(jobs.items(), key=lambda one: (list(KINDS).index(one[0].kind), one[0].size))
            if row.kind in ("id", "codes")
        },
        "n_larger": [data["items"], *LARGER],
        "left_out": dict(left_out),
        "failed": [text for row in jobs for (name, _, key), text in failed if (name, key) == (row.name, jobs[row].key)],
    }


def _bytes(row: Row, job: Job, n_items: int) -> int:
    return item_bytes(job.settings, n_items, 0 if row.kind == "id" else row.size)


def _changes(job: Job, full: Job) -> dict[str, Any]:
    """What a row gives besides the settings of all: its model, and what it sets anew."""
    keys = [key for key in SET if key in job.given and key != "final"]
    return {key: job.given[key] for key in ("model", *keys)} if job is not full else {"model": ID_MODEL}


def _pairs(rows: Mapping[str, tables.Row], values: tables.Values) -> list[tables.Row]:
    """Codes bound to behaviour, each against what takes as many bytes, or of ID tables the next in bytes: N@10 in %."""
    found = []
    for row in rows.values():
        if row["kind"] != "codes":
            continue
        ids = [other for other in rows.values() if other["kind"] == "id"]
        nearest = min(ids, key=lambda other: abs(other["bytes"] - row["bytes"]), default=None)
        others = [rows.get(f"hashed-{row['size']}"), rows.get(f"kmeans-{row['size']}"), nearest]
        of_metric = values["masked", "ndcg@10"]
        found += [
            {
                "row": row["row"],
                "other": other["row"],
                "kind": other["kind"],
                "bytes": [row["bytes"], other["bytes"]],
                "change": of_metric.change(row["row"], other["row"]),
                "p": of_metric.p_value(row["row"], other["row"]),
            }
            for other in filter(None, others)
        ]
    return found
