"""How many requests a second a service answers in time: throughput where 99 of 100 answers take at most 50 ms.

Open loop: requests are due at moments that a seed draws (a Poisson process), whether or not earlier ones have their
answers, and a request's time counts from the moment at which it was due. A service that falls behind is seen to. Rates
rise step by step until the 99th percentile exceeds the bound or something is not answered by 200. Client and service
share the machine's cores; the client's own part is in the table.

    python benchmarks/load.py saved/BBQRec-ml-100k-...                      # one worker
    python benchmarks/load.py saved/BBQRec-Sports-... --workers=2
    python benchmarks/load.py --items=1000000 --index=faiss                 # a synthetic catalogue
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from service import Connection, Service
from tabulate import tabulate

FIRST_RATE, FACTOR = 25.0, 1.35
MOST_SECONDS = 300
CONNECTIONS = 200
LATE_SECONDS = 2.0
"""A step ends early where requests wait so long: the service will not catch up."""


class Step(NamedTuple):
    """What one rate gave; times in milliseconds."""

    rate: float
    n: int
    seconds: float
    p50: float
    p99: float
    statuses: Counter[int]
    service_cpu: float
    client_cpu: float

    def row(self) -> list[str]:
        others = self.n - self.statuses[200]
        cpu = [f"{1000 * part / max(self.n, 1):.2f}" for part in (self.service_cpu, self.client_cpu)]
        return [
            f"{self.rate:.0f}",
            f"{self.n / self.seconds:.0f}",
            f"{self.p50:.1f}",
            f"{self.p99:.1f}",
            str(others),
            *cpu,
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a bundle")
    parser.add_argument("--items", type=int, help="instead: a synthetic catalogue of so many items")
    parser.add_argument("--index", choices=("faiss",))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8, help="of each step")
    parser.add_argument("--bound", type=float, default=50, help="milliseconds that the 99th percentile may take")
    parser.add_argument("--length", type=int, default=20, help="longest history")
    parser.add_argument("--rate", type=float, default=FIRST_RATE, help="requests a second of the first step")
    parser.add_argument("--seed", type=int, default=2020)
    given = parser.parse_args()
    if (given.folder is None) == (given.items is None):
        parser.error("give a folder or --items")
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or _synthetic(Path(place), given)
        tokens = json.loads((folder / "bundle.json").read_text())["item_tokens"][1:]
        options = [f"--store={place}/events.sqlite", f"--workers={given.workers}", "--rate=0"]
        with Service(folder, *options, *([f"--index={given.index}"] if given.index else [])) as service:
            steps = asyncio.run(measure(service, tokens, given))
    header = ["asked/s", "answered/s", "p50 ms", "p99 ms", "not 200", "service CPU ms", "client CPU ms"]
    print(f"{len(tokens):,} items, {given.workers} workers, index: {given.index or 'none, exact'}")
    print(tabulate([step.row() for step in steps], header, tablefmt="github", disable_numparse=True))
    good = [step.n / step.seconds for step in steps if step.p99 <= given.bound and step.statuses[200] == step.n]
    print(f"{max(good, default=0):.0f} requests a second with p99 <= {given.bound:g} ms")


def _synthetic(place: Path, given: argparse.Namespace) -> Path:
    from index import synthetic

    return synthetic(place / "synthetic", given.items, "SASRecPlus", given.seed)


async def measure(service: Service, tokens: list[str], given: argparse.Namespace) -> list[Step]:
    """Raise the rate until the bound is exceeded twice running, or the time is over."""
    chance, began, rate, steps = random.Random(given.seed), time.perf_counter(), given.rate, list[Step]()
    await _step(service, _bodies(chance, tokens, 50, given.length), [0.02 * at for at in range(50)])  # to warm up
    while time.perf_counter() - began < MOST_SECONDS:
        due, at = [], chance.expovariate(rate)
        while at < given.seconds:
            due.append(at)
            at += chance.expovariate(rate)
        steps.append(await _step(service, _bodies(chance, tokens, len(due), given.length), due, rate))
        if all(step.p99 > given.bound or step.statuses[200] < step.n for step in steps[-2:]) and len(steps) > 1:
            break
        rate *= FACTOR
    return steps


def _bodies(chance: random.Random, tokens: list[str], n: int, longest: int) -> list[bytes]:
    histories = (chance.choices(tokens, k=chance.randint(1, longest)) for _ in range(n))
    return [json.dumps({"history": history, "k": 10}).encode() for history in histories]


async def _step(service: Service, bodies: list[bytes], due: list[float], rate: float = 0) -> Step:
    """Make the requests at their moments, each on a connection that is free."""
    free = asyncio.LifoQueue[Connection]()
    for _ in range(CONNECTIONS):
        free.put_nowait(Connection(service.port))
    took, statuses, waiting = list[float](), Counter[int](), set[asyncio.Task[None]]()

    async def one(body: bytes, moment: float) -> None:
        connection = await free.get()
        try:
            statuses[(await connection.ask("POST", "/recommend", body)).status] += 1
        except (OSError, EOFError):
            statuses[0] += 1
        took.append(time.perf_counter() - moment)
        free.put_nowait(connection)

    cpu, own, began = service.cpu_seconds(), time.process_time(), time.perf_counter()
    for body, after in zip(bodies, due, strict=True):
        if (wait := began + after - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        waiting.add(task := asyncio.create_task(one(body, began + after)))
        task.add_done_callback(waiting.discard)
        if took and took[-1] > LATE_SECONDS:
            break
    await asyncio.gather(*waiting)
    seconds = time.perf_counter() - began
    while not free.empty():
        free.get_nowait().close()
    p50, p99 = 1000 * np.percentile(took, [50, 99])
    used = service.cpu_seconds() - cpu, time.process_time() - own
    return Step(rate, len(took), seconds, float(p50), float(p99), statuses, *used)


if __name__ == "__main__":
    main()
