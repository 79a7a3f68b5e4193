"""One record per finished run, with the rank of every user beside it: what tables are made from, and found by.

A record is `results/runs/<Dataset>/<name>-<seed>-<key>.json`; `key` stands for everything that makes two runs the same
but for their seed: model, settings and data. The ranks are written first, so a record exists only when it is complete.
"""

import functools
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import storage
from ..data.feature_sources import modalities
from ..data.presplit import read_rows
from ..errors import InputError
from ..evaluation import report
from ..evaluation.candidates import sampling_of
from ..evaluation.configuration import COUNTED_ONCE, data_fingerprint, name_of_split
from ..evaluation.configuration import comparable_settings as comparable_settings
from ..evaluation.configuration import folder_of as folder_of
from ..evaluation.configuration import run_key as run_key
from ..evaluation.metrics import of_lists
from ..evaluation.ranking import COLUMNS, Ranks

MAX_RANK = 1000
"""Ranks are kept up to here; a rank kept as `MAX_RANK` means this one or any beyond."""

READING = 1.0
"""Seconds: reading a tokenizer takes less, fitting one more."""

_BY_SPLIT = ("metrics", "users", "rows", "groups", "grouped_by", "labels", "drawn_from", "ranked_among", "tail_ratio")
"""Keys of a record under which each split has something of its own."""

_ERROR = ".error.txt"


def code_fingerprint() -> str:
    """Fingerprint of the source code that decides a result: settings, data, models and trainers, ranks."""
    deciding = ("config", "registry", "data.dataloader", "evaluation.ranking")
    return storage.source_fingerprint(*(f"recbole_bbqrec.{name}" for name in deciding))


def data_statistics(config: Any) -> dict[str, Any]:
    """Count users, items and interactions of a data set's interaction files; rows with histories count once.

    `tied_times` is the share of interactions at a time at which their user has another one.
    """
    frame = read_rows(config)
    users, items = (int(frame[column].nunique()) for column in frame.columns[:2])
    return {
        "users": users,
        "items": items,
        "interactions": len(frame),
        "interactions_per_user": len(frame) / users,
        "density": len(frame) / (users * items),
        "tied_times": float(frame.duplicated([*frame.columns[[0, 2]]], keep=False).mean()),
        "modalities": [f"{name} ({encoder})" for name, encoder in modalities(config).items()],
    }


def about_data(config: Any) -> dict[str, Any]:
    """What a record says about the data."""
    return {"data": data_statistics(config), "data_fingerprint": data_fingerprint(config)}


def write(folder: Path, name: str, record: Mapping[str, Any], ranks: Mapping[str, Ranks]) -> Path:
    """Keep a finished run under its name in tables, with its ranks by split, and return its record's path."""
    path = folder / f"{name}-{record['seed']}-{record['run_key']}.json"
    report.write_file(path.with_suffix(".npz"), pack_ranks(ranks))
    storage.write_json(path, {"name": name, **record})
    path.with_suffix(_ERROR).unlink(missing_ok=True)
    return path


def read(path: Path) -> dict[str, Any]:
    """Read a record; an `InputError` where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable record ({error}); delete it and run again") from error


def as_now(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of any version in today's form; its key stays the same.

    Earlier ones have `COUNTED_ONCE` among their settings and call the seconds of a second stage `candidates`; where a
    cache had spared the work, their seconds are none or those of reading it, so they become unknown. Their `grouped_by`
    is one list for all splits that have groups.
    """
    given, grouped_by = record["settings"], record.get("grouped_by")
    if isinstance(grouped_by, list):
        record = {**record, "grouped_by": dict.fromkeys(record.get("groups", record["metrics"]), grouped_by)}
    settings = {key: value for key, value in given.items() if key not in COUNTED_ONCE or value != COUNTED_ONCE[key]}
    seconds = {"second stage" if name == "candidates" else name: taken for name, taken in record["seconds"].items()}
    if "peak_memory_is_bound" not in record:
        compares = settings.get("attach_semantic_ids") or settings.get("similarity_attention", "off") != "off"
        has_features = modalities(settings) and (settings.get("attach_item_features") or compares)
        spared = {
            "features": has_features and not seconds.get("features"),
            "tokenizer": 0 < seconds.get("tokenizer", 0.0) < READING,
            "second stage": settings.get("candidate_similarity") and not seconds.get("second stage"),
        }
        seconds |= {name: None for name in seconds if spared.get(name)}
    return {**record, "settings": settings, "seconds": seconds}


class Asked(NamedTuple):
    """What does not follow from kept ranks: metrics of lists, such as `giniindex@10`, and groups of targets.

    `tail_ratio` is there with TailPercentage alone, which depends on it.
    """

    metrics: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    tail_ratio: float | None = None

    @classmethod
    def of(cls, config: Any) -> "Asked":
        """What a run of these settings is asked for."""
        names = of_lists(config["metrics"])
        metrics = tuple(f"{name}@{k}" for name in names for k in config["topk"])
        tail_ratio = config["tail_ratio"] if "tailpercentage" in names else None
        return cls(metrics, tuple(config["group_metrics"] or ()), tail_ratio)


NOTHING = Asked()


class Run:
    """A finished run: its record and what it is found by; its ranks by split are read when they are asked for.

    An `InputError` where one of the two files is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.record = path, as_now(read(path))
        self.model, self.seed = self.record["model"], self.record["seed"]
        self.key, self.data = self.record["run_key"], self.record["data_fingerprint"]
        self.splits = set(self.record["metrics"])
        self.ties = self.record["settings"].get("shuffle_ties")

    @property
    def of_split(self) -> str:
        """The split of its data, see `name_of_split`."""
        return name_of_split(self.record["settings"])

    def among(self, split: str) -> str | None:
        """What the targets of a split are ranked among, in words; none where among all items."""
        sampling = sampling_of(self.record["settings"], split)
        return sampling.words if sampling else None

    def tells(self, splits: Iterable[str], asked: Asked = NOTHING) -> bool:
        """Whether the run was judged on all of `splits`, and its record holds what is `asked` of each."""
        metrics, known = self.record["metrics"], self.record.get("grouped_by", {})
        tails = self.record.get("tail_ratio", {})
        return all(
            split in metrics
            and {*asked.metrics} <= {*metrics[split].get("masked", ())}
            and {*asked.groups} <= {*known.get(split, ())}
            and asked.tail_ratio in (None, tails.get(split))
            for split in splits
        )

    @functools.cached_property
    def ranks(self) -> dict[str, Ranks]:
        path = self.path.with_suffix(".npz")
        try:
            return unpack_ranks(path.read_bytes())
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: not readable ({error}); delete {self.path} and run again") from error


def runs_in(folder: Path, pattern: str = "*") -> list[Run]:
    """All finished runs of a folder whose names match, by name."""
    return [Run(path) for path in sorted(folder.glob(f"{pattern}.json"))]


def find(folder: Path, seed: int, key: str, splits: Iterable[str] = (), asked: Asked = NOTHING) -> Run | None:
    """Return the run with this seed and key that was judged on `splits` as `asked`; none where there is none."""
    return next((run for run in runs_in(folder, f"*-{seed}-{key}") if run.tells(splits, asked)), None)


def joined(
    known: Run | None, record: Mapping[str, Any], ranks: Mapping[str, Ranks]
) -> tuple[dict[str, Any], dict[str, Ranks]]:
    """Return a run judged anew, with the splits that an earlier record of it `known` alone has.

    Where these are of another version of the code, which was not seen to give the same ranks, that one stands in the
    record: pages mark it.
    """
    if known is None or not (left := known.splits - ranks.keys()):
        return dict(record), dict(ranks)
    found = dict(record)
    if known.record.get("same_ranks", {}).get("source") != record.get("source"):
        found |= {key: known.record[key] for key in ("source", "same_ranks") if key in known.record}
    for key in _BY_SPLIT:
        of_splits = {split: value for split, value in known.record.get(key, {}).items() if split in left}
        if of_splits or key in record:
            found[key] = {**record.get(key, {}), **of_splits}
    return found, {**ranks, **{split: known.ranks[split] for split in left}}


def by_seed(runs: Iterable[Run], key: str, split: str) -> dict[int, Run]:
    """The runs of a key judged on `split` by seed, ascending; of several of a seed, the first of most splits."""
    found = sorted((run for run in runs if run.key == key and split in run.splits), key=lambda run: -len(run.splits))
    return dict(sorted({run.seed: run for run in reversed(found)}.items()))


def of_rows(
    folder: Path, keys: Mapping[str, str], splits: Iterable[str]
) -> tuple[dict[str, dict[str, dict[int, Run]]], list[str]]:
    """Return the runs of rows, given the run key of each: split -> row -> seed -> run; and what failed, in words."""
    recorded, failed = runs_in(folder), failures_in(folder).items()
    found = {
        split: {row: runs for row, key in keys.items() if (runs := by_seed(recorded, key, split))} for split in splits
    }
    return found, [text for row in keys for (name, _, key), text in failed if (name, key) == (row, keys[row])]


def pack_ranks(ranks: Mapping[str, Ranks]) -> bytes:
    """Write ranks as a compressed .npz, rows by user: about 1 byte a user and split.

    Ranks from `MAX_RANK` on are kept as one bit. The others are below 2^16: their low and their high bytes [2, n]
    compress better apart.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, split_ranks in ranks.items():
        order = np.argsort(split_ranks.users, kind="stable")
        arrays[f"{split}/gaps"] = np.diff(split_ranks.users[order], prepend=0).astype(np.int32)
        if split_ranks.per_user:
            arrays[f"{split}/per_user"] = np.ones(1, bool)
        if split_ranks.cold is not None:
            arrays[f"{split}/cold"] = np.packbits(split_ranks.cold[order])
        for column in COLUMNS:
            values = getattr(split_ranks, column)[order]
            inside = values < MAX_RANK
            arrays[f"{split}/{column}/inside"] = np.packbits(inside)
            arrays[f"{split}/{column}/ranks"] = np.stack([values[inside] & 255, values[inside] >> 8]).astype(np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def unpack_ranks(content: bytes) -> dict[str, Ranks]:
    """Read what `pack_ranks` wrote; ranks beyond `MAX_RANK` are `MAX_RANK`."""
    found: dict[str, Ranks] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for split in sorted({name.partition("/")[0] for name in arrays.files}):
            users = np.cumsum(arrays[f"{split}/gaps"], dtype=np.int64)
            columns: dict[str, Any] = {"per_user": f"{split}/per_user" in arrays.files}
            if f"{split}/cold" in arrays.files:
                columns["cold"] = np.unpackbits(arrays[f"{split}/cold"], count=len(users)).astype(bool)
            for column in COLUMNS:
                low, high = arrays[f"{split}/{column}/ranks"].astype(np.int64)
                inside = np.unpackbits(arrays[f"{split}/{column}/inside"], count=len(users)).astype(bool)
                columns[column] = np.full(len(users), MAX_RANK)
                columns[column][inside] = low + 256 * high
            found[split] = Ranks(users, **columns)
    return found


def keep_error(folder: Path, name: str, seed: int, key: str, text: str) -> None:
    """Keep why a run failed; the file goes once the run has succeeded."""
    report.write_file(folder / f"{name}-{seed}-{key}{_ERROR}", text)


def failure_of(folder: Path, name: str, seed: int, key: str) -> tuple[float, str] | None:
    """When a run failed that has not succeeded since, and the last line of its error; none where it has not failed."""
    path = folder / f"{name}-{seed}-{key}{_ERROR}"
    try:
        return path.stat().st_mtime, path.read_text(encoding="utf-8").strip().splitlines()[-1]
    except FileNotFoundError:
        return None


def failures_in(folder: Path) -> dict[tuple[str, str, str], str]:
    """Runs that failed and have not succeeded since: name, seed and key -> "name, seed n: last line of the error"."""
    found = {}
    for path in sorted(folder.glob(f"*{_ERROR}")):
        name, seed, key = path.name.removesuffix(_ERROR).rsplit("-", 2)
        last = path.read_text(encoding="utf-8").strip().splitlines()[-1]
        found[name, seed, key] = f"{name}, seed {seed}: {last}"
    return found
