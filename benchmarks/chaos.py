"""Requests while workers are killed and the catalogue changes: is every one answered, is every event kept?

A plan of requests is drawn by a seed, 1 % of them malformed, and carried out by clients that keep their connections. On
the way an item is added, a new generation that both workers take, and workers are killed (SIGKILL) with requests in
their hands. A client that is told 503 sends the same request again. Afterwards every event that was acknowledged is
looked for in the store.

    python benchmarks/chaos.py saved/BBQRec-ml-100k-...                                  # SQLite, in a temporary folder
    python benchmarks/chaos.py saved/BBQRec-ml-100k-... --store=postgresql://user@/name  # an empty database
"""

import argparse
import asyncio
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from service import Connection, Service

CLIENTS = 32
AGAIN = 60
"""Times that a client sends a request again which was answered by 503, half a second apart."""
MALFORMED: tuple[bytes, ...] = (
    b"",
    b"{",
    b'{"history": "i1"}',
    b'{"history": ["i1"], "k": 0}',
    b'{"history": ["i1"], "k": NaN}',
    b'{"history": [null]}',
    b"[" * 5000,
    b"\xff\xfe",
)


class Request(NamedTuple):
    method: str
    path: str
    body: Any = None
    kind: str = "asked"
    """asked, event, malformed, or item, which changes the generation."""


class Outcome(NamedTuple):
    """What clients have seen: answers by kind and status, requests without one, events acknowledged, and all sent."""

    answers: Counter[tuple[str, int]]
    unanswered: list[str]
    acknowledged: set[tuple[str, str, float]]
    sent: set[tuple[str, str, float]]
    seconds: float


def plan(n: int, tokens: Sequence[str], new: Sequence[dict[str, Any]], seed: int) -> list[Request]:
    """Requests in order; the new items are added one at a time, spread over them."""
    chance, requests = random.Random(seed), []
    for number in range(n):
        user, item = f"user-{chance.randrange(n // 20 + 1)}", chance.choice(tokens)
        draw = chance.random()
        if draw < 0.01:
            requests.append(Request("POST", "/recommend", chance.choice(MALFORMED), "malformed"))
        elif draw < 0.40:
            events = [{"user": user, "item": item, "time": float(number)}]
            requests.append(Request("POST", "/events", {"events": events}, "event"))
        elif draw < 0.80:
            history = chance.choices(tokens, k=chance.randrange(1, 30))
            requests.append(Request("POST", "/recommend", {"history": history}))
        elif draw < 0.95:
            requests.append(Request("GET", f"/users/{user}/recommendations"))
        else:
            requests.append(Request("GET", chance.choice((f"/items/{item}", f"/items/{item}/similar", "/health"))))
    for number, row in enumerate(new, 1):
        requests.insert(number * n // (len(new) + 1), Request("POST", "/items", {"items": [row]}, "item"))
    return requests


async def carry_out(service: Service, requests: Sequence[Request], kills: int, seed: int) -> Outcome:
    """Have clients make the requests, and kill so many workers on the way, evenly spread."""
    outcome, chance, began = Outcome(Counter(), [], set(), set(), 0), random.Random(seed), time.perf_counter()
    waiting = list(reversed(requests))
    moments = [len(requests) * (kills - number) // (kills + 1) for number in range(kills)]  # requests left

    async def client() -> None:
        connection = Connection(service.port)
        while waiting:
            await _make(connection, waiting.pop(), outcome)
        connection.close()

    async def killer() -> None:
        for left in moments:
            while len(waiting) > left:
                await asyncio.sleep(0.005)
            chance.choice(service.workers()).kill()

    await asyncio.gather(killer(), *(client() for _ in range(CLIENTS)))
    return outcome._replace(seconds=time.perf_counter() - began)


async def _make(connection: Connection, request: Request, outcome: Outcome) -> None:
    """One request, again and again while the answer is 503."""
    sent = request.body["events"] if request.kind == "event" else []
    events = {(each["user"], each["item"], each["time"]) for each in sent}
    outcome.sent.update(events)
    kind = request.kind
    for _ in range(AGAIN):
        try:
            answer = await asyncio.wait_for(connection.ask(request.method, request.path, request.body), 60)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            outcome.unanswered.append(f"{request.method} {request.path}: {error!r}")
            return
        outcome.answers[kind, answer.status] += 1
        if answer.status != 503:
            break
        kind = "item again" if kind == "item" else kind  # it may be there already: the answer was lost, not the work
        assert answer.headers["retry-after"] and json.loads(answer.body)["error"]
        await asyncio.sleep(0.5)
    if answer.status == 201:
        outcome.acknowledged.update(events)


def items_of(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Tokens of a bundle, and two new items that have the vectors of two known ones."""
    from recbole_bbqrec import load_bundle

    bundle = load_bundle(folder)
    matrices = {} if bundle.catalogue.features is None else bundle.catalogue.features.matrices
    vectors = [{name: matrix[row].tolist() for name, matrix in matrices.items()} for row in (1, 2)]
    return bundle.item_tokens[1:], [{"item_id": f"new-{at}", "vectors": each} for at, each in enumerate(vectors)]


def kept(place: str, users: Sequence[str]) -> Counter[tuple[str, str]]:
    """How often each pair of user and item is in a store."""
    from recbole_bbqrec.serving.service.store import Store

    store = Store(place)
    found = store.histories(users, 1_000_000)
    store.close()
    return Counter((user, item) for user, items in zip(users, found, strict=True) for item in items)


def wrong(outcome: Outcome, place: str) -> list[str]:
    """What should not have happened, in words."""
    found = [f"no answer: {each}" for each in outcome.unanswered]
    expected = {
        "event": {201},
        "asked": {200, 404},
        "item": {201},
        "item again": {201, 422},
        "malformed": range(400, 500),
    }
    for (kind, status), count in outcome.answers.items():
        if status != 503 and status not in expected[kind]:
            found.append(f"{count} times {status} for {kind}")
    there = kept(place, sorted({user for user, _, _ in outcome.sent}))
    sent, sure = (Counter((user, item) for user, item, _ in each) for each in (outcome.sent, outcome.acknowledged))
    for pair, count in sent.items():
        if not sure[pair] <= there[pair] <= count:
            found.append(f"{pair}: sent {count} times, acknowledged {sure[pair]} times, kept {there[pair]} times")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a bundle; it is copied")
    parser.add_argument("--store", help="an empty database, postgresql://... (default: an SQLite file)")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=2020)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(given.folder, Path(place) / "bundle"))
        store = given.store or str(Path(place) / "events.sqlite")
        requests = plan(given.requests, *items_of(folder), given.seed)
        with Service(folder, f"--store={store}", "--workers=2", "--rate=0") as service:
            outcome = asyncio.run(carry_out(service, requests, given.kills, given.seed))
            code = service.stop()
        print(f"{len(requests)} requests in {outcome.seconds:.0f} s, {given.kills} kills, exit code {code}")
        for (kind, status), count in sorted(outcome.answers.items()):
            print(f"{kind:10} {status} {count:7}")
        print(f"{len(outcome.acknowledged)} of {len(outcome.sent)} events acknowledged")
        print("\n".join(wrong(outcome, store)[:20]) or "nothing wrong")


if __name__ == "__main__":
    main()
