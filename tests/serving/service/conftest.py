"""One bundle, from a run that holds items out, and what stands around a service: clients, stores, processes."""

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import settings

import recbole_bbqrec
from recbole_bbqrec import quick_start
from recbole_bbqrec.serving.bundle import Bundle
from recbole_bbqrec.serving.service.app import make_app
from recbole_bbqrec.serving.service.store import Store

BENCHMARKS = Path(recbole_bbqrec.__file__).parents[1] / "benchmarks"
for _name in ("service", "chaos"):  # alone: others there are named as folders of tests are
    _spec = importlib.util.spec_from_file_location(_name, BENCHMARKS / f"{_name}.py")
    assert _spec and _spec.loader
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
Answer = sys.modules["service"].Answer

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Cold(NamedTuple):
    """A finished run: its folder, the catalogue with the items it held out, and what the data set says of them."""

    folder: Path
    whole: Any
    rows: list[dict[str, str]]


@pytest.fixture(scope="session")
def cold(tiny, tmp_path_factory) -> Cold:
    place = str(tmp_path_factory.mktemp("cold"))
    given = {"cold_items": 0.2, "second_stage": "off", "epochs": 1, "checkpoint_dir": place}
    record = quick_start.run(config_dict=settings(tiny, "BBQRec", **given))
    whole = recbole_bbqrec.load_data_and_model(record["run_dir"])[4]._dataset.catalogue
    new, rows = set(whole.tokens[whole.n_trained :]), []
    for line in (tiny / "tiny" / "tiny.item").read_text().splitlines()[1:]:
        token, title, brand = line.split("\t")[:3]
        if token in new and title:  # of one without a text nothing is known
            rows.append({"item_id": token, "title": title, "brand": brand})
    return Cold(Path(record["run_dir"]), whole, rows)


@pytest.fixture
def folder(cold, tmp_path) -> Path:
    """A copy of the bundle, for a test that adds items."""
    return Path(shutil.copytree(cold.folder, tmp_path / "bundle"))


class Client:
    """Talks to an application without a network: requests as ASGI has them."""

    def __init__(self, app: Any) -> None:
        self.app, self.loop = app, asyncio.new_event_loop()
        self._said: asyncio.Queue[dict] = asyncio.Queue()
        self._heard: asyncio.Queue[dict] = asyncio.Queue()
        self._life = self.loop.create_task(app({"type": "lifespan"}, self._heard.get, self._said.put))
        self._live("startup")

    def _live(self, what: str) -> None:
        self._heard.put_nowait({"type": f"lifespan.{what}"})
        assert self.loop.run_until_complete(self._said.get())["type"] == f"lifespan.{what}.complete"

    def close(self) -> None:
        self._live("shutdown")
        self.loop.run_until_complete(self._life)
        self.loop.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.loop.run_until_complete(self.ask("GET", path, [], headers))

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.loop.run_until_complete(self.ask("POST", path, [json.dumps(body).encode()], headers))

    def together(self, *posts: tuple[str, Any]) -> list[Answer]:
        """Answers to requests that are made at the same time."""

        async def all_of_them() -> list[Answer]:
            asked = [self.ask("POST", path, [json.dumps(body).encode()], {}) for path, body in posts]
            return await asyncio.gather(*asked)

        return self.loop.run_until_complete(all_of_them())

    async def ask(self, method: str, path: str, parts: list[bytes], headers: dict[str, str]) -> Answer:
        """One request, whose body comes in parts of unknown length."""
        given = {"content-type": "application/json", **headers}
        if parts and "content-length" not in headers:
            given["transfer-encoding"] = "chunked"
        place, _, query = path.partition("?")
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": place,
            "raw_path": place.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "scheme": "http",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages.append({"type": "http.request", "body": b"", "more_body": False})
        answers: list[dict] = []

        async def receive() -> dict:
            return messages.pop(0) if messages else await asyncio.Future()  # the client stays

        async def send(message: dict) -> None:
            answers.append(message)

        await self.app(scope, receive, send)
        found = {name.decode(): value.decode() for name, value in answers[0]["headers"]}
        return Answer(answers[0]["status"], found, b"".join(part.get("body", b"") for part in answers[1:]))


@pytest.fixture
def client(cold, tmp_path):
    """A client of the service of a bundle, and what makes another one of it."""
    made = []

    def make(place: Path | Bundle = cold.folder, **given: Any) -> Client:
        bundle = place if isinstance(place, Bundle) else recbole_bbqrec.load_bundle(place)
        made.append(Client(make_app(bundle, Store(str(tmp_path / f"events{len(made)}.sqlite")), **given)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def postgres():
    """Address of a PostgreSQL database of this session, as Debian installs the programs; skipped where it has not."""
    if not PROGRAMS:
        pytest.skip("PostgreSQL is not installed (looked for /usr/lib/postgresql/*/bin)")
    programs, place = PROGRAMS[-1], Path(tempfile.mkdtemp(prefix="bbqrec-pg-"))
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        shutil.chown(place, user)
    run = {"user": user, "cwd": place, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    initdb = [programs / "initdb", "-D", place / "data", "-U", "bbqrec", "--auth=trust", "--no-sync", "--no-locale"]
    subprocess.run([*initdb, "-E", "UTF8"], check=True, **run)
    server = subprocess.Popen(
        [programs / "postgres", "-D", "data", "-k", place, "-c", "listen_addresses=", "-F"], **run
    )
    try:
        address = f"postgresql://bbqrec@/postgres?host={place}"
        until = time.monotonic() + 30
        while not (place / ".s.PGSQL.5432").exists() and time.monotonic() < until:
            time.sleep(0.05)
        for _ in range(50):  # it listens a little before it answers
            try:
                Store(address).close()
                break
            except recbole_bbqrec.errors.InputError:
                time.sleep(0.1)
        yield address
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing of it is needed any more
        server.wait(10)
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request, tmp_path) -> str:
    """A new and empty store, in each of the two databases."""
    if request.param == "sqlite":
        return str(tmp_path / "events.sqlite")
    import psycopg

    base, name = request.getfixturevalue("postgres"), f"t{time.monotonic_ns()}"
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    return f"{base}&options=-csearch_path%3D{name}"
