"""Writing atomic files: rows checked, and a data set's folder that appears whole or not at all.

The counterpart of `atomic.py`, which reads back exactly what is written here.
"""

import contextlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from ..errors import InputError
from .raw import Item, clean

INTER_HEADER = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
ITEM_HEADER = (
    "item_id:token",
    "title:token_seq",
    "brand:token",
    "categories:token_seq",
    "description:token_seq",
    "price:token",
    "image_url:token",
    "release_year:token",
)


def row(cells: Sequence[str]) -> bytes:
    """Return one line of an atomic file.

    Raises
    ------
    InputError : a cell holds a tab or a line end, which an atomic file has no way to write.
    """
    for cell in cells:
        if "\t" in cell or "\n" in cell or "\r" in cell:
            raise InputError(f"found {cell[:60]!r}, expected text without tabs and line ends; clean it before writing")
    try:
        return ("\t".join(cells) + "\n").encode()
    except UnicodeEncodeError as error:
        raise InputError(f"found {error.object[error.start]!r}, expected text that UTF-8 can spell; clean it") from None


def sequence(words: Iterable[str]) -> str:
    """Return names as one cell of type `token_seq`: blanks separate names, `_` stands for a blank within one."""
    return " ".join("_".join(word.split()) for word in words if word.strip())


def number(value: float) -> str:
    """Return a number in the shortest form that reads back as the same float64, "" for one that is not finite."""
    if not math.isfinite(value):
        return ""
    return str(int(value)) if value == int(value) else repr(float(value))


def write_inter(path: Path, rows: Iterable[tuple[str, str, float, int]]) -> None:
    """Write interactions `(user, item, rating, time)` in the order given; a rating may be NaN."""
    with open(path, "wb") as file:
        file.write(row(INTER_HEADER))
        for user, item, rating, time in rows:
            file.write(row((user, item, number(rating), str(time))))


def write_items(path: Path, tokens: Sequence[str], items: Iterable[Item], dirt: Counter[str]) -> None:
    """Write one row per token, in the order of `tokens`, blank where no item describes it.

    Of several records of one item the first with a title counts; where none has one, the first. Texts are cleaned, a
    category is one name (`_` for its blanks), and the year is a column only where one is known. Rows go in the order
    met to a file beside `path` and from there into place, so that the memory holds no texts.
    """
    wanted, titled, dated = set(tokens), set[str](), False
    places: dict[str, tuple[int, int]] = {}  # token -> start and length of its row
    spool = path.with_suffix(".spool")
    with open(spool, "w+b") as rows:
        for item in items:
            if item.token not in wanted:
                continue
            dirt["records of an item met before"] += item.token in places
            if item.token in titled:
                continue
            cells = _item_cells(item, dirt)
            if item.token in places and not cells[1]:
                continue
            places[item.token] = (rows.tell(), rows.write(row(cells)))
            dated |= bool(cells[-1])
            if cells[1]:
                titled.add(item.token)
        _copy_items(path, tokens, rows, places, dated)
    spool.unlink()
    dirt["items left that no record describes"] += len(wanted) - len(places)
    dirt["items left with a record but no title"] += len(places) - len(titled)


def _copy_items(
    path: Path, tokens: Sequence[str], rows: BinaryIO, places: Mapping[str, tuple[int, int]], dated: bool
) -> None:
    """Write the header and one row per token, with a column for the year only where one is known."""
    with open(path, "wb") as file:
        file.write(row(ITEM_HEADER if dated else ITEM_HEADER[:-1]))
        for token in tokens:
            start, length = places.get(token, (0, 0))
            rows.seek(start)
            line = rows.read(length) or row([token] + [""] * (len(ITEM_HEADER) - 1))
            file.write(line if dated else line.removesuffix(b"\t\n") + b"\n")


def _item_cells(item: Item, dirt: Counter[str]) -> list[str]:
    texts = (item.title, item.brand, item.description, item.price, item.image_url, item.year)
    title, brand, description, price, image_url, year = (clean(text, dirt) for text in texts)
    categories = sequence([clean(name, dirt) for name in item.categories])
    return [item.token, title, brand, categories, description, price, image_url, year]


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that is renamed to it once the block has ended well.

    What a killed process left behind is removed by the next one; folders of processes that still run are let be.

    Raises
    ------
    InputError : `target` exists, before the block or after it.
    """
    refuse_existing(target)
    temporary = _temporary(target, os.getpid())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        try:
            os.rename(temporary, target)
        except OSError:
            refuse_existing(target)  # another process was faster
            raise
    except OSError as error:
        raise InputError(
            f"{error.filename or target}: cannot be written ({error.strerror or error}); make room or correct its "
            "permissions, or name another folder with --data_path="
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Raise an `InputError` where `target` exists."""
    if target.exists():
        raise InputError(f"{target}: exists already, expected none yet; use it, or move it away to prepare it again")


def _temporary(target: Path, process: int) -> Path:
    return target.parent / f".{target.name}.{process}.part"


def _remove_leftovers(target: Path) -> None:
    for path in target.parent.glob(f".{_literal(target.name)}.*.part"):
        process = path.name.removeprefix(f".{target.name}.").removesuffix(".part")
        if process.isdigit() and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
            shutil.rmtree(path, ignore_errors=True)


def _literal(name: str) -> str:
    """Return `name` as a glob pattern for itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
