"""Rows per CPU second and peak memory of building a data set from many reviews.

Writes synthetic reviews of 450 bytes in the form of Amazon's release 2014: 30 thousand users who come often, and
millions who come once or twice to half a million items. Builds follow, each in a process of its own: from the reviews
as anyone's table, once the 5-core, which keeps about those 30 thousand users, and once everything; and the 5-core from
reviews and items as those of a public set. None may take more than 1.5 GiB of memory with 10 million reviews, else the
exit code is 1. The files are made once and kept in `--folder`.

    python benchmarks/raw_reviews.py --folder=/data/tmp                       # 10 million reviews
    python benchmarks/raw_reviews.py --folder=/data/tmp --reviews=200000      # a first try
    python benchmarks/raw_reviews.py --folder=/data/tmp --old=../other        # the same with the code of a checkout
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

LIMIT = 1536 << 20
"""Bytes of memory that a build of this checkout may take at most, with 10 million reviews or fewer."""

CASES = {"table, 5-core": 5, "table, everything": 1, "public set, 5-core": 5}
BLOCK = 100_000
REVIEWS_OF_A_CORE_USER = 8
CORE_USERS_PER_ITEM = 2
TEXT = 222  # characters of a review's text
WORDS = ("the", "of", "great", "very", "good", "ball", "light", "it", "works", "as", "my", "son", "broke")
REVIEW = (
    '{"reviewerID": "A#############", "asin": "B#########", "reviewerName": "A. Buyer of many things", "helpful": '
    f'[0, 0], "reviewText": "{"~" * TEXT}", "overall": #.0, "summary": "Fine", "unixReviewTime": '
    '##########, "reviewTime": "01 1, 2012"}\n'
)
"""A line: `#` stands for the digits of user, item, rating and time, `~` for the text."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the raw files are written and kept")
    parser.add_argument("--reviews", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--old", metavar="PATH", help="checkout whose code is measured beside this one's")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)  # the process of one measurement
    arguments = parser.parse_args()
    raw = arguments.folder / f"{arguments.reviews}-{arguments.seed}"
    if arguments.case:
        print(json.dumps(measure(raw, arguments.case)))
        return
    if not raw.is_dir():
        write_synthetic(raw, arguments.reviews, arguments.seed)
    checkouts = {"new": Path(__file__).parents[1], **({"old": Path(arguments.old)} if arguments.old else {})}
    found = {(which, case): in_a_process(case, checkouts[which]) for case in CASES for which in checkouts}
    print(report(found))
    over = [case for (which, case), x in found.items() if which == "new" and x["peak"] > LIMIT]
    if over and arguments.reviews <= 10_000_000:
        sys.exit(f"{over[0]} took {found['new', over[0]]['peak'] / 2**30:.2f} GiB, {LIMIT / 2**30} at most")


def write_synthetic(folder: Path, n_reviews: int, seed: int) -> None:
    """Write `reviews.jsonl.gz` and `meta.json.gz`; reviews of the two kinds of users are mixed."""
    generator = np.random.default_rng(seed)
    n_core_users = min(30_000, n_reviews // (4 * REVIEWS_OF_A_CORE_USER))
    n_core_items = max(1, n_core_users // CORE_USERS_PER_ITEM)
    n_items = max(n_core_items + 1, n_reviews // 20)
    share = n_core_users * REVIEWS_OF_A_CORE_USER / n_reviews
    texts = np.stack([text(generator) for _ in range(5000)])
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    with open(part / "reviews.jsonl.gz", "wb") as file:
        for start in tqdm(range(0, n_reviews, BLOCK), desc="write reviews", leave=False):
            size = min(BLOCK, n_reviews - start)
            core = generator.random(size) < share
            others = n_core_users + generator.integers(n_reviews * 2 // 3, size=size)
            users = np.where(core, generator.integers(n_core_users, size=size), others)
            items = generator.integers(n_core_items, n_items, size=size)
            items = np.where(core, generator.integers(n_core_items, size=size), items)
            days = generator.integers(11_600, 16_200, size=size) * 86400  # whole days, as published
            words = texts[generator.integers(len(texts), size=size)]
            # One gzip member a block: a file of several members is as valid as one of one.
            file.write(gzip.compress(lines(users, items, 1 + users % 5, days, words), compresslevel=1))
    with gzip.open(part / "meta.json.gz", "wb", compresslevel=1) as file:
        for start in tqdm(range(0, n_items, BLOCK), desc="write items", leave=False):
            file.write("".join(item(at) for at in range(start, min(n_items, start + BLOCK))).encode())
    part.rename(folder)


def text(generator: np.random.Generator) -> np.ndarray:
    """Return a review's text, uint8 [TEXT]."""
    words = " ".join(np.array(WORDS)[generator.integers(len(WORDS), size=TEXT // 2)].tolist())
    return np.frombuffer(words[:TEXT].encode(), dtype=np.uint8)


def lines(users: np.ndarray, items: np.ndarray, ratings: np.ndarray, times: np.ndarray, texts: np.ndarray) -> bytes:
    """Return one line a review; all are equally long, so that they are one matrix of characters."""
    template = np.frombuffer(REVIEW.encode(), dtype=np.uint8)
    rows = np.tile(template, (len(users), 1))
    rows[:, template == ord("~")] = texts
    places = np.flatnonzero(template == ord("#"))
    for values, width in ((users, 13), (items, 9), (ratings, 1), (times, 10)):
        for at in places[:width][::-1]:
            values, digits = np.divmod(values, 10)
            rows[:, at] = ord("0") + digits
        places = places[width:]
    return rows.tobytes()


def item(at: int) -> str:
    related = [f"B{(at * 31 + step) % 999_999_999:09d}" for step in range(20)]
    return repr(
        {
            "asin": f"B{at:09d}",
            "description": f"The buyer's choice, number {at} &amp; counting. " * 5,
            "title": f'Item {at}, 5" wide, it\'s good',
            "price": 9.99,
            "imUrl": f"http://localhost/{at}.jpg",
            "related": {"also_bought": related},
            "categories": [["Sports & Outdoors", "Kind " + str(at % 50)]],
        }
    ) + "\n"  # fmt: skip


def in_a_process(case: str, checkout: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], f"--case={case}"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def measure(raw: Path, case: str) -> dict[str, Any]:
    from recbole_bbqrec.preparation import amazon
    from recbole_bbqrec.preparation.build import build
    from recbole_bbqrec.preparation.own_data import prepare_own

    core, start, reviews = CASES[case], time.perf_counter(), raw / "reviews.jsonl.gz"
    with tempfile.TemporaryDirectory(dir=raw) as folder:
        if case.startswith("table"):
            names = {"user": "reviewerID"}
            done = prepare_own("Set", reviews, None, folder, columns=names, user_core=core, item_core=core)
        else:
            readers = partial(amazon.reviews, reviews, "2014"), partial(amazon.items, raw / "meta.json.gz", "2014")
            done = build("Set", *readers, folder, core, core)
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime
    return {"seconds": seconds, "cpu": cpu, "peak": peak_memory(), "reviews": done["read"]["reviews"], **done["counts"]}


def peak_memory() -> int:
    """Return the most bytes that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere than in `getrusage`, the parent's memory at the start does not count
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def report(found: dict[tuple[str, str], dict[str, Any]]) -> str:
    counts = ("reviews", "users", "items", "interactions")
    rows = [
        [
            *key, *(f"{x[what]:,}" for what in counts), f"{x['seconds']:.1f}", f"{x['cpu']:.1f}",
            f"{x['reviews'] / x['cpu']:,.0f}", f"{x['peak'] / 2**20:,.0f}",
        ]
        for key, x in found.items()
    ]  # fmt: skip
    columns = ["code", "case", "reviews", "users kept", "items kept", "interactions", "seconds", "CPU s"]
    columns += ["reviews/CPU s", "peak MiB"]
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True, colalign=["left"] * 2 + ["right"] * 8)


if __name__ == "__main__":
    main()
