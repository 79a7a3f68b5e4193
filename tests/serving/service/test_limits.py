"""Who may ask, how often, how much and how slowly; every refusal is one line."""

import asyncio

import pytest

from recbole_bbqrec.serving.service import limits
from recbole_bbqrec.serving.service.limits import Guard, Rate, RefusedError
from recbole_bbqrec.serving.service.metrics import Metrics


def test_a_rate_lets_a_burst_through_and_then_what_it_says():
    rate = Rate(10)
    for _ in range(20):
        rate.take("a", 100.0)
    with pytest.raises(RefusedError) as refused:
        rate.take("a", 100.0)
    assert (refused.value.status, refused.value.retry_after) == (429, 1)
    rate.take("b", 100.0)  # another client
    rate.take("a", 100.11)
    with pytest.raises(RefusedError):
        rate.take("a", 100.12)
    for _ in range(20):
        rate.take("a", 200.0)  # no more than a full bucket, however long it was
    with pytest.raises(RefusedError):
        rate.take("a", 200.0)


def test_slow_rates_say_how_long_to_wait_and_none_is_any():
    slow, free = Rate(0.1), Rate(0)
    slow.take("a", 0.0)
    with pytest.raises(RefusedError) as refused:
        slow.take("a", 1.0)
    assert refused.value.retry_after == 9
    for _ in range(1000):
        free.take("a", 0.0)


def test_clients_are_forgotten(monkeypatch):
    monkeypatch.setattr(limits, "MAX_CLIENTS", 3)
    rate = Rate(1)
    for number in range(10):
        rate.take(str(number), 0.0)
    assert list(rate._left) == ["7", "8", "9"]


def test_a_key(client):
    service = client(api_key="right key")
    for path in ("/health", "/docs", "/openapi.json"):
        assert service.get(path).status == 200
    for path in ("/items?q=a", "/metrics", "/users/u/recommendations", "/catalogue/map", "/nothing"):
        for headers in ({}, {"x_api_key": "wrong"}, {"x_api_key": ""}, {"x_api_key": "right keY"}):
            answer = service.get(path, **headers)
            assert answer.status == 401 and "X-API-Key" in answer.json["error"]
    assert service.get("/items?q=a", x_api_key="right key").status == 200
    assert service.post("/events", {"events": [{"user": "u", "item": "i"}]}).status == 401
    assert service.get("/users/u/recommendations", x_api_key="right key").status == 404, "nothing was kept"


def test_a_rate_of_the_service(client):
    service = client(rate=1)
    assert [service.get("/health").status for _ in range(3)] == [200, 200, 429]
    assert service.get("/health").headers["retry-after"] == "1"


def test_bodies_are_refused_before_they_are_read_whole(client, monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY", 1000)
    service = client()
    for headers, parts in (
        ({"content-length": "1001"}, [b"{}"]),
        ({"content-length": "9" * 30}, [b"{}"]),
        ({"content-length": "-1"}, [b"{}"]),
        ({}, [b" " * 600] * 3),
    ):
        answer = service.loop.run_until_complete(service.ask("POST", "/recommend", parts, headers))
        assert answer.status == 413 and "1000 bytes" in answer.json["error"]
    fits = service.loop.run_until_complete(service.ask("POST", "/recommend", [b'{"history"', b": []}"], {}))
    assert fits.status == 200


def guarded(application, receive, headers=((b"transfer-encoding", b"chunked"),)):
    """Status and body of what a guard around an application answers."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": list(headers), "client": ("c", 1)}
    asyncio.run(Guard(application, Metrics(), None, 0)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


async def never(*_):
    await asyncio.Future()


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)
    status, body = guarded(never, never)
    assert status == 408 and b"within 0.05 seconds" in body


def test_an_application_that_fails_says_nothing_of_itself(caplog):
    async def fails(scope, receive, send):
        raise RuntimeError("a secret")

    status, body = guarded(fails, never, headers=())
    assert status == 500 and b"secret" not in body and b"Traceback" not in body
    assert "a secret" in caplog.text


def test_a_request_that_is_cut_short_by_the_end_is_told_so():
    async def cancelled(scope, receive, send):
        raise asyncio.CancelledError

    status, body = guarded(cancelled, never, headers=())
    assert status == 503 and b"shutting down" in body
