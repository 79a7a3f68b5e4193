"""Small tables: what accuracy a number of bytes of item parameters buys, as ID tables of several widths or as codes.

All rows are the same model with the same encoder, `dense` scoring, neither features nor second stage: only the table
that items are looked up in differs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from ..config import Config, refuse_unused
from ..data.feature_sources import modalities
from ..errors import InputError
from ..evaluation import report
from ..evaluation.configuration import name_of_split
from ..evaluation.statistics import PairedValues, holm
from ..model.catalogue import Catalogue, SemanticIds
from ..model.item_table import ItemTable
from ..settings import ADDED_LATER, MAY_BE_UNUSED
from . import records, tables
from .runner import QUIET, Job, given_and_files, run_with_page, say
from .tables import TESTED, short

ID_MODEL, CODES_MODEL = "SASRecPlus", "BBQRecCodesDense"

KINDS = {
    "id": ("ID tables", "an ID embedding, {} wide"),
    "hashed": ("random codes (hashed IDs)", "{} random codes an item (hashed IDs)"),
    "kmeans": ("codes of residual k-means", "{} codes an item of residual k-means over features"),
    "codes": ("codes bound to behaviour", "{} codes an item, bound to behaviour"),
    "mixed": (
        "codes bound to behaviour, then hashed ones",
        "{} codes an item, 3 or 4 bound to behaviour, the rest hashed",
    ),
}
"""Kinds of rows in the order of the table, in words: for the whole kind, and for one row."""

SET = ("final", "id_dim", "use_item_id", "use_code_embedding", "use_features", "scoring", "similarity_attention")
SET += ("codes", "tokenizer", "sid_levels", "n_identity_codes", "second_stage")
"""Settings that make the rows what they are, and `final`: the study never looks at test."""

LEARNED_OF_MIXED = 4
"""Codes that a tokenizer has learned where the others are hashed, or the next smaller number its signals can share."""

LARGER = (10**6, 10**7, 10**8)
"""Items of further catalogues that the bytes are computed for."""

MEBIBYTE = 2**20


class Row(NamedTuple):
    """A row of the table: its kind, and the width of an item's ID or the number of its codes."""

    kind: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.size}"

    @property
    def n_codes(self) -> int:
        return 0 if self.kind == "id" else self.size

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in the table."""
        return list(KINDS).index(self.kind), self.size


def rows_of(hidden_size: int) -> list[Row]:
    """All rows, the most telling first; the first is the ID table of full width, which the others are compared with."""
    found = [
        Row("id", hidden_size),
        Row("codes", 16),
        Row("mixed", 16),
        Row("codes", 4),
        Row("hashed", 16),
        Row("id", 8),
    ]
    found += [Row("kmeans", 16), Row("id", 32), Row("id", 16), Row("id", 4), Row("codes", 8), Row("hashed", 4)]
    found += [Row("hashed", 8), Row("mixed", 8), Row("kmeans", 4), Row("kmeans", 8)]
    return found[:1] + [row for row in found[1:] if row.n_codes or row.size < hidden_size]


def applicable(settings: Mapping[str, Any]) -> tuple[dict[Row, dict[str, Any]], dict[str, str]]:
    """Rows with their model and settings, and the names of those that cannot be, with the reason.

    `settings` are those of a model with codes.
    """
    names, found, left_out = modalities(settings), {}, {}
    n_signals = 1 if settings["sid_mode"] == "fused" else len(names) + bool(settings["sid_use_id"])
    for row in rows_of(settings["hidden_size"]):
        signals = n_signals if row.kind != "kmeans" else 1
        if row.kind == "kmeans" and not names:
            left_out[row.name] = "there are no features"
        elif row.n_codes and (not signals or (row.size % signals and row.kind != "mixed")):
            left_out[row.name] = f"{row.size} codes an item cannot be shared by {signals} signals"
        else:
            found[row] = _changes(row, signals, settings["hidden_size"])
    return found, left_out


def _changes(row: Row, signals: int, hidden_size: int) -> dict[str, Any]:
    """Model and settings of a row whose codes are of so many signals."""
    if row.kind == "id":
        return {"model": ID_MODEL, "id_dim": None if row.size == hidden_size else row.size}
    codes = "random" if row.kind == "hashed" else "learned"
    tokenizer = "kmeans" if row.kind == "kmeans" else "behavior_bind"
    levels = row.size // signals if row.kind != "mixed" else max(LEARNED_OF_MIXED // signals, 1)
    shape = {"sid_levels": levels, "n_identity_codes": row.size - levels * signals if row.kind == "mixed" else 0}
    return {"model": CODES_MODEL, "codes": codes, "tokenizer": tokenizer, **shape}


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


def study(dataset: str, n_seeds: int, arguments: Sequence[str], results: Path) -> int:
    """Train the rows that have no record yet; for parameters and exit code see `experiments`."""
    given, files = given_and_files(arguments, "the study", n_seeds)
    for key in SET:
        if key in given:
            raise InputError(f"--{key}: the study sets it for its rows, and never looks at test; drop it")
    given = {**QUIET, **given, "dataset": dataset, "final": False}
    configs = [
        Config(arguments=files, config_dict={**given, "model": model, MAY_BE_UNUSED: True})
        for model in (CODES_MODEL, ID_MODEL)
    ]
    refuse_unused([config.unused for config in configs])
    found, left_out = applicable(records.comparable_settings(configs[0]))
    for name, reason in left_out.items():
        say(f"row {name} is left out: {reason}")
    first, data, folder = configs[0]["seed"], records.about_data(configs[0]), records.folder_of(results, dataset)
    jobs = {
        (seed, row): Job(row.name, {**given, **changes, "seed": seed}, files, data, folder)
        for seed in range(first, first + n_seeds)
        for row, changes in found.items()
    }
    of_rows = {row: jobs[first, row] for row in sorted(found, key=lambda row: row.place)}
    return run_with_page(list(jobs.values()), False, lambda: write(of_rows, left_out, results))


def write(jobs: Mapping[Row, Job], left_out: Mapping[str, str], results: Path) -> str:
    """Write the page, its content as JSON, and the figure, from the records of each row's job; return the page.

    Nothing is written until a run has succeeded.
    """
    found = content(jobs, left_out)
    if not found["rows"]:
        return "no run has a record yet"
    text = tables.yaml_of(found["settings"], found["dataset"])
    name = tables.name_of("item-bytes", found["dataset"], name_of_split(found["settings"]))
    page = tables.page("item-bytes.md.jinja", **found, file=name, yaml=text, MEBIBYTE=MEBIBYTE)
    points = {
        label: [(row["bytes"] / MEBIBYTE, row["masked"]["ndcg@10"]) for row in found["rows"] if row["kind"] == kind]
        for kind, (label, _) in KINDS.items()
    }
    title = f"{found['dataset']}, validation, seen items masked"
    figure = report.line_figure(title, "MiB of item parameters", short("ndcg@10"), points)
    tables.write(results, name, found, {"png": figure, "md": page})
    return page


def content(jobs: Mapping[Row, Job], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Everything the page shows, as plain data; equal records give equal content."""
    full = max((row for row in jobs if not row.n_codes), key=lambda row: row.size)
    of_full, data = jobs[full], jobs[full].data["data"]
    found, failed = records.of_rows(of_full.folder, {row.name: job.key for row, job in jobs.items()}, ["valid"])
    rows, pairs = _rows(found["valid"], full, jobs, data["items"])
    sizes = (data["items"], *LARGER)
    return {
        "dataset": of_full.dataset,
        "data": data,
        "settings": of_full.settings,
        "full": full.name,
        "what": {row.name: KINDS[row.kind][1].format(row.size) for row in jobs},
        "changes": {
            row.name: {key: job.given[key] for key in ("model", *SET[1:]) if key in job.given}
            for row, job in jobs.items()
        },
        "rows": rows,
        "pairs": pairs,
        "sizes": sizes,
        "larger": {
            row.name: [item_bytes(job.settings, n_items, row.n_codes) for n_items in sizes]
            for row, job in jobs.items()
            if row.kind in ("id", "codes")
        },
        "left_out": dict(left_out),
        "failed": failed,
    }


def _rows(
    runs: tables.Runs, full: Row, jobs: Mapping[Row, Job], n_items: int
) -> tuple[list[tables.Row], list[tables.Row]]:
    """One entry per row of the table, and one per pair of `_pairs`; Holm's correction is over all their tests."""
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
            "bytes": item_bytes(jobs[row].settings, n_items, row.n_codes),
            "seeds": list(runs[row.name]),
            "parameters": next(iter(runs[row.name].values())).record["parameters"],
            **tables.cautions(runs, row.name),
            **tables.metrics_of(row.name, values, compared),
        }
        for row in jobs
        if row.name in runs
    ]
    pairs = _pairs(rows, values["masked", "ndcg@10"]) if rows else []
    holm([[entry] for entry in (*(entry for row in rows for entry in row["masked"].values()), *pairs)])
    return rows, pairs


def _pairs(rows: Sequence[tables.Row], ndcg: PairedValues) -> list[tables.Row]:
    """Compare codes bound to behaviour with as many other codes an item, and with the ID table nearest in bytes."""
    found = []
    for row in (row for row in rows if row["kind"] == "codes"):
        others = [other for other in rows if other["kind"] in ("hashed", "kmeans") and other["size"] == row["size"]]
        tables_of_ids = [other for other in rows if other["kind"] == "id"]
        others += sorted(tables_of_ids, key=lambda other: abs(other["bytes"] - row["bytes"]))[:1]
        for other in others:
            names = row["row"], other["row"]
            compared = {"change": ndcg.change(*names), "p": ndcg.p_value(*names)}
            found.append({"kind": other["kind"], "rows": names, "bytes": [row["bytes"], other["bytes"]], **compared})
    return found
