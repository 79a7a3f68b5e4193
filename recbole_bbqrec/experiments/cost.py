"""What scoring costs: time per user and peak memory of every way of scoring, with and without the additional code.

Weights are untrained: the work does not depend on their values.
"""

import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

from .. import compat, registry
from ..config import Config, refuse_unused
from ..data.dataloader import split_loaders
from ..errors import InputError
from ..evaluation import report
from ..second_stage import socket
from ..serving.bundle import load_bundle
from ..serving.folder import WEIGHTS
from ..serving.saving import write_bundle
from ..settings import MAY_BE_UNUSED, plain_settings, second_stage_settings
from ..training import checkpoint
from . import records, tables
from .runner import QUIET, check_judged, given_and_files

PLAIN = {"similarity_attention": "off", "use_code_embedding": False, "second_stage": "off"}
"""Settings without the additional code: what is left of it is what the scoring itself needs."""

CODES = {"with": {"second_stage": "linear"}, "without": PLAIN}
"""Trees are fitted before they can be timed; benchmarks/second_stage.py does that."""

VARIANTS = [(scoring, code) for scoring in ("dense", "codes", "joint", "generate") for code in CODES]
"""Ways of scoring, each `with` and `without` the additional code."""


def cost(
    dataset: str, n_users: int = 1000, rounds: int = 5, arguments: Sequence[str] = (), results: Path = Path("results")
) -> dict[str, Any]:
    """Measure all variants, write table, JSON and figure, print the table and return what was measured.

    Parameters
    ----------
    n_users : validation histories that are scored, drawn by the seed; all where there are fewer.
    rounds : times each variant is timed; figures are medians.
    arguments : `--key=value` settings of all variants.
    """
    for name, value in (("users", n_users), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"--{name}: found {value}, expected at least 1")
    given, files = given_and_files(arguments, "the measurement")
    given = {**QUIET, **given, "model": "BBQRec", "dataset": dataset, MAY_BE_UNUSED: True}
    changes = [{}, *({"scoring": scoring, **CODES[code]} for scoring, code in VARIANTS)]
    config, *configs = [Config(arguments=files, config_dict={**given, **one}) for one in changes]  # all checked first
    refuse_unused([one.unused for one in configs])
    check_judged(config)
    compat.init_seed(config)
    data = registry.get_dataset(config["model"])(config)
    train, valid, _ = split_loaders(config, data)
    models = [_model(one, train._dataset) for one in configs]
    # The longest last, as they are ranked in evaluation; [U, T].
    histories = valid._dataset.lists().numpy()
    histories = histories[np.random.default_rng(config["seed"]).permutation(len(histories))[:n_users]]
    histories = histories[np.argsort((histories != 0).sum(1), kind="stable")]
    batch = config["eval_batch_size"]
    seconds = _time(models, histories, batch, rounds)
    measured = {
        "dataset": dataset,
        "users": len(histories),
        "mean_length": float((histories != 0).sum(1).mean()),
        "items": data.item_num - 1,
        "batch": batch,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": report.versions(),
        "settings": records.comparable_settings(config),
        "variants": [],
    }
    for at, (scoring, code) in enumerate(tqdm(VARIANTS, "Memory", ncols=100)):
        found = {"scoring": scoring, "code": code, "seconds_per_user": seconds[at]}
        found["peak_growth_mib"] = _memory(configs[at], models[at], data, histories, batch)
        measured["variants"].append({**found, "model_mib": _size(models[at])})
    page = markdown(measured)
    tables.write(results, f"inference-cost-{dataset}", measured, {"png": figure(measured), "md": page})
    print(page)
    return measured


def _model(config: Config, dataset: Any) -> Any:
    """Build a model as a run does, its second stage included, without fitting anything."""
    model = registry.build_model(config, dataset).to(config["device"])
    if second_stage_settings(config):
        socket.attach(model, socket.build(config, dataset))
    return model.eval()


@torch.no_grad()
def score_all(model: Any, histories: np.ndarray, batch: int) -> None:
    """Score all items after each history [U, T] and drop the scores; what all histories share is computed once."""
    device = next(model.parameters()).device
    shared = model.shared()
    for rows in torch.from_numpy(histories).split(batch):
        model.score(rows.to(device), shared=shared)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(models: Sequence[Any], histories: np.ndarray, batch: int, rounds: int) -> list[list[float]]:
    """Seconds per user of each model and round, in alternating order: what slows the machine slows all of them."""
    for model in models:  # whose first batch takes its time
        score_all(model, histories[-batch:], batch)
    seconds: list[list[float]] = [[] for _ in models]
    order = [*range(len(models))]
    turns = [index for turn in range(rounds) for index in (reversed(order) if turn % 2 else order)]
    for index in tqdm(turns, "Time", ncols=100):
        started = time.perf_counter()
        score_all(models[index], histories, batch)
        seconds[index].append((time.perf_counter() - started) / len(histories))
    return seconds


def _memory(config: Config, model: Any, dataset: Any, histories: np.ndarray, batch: int) -> float:
    """Peak growth in MiB while a process that has just loaded the model as a bundle scores the histories."""
    threads = torch.get_num_threads()
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,)) as other,
    ):
        header = {"model": config["model"], "settings": plain_settings(config)}
        checkpoint.save_weights(Path(folder, WEIGHTS), model, header)
        write_bundle(Path(folder), config, dataset)
        return other.submit(_growth_of, folder, histories, batch).result()


def _growth_of(bundle: str, histories: np.ndarray, batch: int) -> float:
    model = load_bundle(bundle).model
    return peak_growth(lambda: score_all(model, histories, batch))


def peak_growth(work: Callable[[], object]) -> float:
    """Largest growth in MiB of this process's resident memory while `work` runs.

    Looked at in short intervals rather than read from the system's high-water mark, which loading has raised already.
    """
    process, done = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.001):  # seconds
            seen.append(process.memory_info().rss)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(watch)
        try:
            work()
        finally:
            done.set()
    return (max(*seen, process.memory_info().rss) - seen[0]) / 2**20


def _size(model: Any) -> float:
    """MiB of weights, tables and lists of neighbours."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def markdown(measured: Mapping[str, Any]) -> str:
    """Return the page of a measurement."""
    entries = [{**entry, **_milliseconds(entry)} for entry in measured["variants"]]
    plain = ", ".join(f"{key}: {value}" for key, value in PLAIN.items())
    return tables.page(
        "cost.md.jinja", **measured, pairs=[entries[at : at + 2] for at in range(0, len(entries), 2)], plain=plain
    )


def _milliseconds(entry: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds per user: median, least and most of the rounds."""
    values = [1000 * value for value in entry["seconds_per_user"]]
    return {"mean": statistics.median(values), "low": min(values), "high": max(values)}


def figure(measured: Mapping[str, Any]) -> bytes:
    """Draw time per user and peak memory of all variants; returns a PNG."""
    entries = {f"{entry['scoring']}, {entry['code']}": entry for entry in measured["variants"]}
    times = {label: _milliseconds(entry) for label, entry in entries.items()}
    sizes = {label: dict.fromkeys(("mean", "low", "high"), of["peak_growth_mib"]) for label, of in entries.items()}
    title = f"Inference cost of BBQRec on {measured['dataset']}, with and without the additional code"
    return report.bar_figure(title, {"ms per user": times, "peak memory, MiB": sizes})
