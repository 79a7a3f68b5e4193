"""Milliseconds of one recommendation and histories a second in batches, of a finished run's folder.

Histories are drawn from the catalogue by a seed, with lengths as given. All kinds are measured in turns, on the very
calls of a bundle: one history at a time, and all in one call, with the second stage the folder has and without it.

    python benchmarks/serving.py saved/BBQRec-Sports-2020-...
    python benchmarks/serving.py saved/BBQRec-Sports-2020-... --threads=2 --mean-length=20
"""

import argparse
import statistics
import time

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
    seconds: dict[tuple[str, str], list[float]] = {}
    for bundle in bundles.values():
        bundle.recommend(histories[:64])  # what all histories share is computed once
    for _ in range(given.rounds):
        for stage, bundle in bundles.items():
            started = time.perf_counter()
            bundle.recommend(histories)
            seconds.setdefault((stage, "batch"), []).append(time.perf_counter() - started)
            for kind, how in (("one", {}), *([("explained", {"explain": True})] * given.explain)):
                for history in histories[: given.single]:
                    started = time.perf_counter()
                    bundle.recommend([history], **how)
                    seconds.setdefault((stage, kind), []).append(time.perf_counter() - started)
    rows = []
    for (stage, kind), found in seconds.items():
        median = statistics.median(found)
        many = f"{len(histories) / median:,.0f}" if kind == "batch" else ""
        one = "" if kind == "batch" else f"{1000 * median:.2f}"
        p99 = "" if kind == "batch" else f"{1000 * float(np.quantile(found, 0.99)):.2f}"
        rows.append([stage, kind, one, p99, many])
    header = ["second stage", "asked for", "median ms", "p99 ms", "histories a second"]
    about = f"{len(tokens)} items, {given.threads} threads, loaded in {loading:.1f} s"
    return f"{about}\n{tabulate(rows, header, tablefmt='pipe', disable_numparse=True)}"


if __name__ == "__main__":
    main()
