"""What the pages show of a catalogue as a whole: a map of its items, and what the first codes hold.

Shapes: N items, D width of an item's vector.
"""

import threading
from typing import Any

import numpy as np

from ..bundle import Bundle

ON_THE_MAP = 5000
OF_A_CODE = 5
N_COLOURS, N_SHAPES = 8, 4  # those that the pages have


class Views:
    """Keeps what was made of the bundle that was asked for last."""

    def __init__(self) -> None:
        self._lock, self._of, self._made = threading.Lock(), None, ({}, {})

    def map(self, bundle: Bundle) -> dict[str, Any]:
        """Return the map, see `map_and_codes`."""
        return self._of_bundle(bundle)[0]

    def codes(self, bundle: Bundle) -> dict[str, Any]:
        """Return what the first codes hold, see `map_and_codes`."""
        return self._of_bundle(bundle)[1]

    def _of_bundle(self, bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
        with self._lock:
            if self._of is not bundle:
                self._made, self._of = map_and_codes(bundle), bundle
            return self._made


def map_and_codes(bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the map of a catalogue and the table of its first codes, as the pages get them.

    Returns
    -------
    map : `points`, at most `ON_THE_MAP` items, drawn by the run's seed where there are more, with their places `x` and
        `y` and their first `code`, None where an item has none.
    codes : the first codes by number of items, each with those items that lie nearest the mean of all of its items, and
        the numbers of a `colour` and a `shape`: going around the map, neighbours share a colour and differ in shape.

    Raises
    ------
    InputError : the model knows its items by no vectors.
    """
    rows, ids = bundle.vectors[1:].numpy(), bundle.catalogue.semantic_ids  # [N, D]
    first = np.full(len(rows), -1) if ids is None else ids.codes[1:, 0].numpy()  # [N]
    generator = np.random.default_rng(bundle.settings["seed"])
    drawn = np.sort(generator.permutation(len(rows))[:ON_THE_MAP])
    places = principal_components(rows)
    points = [
        {**_named(bundle, item), "x": x, "y": y, "code": int(first[item]) if first[item] >= 0 else None}
        for item, (x, y) in zip(drawn, places[drawn].astype(float).round(4).tolist(), strict=True)
    ]
    codes = _items_of_codes(first)
    around = sorted(codes, key=lambda code: np.arctan2(*places[codes[code]].mean(0)))
    held = []
    for at, code in enumerate(around):
        nearest = [_named(bundle, item) for item in _nearest_their_mean(rows, codes[code])]
        mark = {"colour": at * N_COLOURS // len(around), "shape": at % N_SHAPES}
        held.append({"code": code, "n": len(codes[code]), "items": nearest, **mark})
    held.sort(key=lambda each: (-each["n"], each["code"]))
    return {"points": points}, {"codes": held}


def _named(bundle: Bundle, row: int) -> dict[str, str]:
    """Token and title of the item in a row of its vectors, which have none of the padding."""
    return {"item": bundle.item_tokens[row + 1], "title": bundle.titles[row + 1]}


def principal_components(rows: np.ndarray) -> np.ndarray:
    """Return the first two principal components [N, 2] of rows [N, D], the larger side of each loading positive."""
    centred = rows - rows.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]  # [D, 2], the largest first
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])
    return np.pad(centred @ axes, ((0, 0), (0, 2 - axes.shape[1])))  # vectors of one number lie on a line


def _items_of_codes(first: np.ndarray) -> dict[int, np.ndarray]:
    """Rows of the items of each first code [N]; items without one, -1, are left out."""
    order = np.argsort(first, kind="stable")
    codes, starts = np.unique(first[order], return_index=True)
    return {int(code): items for code, items in zip(codes, np.split(order, starts[1:]), strict=True) if code >= 0}


def _nearest_their_mean(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    distances = np.linalg.norm(rows[items] - rows[items].mean(0), axis=1)
    return items[np.argsort(distances, kind="stable")[:OF_A_CODE]]
