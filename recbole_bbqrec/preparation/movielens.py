"""MovieLens-100K and -1M (GroupLens, University of Minnesota), read from the archives as they are published.

F. M. Harper and J. A. Konstan, *The MovieLens Datasets: History and Context*, ACM TiiS 5(4), 2015.
"""

import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator

import polars as pl

from ..errors import InputError
from .raw import Item, Review, as_rating, as_time, as_token, frames

SETS = ("ml-100k", "ml-1m")

_RATINGS = {"ml-100k": ("u.data", "\t"), "ml-1m": ("ratings.dat", "::")}
_MOVIES = {"ml-100k": ("u.item", "|"), "ml-1m": ("movies.dat", "::")}
_GENRES_FROM = 5  # u.item: id, title, date, video date, IMDb address, then one flag per line of u.genre


def reviews(path: str | os.PathLike, name: str, dirt: Counter[str]) -> Iterator[pl.DataFrame]:
    """Yield the ratings of the archive `path` of the set `name` in frames, in file order; broken lines are counted."""
    return frames(_reviews(path, _known(name), dirt))


def _reviews(path: str | os.PathLike, name: str, dirt: Counter[str]) -> Iterator[Review]:
    member, separator = _RATINGS[name]
    for line in _lines(path, f"{name}/{member}"):
        cells = line.split(separator)
        user, item = map(as_token, cells[:2]) if len(cells) == 4 else ("", "")
        rating, time = (as_rating(cells[2]), as_time(cells[3])) if len(cells) == 4 else (0.0, None)
        if user and item and rating == rating and time is not None:
            yield Review(user, item, rating, time)
        else:
            dirt["review lines that cannot be read"] += 1


def items(path: str | os.PathLike, name: str, dirt: Counter[str]) -> Iterator[Item]:
    """Yield the films of the archive `path` of the set `name`: title, year, and genres as categories."""
    member, separator = _MOVIES[_known(name)]
    genres = _genres(path) if name == "ml-100k" else []
    for line in _lines(path, f"{name}/{member}"):
        cells = line.split(separator)
        if not as_token(cells[0]) or len(cells) != (_GENRES_FROM + len(genres) if genres else 3):
            dirt["item lines that cannot be read"] += 1
            continue
        if genres:
            flags = zip(genres, cells[_GENRES_FROM:], strict=True)
            categories = [genre for genre, flag in flags if flag == "1" and genre != "unknown"]
        else:
            categories = [genre for genre in cells[2].split("|") if genre]
        title, year = _title(cells[1])
        yield Item(as_token(cells[0]), title, "", categories, "", "", "", year)


def _known(name: str) -> str:
    if name not in SETS:
        raise InputError(f"MovieLens set: found {name!r}, expected one of {', '.join(SETS)}")
    return name


def _genres(path: str | os.PathLike) -> list[str]:
    """Return the genres in the order of their flags in `u.item`."""
    genres = [line.split("|")[0] for line in _lines(path, "ml-100k/u.genre")]
    if not genres:
        raise InputError(f"{path}: ml-100k/u.genre is empty, expected one genre a line; fetch the archive again")
    return genres


def _title(text: str) -> tuple[str, str]:
    """Split `Toy Story (1995)` into title and year."""
    found = re.fullmatch(r"(.*\S)\s*\((\d{4})\)\s*", text)
    return (found[1], found[2]) if found else (text.strip(), "")


def _lines(path: str | os.PathLike, member: str) -> Iterator[str]:
    """Yield the lines of a Latin-1 file within the archive, blank ones left out."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            for raw in file:
                if line := raw.decode("latin-1").rstrip("\r\n"):
                    yield line
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; fetch it, or give its folder with --raw_dir") from None
    except KeyError:
        raise InputError(f"{path}: found no {member} in the archive; fetch the archive of this set again") from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read to its end ({error}); expected a whole zip archive, remove it and fetch it again"
        ) from error
