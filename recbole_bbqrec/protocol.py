"""The protocol of a run: which settings are refused because its figures would not mean what their names say."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from recbole.evaluator.register import metric_types

from . import schema
from .data.splitting import check_split_by_time
from .errors import InputError, did_you_mean
from .evaluation.candidates import check_mode
from .evaluation.labels import LABEL_METRICS
from .evaluation.metrics import LIST_METRICS, METRICS
from .recbole_keys import METRICS as NAMES


def check_protocol(final: dict[str, Any]) -> None:
    """Refuse settings under which this project's figures would not mean what their names say."""
    for key in ("save_dataset", "save_dataloaders", "dataset_save_path", "dataloaders_save_path"):
        if final.get(key):
            raise InputError(
                f"{key}: RecBole's pickled data cache is not used, it runs code when read and does not notice changed "
                "files; drop the key, features and codes are cached by fingerprint already"
            )
    _check_eval_args(final["eval_args"], final.get(schema.KIND) in schema.INTERACTIONS)
    check_split_by_time(final)
    _check_metrics(final)
    width, heads = final.get("hidden_size"), final.get("n_heads")
    if isinstance(width, int) and isinstance(heads, int) and width % heads:
        raise InputError(f"hidden_size: found {width}, expected a multiple of n_heads {heads}")
    _check_columns(final)
    if final.get("log_wandb") and importlib.util.find_spec("wandb") is None:
        raise InputError("log_wandb: found True, but wandb is not installed; pip install wandb, or drop the key")


def _check_metrics(final: dict[str, Any]) -> None:
    names, cut_offs = (final[key] if isinstance(final[key], list) else [final[key]] for key in ("metrics", "topk"))
    names = [str(name).lower() for name in names]
    if not names:
        raise InputError(f"metrics: found none, expected some of {', '.join(NAMES)}")
    of_labels = [name for name in names if name in LABEL_METRICS and "labeled" in str(final["eval_args"].get("mode"))]
    for name in (name for name in names if name not in (*METRICS, *LIST_METRICS, *of_labels)):
        known_elsewhere = " (RecBole has it, our ranker does not)" if name in metric_types else ""
        if name in LABEL_METRICS:
            known_elsewhere = " (of labelled rows, with eval_args.mode labeled)"
        expected = f"expected some of {', '.join(NAMES)}"
        raise InputError(f"metrics: found {name!r}{known_elsewhere}, {did_you_mean(name, NAMES, expected)}")
    check_mode(final["eval_args"].get("mode", "full"), names)
    allowed = [*of_labels, *(f"{name}@{k}" for name in names if name not in of_labels for k in cut_offs)]
    if str(final["valid_metric"]).lower() not in allowed:
        how = f"give --valid_metric={allowed[-1]} too" if len(allowed) < 4 else f"expected one of {', '.join(allowed)}"
        why = f"found {final['valid_metric']!r}, by which training stops and which metrics and topk leave out"
        raise InputError(f"valid_metric: {why}; {how}")


def _check_columns(final: dict[str, Any]) -> None:
    further = final.get("additional_feat_suffix") or []
    there = {"inter", "user", "item", *([further] if isinstance(further, str) else further)}
    there |= {"kg", "link"} if schema.reads_graph(final) else set()
    for key in ("load_col", "unload_col", "unused_col"):
        for part, columns in (final.get(key) or {}).items():
            if part not in there:
                raise InputError(f"{key}: found the file {part!r}, expected some of {', '.join(sorted(there))}")
            if isinstance(columns, str) and columns != "*":
                raise InputError(f"{key}: found {columns!r} for {part}, expected a list of columns: ['user_id', ...]")
    if both := [part for part in final.get("unload_col") or {} if (final.get("load_col") or {}).get(part)]:
        raise InputError(f"unload_col: {both[0]} has a load_col too; name there what to load, and drop unload_col")
    ids = [final[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
    if len(set(ids)) < len(ids):
        raise InputError(f"USER_ID_FIELD, ITEM_ID_FIELD, TIME_FIELD: found {ids}, expected three different columns")
    if needed := set(ids) & set((final.get("unused_col") or {}).get("inter") or ()):
        raise InputError(f"unused_col: found {min(needed)!r}, which every run reads; take it out")
    if not final["LIST_SUFFIX"]:
        raise InputError("LIST_SUFFIX: found none, expected what histories add to a column's name, such as _list")


def _check_eval_args(given: Mapping[str, Any], of_interactions: bool) -> None:
    split = given.get("split")
    orders = ("TO", "RO") if of_interactions else ("TO",)
    expected: dict[str, tuple[str, ...]] = {"order": orders, "group_by": ("user", "none")}
    for part, names in expected.items():
        if part in given and str(given[part]).lower() not in [name.lower() for name in names]:
            why = (
                "" if of_interactions or part != "order" else ", as histories of sequential models are in order of time"
            )
            raise InputError(f"eval_args: found {part} {given[part]!r}, expected {' or '.join(names)}{why}")
    kind, value = next(iter(split.items())) if isinstance(split, dict) and len(split) == 1 else (None, None)
    parts = value if isinstance(value, (list, tuple)) else ()
    three = len(parts) == 3 and all(type(part) in (int, float) and part >= 0 for part in parts) and parts[0] > 0
    one_out = kind == "LS" and value in ("valid_and_test", "valid_only", "test_only")
    if not one_out and not (kind in ("RS", "TS") and three):
        how = "{'LS': 'valid_and_test'} or three parts for training, validation and test, {'RS': [0.8, 0.1, 0.1]}"
        raise InputError(f"eval_args: found split {split!r}, expected {how}")
