"""The pages of the service, and what they show of the whole catalogue: a map, and what the first codes hold.

The files lie in `serving/page`. Texts of items never enter them here: the pages fetch them as data.

Shapes: N items, D width of an item's vector, n items on the map, P positions of an ID.
"""

import threading
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from ..bundle import Bundle

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ON_THE_MAP = 5000
OF_A_CODE = 5
N_COLOURS, N_SHAPES = 8, 4  # those that the pages have


def router(current_bundle: Callable[[], Bundle]) -> APIRouter:
    """Return the routes of the pages; `current_bundle` gives the bundle that answers now."""
    routes, files = APIRouter(), _files()
    views = _Views(current_bundle)

    def page(name: str) -> Response:
        if name not in files:
            return JSONResponse({"error": f"no file {name[:80]!r}"}, 404)
        kind = KINDS[name.rpartition(".")[2]]
        return Response(files[name], media_type=f"{kind}; charset=utf-8", headers=HEADERS)

    routes.add_api_route("/", lambda: page("index.html"), include_in_schema=False)
    routes.add_api_route("/map", lambda: page("map.html"), include_in_schema=False)
    routes.add_api_route("/static/{name}", page, include_in_schema=False)
    routes.add_api_route("/catalogue/map", views.map, summary="Items by two principal components of their vectors")
    routes.add_api_route("/catalogue/codes", views.codes, summary="What each first code holds")
    return routes


def _files() -> dict[str, bytes]:
    """The files of the pages by name: nothing else can be asked for."""
    folder = resources.files("recbole_bbqrec.serving") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in KINDS}


class _Views:
    """What the pages show of the whole catalogue, computed once for each bundle."""

    def __init__(self, current_bundle: Callable[[], Bundle]) -> None:
        self._current_bundle, self._lock = current_bundle, threading.Lock()
        self._bundle: Bundle | None = None
        self._views: tuple[dict[str, Any], dict[str, Any]] = {}, {}

    def map(self) -> dict[str, Any]:
        """Return the map, see `map_and_codes`."""
        return self._current()[0]

    def codes(self) -> dict[str, Any]:
        """Return what the first codes hold, see `map_and_codes`."""
        return self._current()[1]

    def _current(self) -> tuple[dict[str, Any], dict[str, Any]]:
        with self._lock:
            bundle = self._current_bundle()
            if bundle is not self._bundle:
                self._views, self._bundle = map_and_codes(bundle), bundle
            return self._views


def map_and_codes(bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the map of a catalogue and the table of its first codes, as the pages get them.

    Returns
    -------
    map : `points`, at most `ON_THE_MAP` items, drawn by the run's seed where there are more, with their places `x` and
        `y` and their first `code`, None where an item has none.
    codes : the first codes by number of items, each with those items that lie nearest the mean of all of its items, and
        the numbers of a `colour` and a `shape`: going around the map, neighbours share a colour and differ in shape.
    """
    vectors, ids = bundle.item_vectors(), bundle.semantic_ids()
    tokens, titles = vectors.index.to_numpy(), vectors["title"].to_numpy()
    rows = vectors.drop(columns="title").to_numpy(np.float32)  # [N, D]
    first = ids.iloc[:, 1].to_numpy() if ids.shape[1] > 1 else np.full(len(tokens), -1)  # [N]
    named = [{"item": str(token), "title": str(title)} for token, title in zip(tokens, titles, strict=True)]
    generator = np.random.default_rng(bundle.settings["seed"])
    drawn = np.sort(generator.permutation(len(tokens))[:ON_THE_MAP])
    places = principal_components(rows)
    points = [
        {**named[item], "x": x, "y": y, "code": int(first[item]) if first[item] >= 0 else None}
        for item, (x, y) in zip(drawn, places[drawn].round(4).tolist(), strict=True)
    ]
    codes = _items_of_codes(first)
    around = sorted(codes, key=lambda code: np.arctan2(*places[codes[code]].mean(0)))
    mark = {code: (at * N_COLOURS // len(around), at % N_SHAPES) for at, code in enumerate(around)}
    held = [
        {
            **{"code": code, "n": len(items), "items": [named[item] for item in _nearest_their_mean(rows, items)]},
            **dict(zip(("colour", "shape"), mark[code], strict=True)),
        }
        for code, items in sorted(codes.items(), key=lambda each: -len(each[1]))
    ]
    return {"points": points, "level": 0}, {"codes": held}


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
