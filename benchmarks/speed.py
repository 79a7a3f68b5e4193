"""How fast models train an epoch and rank all users: ours, RecBole's SASRec as RecBole runs it, and RecTools' SASRec.

All have one width, two layers, two heads and batches of about as many targets. RecBole's scores all items in its loss,
and so does `SASRecPlus, all items`; the others draw negatives. They run in turns in one process, each for a few batches
and users, and seconds are scaled to the whole: compare the ratios of medians; the seconds belong to the machine.

    python benchmarks/speed.py --data_path=/data/recsys --dataset=Sports
    python benchmarks/speed.py                 # synthetic histories, as short as those of Sports

RecTools, which asks for packages of its own, runs by the Python of another environment, named by `--rectools_python`;
its batches are what more of them add to one, its ranking one call of `recommend` for all users.
"""

import argparse
import importlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.utils import get_dataloader
from recbole.trainer import Trainer
from tabulate import tabulate
from tqdm import tqdm

from recbole_bbqrec import compat, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.training.allocation import keep_freed_memory

STOCK = "RecBole's SASRec"
OURS = {
    "SASRecPlus": {"model": "SASRecPlus"},
    "SASRecPlus, all items": {"model": "SASRecPlus", "n_negatives": 0},
    "BBQRec": {"model": "BBQRecWithoutCandidates", "codes": "random"},  # codes of any kind take as long
}
GROUPED = "RecBole's SASRec on length groups"


class Measured(NamedTuple):
    """A system: what trains `n` of its batches and what ranks `n` users, and how many there are of each."""

    train: Callable[[int], Any]
    rank: Callable[[int], Any]
    n_batches: int
    n_users: int


def main() -> None:
    given = parse_arguments()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as run_recbole_bbqrec.py does
    with tempfile.TemporaryDirectory() as folder:
        if given.data_path is None:
            write_synthetic(Path(folder) / given.dataset, given.dataset, given.seed)
            given.data_path = folder
        systems: dict[str, Measured] = {STOCK: stock(given, folder), GROUPED: ours(given, folder, {"model": "SASRec"})}
        systems |= {name: ours(given, folder, changes) for name, changes in OURS.items()}
        seconds = measure(systems, given)
        if given.rectools_python:
            seconds["RecTools' SASRec"] = rectools(given, Path(folder))
    print(report(seconds, given))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="Sports")
    parser.add_argument("--data_path", help="folder of the data set's folder; without it, histories are synthetic")
    parser.add_argument("--batches", type=int, default=8, help="training batches a turn (default 8)")
    parser.add_argument("--users", type=int, default=2048, help="users ranked a turn (default 2048)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each system (default 3)")
    parser.add_argument("--batch_size", type=int, default=1024, help="targets a batch (default 1024)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--rectools_python", help="python of an environment with rectools[torch]; else left out")
    return parser.parse_args()


def write_synthetic(folder: Path, name: str, seed: int, n_users: int = 12_000, n_items: int = 18_357) -> None:
    """Write histories whose prefixes are about as long as those of Amazon Sports: mean 6, median 3, a long tail."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(1.0, 1.0, n_users).astype(int) + 4, 5, 300)
    items = (n_items * generator.random(lengths.sum()) ** 2).astype(int)  # popular items more often
    folder.mkdir(parents=True)
    with open(folder / f"{name}.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        times = np.concatenate([np.arange(length) for length in lengths])
        for user, item, moment in zip(np.repeat(np.arange(n_users), lengths), items, times, strict=True):
            file.write(f"u{user}\ti{item}\t{moment}\n")


def built(given: argparse.Namespace, folder: str, changes: dict[str, Any]) -> tuple[Config, tuple[Any, ...], Any]:
    """Settings, loaders and untrained model of one system."""
    settings = {"dataset": given.dataset, "data_path": given.data_path, "seed": given.seed, "checkpoint_dir": folder}
    settings |= {"state": "ERROR", "show_progress": False, "train_batch_size": given.batch_size}
    if changes["model"] == "SASRec":
        settings |= {"hidden_size": 64, "inner_size": 256, "n_layers": 2, "n_heads": 2}
    config = Config(config_dict={**settings, **changes})
    compat.init_seed(config)
    loaders = split_loaders(config, registry.get_dataset(config["model"])(config))
    return config, loaders, registry.build_model(config, loaders[0]._dataset).to(config["device"])


def ours(given: argparse.Namespace, folder: str, changes: dict[str, Any]) -> Measured:
    """A model as a run of this project trains and ranks it."""
    config, (train, valid, _), model = built(given, folder, changes)
    trainer = registry.get_trainer(config)(config, model)
    batches = trainer._training_batches(train)
    trainer.eval_collector.data_collect(train)

    def rank(n: int) -> None:
        trainer.rank(valid, [train._dataset], rows=np.arange(n))

    n_users = len(valid._dataset.inter_feat)
    return Measured(lambda n: trainer._take_steps(First(batches, n), 0, None, False), rank, len(batches), n_users)


def stock(given: argparse.Namespace, folder: str) -> Measured:
    """RecBole's SASRec, trainer and evaluator, without anything of this project about them."""
    config, (train, valid, _), model = built(given, folder, {"model": "SASRec", "length_groups": False})
    trainer = Trainer(config, model)
    trainer.eval_collector.data_collect(train)
    # A model of RecBole turns this on for the whole process when RecBole looks through its models for a name.
    anomaly = "recbole.model.sequential_recommender.sine" in sys.modules

    def epoch(n: int) -> None:
        with torch.autograd.set_detect_anomaly(anomaly):
            trainer._train_epoch(First(train, n), 0)

    def rank(n: int) -> None:
        part = valid._dataset.copy(valid._dataset.inter_feat[:n])
        loader: Any = get_dataloader(config, "valid")(config, part, valid.sampler, shuffle=False)
        trainer.evaluate(loader, load_best_model=False)

    return Measured(epoch, rank, len(train), len(valid._dataset.inter_feat))


class First:
    """The first `n` batches of a loader, drawn anew each time."""

    def __init__(self, batches: Any, n: int) -> None:
        self.batches, self.n = batches, min(n, len(batches))
        self.shuffle, self.generator = False, batches.generator

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Any:
        return itertools.islice(iter(self.batches), self.n)


def measure(systems: dict[str, Measured], given: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Seconds of an epoch and of a ranking by system and round; a turn of each before them is not counted."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in systems}
    for each in systems.values():
        each.train(1)
        each.rank(64)
    turns = [name for round_ in range(given.rounds) for name in list(systems)[:: 1 - 2 * (round_ % 2)]]
    for name in tqdm(turns, desc="Turns", ncols=100, file=sys.stderr):
        each, taken = systems[name], []
        for work, n, whole in ((each.train, given.batches, each.n_batches), (each.rank, given.users, each.n_users)):
            began = time.perf_counter()
            work(min(n, whole))
            taken.append((time.perf_counter() - began) * whole / min(n, whole))
        seconds[name].append(taken)
    return seconds


RECTOOLS = """
import json, math, sys, time
import pandas as pd, torch
from pytorch_lightning import Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
path, threads, sessions, batches, rounds = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
rows = pd.read_csv(path, sep="\\t")
rows.columns = ["user_id", "item_id", "datetime"]
rows["datetime"] = pd.to_datetime(rows["datetime"], unit="s")
last = rows.sort_values("datetime", kind="stable").groupby("user_id").cumcount(ascending=False)
rows = rows[last > 1].assign(weight=1.0)
dataset = Dataset.construct(rows)
def fitted(batches):
    trainer = lambda: Trainer(max_epochs=1, limit_train_batches=batches, deterministic=True, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, accelerator="cpu", devices=1)
    model = SASRecModel(n_factors=64, n_blocks=2, n_heads=2, session_max_len=50, batch_size=sessions, epochs=1,
        loss="softmax", lr=0.001, dataloader_num_workers=0, item_net_block_types=(IdEmbeddingsItemNet,), verbose=0,
        get_trainer_func=trainer)
    began = time.perf_counter()
    model.fit(dataset)
    return model, time.perf_counter() - began
users, found = rows["user_id"].unique(), []
for _ in range(rounds):
    _, few = fitted(1)
    model, more = fitted(1 + batches)
    began = time.perf_counter()
    model.recommend(users=users, dataset=dataset, k=20, filter_viewed=True)
    found.append([(more - few) / batches * math.ceil(len(users) / sessions), time.perf_counter() - began])
print(json.dumps(found))
"""


def rectools(given: argparse.Namespace, folder: Path) -> list[list[float]]:
    """Seconds of an epoch and of a ranking by round, by another environment's Python."""
    interactions = Path(given.data_path) / given.dataset / f"{given.dataset}.inter"
    table = importlib.import_module("pandas").read_csv(interactions, sep="\t")
    names = [column for key in ("user_id", "item_id", "timestamp") for column in table if column.startswith(f"{key}:")]
    table[names].to_csv(folder / "rows.tsv", sep="\t", index=False)
    n_targets = len(table) - 3 * table[names[0]].nunique()  # two are held out, and the first is none
    sessions = max(1, round(given.batch_size * table[names[0]].nunique() / max(n_targets, 1)))
    numbers = [str(each) for each in (given.threads, sessions, given.batches, given.rounds)]
    command = [given.rectools_python, "-c", RECTOOLS, str(folder / "rows.tsv"), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{given.rectools_python}: {done.stderr.strip()[-300:]}; give a Python with rectools[torch]")
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(seconds: dict[str, list[list[float]]], given: argparse.Namespace) -> str:
    medians = {name: [statistics.median(part) for part in zip(*taken, strict=True)] for name, taken in seconds.items()}
    rows = [
        [name, *(cell for found, first in zip(each, medians[STOCK], strict=True) for cell in (found, first / found))]
        for name, each in medians.items()
    ]
    header = ["system", "s/epoch", "x RecBole", "s/ranking", "x RecBole"]
    table = tabulate(rows, header, tablefmt="github", floatfmt=(".1f", ".2f", ".1f", ".2f", ".1f"))
    left_out = "" if given.rectools_python else "; RecTools left out, no --rectools_python was given"
    note = f"{given.dataset}, medians of {given.rounds}, {given.threads} threads, torch {torch.__version__}{left_out}"
    return f"{table}\n\n{note}"


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
