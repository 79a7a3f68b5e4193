"""Writing atomic files: rows checked, and a data set's folder that appears whole or not at all.

The counterpart of `atomic.py`, which reads back exactly what is written here.
"""

import contextlib
import glob
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from ..errors import InputError
from .raw import Item, clean

INTER_HEADER = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
ITEM_HEADER = ("item_id:token", "title:token_seq", "brand:token", "categories:token_seq", "description:token_seq")
ITEM_HEADER += ("price:token", "image_url:token", "release_year:token")


def row(cells: Sequence[str]) -> bytes:
    """Return one line of an atomic file; it has no way to write tabs and line ends within a cell."""
    for cell in cells:
        if "\t" in cell or "\n" in cell or "\r" in cell:
            raise InputError(f"found {cell[:60]!r}, expected text without tabs and line ends; clean it before writing")
    try:
        return ("\t".join(cells) + "\n").encode()
    except UnicodeEncodeError as error:
        raise InputError(f"found {error.object[error.start]!r}, expected text that UTF-8 can spell; clean it") from None


def sequence(words: Iterable[str]) -> str:
    """Return names as one cell of type `token_seq`, with `_` for the blanks within a name."""
    return " ".join("_".join(word.split()) for word in words if word.strip())


def number(value: float) -> str:
    """Return a number in the shortest form that reads back as the same float64, "" for one that is not finite."""
    if not math.isfinite(value):
        return ""
    return str(int(value)) if value == int(value) else repr(float(value))


def write_items(path: Path, tokens: Sequence[str], items: Iterable[Item], dirt: Counter[str]) -> int:
    """Write one row per token, in the order of `tokens`, blank where no item describes it; return how many items came.

    Of several records of one item the first with a title counts; where none has one, the first. Texts are cleaned, a
    category is one name (`_` for its blanks), and the year is a column only where one is known. Rows wait in the order
    met in a file beside `path`, so that the memory holds no texts.
    """
    places: dict[str, tuple[int, int]] = dict.fromkeys(tokens, (0, 0))  # start and length of a row
    described, titled, dated, n_items = set[str](), set[str](), False, 0
    with tempfile.TemporaryFile(dir=path.parent) as rows, open(path, "wb") as file:
        for item in items:
            n_items += 1
            if item.token not in places:
                continue
            again = item.token in described
            dirt["records of an item met before"] += again
            if item.token in titled:
                continue
            texts = (item.title, item.brand, item.description, item.price, item.image_url, item.year)
            title, brand, *others, year = (clean(text, dirt) for text in texts)
            categories = sequence([clean(name, dirt) for name in item.categories])
            if again and not title:
                continue
            cells = (item.token, title, brand, categories, *others, year)
            places[item.token] = (rows.tell(), rows.write(row(cells)))
            dated |= bool(year)
            described.add(item.token)
            if title:
                titled.add(item.token)
        file.write(row(ITEM_HEADER if dated else ITEM_HEADER[:-1]))
        for token, (start, length) in places.items():
            rows.seek(start)
            line = rows.read(length) or row([token] + [""] * (len(ITEM_HEADER) - 1))
            file.write(line if dated else line.removesuffix(b"\t\n") + b"\n")
    dirt["items left that no record describes"] += len(places) - len(described)
    dirt["items left with a record but no title"] += len(described) - len(titled)
    return n_items


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that is renamed to it once the block has ended well.

    What a killed process left behind is removed by the next one; folders of processes that still run are let be.

    Raises
    ------
    InputError : `target` exists, before the block or after it.
    """
    refuse_existing(target)
    temporary = target.parent / f".{target.name}.{os.getpid()}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
            process = path.name.removeprefix(f".{target.name}.").removesuffix(".part")
            if process.isdigit() and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
                shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for path in filter(Path.is_file, temporary.rglob("*")):
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
