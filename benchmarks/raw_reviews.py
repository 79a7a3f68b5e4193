"""Rows per second and peak memory of building a data set from raw Amazon reviews.

Writes synthetic reviews and items in the form of release 2014: 30 thousand users who come often, and millions who come
once or twice to half a million items. Two builds follow, each in a process of its own whose peak memory is read at its
end: the 5-core, which keeps about those 30 thousand users, and one that keeps everything. The first must stay within
2 GiB, else the exit code is 1.

    python benchmarks/raw_reviews.py                       # 10 million reviews: 3 GB of text, written in some minutes
    python benchmarks/raw_reviews.py --reviews=200000      # a first try
    python benchmarks/raw_reviews.py --folder=/data/tmp    # where the files are written instead of the system's own
"""

import argparse
import gzip
import json
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

from recbole_bbqrec.preparation import amazon
from recbole_bbqrec.preparation.build import build

LIMIT = 2 << 30
"""Bytes of memory that the first case may take at most."""

CASES = {"5-core": 5, "keeps everything": 1}

BLOCK = 100_000
REVIEWS_OF_A_CORE_USER = 8
CORE_USERS_PER_ITEM = 2
COMMON_WORDS = np.array(
    ["the", "of", "great", "very", "good", "ball", "light", "it", "works", "as", "my", "son", "broke"]
)


def main() -> None:
    arguments = parse_arguments()
    if arguments.case:
        print(json.dumps(measure(Path(arguments.folder), arguments.case)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_synthetic(Path(folder), arguments)
        found = {case: in_a_process(case, folder) for case in CASES}
    print(report(found))
    if found["5-core"]["peak"] > LIMIT:
        sys.exit(f"the 5-core took {found['5-core']['peak'] / 2**30:.2f} GiB, 2 at most")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=30_000, help="users that the 5-core keeps, about (default 30000)")
    parser.add_argument("--words", type=int, default=20, help="words of a review's text (default 20)")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--folder", help="where to write; the system's temporary folder by default")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)  # the process of one measurement
    arguments = parser.parse_args()
    arguments.users = min(arguments.users, arguments.reviews // (4 * REVIEWS_OF_A_CORE_USER))
    return arguments


def write_synthetic(folder: Path, arguments: argparse.Namespace) -> None:
    """Write `reviews.json.gz` and `meta.json.gz`; reviews of the two kinds of users are mixed."""
    generator = np.random.default_rng(arguments.seed)
    n_core_items = max(1, arguments.users // CORE_USERS_PER_ITEM)
    n_items = max(n_core_items + 1, arguments.reviews // 20)
    share = arguments.users * REVIEWS_OF_A_CORE_USER / arguments.reviews
    with gzip.open(folder / "reviews.json.gz", "wb", compresslevel=1) as file:
        for start in tqdm(range(0, arguments.reviews, BLOCK), desc="write reviews", leave=False):
            size = min(BLOCK, arguments.reviews - start)
            core = generator.random(size) < share
            users = np.where(
                core,
                generator.integers(arguments.users, size=size),
                arguments.users + generator.integers(arguments.reviews * 2 // 3, size=size),
            )
            items = np.where(
                core, generator.integers(n_core_items, size=size), generator.integers(n_core_items, n_items, size=size)
            )
            rows = zip(users.tolist(), items.tolist(), *times_and_texts(generator, size, arguments.words), strict=True)
            file.write("".join(review(*row) for row in rows).encode())
    with gzip.open(folder / "meta.json.gz", "wb", compresslevel=1) as file:
        for start in range(0, n_items, BLOCK):
            file.write("".join(item(at) for at in range(start, min(n_items, start + BLOCK))).encode())


def times_and_texts(generator: np.random.Generator, size: int, words: int) -> tuple[list[int], list[str]]:
    times = generator.integers(1_000_000_000, 1_400_000_000, size=size) // 86400 * 86400  # whole days, as published
    texts = [" ".join(row) for row in COMMON_WORDS[generator.integers(len(COMMON_WORDS), size=(size, words))].tolist()]
    return times.tolist(), texts


def review(user: int, item: int, moment: int, text: str) -> str:
    return (
        f'{{"reviewerID": "A{user:013d}", "asin": "B{item:09d}", "reviewerName": "A. Buyer", "helpful": [0, 0], '
        f'"reviewText": "{text}", "overall": {1 + user % 5}.0, "summary": "Fine", "unixReviewTime": {moment}, '
        f'"reviewTime": "01 1, 2012"}}\n'
    )


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


def in_a_process(case: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, f"--folder={folder}", f"--case={case}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(folder: Path, case: str) -> dict[str, Any]:
    core, start = CASES[case], time.perf_counter()
    readers = (
        partial(amazon.reviews, folder / "reviews.json.gz", "2014"),
        partial(amazon.items, folder / "meta.json.gz", "2014"),
    )
    done = build(case, *readers, folder, core, core)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": peak_memory(), "reviews": done["read"]["reviews"], **done["counts"]}


def peak_memory() -> int:
    """Return the most bytes that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere than in `getrusage`, the parent's memory at the start does not count
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def report(found: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            case, f"{x['reviews']:,}", f"{x['users']:,}", f"{x['items']:,}", f"{x['interactions']:,}",
            f"{x['seconds']:.1f}", f"{x['reviews'] / x['seconds']:,.0f}", f"{x['peak'] / 2**20:,.0f}",
        ]
        for case, x in found.items()
    ]  # fmt: skip
    columns = ["case", "reviews", "users kept", "items kept", "interactions", "seconds", "reviews/s", "peak MiB"]
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True, colalign=["left"] + ["right"] * 7)


if __name__ == "__main__":
    main()
