"""Milliseconds of an optimiser's step with its gradient on tables of many sizes: all rows at once, and those it reads.

A step reads as many rows as one of `BBQRec` on short histories. Both kinds run in turns; medians are told.

    python benchmarks/large_table.py --items 10000 100000 1000000
"""

import argparse
import statistics
import time

import torch
from tabulate import tabulate
from torch import nn

from recbole_bbqrec.training.averaging import AveragedAdamW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--read", type=int, default=3500, help="rows that a step reads (default 3500)")
    parser.add_argument("--width", type=int, default=64, help="numbers a row (default 64)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each kind (default 20)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for n_items in given.items:
        medians = measure(n_items, given)
        rows.append([f"{n_items:,}", *medians, medians[0] / medians[1]])
    header = ["items", "all rows, ms", "by row, ms", "x"]
    print(tabulate(rows, header, tablefmt="github", floatfmt=("", ".2f", ".2f", ".1f")))


def measure(n_items: int, given: argparse.Namespace) -> list[float]:
    """Milliseconds of a step, all rows and by row."""
    tables, optimizers = [nn.Embedding(n_items, given.width, device=given.device) for _ in range(2)], []
    for table, by_row in zip(tables, ([], [tables[1]]), strict=True):
        optimizers.append(AveragedAdamW([table.weight], by_row, lr=1e-3, weight_decay=0.01, fused=True))
    seconds: list[list[float]] = [[], []]
    for _ in range(given.steps + 2):
        read = torch.randperm(n_items, device=given.device)[: given.read]
        for table, optimizer, taken in zip(tables, optimizers, seconds, strict=True):
            began = time.perf_counter()
            optimizer.zero_grad()
            table(read).square().sum().backward()
            optimizer.step()
            if given.device != "cpu":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    return [1000 * statistics.median(taken[2:]) for taken in seconds]


if __name__ == "__main__":
    main()
