"""MovieLens-100K and -1M (GroupLens, University of Minnesota), read from the archives as they are published.

F. M. Harper and J. A. Konstan, *The MovieLens Datasets: History and Context*, ACM TiiS 5(4), 2015.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator

import polars as pl

from ..errors import InputError
from .raw import Item, Review, as_rating, as_time, as_token, frames, open_member

VARIANTS = ("ml-100k", "ml-1m")

_RATINGS = {"ml-100k": ("u.data", "\t"), "ml-1m": ("ratings.dat", "::")}
_MOVIES = {"ml-100k": ("u.item", "|"), "ml-1m": ("movies.dat", "::")}
_GENRES_FROM = 5  # u.item: id, title, date, video date, IMDb address, then one flag per line of u.genre


def reviews(path: str | os.PathLike, name: str, dirt: Counter[str]) -> Iterator[pl.DataFrame]:
    """Yield the ratings of the archive `path` of the set `name` in frames, in file order; broken lines are counted."""
    member, separator = _RATINGS[name]

    def read() -> Iterator[Review]:
        for line in _lines(path, f"{name}/{member}"):
            cells = line.split(separator)
            if len(cells) == 4:
                user, item = map(as_token, cells[:2])
                rating, time = as_rating(cells[2]), as_time(cells[3])
                if user and item and rating == rating and time is not None:
                    yield Review(user, item, rating, time)
                    continue
            dirt["review lines that cannot be read"] += 1

    return frames(read())


def items(path: str | os.PathLike, name: str, dirt: Counter[str]) -> Iterator[Item]:
    """Yield the films of the archive `path` of the set `name`: title, year, and genres as categories."""
    member, separator = _MOVIES[name]
    genres = [line.split("|")[0] for line in _lines(path, "ml-100k/u.genre")] if name == "ml-100k" else []
    if name == "ml-100k" and not genres:
        raise InputError(f"{path}: ml-100k/u.genre is empty, expected one genre a line; fetch the archive again")
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
        found = re.fullmatch(r"(.*\S)\s*\((\d{4})\)\s*", cells[1])  # Toy Story (1995)
        title, year = found.groups() if found else (cells[1].strip(), "")
        yield Item(as_token(cells[0]), title, "", categories, "", "", "", year)


def _lines(path: str | os.PathLike, member: str) -> Iterator[str]:
    """Yield the lines of a Latin-1 file within the archive, blank ones left out."""
    with open_member(path, member, "latin-1") as file:
        for raw in file:
            if line := raw.rstrip("\r\n"):
                yield line
