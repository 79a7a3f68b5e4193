"""How fast one of RecBole's own models trains: as RecBole runs it, without anomaly mode, and on length groups.

All variants see the same batches from the same start, in turns and in alternating order, so that a machine that gets
slower meanwhile slows all of them. Compare the ratios; the seconds belong to the machine.

    python benchmarks/stock_epoch.py --data_path=/data/recsys --dataset=Sports --batches=8
    python benchmarks/stock_epoch.py --batches=8      # synthetic histories, as short as those of Sports

`run_recbole_bbqrec.py` also keeps freed memory in the process. That cannot be undone in it, so it is a flag here:
compare seconds of commands with and without `--keep_freed_memory`, run in turns.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.padding import LENGTH_INDEPENDENT, group_by_length
from recbole_bbqrec.training.allocation import keep_freed_memory

VARIANTS = {
    "stock (anomaly mode on)": {"anomaly": True, "grouped": False},
    "anomaly mode off": {"anomaly": False, "grouped": False},
    "length groups": {"anomaly": False, "grouped": True},
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.keep_freed_memory:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data_path is None:
            write_synthetic(Path(folder) / arguments.dataset, arguments.dataset, arguments.seed)
        config, train = load(arguments, folder)
        batches = first_batches(train, arguments.batches, config["device"])
        torch.manual_seed(arguments.seed)
        start = registry.get_model(arguments.model)(config, train._dataset).to(config["device"])
    seconds, losses = measure(start, batches, arguments)
    print(report(seconds, losses, batches, len(train)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SASRec", choices=sorted(LENGTH_INDEPENDENT))
    parser.add_argument("--dataset", default="Sports")
    parser.add_argument("--data_path", help="folder of the data set's folder; without it, histories are synthetic")
    parser.add_argument("--batches", type=int, default=8, help="training batches a round (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; a ratio is one of medians (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--keep_freed_memory", action="store_true", help="as run_recbole_bbqrec.py does")
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


def load(arguments: argparse.Namespace, folder: str) -> tuple[Any, Any]:
    settings = {"model": arguments.model, "dataset": arguments.dataset, "seed": arguments.seed}
    settings |= {"data_path": arguments.data_path or folder, "checkpoint_dir": folder, "state": "ERROR"}
    config = Config(config_dict=settings)
    return config, split_loaders(config, registry.get_dataset(arguments.model)(config))[0]


def first_batches(train: Any, count: int, device: Any) -> list[Any]:
    train.generator.manual_seed(0)
    return [batch.to(device) for batch, _ in zip(train, range(count), strict=False)]


def measure(
    start: torch.nn.Module, batches: list[Any], arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and mean losses of every round, by variant; a round before the first warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    losses: dict[str, list[float]] = {name: [] for name in VARIANTS}
    turns = [(round_, name) for round_ in range(arguments.rounds) for name in list(VARIANTS)[:: 1 - 2 * (round_ % 2)]]
    for name in VARIANTS:
        epoch(start, batches[:1], arguments.seed, **VARIANTS[name])
    for round_, name in tqdm(turns, desc="Turns", ncols=100, file=sys.stderr):
        took, loss = epoch(start, batches, arguments.seed + round_, **VARIANTS[name])
        seconds[name].append(took)
        losses[name].append(loss)
    return seconds, losses


def epoch(start: torch.nn.Module, batches: list[Any], seed: int, anomaly: bool, grouped: bool) -> tuple[float, float]:
    """Train a copy of `start` on the batches as RecBole's trainer does; return seconds and mean loss."""
    model = copy.deepcopy(start).train()
    if grouped:
        group_by_length(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.manual_seed(seed)
    total = 0.0
    with torch.autograd.set_detect_anomaly(anomaly):
        began = time.perf_counter()
        for batch in batches:
            optimizer.zero_grad()
            loss: torch.Tensor = model.calculate_loss(batch)  # pyright: ignore[reportCallIssue]
            total += loss.item()
            loss.backward()
            optimizer.step()
        return time.perf_counter() - began, total / len(batches)


def report(seconds: dict[str, list[float]], losses: dict[str, list[float]], batches: list[Any], n_batches: int) -> str:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    stock = medians[next(iter(VARIANTS))]
    rows = [
        [
            name,
            f"{median / len(batches):.3f}",
            f"{min(seconds[name]) / len(batches):.3f} - {max(seconds[name]) / len(batches):.3f}",
            f"{median / len(batches) * n_batches:.0f}",
            f"{stock / median:.2f}",
            f"{statistics.mean(losses[name]):.4f}",
        ]
        for name, median in medians.items()
    ]
    header = ["variant", "s/batch", "range", "s/epoch (scaled)", "x stock", "mean loss"]
    lengths = torch.cat([batch["item_length"] for batch in batches]).float()
    width = batches[0]["item_id_list"].size(1)
    note = (
        f"{len(batches)} of {n_batches} batches of {len(batches[0])} histories, mean length {lengths.mean():.1f}, "
        f"median {lengths.median():.0f}, {100 * (1 - lengths.mean() / width):.0f} % of {width} columns padding; "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    return f"{tabulate(rows, header, tablefmt='github', disable_numparse=True)}\n\n{note}"


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
