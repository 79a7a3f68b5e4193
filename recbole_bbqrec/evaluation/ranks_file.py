"""The rank of every judged target as a table, for whoever goes on with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from .. import storage
from ..errors import InputError
from .ranking import COLUMNS, NOT_FOUND, Ranks

_WRITERS = {".csv": pl.DataFrame.write_csv, ".parquet": pl.DataFrame.write_parquet}


def check_name(path: str | None) -> None:
    """Raise an `InputError` unless the name says which kind of file is meant."""
    if path and Path(path).suffix.lower() not in _WRITERS:
        raise InputError(f"ranks_file: found {path}, expected a name that ends in {' or '.join(_WRITERS)}")


def write_ranks(path: str, ranks: Mapping[str, Ranks], datasets: Mapping[str, Any]) -> None:
    """Write split, user, target item and its two ranks, a row for each judged row, to a CSV or Parquet file.

    Users and items are tokens; a target that a beam search has not found has no rank. Where items were held out of
    training, `cold` says whether the target is one of them. `datasets` has the data set of each split, whose rows are
    those of its ranks.
    """
    frames = []
    for split, found in ranks.items():
        dataset = datasets[split]
        targets = dataset.inter_feat[dataset.iid_field].numpy()
        ids = {
            "user": (dataset.uid_field, found.users),
            "item": (dataset.iid_field, targets if found.rows is None else targets[found.rows]),
        }
        tokens = {name: dataset.field2id_token[field][of].astype(str) for name, (field, of) in ids.items()}
        values = {column: getattr(found, column) for column in COLUMNS}
        values |= {} if found.cold is None else {"cold": found.cold}
        frames.append(pl.DataFrame({"split": [split] * len(found.users), **tokens, **values}))
    table = pl.concat(frames).with_columns(pl.col(column).replace(NOT_FOUND, None) for column in COLUMNS)
    with storage.replacing(path) as temporary:
        _WRITERS[Path(path).suffix.lower()](table, temporary)
