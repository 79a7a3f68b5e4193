"""Yambda (Yandex Music): which tracks users listened to and how far, with vectors of their sound. All in Parquet.

- `listens.parquet`, the flat form: `uid`, `timestamp` (seconds since the first one), `item_id`, `played_ratio_pct`,
  which is the rating, and others;
- `embeddings.parquet`: `item_id` and `embed`, a list of numbers, of most tracks of the largest set.

A. Ploshkin et al., *Yambda-5B: A Large-Scale Multi-modal Dataset for Ranking And Retrieval*, RecSys 2025.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from .raw import REMEDIES, Item
from .vectors import write_vectors

VARIANTS = ("50m", "500m", "5b")

_BATCH = 1 << 18  # listens that are read at once
_VECTORS = 1 << 15  # vectors that are read at once


def reviews(path: str | os.PathLike, size: str, dirt: Counter[str]) -> Iterator[pl.DataFrame]:
    """Yield the listens in frames, in file order; rows without a user, a track or a time are counted."""
    user, item = pl.col("uid").cast(pl.String).alias("user"), pl.col("item_id").cast(pl.String).alias("item")
    rating = pl.col("played_ratio_pct").cast(pl.Float64).fill_null(float("nan")).alias("rating")
    wanted = (user, item, rating, pl.col("timestamp").cast(pl.Int64).alias("time"))
    for frame in _batches(path, lambda rows: rows.select(wanted), _BATCH):
        whole = frame.drop_nulls()
        dirt["listens without a user, a track or a time"] += len(frame) - len(whole)
        yield whole


def items(size: str, dirt: Counter[str]) -> Iterator[Item]:
    """Yield nothing: tracks have no names."""
    return iter(())


def add(place: Path, tokens: Sequence[str], files: Mapping[str, Path]) -> dict[str, int]:
    """Write the vectors of these tracks alone as `audio.safetensors`, and return how many have one."""
    path, known = files["audio_vectors"], pl.Series([int(token) for token in tokens], dtype=pl.Int64).implode()
    wanted = (pl.col("item_id").cast(pl.Int64), pl.col("embed").cast(pl.List(pl.Float32)))
    found: list[str] = []
    rows: list[np.ndarray] = []
    widths: set[int] = set()
    for frame in _batches(
        path, lambda all_rows: all_rows.select(wanted).filter(pl.col("item_id").is_in(known)), _VECTORS
    ):
        whole = frame.drop_nulls()
        found += map(str, whole["item_id"])
        widths |= {*whole["embed"].list.len()}
        rows.append(whole["embed"].explode(empty_as_null=False).to_numpy())
    if len(widths) != 1:
        lengths = " and ".join(map(str, sorted(widths)[:2]))
        what = f"vectors of {lengths} numbers" if widths else f"a vector of none of {len(tokens)} tracks"
        raise InputError(f"{path}: found {what}, expected one length for all of them; {REMEDIES[1]}")
    matrix, order = np.concatenate(rows).reshape(len(found), -1), np.argsort(np.array(found, dtype=object))
    write_vectors(place / "audio.safetensors", [found[at] for at in order], matrix[order])
    return {"audio vectors": len(found)}


def _batches(
    path: str | os.PathLike, wanted: Callable[[pl.LazyFrame], pl.LazyFrame], size: int
) -> Iterator[pl.DataFrame]:
    """Yield what is wanted of a Parquet file in frames of at most `size` rows, in its order."""
    with _readable(path):
        for frame in wanted(pl.scan_parquet(os.fspath(path), glob=False)).collect_batches(
            chunk_size=size, maintain_order=True
        ):
            yield from frame.iter_slices(size)


@contextlib.contextmanager
def _readable(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a Parquet file of Yambda's flat form ({why}); {REMEDIES[1]}") from error
