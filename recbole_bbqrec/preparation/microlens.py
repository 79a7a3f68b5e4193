"""MicroLens (Westlake University): comments on short videos, with titles, covers, and vectors of covers and videos.

- `..._pairs.csv`: `user,item,timestamp`, milliseconds, one comment a row;
- `..._title_en.csv` and `tags_to_summary.csv`: `item,text` without a header or quotes, so that a title may hold commas;
- `..._covers.zip`: `<folder>/<item>.jpg`;
- `..._features_....npy`: a matrix whose row r is of item r + 1, as the authors' script that writes it numbers them.

Y. Ni et al., *A Content-Driven Micro-Video Recommendation Dataset at Scale*, arXiv 2309.15379, 2023.
"""

import os
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl

from ..errors import InputError
from .bad_rows import BadRows
from .images import SUFFIXES, file_stem
from .raw import REMEDIES, Item, open_text
from .tables import REVIEW_COLUMNS, find_columns, read_reviews
from .vectors import write_vectors

VARIANTS = ("100k",)
VECTORS = {"video_vectors": "video", "cover_vectors": "image"}
"""Role of a file of vectors -> the modality that they are of."""


def reviews(path: str | os.PathLike, name: str, dirt: Counter[str]) -> Iterator[pl.DataFrame]:
    """Yield the comments in frames, in file order; there are no ratings."""
    bad = BadRows(Path(path), "skip")
    columns, _ = find_columns(path, {field: REVIEW_COLUMNS[field] for field in ("user", "item", "time")}, {})
    yield from read_reviews(columns, bad)
    dirt.update({f"review lines, {reason}": count for reason, count in bad.counts.items()})


def items(titles: str | os.PathLike, categories: str | os.PathLike, name: str, dirt: Counter[str]) -> Iterator[Item]:
    """Yield the videos that have a title or a category."""
    title, category = _texts(titles, dirt), _texts(categories, dirt)
    for token in dict.fromkeys([*title, *category]):
        one = category.get(token, "")
        yield Item(token, title.get(token, ""), "", [one] if one else [], "", "", "")


def _texts(path: str | os.PathLike, dirt: Counter[str]) -> dict[str, str]:
    """Return item -> text, of several lines of an item the first; lines that name no item are counted."""
    found: dict[str, str] = {}
    with open_text(path, "\n", *REMEDIES) as file:
        for line in file:
            token, comma, text = line.rstrip("\r\n").partition(",")
            if comma and token.strip().isdigit():
                found.setdefault(token.strip(), text.strip())
            elif line.strip():
                dirt["item lines that cannot be read"] += 1
    return found


def add(place: Path, tokens: Sequence[str], files: Mapping[str, Path]) -> dict[str, int]:
    """Put covers into `images/` and vectors beside the atomic files, of these items alone; return how many have one."""
    found = {"a cover": _covers(place / "images", tokens, files["covers"])}
    for role, modality in VECTORS.items():
        known, matrix = _vectors(files[role], tokens)
        write_vectors(place / f"{modality}.safetensors", known, matrix)
        found[f"{modality} vectors"] = len(known)
    return found


def _covers(folder: Path, tokens: Sequence[str], path: Path) -> int:
    folder.mkdir()
    wanted, found = set(tokens), 0
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename)
                if name.stem in wanted and name.suffix.lower() in SUFFIXES:
                    with (
                        archive.open(member) as file,
                        open(folder / f"{file_stem(name.stem)}{name.suffix}", "wb") as to,
                    ):
                        shutil.copyfileobj(file, to)
                    found += 1
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: no whole zip archive ({error}); {REMEDIES[1]}") from error
    return found


def _vectors(path: Path, tokens: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the items that have a row, and their rows [n, D]; the file is not held in memory as a whole."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: no matrix that can be read ({error}); {REMEDIES[1]}") from error
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise InputError(f"{path}: found {rows.dtype} of shape {list(rows.shape)}, expected numbers [items, D]")
    known = [token for token in tokens if token.isdigit() and 1 <= int(token) <= len(rows)]
    if not known:
        raise InputError(
            f"{path}: found rows of none of {len(tokens)} items; expected those of this set, fetch it again"
        )
    return known, rows[[int(token) - 1 for token in known]]
