"""Exact search against a faiss index: CPU time a history and to build it, the share of exact lists it finds.

Synthetic catalogues: random models with item vectors in groups of 50 that lie close together. What an index finds
depends on how vectors lie; --bundle measures it on one of yours.

    python benchmarks/index.py                                  # 10 thousand, 100 thousand and 1 million items
    python benchmarks/index.py --items=10000 --model=SASRecPlus
    python benchmarks/index.py --bundle=saved/SASRecPlus-Sports-2020-...
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from recbole_bbqrec import load_bundle, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.model.catalogue import Catalogue
from recbole_bbqrec.serving.bundle import Bundle
from recbole_bbqrec.serving.dot_product import dot_product
from recbole_bbqrec.serving.folder import WEIGHTS
from recbole_bbqrec.serving.saving import write_bundle
from recbole_bbqrec.serving.stand_in import StandIn
from recbole_bbqrec.training import checkpoint

GROUP = 50  # items that lie close together
SPREAD = 0.7  # of the items of a group, where the centres of groups are 1
LENGTH = 10  # items of a history
PER_CALL = 64  # histories of one call, for the second pair of columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", default="10000,100000,1000000", help="sizes of catalogues, separated by commas")
    parser.add_argument("--model", default="SASRecPlus")
    parser.add_argument("--bundle", type=Path, help="measure this bundle instead")
    parser.add_argument("--calls", type=int, default=30, help="calls that are timed, of one history each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=2020)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in [0] if given.bundle else map(int, given.items.split(",")):
            made = given.bundle or synthetic(Path(folder) / str(size), size, given.model, given.seed)
            rows.append(measure(load_bundle(made), given))
    together = f"exact ms, {PER_CALL} a call"
    header = ["items", "width", "exact ms", "faiss ms", together, "faiss ms", "build s", "found of the first 10"]
    print(tabulate(rows, header, tablefmt="github", disable_numparse=True))


def synthetic(folder: Path, n_items: int, model: str, seed: int) -> Path:
    """Write the bundle of a random model that knows items `1` to `n_items` by their IDs; return its folder."""
    changes = {"attach_item_features": False, "attach_semantic_ids": False, "seed": seed}
    config = Config(model, "ml-100k", config_dict=changes)
    catalogue = Catalogue(["[PAD]", *map(str, range(1, n_items + 1))])
    torch.manual_seed(seed)
    net: Any = registry.build_model(config, StandIn(config, catalogue, folder / "none"))
    table = net.item_table.id_embedding.weight
    with torch.no_grad():
        centres = torch.randn(n_items // GROUP + 1, table.shape[1])
        table[1:] = centres[torch.randperm(n_items) // GROUP] + SPREAD * torch.randn(n_items, table.shape[1])
    checkpoint.save_weights(folder / WEIGHTS, net, {})
    write_bundle(folder, config, SimpleNamespace(catalogue=catalogue, feature_files={}))
    return folder


def measure(bundle: Bundle, given: argparse.Namespace) -> list[str]:
    """One row of the table."""
    generator, tokens = np.random.default_rng(given.seed), bundle.item_tokens
    histories = [
        [tokens[item] for item in generator.integers(1, len(tokens), LENGTH)] for _ in range(given.calls + PER_CALL)
    ]
    alone, together = histories[: given.calls], histories[given.calls :]
    exact = timed(bundle, alone, together)
    started = time.process_time()
    bundle.use_index()
    build = time.process_time() - started
    found = timed(bundle, alone, together)
    share = np.mean([len({*a} & {*b}) / len(a) for a, b in zip(exact[2], found[2], strict=True)])
    times = [f"{1000 * times[place]:.2f}" for place in (0, 1) for times in (exact, found)]
    width = str(dot_product(bundle.ranker, "benchmark").items.shape[1])
    return [f"{len(tokens) - 1:,}", width, *times, f"{build:.1f}", f"{share:.3f}"]


def timed(bundle: Bundle, alone: list[list[str]], together: list[list[str]]) -> tuple[float, float, list[list[str]]]:
    """Median seconds of a history that comes alone, seconds a history of many in one call, and all lists."""
    bundle.recommend(alone[:1])
    lists, seconds = [], []
    for history in alone:
        started = time.process_time()
        lists += bundle.recommend([history])
        seconds.append(time.process_time() - started)
    started = time.process_time()
    lists += bundle.recommend(together)
    each = (time.process_time() - started) / len(together)
    return float(np.median(seconds)), each, [found.items for found in lists]


if __name__ == "__main__":
    main()
