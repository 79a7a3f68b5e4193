"""Workers that share one socket, and the process that starts them, replaces one that dies, and ends them all."""

import contextlib
import gc
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from ...errors import InputError
from ..bundle import Bundle, load_bundle
from .held import DIED, Held, left, refuse

GRACE_SECONDS = 5
"""Time for the requests in flight when the service ends."""
BACKLOG = 2048
EXTRA = ("fastapi", "prometheus_client", "sqlalchemy", "uvicorn")
ORPHAN_SECONDS, LAST_ORPHAN_SECONDS = 5.0, 0.5
"""Time for requests that are on their way to a worker that has died, and to one when the service ends."""
REFUSED_SECONDS = 2.0
"""Time for a client that has had its last answer to close the connection."""
ENDING = "the service is shutting down"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOPBACK = ("127.0.0.1", "::1", "localhost")

logger = logging.getLogger(__name__)


class Options(NamedTuple):
    """How a bundle is served; see `app.make_app` for what is not told here.

    Attributes
    ----------
    port : 0 = any that is free.
    workers : processes that answer; each scores in one thread.
    """

    store: str
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    api_key: str | None = None
    rate: float = 0
    index: str | None = None


def serve(folder: str | Path, options: Options) -> None:
    """Serve a bundle until SIGTERM or Ctrl+C, which let the requests in flight end.

    Raises
    ------
    InputError : folder, store or address cannot be used; the address is open to others and no key is set; packages of
        the extra `serve` are not there.
    """
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        raise InputError(f"serve: {', '.join(missing)} not installed; pip install 'recbole-bbqrec[serve]'")
    if options.host not in LOOPBACK and not options.api_key:
        why = "which others can reach, but no key is set; set BBQREC_API_KEY, or leave --host out"
        raise InputError(f"--host: found {options.host}, {why}")
    if not 0 <= options.port < 1 << 16:  # the system would take what is left of it modulo 65536
        raise InputError(f"--port: found {options.port}, expected at most 65535, or 0 for any that is free")
    if options.workers < 1 or not options.rate >= 0:  # the rate may be NaN
        raise InputError(f"--workers, --rate: found {options.workers} and {options.rate:g}, expected >= 1 and >= 0")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file, for its worker and for us
    torch.set_num_threads(1)  # before anything is computed: a process with a pool of threads must not be forked
    with _folder_of_metrics(), _listen(options) as listening:
        bundle = load_bundle(folder)
        from .store import Store

        Store(options.store).close()
        if options.index:
            bundle.use_index(options.index)
        bundle.recommend([bundle.item_tokens[1:2]], 1)
        gc.collect()
        gc.freeze()  # what the workers share of memory stays shared
        logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(process)d %(message)s", force=True)
        logging.getLogger(__package__).setLevel(logging.INFO)
        _Supervisor(bundle, listening, options).run()


@contextlib.contextmanager
def _folder_of_metrics() -> Iterator[None]:
    """Name a folder for what the workers count, before prometheus_client is imported and reads the name."""
    with tempfile.TemporaryDirectory(prefix="bbqrec-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        try:
            yield
        finally:  # whoever goes on in this process counts for itself
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]


class _Shared(socket.socket):
    """A listening socket of several workers.

    asyncio accepts as many connections at one go as it lets wait: by its `backlog` one worker would take them all.
    """

    held: Held | None = None

    def listen(self, backlog: int = 1) -> None:
        super().listen(BACKLOG)

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if self.held is not None:
            self.held.open(connection)  # at once: a worker may be killed at any moment
        return connection, address


def _listen(options: Options) -> _Shared:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = _Shared(family, kind, proto)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--host, --port: {options.host}:{options.port}: {why}; name another port") from error
    return listening


class _Supervisor:
    """Keeps `workers` processes alive. They are forked after the bundle is read, whose memory they share."""

    def __init__(self, bundle: Bundle, listening: _Shared, options: Options) -> None:
        self._bundle, self._listening, self._options = bundle, listening, options
        self._workers: dict[ForkProcess, Held] = {}
        # Until when connections are held: those on which a request may come, and those that have had their last answer.
        self._orphans: dict[socket.socket, float] = {}
        self._refused: dict[socket.socket, float] = {}
        self._ending = False

    def run(self) -> None:
        with _handled(self._end):
            self._fill()
            host, port = self._listening.getsockname()[:2]
            place, items = f"[{host}]" if ":" in host else host, len(self._bundle.item_tokens) - 1
            logger.info("%s at http://%s:%d, %d items", self._bundle.settings["model"], place, port, items)
            while not self._ending:
                self._look(timeout=0.5)
                self._fill()
            self._stop()

    def _fill(self) -> None:
        while len(self._workers) < self._options.workers and not self._ending:
            self._start()

    def _start(self) -> None:
        held = Held()
        worker = multiprocessing.get_context("fork").Process(target=self._work, args=(held, os.getpid()), daemon=True)
        # A signal that came before the worker has its own handlers would be handled as if it were this process.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        worker.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._workers[worker] = held

    def _work(self, held: Held, supervisor: int) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # until uvicorn has its own
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for other in self._workers.values():
            other.drop()
        for connection in (*self._orphans, *self._refused):
            connection.close()
        self._listening.held = held
        try:
            _answer(self._bundle, self._listening, self._options, held, supervisor)
        except InputError as error:  # the store is away
            logger.error("%s", error)
            sys.exit(1)

    def _look(self, timeout: float) -> None:
        """Wait until something has happened to a worker or its connections, and see to it."""
        sources = [each for worker, held in self._workers.items() for each in (worker.sentinel, held.incoming)]
        ready = wait([*sources, *self._orphans, *self._refused], timeout)
        for worker, held in list(self._workers.items()):
            if worker.sentinel in ready:
                self._bury(worker, held)
            else:
                held.receive()
        for connection, until in list(self._orphans.items()):
            # In the end all are told: the worker may have read a request and died before it could note that.
            if connection in ready or time.monotonic() > until:
                del self._orphans[connection]
                self._refuse(connection, ENDING if self._ending else DIED)
        for connection, until in list(self._refused.items()):
            if time.monotonic() > until or (connection in ready and left(connection)):
                del self._refused[connection]
                connection.close()

    def _refuse(self, connection: socket.socket, line: str) -> None:
        refuse(connection, line)
        self._refused[connection] = time.monotonic() + REFUSED_SECONDS

    def _bury(self, worker: ForkProcess, held: Held) -> None:
        from prometheus_client import multiprocess

        del self._workers[worker]
        worker.join()
        waiting, without = held.give_up()
        for connection in waiting:
            self._refuse(connection, DIED)
        patience = LAST_ORPHAN_SECONDS if self._ending else ORPHAN_SECONDS
        self._orphans.update(dict.fromkeys(without, time.monotonic() + patience))
        multiprocess.mark_process_dead(worker.pid)
        if not self._ending:
            told = f"{len(waiting)} of its clients were told to try again"
            logger.warning("worker %s ended (%s); %s; another takes its place", worker.pid, worker.exitcode, told)
            if worker.exitcode and worker.exitcode > 0:
                time.sleep(1)  # it failed by itself, and would again and again

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ending = True

    def _stop(self) -> None:
        """Let all workers end what they do, and refuse what they had not begun; kill those that take too long."""
        self._listening.setblocking(False)
        for worker in self._workers:
            worker.terminate()
        until = time.monotonic() + GRACE_SECONDS + 2
        while self._workers or self._orphans:
            if time.monotonic() > until:
                for worker in self._workers:
                    worker.kill()
            self._look(timeout=0.1)
            self._turn_away()
        self._listening.close()
        while self._refused:
            self._look(timeout=0.1)
        logger.info("ended")

    def _turn_away(self) -> None:
        """Answer those who have come when no worker took connections any more."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._refuse(self._listening.accept()[0], ENDING)


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _answer(bundle: Bundle, listening: _Shared, options: Options, held: Held, supervisor: int) -> None:
    """Answer requests in this process until SIGTERM, or until the supervisor is gone."""
    import uvicorn

    from .app import make_app
    from .protocol import PatientProtocol
    from .store import Store

    config = uvicorn.Config(
        make_app(bundle, Store(options.store), options.api_key, options.rate, options.index),
        http=partial(PatientProtocol, held),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=1,  # see _Shared
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)

    async def end_with_supervisor() -> None:
        server.should_exit |= os.getppid() != supervisor

    config.callback_notify, config.timeout_notify = end_with_supervisor, 1
    server.run(sockets=[listening])
