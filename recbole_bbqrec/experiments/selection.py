"""Which records a leaderboard shows: one setting a model, and what there is beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ..errors import InputError
from ..settings import property_files
from . import records
from .ablation import ROWS
from .study import FULL

Record = dict[str, Any]


def recorded(folder: Path, split: str) -> list[Record]:
    """Records of whole models that were judged on `split`, the latest first; an ablation's `full` row is one of them.

    Records from before there were dates are taken for the oldest.
    """
    found = [records.read(path) for path in sorted(folder.glob("*.json"))]
    whole = [one for one in found if one["name"] in (one["model"], FULL) and split in one["metrics"]]
    return sorted(whole, key=lambda one: (one.get("finished", ""), one["run_key"]), reverse=True)


def choose(
    found: Sequence[Record],
    usual: int | None,
    models: Sequence[str] = (),
    keys: Sequence[str] = (),
    planned: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Record]:
    """Model -> a record of the settings to show: those of a key that is named, else the latest on the same data.

    Runs that do something else about ties than `usual` are shown only where their key is named. See `write` for what is
    given, and `usual_ties`.

    Raises
    ------
    InputError : a model has no record, or a key none or several; two keys are of one model.
    """
    chosen: dict[str, Record] = {}
    for key in keys:
        meant = {one["run_key"]: one for one in found if one["run_key"].startswith(key)}
        if len(meant) != 1:
            raise InputError(
                f"--keys: found {len(meant)} keys that begin with {key!r}, expected one; the page lists them"
            )
        (record,) = meant.values()
        other = chosen.setdefault(record["model"], record)
        if other["run_key"] != record["run_key"]:
            raise InputError(f"--keys: found two keys of {record['model']}, expected one a model; keep one")
    for record in found:
        if planned.get(record["model"]) == record["run_key"]:
            chosen.setdefault(record["model"], record)
    plain = [one for one in found if ties_of(one) == usual and one["model"] not in planned]
    data = {one["data_fingerprint"] for one in chosen.values()} or {one["data_fingerprint"] for one in plain[:1]}
    for record in plain:
        if record["data_fingerprint"] in data:
            chosen.setdefault(record["model"], record)
    for model in models:
        if model not in chosen:
            raise InputError(f"--models: found {model!r}, expected some of {', '.join(sorted(chosen)) or 'none'}")
    return {model: record for model, record in chosen.items() if not models or model in models}


def ties_of(record: Record) -> int | None:
    """Seed by which a run shuffled interactions of equal times; none where it did not."""
    return record["settings"].get("shuffle_ties")


def default_ties(dataset: str) -> int | None:
    """What runs on a data set do about ties unless told otherwise: a seed to shuffle them by, or none."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in property_files("BBQRec", dataset)]
    return next((content["shuffle_ties"] for content in reversed(files) if "shuffle_ties" in content), None)


def usual_ties(dataset: str, found: Sequence[Record]) -> int | None:
    """What the runs of a table do about ties: the default, or where no record has it what the latest did."""
    known, default = [ties_of(one) for one in found], default_ties(dataset)
    return known[0] if known and default not in known else default


def others_of(
    found: Sequence[Record], usual: int | None, chosen: Mapping[str, Record], models: Sequence[str]
) -> list[dict[str, Any]]:
    """Settings that have records but are not shown, with what they change; other ties have a place of their own."""
    others: dict[str, dict[str, Any]] = {}
    data = {one["data_fingerprint"] for one in chosen.values()}
    for record in found:
        shown = chosen.get(record["model"])
        left_out = shown is None and bool(models)
        if left_out or ties_of(record) != usual or (shown and shown["run_key"] == record["run_key"]):
            continue
        here, there = (shown or record)["settings"], record["settings"]
        changes = {key: there.get(key) for key in sorted({*here, *there}) if here.get(key) != there.get(key)}
        entry = {"model": record["model"], "run_key": record["run_key"], "seeds": [], "changes": changes}
        entry["other_data"] = record["data_fingerprint"] not in data
        others.setdefault(record["run_key"], entry)["seeds"].append(record["seed"])
    for entry in others.values():
        entry["seeds"] = sorted(set(entry["seeds"]))
    return sorted(others.values(), key=lambda entry: (entry["model"], entry["run_key"]))


def failed_of(folder: Path, chosen: Mapping[str, Record], models: Sequence[str]) -> list[str]:
    """Runs of rows shown, or of models without any record, whose last attempt failed; an ablation lists its own."""
    failed = []
    for (name, seed, key), text in records.all_errors(folder).items():
        shown = chosen[name]["run_key"] == key if name in chosen else name not in ROWS and not models
        if shown:
            failed.append(f"{name}, seed {seed}: {text.strip().splitlines()[-1]}")
    return failed
