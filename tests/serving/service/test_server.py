"""The service as it runs: workers that are killed, clients that mean no good, and the end."""

import asyncio
import contextlib
import re
import shutil
import signal
import socket
import time

import chaos
import pytest
from service import Connection, Service

from recbole_bbqrec import cli

N_REQUESTS, N_KILLS = 750, 3
"""Of each of the two stores."""


def test_killed_workers_a_new_generation_and_the_end(address, folder, cold):
    """Every request is answered, every event that was acknowledged is kept once; malformed ones get 4xx.

    On SIGTERM, with all processes told at once as by systemd, who still asks is answered or refused, never cut off.
    """
    tokens = [token for token in cold.whole.tokens[1 : cold.whole.n_trained]]
    requests = chaos.plan(N_REQUESTS, tokens, cold.rows[:2], seed=1)
    with Service(folder, f"--store={address}", "--workers=2", "--rate=0") as service:
        before = {worker.pid for worker in service.workers()}
        outcome = asyncio.run(chaos.carry_out(service, requests, N_KILLS, seed=1))
        assert chaos.wrong(outcome, address) == []
        assert len(outcome.acknowledged) == len(outcome.sent) > N_REQUESTS / 4
        assert outcome.answers["malformed", 422] > 0
        until = time.monotonic() + 20  # each worker looks for itself, once a second
        while "bbqrec_generation 2.0" not in asyncio.run(Connection(service.port).ask("GET", "/metrics")).body.decode():
            assert time.monotonic() < until, "not both workers have the new generation"
            time.sleep(0.1)
        assert asyncio.run(Connection(service.port).ask("GET", "/health")).json["generation"] == 2
        assert len(before & {worker.pid for worker in service.workers()}) < 2 == len(service.workers())
        assert all(each and set(each) <= {200, 503} for each in asyncio.run(asked_while_it_ends(service)))
        assert service.process.wait(8) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", service.port))
    told = [line for line in service.log if "another takes its place" in line]
    assert len(told) == N_KILLS and "Traceback" not in "\n".join(service.log)


async def asked_while_it_ends(service: Service) -> list[list[int]]:
    """What each of some clients was answered that asked until there was no service any more."""

    async def ask_on() -> list[int]:
        connection, found = Connection(service.port), []
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                answer = await connection.ask("POST", "/recommend", {"history": ["i01"], "explain": True})
                found.append(answer.status)
        return found

    clients = [asyncio.create_task(ask_on()) for _ in range(8)]
    await asyncio.sleep(0.3)
    for process in (*service.workers(), service.process):
        process.send_signal(signal.SIGTERM)
    return await asyncio.wait_for(asyncio.gather(*clients), 20)


KEY = "the key of these tests"
HEADS = f"host: h\r\nx-api-key: {KEY}\r\n"
QUICK = """
import os
os.environ["PROMETHEUS_MULTIPROC_DIR"] = "."  # as the command sets it before this is imported
from recbole_bbqrec.serving.service import limits, protocol
limits.BODY_SECONDS = protocol.HEAD_SECONDS = protocol.READ_SECONDS = 0.5
"""


@pytest.fixture(scope="module")
def service(cold, tmp_path_factory):
    """A service with a key, that loses its patience soon; its worker ends where its supervisor is killed."""
    place = tmp_path_factory.mktemp("hostile")
    folder = shutil.copytree(cold.folder, place / "bundle")
    with Service(folder, f"--store={place / 'events'}", "--rate=0", before=QUICK, key=KEY) as running:
        (worker,) = running.workers()
        yield running
        assert running.workers() == [worker], "it lives"
        running.process.kill()
        worker.wait(20)
        assert "Traceback" not in "\n".join(running.log)


def post(path: str, body: str | bytes, kind: str = "application/json", more: str = "") -> bytes:
    content = body.encode() if isinstance(body, str) else body
    head = f"POST {path} HTTP/1.1\r\n{HEADS}content-type: {kind}\r\n{more}content-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\n{HEADS}\r\n".encode()


def asked(**more: str) -> bytes:
    """A request for recommendations with parts of JSON in place of good ones."""
    parts = {"history": '["i01"]', **more}
    return post("/recommend", "{" + ", ".join(f'"{name}": {value}' for name, value in parts.items()) + "}")


def event(**more: str) -> bytes:
    parts = {"user": '"u"', "item": '"i01"', **more}
    return post("/events", '{"events": [{' + ", ".join(f'"{name}": {value}' for name, value in parts.items()) + "}]}")


def item(more: str, token: str = '"new"') -> bytes:
    return post("/items", f'{{"items": [{{"item_id": {token}, "title": "red lamp", "brand": ""{more}}}]}}')


CHUNKED = f"POST /recommend HTTP/1.1\r\n{HEADS}content-type: application/json\r\ntransfer-encoding: chunked\r\n"
HOSTILE = {
    "nothing": post("/recommend", ""),
    "half": post("/recommend", '{"history": ["i01"'),
    "null": post("/recommend", "null"),
    "list": post("/recommend", "[]"),
    "deep lists": post("/recommend", "[" * 200_000),
    "deep objects": post("/recommend", '{"history":' * 100_000),
    "deep inside": asked(allow="[" * 50_000 + "]" * 50_000),
    "not UTF-8": post("/recommend", b'{"history": ["\xff\xfe"]}'),
    "surrogate": asked(history=r'["\ud800"]'),
    "surrogate user": event(user=r'"\udfff"'),
    "NaN": asked(k="NaN"),
    "infinite": asked(k="1e999"),
    "minus infinite": asked(k="-Infinity"),
    "very long number": asked(k="1" * 6000),
    "k is no whole number": asked(k="1.5"),
    "k is a text": asked(k='"10"'),
    "k is true": asked(k="true"),
    "k is 0": asked(k="0"),
    "k is large": asked(k="501"),
    "long history": asked(history=str(["i01"] * 1001).replace("'", '"')),
    "history is a text": asked(history='"i01"'),
    "history is an object": asked(history='{"0": "i01"}'),
    "history of numbers": asked(history="[1, 2]"),
    "history of nothing": asked(history="[null]"),
    "history of lists": asked(history='[["i01"]]'),
    "empty token": asked(history='[""]'),
    "long token": asked(history=f'["{"a" * 257}"]'),
    "NUL": asked(history=r'["a\u0000b"]'),
    "large choice": asked(allow=str(["i01"] * 10_001).replace("'", '"')),
    "deny is a number": asked(deny="3"),
    "seen is a word": asked(exclude_seen='"yes"'),
    "further field": asked(__proto__='{"admin": true}'),
    "a form": post("/recommend", "history=i01", "application/x-www-form-urlencoded"),
    "as text": post("/recommend", '{"history": ["i01"]}', "text/plain"),
    "compressed": post("/recommend", b"\x1f\x8b\x08\x00" + bytes(100), more="content-encoding: gzip\r\n"),
    "no event": post("/events", '{"events": []}'),
    "many events": post("/events", '{"events": [' + ", ".join(['{"user": "u", "item": "i"}'] * 1001) + "]}"),
    "event at no time": event(time="NaN"),
    "event in milliseconds": event(time="1700000000000"),
    "event before time": event(time="-1"),
    "user of two lines": event(user=r'"a\nb"'),
    "no user": post("/events", '{"events": [{"item": "i01"}]}'),
    "file of the server": item(', "image": "/etc/passwd"'),
    "vectors of NaN": item(', "vectors": {"text": [NaN]}'),
    "vectors of another width": item(', "vectors": {"text": [1.0, 2.0]}'),
    "vectors of another modality": item(', "vectors": {"smell": [1.0]}'),
    "cell is a list of lists": item(', "brand": [["a"]]'),
    "cell is an object": item(', "brand": {"name": "a"}'),
    "known item": item("", '"i01"'),
    "token of two lines": item("", r'"a\nb"'),
    "token with blanks": item("", '" a "'),
    "no item": post("/items", '{"items": []}'),
    "way up": get("/static/../app.py"),
    "way up, encoded": get("/static/%2e%2e%2fapp.py"),
    "way up, twice encoded": get("/static/%252e%252e%252fapp.py"),
    "way up on Windows": get("/static/..%5c..%5capp.py"),
    "absolute path": get("/static//etc/passwd"),
    "image up": get("/items/..%2f..%2f..%2fetc%2fpasswd/image"),
    "image of NUL": get("/items/%00/image"),
    "long item": get(f"/items/{'a' * 5000}"),
    "long user": get(f"/users/{'a' * 300}/recommendations"),
    "user of NUL": get("/users/%00/recommendations"),
    "k of a query": get("/users/u/recommendations?k=1e3"),
    "limit of a query": get("/items?q=a&limit=-1"),
    "long query": get(f"/items?q={'a' * 201}"),
    "no query": get("/items"),
    "other method": get("/items/i01", "DELETE"),
    "unknown method": get("/health", "BREW"),
    "trace": get("/", "TRACE"),
    "no key": get("/items?q=a").replace(KEY.encode(), b""),
    "wrong key": get("/items?q=a").replace(KEY.encode(), b"the key of these testz"),
    "key of bytes": get("/items?q=a").replace(KEY.encode(), b"\xff\xfe"),
    "two keys": get("/items?q=a").replace(b"\r\n\r\n", f"\r\nx-api-key: {KEY}\r\n\r\n".encode()),
    "key in another header": get("/items?q=a").replace(b"x-api-key", b"authorization"),
    "garbage": bytes(range(256)) * 4 + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300) + b"\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "version of the future": b"GET / HTTP/9.9\r\nhost: h\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nhost: h\r\nx: \x00\r\n\r\n",
    "large header": b"GET / HTTP/1.1\r\nhost: h\r\nx: " + b"a" * 200_000,
    "many headers": b"GET / HTTP/1.1\r\nhost: h\r\n" + b"x: y\r\n" * 30_000,
    "two lengths": post("/recommend", "{}", more="content-length: 7\r\n"),
    "length below 0": post("/recommend", "{}").replace(b"content-length: 2", b"content-length: -2"),
    "length of a word": post("/recommend", "{}").replace(b"content-length: 2", b"content-length: two"),
    "two ways of length": f"{CHUNKED}content-length: 5\r\n\r\n0\r\n\r\n".encode(),
    "size of a chunk": f"{CHUNKED}\r\nzz\r\n".encode(),
    "unknown transfer": get("/").replace(b"host", b"transfer-encoding: what\r\nhost"),
    "huge length": post("/recommend", "{}").replace(b"content-length: 2", b"content-length: 99999999999"),
    "huge body": post("/recommend", b" " * (5 << 20)),
    "huge in chunks": f"{CHUNKED}\r\n".encode() + (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 40,
    "endless head": b"GET / HTTP/1.1\r\nhost: h\r\nx: ",
    "silence": b"",
    "endless body": post("/recommend", "{").replace(b"content-length: 1", b"content-length: 100"),
    "endless chunks": f"{CHUNKED}\r\n5\r\n{{".encode(),
}
STATUS = {"nothing": 422, "wrong key": 401, "huge body": 413, "huge length": 413, "silence": 408, "endless body": 408}
STATUS |= {
    "garbage": 400,
    "two ways of length": 400,
    "other method": 405,
    "way up, encoded": 404,
    "huge in chunks": 413,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests(service, name):
    """One answer of class 4xx in one line, and the service lives."""

    async def ask():
        hostile, other = Connection(service.port), Connection(service.port)
        answer = await asyncio.wait_for(hostile.send(HOSTILE[name]), 20)
        hostile.close()
        return answer, await other.ask("GET", "/health")

    answer, health = asyncio.run(ask())
    assert 400 <= answer.status < 500 and answer.status == STATUS.get(name, answer.status), answer
    line = answer.json["error"]
    assert answer.headers["content-type"].startswith("application/json")
    assert 0 < len(line) < 700 and "\n" not in line and "Traceback" not in line, line
    assert health.status == 200


def test_a_client_that_goes_on_after_its_answer_is_cut_off(service):
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(post("/recommend", "{}").replace(b"content-length: 2", b"content-length: 99999999999"))
        assert client.recv(100).startswith(b"HTTP/1.1 413")
        with pytest.raises(OSError):  # closed by the service
            for _ in range(200):
                client.sendall(b" " * 1000)
                time.sleep(0.02)


def test_a_client_that_takes_no_answers_is_cut_off(service):
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.settimeout(10)
        with pytest.raises(OSError):  # nothing more is taken from it, or it is closed
            client.settimeout(5)
            for _ in range(100_000):
                client.sendall(get("/openapi.json"))
        time.sleep(0.6)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 20):  # ends: it was closed
                pass


def test_a_client_may_ask_before_it_sends_its_body(service):
    whole = post("/recommend", '{"history": []}', more="expect: 100-continue\r\n")
    head, body = whole.split(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", service.port), 10) as client:
        client.sendall(head + b"\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100")
        client.sendall(body)
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_requests_that_come_together_are_answered_in_order(service):
    """And the answer to one that is answered in parts is whole."""
    with socket.create_connection(("127.0.0.1", service.port), 10) as client:
        client.sendall(get("/health") + get("/items/nope") + get("/openapi.json") + get("/nothing", "HEAD"))
        client.shutdown(socket.SHUT_WR)
        found = b"".join(iter(lambda: client.recv(1 << 20), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"404", b"200", b"404"]
    assert len(found.split(b"HTTP/1.1 ")[3]) > 5000


def test_script_in_a_title_stays_a_text(service):
    script = "<script>alert('red lamp')</script>"
    body = {"items": [{"item_id": "<b>&", "title": script, "brand": ""}]}

    async def ask(method, path, body=None):
        return await Connection(service.port).ask(method, path, body, {"x-api-key": KEY})

    assert asyncio.run(ask("POST", "/items", body)).status == 201
    answer = asyncio.run(ask("GET", "/items/%3Cb%3E%26"))
    assert answer.json["title"] == script
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "script" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--host=0.0.0.0"], "but no key is set"),
        (["--port=99999", "--workers=0"], "--port: found 99999, expected at most 65535"),
        (["--port=-1"], "--port: found -1, expected"),
        (["--workers=0"], "--workers, --rate: found 0"),
        (["--rate=nan"], "--workers, --rate: found 1 and nan"),
        (["--store=mysql://x"], "found mysql://"),
        (["--host=no.such.host.invalid", "--api-key=k"], "name another port"),
    ],
)
def test_what_cannot_be_served(cold, capsys, options, why):
    assert cli.main(["serve", str(cold.folder), "--port=0", *options]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1


def test_a_port_that_is_taken(cold, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(cold.folder), f"--port={port}"]) == 2
    assert "in use; name another port" in capsys.readouterr().err
