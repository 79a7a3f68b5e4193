"""Seconds and memory of a BBQRec run from its files to its table, stage by stage, and what larger data would take.

The data is made by a seed: users with tastes over clusters of items, long-tailed popularity, and for each item a short
text of words of its cluster, so there is something to learn. Each size runs in a process of its own for one epoch, with
users and items in the proportion of the interactions; a straight line through the sizes is drawn out to 100 million and
1 billion interactions. Memory is the resident memory of the process, by stage the largest while it lasted; Linux only.

    python benchmarks/scale.py --sizes=0.1,0.3                       # millions of interactions; a first try
    python benchmarks/scale.py --sizes=1,3,10 --threads=2            # as many users and items as interactions / 10
    python benchmarks/scale.py --sizes=3 --users=300000 --items=86000 --interactions=3000000
    python benchmarks/scale.py --sizes=1,3 --epochs=2 --n_negatives=512  # other keys are settings of the run
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import torch
from tabulate import tabulate

from recbole_bbqrec import quick_start
from recbole_bbqrec.config import parse_command_line
from recbole_bbqrec.data import dataset as data
from recbole_bbqrec.keys import KEYS
from recbole_bbqrec.settings import MAY_BE_UNUSED
from recbole_bbqrec.tokenizer.memory import PeakMemory
from recbole_bbqrec.training.trainer import ProtocolTrainer

SETTINGS = {
    "model": "BBQRec",
    "epochs": 1,
    "train_batch_size": 4096,
    "feature_dim": 64,
    "text_encoder": "tfidf",
    "text_fields": "title",
    "sid_epochs": 1,
    "sid_min_steps": 0,
    "report_card": False,
    "show_progress": False,
    "valid_users": 20_000,
}
"""Of a run at scale; keys that this version does not know are left out."""
STAGES = ("read", "features", "split", "tokenizer", "train", "rank", "second stage", "bundle", "rest")
LARGER = (100e6, 1e9)
CLUSTER = 50  # items that share their words
TASTES = 3  # clusters of a user
STAYS = 0.8  # probability that an interaction is with an item of these
N_WORDS, OF_CLUSTER, IN_TITLE = 20_000, 20, 6
TAIL = 3  # exponent of popularity within what is chosen from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,3,10", help="millions of interactions, with commas between them")
    parser.add_argument("--users", type=int, default=1_000_000, help="at as many as --interactions; fewer below")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where data and runs are kept; by default they are thrown away")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments, more = parser.parse_known_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments, parse_command_line(more))))
        return
    sizes = [round(float(size) * 1e6) for size in arguments.sizes.split(",")]
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = [run_alone(folder, size, arguments, more) for size in sizes]
    print(report(sizes, found, arguments))


def run_alone(folder: Path, size: int, arguments: argparse.Namespace, more: Sequence[str]) -> dict[str, Any]:
    """Make the data of one size and measure its run in a process of its own."""
    share, name = size / arguments.interactions, f"scale-{size}"
    n_users, n_items = (max(round(share * n), 10 * CLUSTER) for n in (arguments.users, arguments.items))
    if not (folder / name / f"{name}.item").is_file():
        make(folder / name, n_users, n_items, size, arguments.seed)
    given = [f"--one={folder / name}", f"--threads={arguments.threads}", f"--seed={arguments.seed}", *more]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "POLARS_MAX_THREADS"), str(arguments.threads))
    command, environment = [sys.executable, __file__, *given], {**os.environ, **threads}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name}: the run failed ({done.returncode}); its words are above")
    return {"users": n_users, "items": n_items, **json.loads(done.stdout.splitlines()[-1])}


def make(folder: Path, n_users: int, n_items: int, n_rows: int, seed: int) -> None:
    """Write a data set of that size; the file of items comes last."""
    generator = np.random.default_rng(seed)
    counts = 5 + generator.geometric(1 / max(n_rows / n_users - 5, 1.01), n_users)
    counts = np.maximum(np.floor(counts * (n_rows / counts.sum())), 4).astype(np.int64)
    user = np.repeat(np.arange(n_users), counts)
    n_clusters = n_items // CLUSTER
    tastes = generator.integers(n_clusters, size=(n_users, TASTES), dtype=np.int32)
    cluster = tastes[user, generator.integers(TASTES, size=len(user), dtype=np.int8)]
    item = cluster * CLUSTER + np.floor(CLUSTER * generator.random(len(user), np.float32) ** TAIL).astype(np.int32)
    wanders = np.flatnonzero(generator.random(len(user), np.float32) > STAYS)
    item[wanders] = np.floor(n_items * generator.random(len(wanders)) ** TAIL).astype(np.int32)
    if len(user) >= n_items:  # every item is met
        item[generator.choice(len(user), n_items, replace=False)] = generator.permutation(n_items)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"user_id:token": user, "item_id:token": item, "timestamp:float": np.arange(len(user))}
    pl.DataFrame(rows).write_csv(folder / f"{folder.name}.inter", separator="\t")
    words = generator.integers(N_WORDS, size=(n_clusters + 1, OF_CLUSTER))
    chosen = generator.integers(OF_CLUSTER, size=(n_items, IN_TITLE))
    of_item = words[np.arange(n_items)[:, None] // CLUSTER, chosen]
    columns = [pl.Series(f"{at}", column).cast(pl.String) for at, column in enumerate(of_item.T)]
    titles = pl.DataFrame(columns).select(pl.concat_str(["w" + pl.col(name.name) for name in columns], separator=" "))
    items = pl.DataFrame({"item_id:token": np.arange(n_items), "title:token_seq": titles.to_series()})
    items.write_csv(folder / f"{folder.name}.item", separator="\t")


class Watch:
    """Seconds and the largest memory (MiB) by stage; while a stage is inside another, the outer one is not at work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.mib: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._stack: list[str] = ["rest"]
        self._since, self._peak = time.perf_counter(), PeakMemory()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def _turn(self) -> None:
        at_work = self._stack[-1]
        self.seconds[at_work] += time.perf_counter() - self._since
        self.mib[at_work] = max(self.mib[at_work], self._peak.mib or 0.0)
        self._peak, self._since = PeakMemory(), time.perf_counter()

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return watched


def measure(folder: Path, arguments: argparse.Namespace, more: dict[str, Any]) -> dict[str, Any]:
    """Run a made data set from file to table."""
    torch.set_num_threads(arguments.threads)
    known = {key: value for key, value in SETTINGS.items() if key in KEYS or key != "valid_users"}
    runs = tempfile.mkdtemp(dir=folder)
    given = {**known, "dataset": folder.name, "data_path": str(folder.parent), "checkpoint_dir": runs}
    given |= {"seed": arguments.seed, MAY_BE_UNUSED: True, **more}
    watch, kind = Watch(), data.MultiModalSequentialDataset
    places = {
        "read": (kind, "__init__"),
        "features": (data, "build_item_features"),
        "split": (quick_start, "split_loaders"),
        "tokenizer": (data, "fit_semantic_ids"),
        "train": (ProtocolTrainer, "_train_epoch"),
        "rank": (ProtocolTrainer, "rank"),
        "second stage": (ProtocolTrainer, "_fit_second_stage"),
        "bundle": (quick_start, "try_bundle"),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        for name, (place, attribute) in places.items():
            stack.enter_context(patch.object(place, attribute, watch.of(name, getattr(place, attribute))))
        record, _ = quick_start.execute(config_dict=given)
        watch._turn()
    return {"seconds": watch.seconds, "mib": watch.mib, "metrics": record["metrics"], "rows": record["rows"]}


def report(sizes: Sequence[int], found: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Markdown: a table for each size, then the lines through them."""
    parts = [
        f"BBQRec from file to table, one process of {arguments.threads} threads, {platform.machine()}, "
        f"torch {torch.__version__}, seed {arguments.seed}."
    ]
    for size, one in zip(sizes, found, strict=True):
        total, peak = sum(one["seconds"].values()), max(one["mib"].values())
        rows = [_row(stage, size, one["seconds"][stage], one["mib"][stage]) for stage in STAGES]
        rows.append(_row("whole run", size, total, peak))
        judged = ", ".join(f"{name} {value:.4f}" for name, value in one["metrics"]["valid"]["masked"].items())
        head = f"## {size:,} interactions, {one['users']:,} users, {one['items']:,} items"
        columns = ["stage", "seconds", "interactions a second", "peak MiB", "bytes an interaction"]
        table = tabulate(rows, columns, tablefmt="github", floatfmt=",.0f")
        parts.append(f"{head}\n\n{table}\n\n{one['rows']['valid']:,} validation rows judged (masked): {judged}")
    if len(sizes) > 1:
        columns = [
            "stage",
            *(f"{kind} at {larger / 1e6:,.0f} million" for larger in LARGER for kind in ("hours", "GiB")),
        ]
        table = tabulate(list(_lines(sizes, found)), columns, tablefmt="github", floatfmt=",.1f")
        parts.append(f"## Drawn out by a straight line through {len(sizes)} sizes\n\n{table}")
    return "\n\n".join(parts)


def _row(stage: str, size: int, seconds: float, mib: float) -> list[Any]:
    return [stage, seconds, size / seconds if seconds else None, mib, mib * 2**20 / size]


def _lines(sizes: Sequence[int], found: Sequence[dict[str, Any]]) -> Iterator[list[Any]]:
    for stage in (*STAGES, "whole run"):
        whole = stage == "whole run"
        seconds = [sum(one["seconds"].values()) if whole else one["seconds"][stage] for one in found]
        mib = [max(one["mib"].values()) if whole else one["mib"][stage] for one in found]
        lines = [np.polyfit(sizes, values, 1) for values in (seconds, mib)]
        at = [[max(np.polyval(line, larger), 0.0) for line in lines] for larger in LARGER]
        yield [stage, *(value for hours, gib in at for value in (hours / 3600, gib / 1024))]


if __name__ == "__main__":
    main()
