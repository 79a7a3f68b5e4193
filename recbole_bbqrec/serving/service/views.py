"""The catalogue as a whole: a map of its items, and what each first code holds. Made once for each generation."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import InputError
from ..bundle import Bundle

MAX_POINTS = 5000
NEAREST = 5
LEVEL = 0


class Views:
    """Keeps what was made of the latest generation asked for."""

    def __init__(self) -> None:
        self._one_maker, self._made = threading.Lock(), dict[str, tuple[int, Any]]()

    def map(self, bundle: Bundle) -> dict[str, Any]:
        return self._once("map", bundle, catalogue_map)

    def codes(self, bundle: Bundle) -> dict[str, Any]:
        return self._once("codes", bundle, first_codes)

    def _once(self, name: str, bundle: Bundle, make: Callable[[Bundle], dict[str, Any]]) -> dict[str, Any]:
        with self._one_maker:
            if name not in self._made or self._made[name][0] != bundle.generation:
                self._made[name] = bundle.generation, make(bundle)
            return self._made[name][1]


def catalogue_map(bundle: Bundle) -> dict[str, Any]:
    """Items at the first two principal components of their vectors, with their first code (-1: none).

    Of a large catalogue a sample, which the seed of the run draws.
    """
    frame = bundle.item_vectors()
    vectors = frame.drop(columns="title").to_numpy(np.float32)
    codes = _first_codes(bundle)
    chosen = np.arange(len(vectors))
    if len(chosen) > MAX_POINTS:
        generator = np.random.default_rng(bundle.settings["seed"])
        chosen = np.sort(generator.choice(len(chosen), MAX_POINTS, replace=False))
    centred = vectors[chosen] - vectors[chosen].mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    places = centred @ axes[:2].T
    tokens, titles = frame.index[chosen], frame["title"].iloc[chosen]
    points = [
        {"item": token, "title": title, "x": float(x), "y": float(y), "code": codes.get(token, -1)}
        for token, title, (x, y) in zip(tokens, titles, places, strict=True)
    ]
    return {"points": points, "level": LEVEL}


def first_codes(bundle: Bundle) -> dict[str, Any]:
    """Of each first code the number of its items, and titles of those nearest to their mean."""
    frame, codes = bundle.item_vectors(), _first_codes(bundle)
    vectors, titles = frame.drop(columns="title").to_numpy(np.float32), frame["title"].to_numpy()
    of_row = np.array([codes.get(token, -1) for token in frame.index])
    found = []
    for code in np.unique(of_row[of_row >= 0]):
        rows = np.nonzero(of_row == code)[0]
        distance = np.linalg.norm(vectors[rows] - vectors[rows].mean(0), axis=1)
        named = [rows[at] for at in np.argsort(distance, kind="stable") if titles[rows[at]]]
        shown = titles[named[:NEAREST]].tolist() or frame.index[rows[:NEAREST]].tolist()
        found.append({"code": int(code), "n": len(rows), "titles": shown})
    return {"codes": found}


def _first_codes(bundle: Bundle) -> dict[str, int]:
    """First code by token; none where the bundle has no semantic IDs."""
    try:
        frame = bundle.semantic_ids()
    except InputError:
        return {}
    return {token: int(code) for token, code in frame.iloc[:, 1].items()}
