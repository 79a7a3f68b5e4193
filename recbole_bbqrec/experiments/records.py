"""One record per finished run, with the rank of every user beside it: what tables are made from, and found by.

A record is `results/runs/<Dataset>/<name>-<seed>-<key>.json`; `key` stands for everything that makes two runs the same
but for their seed: model, settings and data. The ranks are written first, so a record exists only when it is complete.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import storage
from ..data.feature_sources import modalities
from ..errors import InputError
from ..evaluation import report
from ..evaluation.ranking import COLUMNS, Ranks
from ..preparation.atomic import read_atomic
from ..preparation.images import images_by_token
from ..preparation.vectors import files_of
from ..settings import candidate_settings, learning_settings

MAX_RANK = 1000
"""Ranks are kept up to here; a rank kept as `MAX_RANK` means this one or any beyond."""

_ERROR = ".error.txt"


def code_fingerprint() -> str:
    """Fingerprint of the source code that decides a result: settings, data, models and trainers, ranks."""
    deciding = ("config", "registry", "data.dataloader", "evaluation.ranking")
    return storage.source_fingerprint(*(f"recbole_bbqrec.{name}" for name in deciding))


def comparable_settings(config: Any) -> dict[str, Any]:
    """Settings that can change a result, the seed left out: runs that share them differ by chance alone.

    An encoder that is a file or a folder on this disk has the fingerprint of its content behind its name.
    """
    settings = {**learning_settings(config), **candidate_settings(config)}
    del settings["seed"]
    for key in ("text_encoder", "image_encoder"):
        name = settings.get(key)
        path = Path(config["data_path"]) / Path(name).expanduser() if isinstance(name, str) else None
        if path is not None and path.exists():
            settings[key] = f"{name} ({storage.fingerprint(_content(path))})"
    return settings


def _content(path: Path) -> dict[str, Any]:
    """What a file or folder holds: files of vectors by content, those of a model by name and size."""
    if path.is_file():
        return {file.name: file for file in files_of(path) if file.is_file()}
    return {file.name: [file.stat().st_size] for file in sorted(path.iterdir()) if file.is_file()}


def data_fingerprint(config: Any) -> str:
    """Fingerprint of a data set's files as they lie on the disk, before RecBole reads them.

    Atomic files count by content, images by name and size, so that a large folder takes no minute. It is the same for
    all models and settings that read the same files, and so are the users' ids.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    files = [path for kind in ("inter", "item", "user") for path in sorted(folder.glob(f"{name}*.{kind}"))]
    images: dict[str, list[Any]] = {}
    if config["image_folder"] and (place := folder / Path(config["image_folder"]).expanduser()).is_dir():
        images = {token: [path.name, path.stat().st_size] for token, path in images_by_token(place).items()}
    return storage.fingerprint({path.name: path for path in files}, images)


def data_statistics(config: Any) -> dict[str, Any]:
    """Count users, items and interactions of a data set's interaction files.

    `tied_times` is the share of interactions at a time at which their user has another one.
    """
    columns = [config[f"{kind}_FIELD"] for kind in ("USER_ID", "ITEM_ID", "TIME")]
    how = (config["field_separator"], config["encoding"] or "utf-8")
    paths = sorted(Path(config["data_path"]).glob(f"{config['dataset']}*.inter"))  # several for a split made beforehand
    frame = pd.concat([read_atomic(path, columns, *how)[0] for path in paths])
    users, items = (int(frame[column].nunique()) for column in columns[:2])
    return {
        "users": users,
        "items": items,
        "interactions": len(frame),
        "interactions_per_user": len(frame) / users,
        "density": len(frame) / (users * items),
        "tied_times": float(frame.duplicated([columns[0], columns[2]], keep=False).mean()),
        "modalities": [f"{name} ({encoder})" for name, encoder in modalities(config).items()],
    }


def run_key(settings: Mapping[str, Any], data: str) -> str:
    """Fingerprint of what makes runs the same but for their seed, from `comparable_settings` and the data's one."""
    return storage.fingerprint(dict(settings), data)


def folder_of(results: Path, dataset: str) -> Path:
    """Folder of a data set's records."""
    return results / "runs" / dataset


def write(folder: Path, name: str, record: Mapping[str, Any], ranks: Mapping[str, Ranks]) -> Path:
    """Keep a finished run and return its record's path.

    Parameters
    ----------
    folder : from `folder_of`.
    name : what the run is called in tables.
    record : plain data with `seed` and `run_key`.
    ranks : split -> ranks of its rows.
    """
    path = folder / f"{name}-{record['seed']}-{record['run_key']}.json"
    report.write_file(path.with_suffix(".npz"), pack_ranks(ranks))
    storage.write_json(path, {"name": name, **record})
    _error_file(folder, name, record["seed"], record["run_key"]).unlink(missing_ok=True)
    return path


def find(folder: Path, seed: int, key: str, splits: tuple[str, ...] = ()) -> Path | None:
    """Path of the record with this seed and key that was judged on `splits`; none where there is none."""
    for path in sorted(folder.glob(f"*-{seed}-{key}.json")):
        if set(splits) <= set(read(path)["metrics"]):
            return path
    return None


def read(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises
    ------
    InputError : it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable record ({error}); delete it and run again") from error


@dataclass(frozen=True)
class Run:
    """A finished run: its record and the ranks of its rows by split, see `Ranks`."""

    record: dict[str, Any]
    ranks: dict[str, Ranks]


def load(path: Path) -> Run:
    """Read a record with its ranks.

    Raises
    ------
    InputError : one of the two files is missing or damaged.
    """
    ranks = path.with_suffix(".npz")
    try:
        return Run(read(path), unpack_ranks(ranks.read_bytes()))
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{ranks}: not readable ({error}); delete {path} and run again") from error


def runs_of(folder: Path, key: str) -> dict[int, Run]:
    """All finished runs of one key by seed; of several files of one seed, the one judged on more splits."""
    found: dict[int, Run] = {}
    for path in sorted(folder.glob(f"*-{key}.json")):
        run = load(path)
        seed = run.record["seed"]
        if seed not in found or len(run.ranks) > len(found[seed].ranks):
            found[seed] = run
    return found


def pack_ranks(ranks: Mapping[str, Ranks]) -> bytes:
    """Write ranks as a compressed .npz, rows by user: about 1 byte a user and split.

    Ranks from `MAX_RANK` on are kept as one bit.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, split_ranks in ranks.items():
        order = np.argsort(split_ranks.users, kind="stable")
        arrays[f"{split}/gaps"] = np.diff(split_ranks.users[order], prepend=0).astype(np.int32)
        for column in COLUMNS:
            values = getattr(split_ranks, column)[order]
            inside = values < MAX_RANK
            arrays[f"{split}/{column}/inside"] = np.packbits(inside)
            arrays[f"{split}/{column}/ranks"] = _bytes_apart(values[inside])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def unpack_ranks(content: bytes) -> dict[str, Ranks]:
    """Read what `pack_ranks` wrote; ranks beyond `MAX_RANK` are `MAX_RANK`."""
    found: dict[str, Ranks] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for split in sorted({name.partition("/")[0] for name in arrays.files}):
            users = np.cumsum(arrays[f"{split}/gaps"], dtype=np.int64)
            columns = {}
            for column in COLUMNS:
                inside = np.unpackbits(arrays[f"{split}/{column}/inside"], count=len(users)).astype(bool)
                columns[column] = np.full(len(users), MAX_RANK, np.int64)
                columns[column][inside] = _bytes_together(arrays[f"{split}/{column}/ranks"])
            found[split] = Ranks(users, **columns)
    return found


def _bytes_apart(values: np.ndarray) -> np.ndarray:
    """Numbers [n] below 2^16 as their low and their high bytes [2, n], which compress better apart."""
    return np.stack([values & 255, values >> 8]).astype(np.uint8)


def _bytes_together(parts: np.ndarray) -> np.ndarray:
    return parts[0] + 256 * parts[1].astype(np.int64)


def keep_error(folder: Path, name: str, seed: int, key: str, text: str) -> None:
    """Keep why a run failed; the file goes once the run has succeeded."""
    report.write_file(_error_file(folder, name, seed, key), text.encode())


def all_errors(folder: Path) -> dict[tuple[str, int, str], str]:
    """Name, seed and key -> kept error of all runs that failed and have not succeeded since."""
    found = {}
    for path in sorted(folder.glob(f"*{_ERROR}")):
        name, seed, key = path.name[: -len(_ERROR)].rsplit("-", 2)
        found[name, int(seed), key] = path.read_text(encoding="utf-8")
    return found


def errors_of(folder: Path, name: str, key: str) -> dict[int, str]:
    """Seed -> kept error of the runs of this name and key that failed and have not succeeded since."""
    return {seed: text for (named, seed, of), text in all_errors(folder).items() if (named, of) == (name, key)}


def _error_file(folder: Path, name: str, seed: int, key: str) -> Path:
    return folder / f"{name}-{seed}-{key}{_ERROR}"
