"""A service in processes of its own, and a client that sees every byte: what load.py, chaos.py and tests share."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import psutil

COMMAND = "import sys; from recbole_bbqrec.cli import main; sys.exit(main())"
START_SECONDS = 600  # of an index over a million items on a busy machine


class Service:
    """`bbqrec serve` on a free port of this machine; leaves `with` by SIGTERM.

    Parameters
    ----------
    before : statements that the process runs first.
    key : what requests have to send as X-API-Key.

    Attributes
    ----------
    log : lines of its standard error so far.
    """

    def __init__(self, folder: Path, *options: str, before: str = "", key: str = "") -> None:
        command = [sys.executable, "-c", f"{before}\n{COMMAND}", "serve", str(folder), "--port=0", *options]
        surroundings = {**os.environ, "BBQREC_API_KEY": key}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=surroundings)
        self.log: list[str] = []
        self._ready, self.port = threading.Event(), 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            if found := re.search(r" at http://[\d.]+:(\d+),", line):
                self.port = int(found[1])
                self._ready.set()
        self._ready.set()

    def __enter__(self) -> "Service":
        self._ready.wait(START_SECONDS)
        if not self.port:
            self.process.kill()
            raise RuntimeError("the service did not start:\n" + "\n".join(self.log))
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self, seconds: float = 15) -> int:
        """End it by SIGTERM; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for each in (*psutil.Process(self.process.pid).children(recursive=True), self.process):
                each.kill()
            raise

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def cpu_seconds(self) -> float:
        """CPU time of the workers that live, so far."""
        return sum(sum(worker.cpu_times()[:2]) for worker in self.workers())


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One client, which keeps its connection from request to request. No answer is an exception of asyncio's."""

    def __init__(self, port: int) -> None:
        self.port, self._streams = port, None

    async def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request, with a body as JSON, or as it is where it is bytes."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"host": "127.0.0.1", "content-type": "application/json", **(headers or {})}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in given.items())
        return await self.send(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)

    async def send(self, request: bytes) -> Answer:
        """Send bytes, read one answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        self._streams[1].write(request)
        return await self.read()

    async def read(self) -> Answer:
        assert self._streams is not None
        reader = self._streams[0]
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            answer = Answer(int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"])))
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
