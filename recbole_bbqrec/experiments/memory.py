"""How much memory scoring takes, measured in a process of its own: `python -m ... <bundle> <histories.npy> <batch>`."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import torch

from ..serving.bundle import load_bundle

INTERVAL = 0.001
"""Seconds between two looks at the resident memory."""


def peak_growth(work: Callable[[], object]) -> float:
    """Largest growth of this process's resident memory while `work` runs, in MiB.

    Looked at in short intervals rather than read from the system's high-water mark, which loading has raised already.
    """
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(INTERVAL):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return (max(highest, process.memory_info().rss) - before) / 2**20


def batches(histories: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    """Histories [U, T] in batches of at most `size`, as the model takes them."""
    for start in range(0, len(histories), size):
        yield torch.from_numpy(histories[start : start + size])


@torch.no_grad()
def score_all(model: Any, histories: np.ndarray, size: int) -> None:
    """Score all items after each history and drop the scores; what all histories share is computed once."""
    device = next(model.parameters()).device
    with model.cached_rows():
        for batch in batches(histories, size):
            model.score(batch.to(device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(bundle: str, histories: str, size: str, threads: str) -> None:
    """Load a bundle, score, and print the growth in MiB as JSON."""
    torch.set_num_threads(int(threads))
    model, rows = load_bundle(bundle).model, np.load(histories, allow_pickle=False)
    print(json.dumps(peak_growth(lambda: score_all(model, rows, int(size)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
