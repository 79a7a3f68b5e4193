"""The item columns that RecBole's own feature-aware models read: `selected_features` of FDSA, SASRecF, GRU4RecF."""

from typing import Any

from ..errors import InputError, listed
from ..modalities import MODALITIES
from ..preparation import atomic
from .dataset import SEMANTIC_ID
from .feature_sources import item_file, template_of


def load_selected_features(config: Any, chosen: bool) -> None:
    """Let RecBole load the item columns of `selected_features`; where none are chosen, those of texts and codes.

    RecBole's default is the column `class` of its ml-100k, and its models end in a `KeyError` where that is not loaded.
    Models without the key, and runs whose `load_col` names item columns, are left alone. `chosen` says whether the
    run's own settings name the features.
    """
    selected, columns = config["selected_features"], config["load_col"]
    if not selected or (columns or {}).get("item"):
        return
    attached = [SEMANTIC_ID] if config["attach_semantic_ids"] else []
    if set(selected) <= set(attached):
        return
    path = item_file(config)
    if not path.is_file():
        reads = f"{config['model']} reads columns of items (selected_features)"
        raise InputError(f"{path}: no such file, but {reads}; add it, or take a model that reads none, such as SASRec")
    there = atomic.read_header(path, config["field_separator"], config["encoding"] or "utf-8")
    if not chosen and not set(selected) <= {*there, *attached}:
        described = [column for name in MODALITIES for column in template_of(config, name).columns]
        selected = list(dict.fromkeys(described)) or selected
    wanted = [name for name in selected if name not in attached]
    for name in wanted:
        if name not in there:
            expected = f"columns of {path} ({listed(name, there)})"
            example = "name them, for example --selected_features=\"['brand']\""
            raise InputError(f"selected_features: found {name!r}, expected {expected}; {example}")
    config["selected_features"] = list(selected)
    if columns is not None:  # none is RecBole's word for all columns
        config["load_col"] = {**columns, "item": [config["ITEM_ID_FIELD"], *wanted]}
