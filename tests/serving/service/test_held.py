"""What the supervisor holds of a worker's connections; here both sides are one process."""

import multiprocessing
import select
import socket

import pytest

from recbole_bbqrec.serving.service import server
from recbole_bbqrec.serving.service.held import ANSWERING, ASKED, DIED, PLACES, Held, left, plain_answer, refuse


@pytest.fixture
def pair():
    """What makes the two ends of a connection: the client's, and the worker's."""
    made = []

    def make():
        made.extend(socket.socketpair())
        made[-2].settimeout(5)
        return made[-2], made[-1]

    yield make
    for each in made:
        each.close()


def test_who_waits_for_an_answer_is_told(pair):
    held, ends = Held(), [pair() for _ in range(4)]
    asked, idle, half, closed = ends
    for _, worker in ends:
        held.open(worker)
    held.receive()
    held.mark(asked[1].fileno(), ASKED)
    held.mark(half[1].fileno(), ANSWERING)
    half[1].sendall(b"a half")
    held.close(closed[1].fileno())
    for _, worker in ends:
        worker.close()  # as the kernel does where the process is killed
    (waiting,), without = held.give_up()
    assert len(without) == 1
    refuse(waiting, DIED)
    assert asked[0].recv(1000) == plain_answer(503, DIED) and asked[0].recv(1) == b""
    waiting.close()
    assert half[0].recv(1000) == b"a half" and half[0].recv(1) == b""
    assert closed[0].recv(1) == b""
    idle[0].sendall(b"GET")
    assert without[0].recv(1000) == b"GET", "one that is on its way can be answered still"
    without[0].close()


def test_what_comes_after_the_answer_does_not_cancel_it():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client, (worker, _) = socket.create_connection(listening.getsockname(), timeout=5), listening.accept()
        with client, worker:
            client.sendall(b"the head")
            refuse(worker, DIED)
            assert not left(worker)
            client.sendall(b"the body")
            assert client.recv(1000) == plain_answer(503, DIED) and client.recv(1) == b""
            client.close()
            assert select.select([worker], [], [], 5)[0] and left(worker)


def test_a_request_on_its_way_to_the_last_worker_is_refused(pair, monkeypatch, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    options = server.Options(store="", port=0)
    worker = multiprocessing.get_context("fork").Process(target=int)
    worker.start()
    (client, taken), held = pair(), Held()
    held.open(taken)
    taken.close()
    with server._listen(options) as listening:
        supervisor = server._Supervisor(None, listening, options)
        supervisor._workers[worker], supervisor._ending = held, True
        client.sendall(b"GET")
        supervisor._stop()
    assert client.recv(1000) == plain_answer(503, server.ENDING)


def test_what_is_closed_is_let_go_and_places_are_used_again(pair):
    held = Held()
    for _ in range(PLACES + 10):
        client, worker = socket.socketpair()
        held.open(worker)
        held.receive()
        held.close(worker.fileno())
        worker.close()
        held.receive()
        client.settimeout(5)
        assert client.recv(1) == b"", "nobody holds it any more"
        client.close()
    assert len(held._free) == PLACES
    held.drop()


def test_more_connections_than_places(pair):
    held = Held()
    held._free = held._free[:1]
    one, two = pair(), pair()
    held.open(one[1])
    held.open(two[1])
    held.mark(two[1].fileno(), ASKED)
    held.close(two[1].fileno())
    two[1].close()
    assert two[0].recv(1) == b""
    waiting, without = held.give_up()
    assert waiting == [] and len(without) == 1
    without[0].close()
