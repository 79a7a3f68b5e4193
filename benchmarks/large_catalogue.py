"""Seconds and peak memory of the item tokenizer on a large catalogue, part by part: training, codes, unique IDs, file.

Synthetic items with a text and an image vector, of which one in twenty lacks the image, in groups of 50 that lie close
together; users mostly stay in a group of theirs, where the first items are the popular ones. Memory is that of the
whole process, so features and sequences are in it; Linux only.

    python benchmarks/large_catalogue.py                                  # 100 thousand items, one epoch
    python benchmarks/large_catalogue.py --items=5000 --users=5000        # a first try
    python benchmarks/large_catalogue.py --tokenizer=kmeans               # a plain one
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from tabulate import tabulate

from recbole_bbqrec.tokenizer import base, registry

GROUP = 50  # items that lie close together
MEAN_LENGTH = 8  # of a sequence
STAYS = 0.8  # probability that a user's next item is of the user's own group
NO_IMAGE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", choices=list(registry.TOKENIZERS), default="behavior_bind")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--text-width", type=int, default=384)
    parser.add_argument("--image-width", type=int, default=512)
    parser.add_argument("--levels", type=int, help="default: the tokenizer's own")
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=1, help="of behavior_bind; a full training has 6")
    parser.add_argument("--min-steps", type=int, default=300, help="of behavior_bind")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = np.random.default_rng(arguments.seed)
    given = {"codebook_size": arguments.codebook_size, "seed": arguments.seed}
    given |= {"levels": arguments.levels} if arguments.levels else {}
    if arguments.tokenizer == "behavior_bind":
        given |= {"epochs": arguments.epochs, "min_steps": arguments.min_steps}
    print(report(registry.TOKENIZERS[arguments.tokenizer](**given), arguments, generator))


def catalogue(
    n_items: int, widths: dict[str, int], generator: np.random.Generator
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Features and presence by modality."""
    group = np.arange(n_items) // GROUP
    features, present = {}, {}
    for name, width in widths.items():
        centres = generator.standard_normal((group[-1] + 1, width), np.float32)
        features[name] = torch.from_numpy(centres[group] + generator.standard_normal((n_items, width), np.float32))
        present[name] = torch.ones(n_items, dtype=torch.bool)
    present["image"] = torch.from_numpy(generator.random(n_items) >= NO_IMAGE)
    return features, present


def behaviour(n_users: int, n_items: int, generator: np.random.Generator) -> base.Flat:
    """Sequences of at least two items."""
    lengths = 2 + generator.poisson(MEAN_LENGTH - 2, n_users)
    n_groups = -(-n_items // GROUP)
    own = np.repeat(generator.integers(n_groups, size=n_users), lengths)
    group = np.where(generator.random(len(own)) < STAYS, own, generator.integers(n_groups, size=len(own)))
    within = (GROUP * generator.random(len(own)) ** 2).astype(np.int64)
    return np.r_[0, np.cumsum(lengths)], np.minimum(group * GROUP + within, n_items - 1)


def report(tokenizer: base.ItemTokenizer, arguments: argparse.Namespace, generator: np.random.Generator) -> str:
    """Fit, save and load; a table of the parts, and what became of the codes."""
    rows: list[list[str]] = []

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        reset_peak_memory()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        took = time.perf_counter() - wall, time.process_time() - cpu
        rows.append([name, *(f"{seconds:.1f}" for seconds in took), f"{peak_memory():,.0f}"])

    with part("making the data"):
        widths = {"text": arguments.text_width, "image": arguments.image_width}
        features, present = catalogue(arguments.items, widths, generator)
        sequences = behaviour(arguments.users, arguments.items, generator)
    steps = {"training": (tokenizer, "_train"), "codes": (tokenizer, "_bind"), "unique IDs": (base, "resolve_chains")}
    cpu = time.process_time()
    with contextlib.ExitStack() as stack:
        for name, (owner, function) in steps.items():
            stack.enter_context(patch.object(owner, function, part(name)(getattr(owner, function))))
        tokenizer.fit(features, present, sequences, arguments.items)
    rows.append(["fit, all of it", f"{tokenizer.seconds_:.1f}", f"{time.process_time() - cpu:.1f}", ""])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.safetensors"
        with part("save"):
            tokenizer.save(path)
        with part("load"):
            codes = registry.load(path).codes_
        size = path.stat().st_size / 2**20
    table = tabulate(rows, ["part", "seconds", "CPU s", "peak MiB"], tablefmt="github", disable_numparse=True)
    n_unique = len(torch.unique(codes, dim=0))
    return (
        f"{arguments.items:,} items, {len(sequences[1]):,} interactions\n{table}\n"
        f"{tokenizer.collisions_before_}, {tokenizer.n_moved_} items moved, {n_unique} IDs; a file of {size:.0f} MiB"
    )


def reset_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Return the most MiB that this process has held since it was reset."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
