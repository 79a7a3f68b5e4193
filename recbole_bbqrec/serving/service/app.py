"""The requests that the service answers."""

import asyncio
import contextlib
import http
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from ... import __version__
from ...errors import InputError
from ..bundle import Bundle
from . import schemas
from .batching import Batcher, OverloadedError
from .limits import Guard
from .live import Ask, Live, UnknownItemError, codes_of, knows, require, shown
from .metrics import Metrics
from .pages import docs_page, page_files
from .schemas import MAX_HISTORY, MAX_K, PLAIN
from .store import Event, Store
from .views import Views

RETRY_SECONDS = 1
TOGETHER, WAITING = 100, 2000
"""Requests whose events are committed together, and requests that may wait for the store."""
LAST_SHOWN = 50

K = Annotated[int, Query(ge=1, le=MAX_K)]
ItemPath = Annotated[str, Path(max_length=256)]


def make_app(
    bundle: Bundle, store: Store, api_key: str | None = None, rate: float = 0, index: str | None = None
) -> Guard:
    """Return the service of a bundle, for any ASGI server.

    Parameters
    ----------
    store : where histories are kept; it is closed when the service ends.
    api_key : what every request but pages and `/health` has to send as `X-API-Key`; none = nothing.
    rate : requests a second that one client may make; 0 = any.
    index : what later generations are searched by, as `Bundle.use_index` has it; none = the exact search.
    """
    metrics = Metrics()
    service = Service(bundle, store, metrics, index)
    about = "Recommendations of a trained bundle. An answer of class 4xx or 5xx holds one line, `error`."
    app = FastAPI(
        title="bbqrec",
        version=__version__,
        description=about,
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
        responses=schemas.ERRORS,
    )
    for kind in (HTTPException, RequestValidationError, InputError, OverloadedError):
        app.add_exception_handler(kind, _refused)
    _add_recommending(app, service)
    _add_items(app, service)
    _add_catalogue(app, service)
    _add_pages(app, service)
    return Guard(app, metrics, api_key, rate)


class Service:
    """What requests share in one process."""

    def __init__(self, bundle: Bundle, store: Store, metrics: Metrics, index: str | None) -> None:
        self.metrics, self.store, self.views = metrics, store, Views()
        self.live = Live(bundle, metrics, index)
        self.keep: Batcher[list[Event], None] = Batcher(self._keep, TOGETHER, WAITING, "store")
        self.history: Batcher[str, list[str]] = Batcher(self._histories, TOGETHER, WAITING, "histories")

    @property
    def bundle(self) -> Bundle:
        return self.live.bundle

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(self.live.renew)
        following = asyncio.create_task(self.live.follow())
        yield
        following.cancel()
        for each in (self.live, self.keep, self.history, self.store):
            each.close()

    def _keep(self, lists: list[list[Event]]) -> list[None]:
        """Commit the events of all requests that wait, in one transaction."""
        self.store.add([event for events in lists for event in events])
        self.metrics.events.inc(sum(map(len, lists)))
        return [None] * len(lists)

    def _histories(self, users: list[str]) -> list[list[str]]:
        return self.store.histories(users, MAX_HISTORY)

    async def recommend(self, ask: Ask) -> dict[str, Any]:
        answer = await self.live.recommend(ask)
        self.metrics.unknown_items.inc(len(answer["unknown"]))
        if len(answer["unknown"]) >= len(ask.history) and not any(knows(self.bundle, token) for token in ask.history):
            self.metrics.empty_histories.inc()
        return answer


def _add_recommending(app: FastAPI, service: Service) -> None:
    @app.post("/recommend", response_model=schemas.Recommendations)
    async def recommend(asked: schemas.RecommendRequest) -> Response:
        """The best items after a history that the request brings."""
        allow, deny = (None if tokens is None else tuple(tokens) for tokens in (asked.allow, asked.deny))
        ask = Ask(asked.history, asked.k, asked.exclude_seen, allow, deny, asked.explain)
        return JSONResponse(await service.recommend(ask))

    @app.post("/events", status_code=201, response_model=schemas.Stored)
    async def events(asked: schemas.EventsRequest) -> Response:
        """Keep what users did. Answered when it is on the disk; items that are unknown yet are kept too."""
        now = time.time()
        kept = [
            # Events without a time happened in the order in which they stand.
            Event(each.user, each.item, now + place * 1e-6 if each.time is None else each.time)
            for place, each in enumerate(asked.events)
        ]
        await service.keep(kept)
        unknown = [event.item for event in kept if not knows(service.bundle, event.item)]
        service.metrics.unknown_items.inc(len(unknown))
        return JSONResponse({"stored": len(kept), "unknown": unknown}, 201)

    @app.get("/users/{user:path}/recommendations", response_model=schemas.UserRecommendations)
    async def of_user(
        user: Annotated[str, Path(max_length=256, pattern=PLAIN)],
        k: K = 10,
        exclude_seen: bool = True,
        explain: bool = False,
    ) -> Response:
        """The best items after the history that is kept of a user."""
        if not (history := await service.history(user)):
            raise HTTPException(404, f"user: found {user!r}, of whom no event is kept; see POST /events")
        answer = await service.recommend(Ask(history, k, exclude_seen, explain=explain))
        last = [shown(service.bundle, token) for token in history[-LAST_SHOWN:]]
        return JSONResponse({**answer, "history": last})


def _add_items(app: FastAPI, service: Service) -> None:
    @app.post("/items", status_code=201, response_model=schemas.Added)
    async def add_items(asked: schemas.NewItemsRequest) -> Response:
        """Add items that the model was not trained with; they are recommended at once."""
        items = [item.model_dump(exclude_none=True) for item in asked.items]
        generation = await asyncio.to_thread(service.live.add_items, items)
        return JSONResponse({"added": len(items), "generation": generation}, 201)

    @app.get("/items", response_model=schemas.Found)
    async def find(
        q: Annotated[str, Query(max_length=200)], limit: Annotated[int, Query(ge=1, le=200)] = 20
    ) -> Response:
        """Items by words of their titles."""
        bundle = service.bundle
        found = await asyncio.to_thread(bundle.find, q, limit)
        return JSONResponse({"items": [shown(bundle, token) for token in found]})

    @app.get("/items/{item:path}/similar", response_model=schemas.SimilarItems)
    async def similar(item: ItemPath, k: K = 10) -> Response:
        """Items whose vectors are nearest."""
        bundle = service.bundle
        found = await asyncio.to_thread(bundle.similar_items, require(bundle, item), k)
        return JSONResponse({"items": [{**shown(bundle, token), "score": score} for token, score in found]})


def _add_catalogue(app: FastAPI, service: Service) -> None:
    @app.get("/items/{item:path}/image", response_class=FileResponse)
    async def image(item: ItemPath) -> Response:
        """The image of an item."""
        file = service.bundle.image_file(require(service.bundle, item))
        if file is None:
            raise HTTPException(404, f"item: {item!r} has no image")
        return FileResponse(file)

    @app.get("/items/{item:path}", response_model=schemas.Item)
    async def item(item: ItemPath) -> Response:
        """One item, with its codes."""
        bundle = service.bundle
        about = shown(bundle, require(bundle, item))
        return JSONResponse({**about, "codes": codes_of(bundle, item)})

    @app.get("/catalogue/map", response_model=schemas.Map)
    async def catalogue_map() -> Response:
        """Items at the first two principal components of their vectors; of a large catalogue a sample."""
        return JSONResponse(await asyncio.to_thread(service.views.map, service.bundle))

    @app.get("/catalogue/codes", response_model=schemas.Codes)
    async def catalogue_codes() -> Response:
        """What each first code holds: number of items, and those nearest to their mean."""
        return JSONResponse(await asyncio.to_thread(service.views.codes, service.bundle))


def _add_pages(app: FastAPI, service: Service) -> None:
    files = page_files()

    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, f"found no file {name!r}; GET /docs has all requests")
        return Response(files[name].content, media_type=files[name].media_type)

    @app.get("/health", response_model=schemas.Health)
    async def health() -> Response:
        """Whether the service answers, and what with."""
        bundle = service.bundle
        model, dataset = bundle.settings["model"], bundle.settings["dataset"]
        items = len(bundle.item_tokens) - 1
        about = {"model": model, "dataset": dataset, "items": items, "generation": bundle.generation}
        return JSONResponse({"status": "ok", **about})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """What all workers have counted, for Prometheus."""
        return PlainTextResponse(await asyncio.to_thread(service.metrics.text))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(files["docs.html"], app.openapi()))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @app.get("/map", include_in_schema=False)
    async def map_page() -> Response:
        return file("map.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return file(name)


async def _refused(request: Request, error: Exception) -> Response:
    """One line for whatever is wrong with a request."""
    if isinstance(error, OverloadedError):
        return JSONResponse({"error": str(error)}, 503, {"Retry-After": str(RETRY_SECONDS)})
    if isinstance(error, HTTPException):
        return JSONResponse({"error": _detail(error)}, error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        return JSONResponse({"error": _first_wrong(request, error)}, 422)
    return JSONResponse({"error": str(error)}, 404 if isinstance(error, UnknownItemError) else 422)


def _detail(error: HTTPException) -> str:
    """What an error of the framework says, and what to do."""
    if isinstance(error.__cause__, UnicodeDecodeError):
        return "the body is not UTF-8 text; send JSON in UTF-8"
    phrase = http.HTTPStatus(error.status_code).phrase
    return f"{phrase}; GET /docs has all requests" if error.detail == phrase else str(error.detail)


def _first_wrong(request: Request, error: RequestValidationError) -> str:
    """The first of pydantic's errors, in one line; what was found is not repeated, as it may be large."""
    errors, broken = error.errors(), error.__cause__
    if isinstance(broken, json.JSONDecodeError):
        return f"the body is no JSON (line {broken.lineno} column {broken.colno}: {broken.msg})"
    if isinstance(error.body, bytes):  # which was not read as JSON
        kind = request.headers.get("content-type", "")[:100]
        return f"found {f'Content-Type {kind!r}' if kind else 'no Content-Type'}; send Content-Type: application/json"
    place = ".".join(str(part) for part in errors[0]["loc"] if part not in ("body", "query", "path"))
    said = " ".join(errors[0]["msg"].split())
    if errors[0]["type"] == schemas.UNKNOWN:  # begins with the name of the field
        return ".".join(filter(None, (place, said)))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{place or 'body'}: {said}{more}"[:500]
