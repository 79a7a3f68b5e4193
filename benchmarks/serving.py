"""Milliseconds of one recommendation and histories a second in batches, of a finished run's folder.

Histories are drawn from the catalogue by a seed, with lengths as given. All kinds are measured in turns, on the very
calls of a bundle: one history at a time, and all in one call, with the second stage the folder has and without it. On a
machine that does other work, time of the CPU says what one core can do, and the clock what one waits.

    python benchmarks/serving.py saved/BBQRec-Sports-2020-...
    python benchmarks/serving.py saved/BBQRec-Sports-2020-... --threads=2 --mean-length=20
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from recbole_bbqrec import load_bundle
from recbole_bbqrec.second_stage import socket
from recbole_bbqrec.training.allocation import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of a finished run")
    parser.add_argument("--histories", type=int, default=2048, help="histories of one call (default 2048)")
    parser.add_argument("--single", type=int, default=200, help="single histories of a round (default 200)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all kinds (default 3)")
    parser.add_argument("--mean-length", type=float, default=8.0, help="mean length of a history (default 8)")
    parser.add_argument("--explain", action="store_true", help="also ask for reasons, one history at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--device", default="cpu", help="where to compute (default cpu)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as bbqrec does
    print(report(given))


def report(given: argparse.Namespace) -> str:
    started = time.perf_counter()
    whole = load_bundle(given.folder, given.device)
    loading = time.perf_counter() - started
    bundles = {socket.form_of(getattr(whole.model, "second_stage", None)) or "none": whole}
    if "none" not in bundles:
        bundles["none"] = load_bundle(given.folder, given.device)
        socket.attach(bundles["none"].model, None)
    draw = np.random.default_rng(0)
    lengths = np.minimum(draw.geometric(1 / given.mean_length, given.histories), 200)
    tokens = np.array(whole.item_tokens[1:])
    histories = [draw.choice(tokens, length, replace=False).tolist() for length in lengths]
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def timed(what: tuple[str, str], bundle: Any, asked: list[list[str]], **how: Any) -> None:
        clock, cpu = time.perf_counter(), time.process_time()
        bundle.recommend(asked, **how)
        spent.setdefault(what, []).append((time.process_time() - cpu, time.perf_counter() - clock))

    for bundle in bundles.values():
        bundle.recommend(histories[:64])  # what all histories share is computed once
    for _ in range(given.rounds):
        for stage, bundle in bundles.items():
            timed((stage, "all in one call"), bundle, histories)
            for history in histories[: given.single]:
                timed((stage, "one"), bundle, [history])
                if given.explain:
                    timed((stage, "one, explained"), bundle, [history], explain=True)
    rows = []
    for (stage, kind), found in spent.items():
        cpu, clock = np.array(found).T
        many = len(histories) if kind == "all in one call" else 1
        figures = (1000 * np.median(cpu), 1000 * np.median(clock), 1000 * np.quantile(clock, 0.99))
        rates = (f"{many / np.median(each):,.0f}" for each in (cpu, clock))
        rows.append([stage, kind, *(f"{figure:,.2f}" for figure in figures), *rates])
    header = ["second stage", "histories", "median ms of CPU", "of the clock", "p99", "a second of CPU", "of the clock"]
    about = f"{len(tokens)} items, {given.threads} threads, loaded in {loading:.1f} s"
    return f"{about}\n{tabulate(rows, header, tablefmt='pipe', disable_numparse=True)}"


if __name__ == "__main__":
    main()
