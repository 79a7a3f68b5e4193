"""What scoring costs: time per user and peak memory of every way of scoring, with and without the additional code.

Weights are untrained: the work does not depend on their values.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.utils import init_seed
from tqdm import tqdm

import recbole_bbqrec

from .. import registry, storage
from ..config import Config
from ..data.dataloader import split_loaders
from ..errors import InputError
from ..evaluation import report
from ..model.candidates import CANDIDATES, build_candidates
from ..serving.bundle import WEIGHTS, write_bundle
from ..settings import plain_settings
from ..training import checkpoint
from . import memory, records
from .runner import QUIET, given_and_files

SCORINGS = ("dense", "codes", "joint", "generate")

PLAIN = {"similarity_attention": "off", "use_code_embedding": False, "candidate_similarity": []}
"""Settings without the additional code: what is left of it is what the scoring itself needs."""

CODES = {"with": {}, "without": PLAIN}


class Variant(NamedTuple):
    """One way of scoring, `with` or `without` the additional code, and the settings that make it."""

    scoring: str
    code: str
    changes: dict[str, Any]


VARIANTS = tuple(Variant(way, code, {"scoring": way, **CODES[code]}) for way in SCORINGS for code in CODES)


class Prepared(NamedTuple):
    """A model ready to score, with the settings it was built from."""

    config: Config
    model: Any


def cost(
    dataset: str,
    n_users: int = 1000,
    rounds: int = 5,
    arguments: Sequence[str] = (),
    results: Path = Path("results"),
    variants: Sequence[Variant] = VARIANTS,
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
    given = {**QUIET, **given, "model": "BBQRec", "dataset": dataset}
    all_given = [given, *({**given, **variant.changes} for variant in variants)]
    config, *configs = [Config(arguments=files, config_dict=one) for one in all_given]  # all checked before any work
    init_seed(config["seed"], config["reproducibility"])
    data = registry.get_dataset(config["model"])(config)
    train, valid, _ = split_loaders(config, data)
    prepared = [_prepared(one, train._dataset) for one in configs]
    histories = _histories(valid._dataset, n_users, config["seed"])
    seconds = _time([one.model for one in prepared], histories, config["eval_batch_size"], rounds)
    growth = [_memory(one, data, histories, config["eval_batch_size"]) for one in tqdm(prepared, "Memory", ncols=100)]
    measured = {
        "dataset": dataset,
        "users": len(histories),
        "mean_length": float((histories != 0).sum(1).mean()),
        "items": data.item_num - 1,
        "batch": config["eval_batch_size"],
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": report.versions(),
        "settings": records.comparable_settings(config),
        "variants": [
            _described(variant, one.model, times, mib)
            for variant, one, times, mib in zip(variants, prepared, seconds, growth, strict=True)
        ],
    }
    write(measured, results)
    print(markdown(measured))
    return measured


def _prepared(config: Config, dataset: Any) -> Prepared:
    """Build a model as a run does, candidate similarity included, without fitting anything."""
    model = registry.build_model(config, dataset).to(config["device"])
    candidates = build_candidates(config, dataset)
    model.candidates = candidates.to(config["device"]) if candidates is not None else None
    return Prepared(config, model.eval())


def _histories(dataset: Any, n_users: int, seed: int) -> np.ndarray:
    """Histories [U, T] of users drawn from a split, longest last, as they are ranked in evaluation."""
    rows = dataset.inter_feat[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
    chosen = np.random.default_rng(seed).permutation(len(rows))[:n_users]
    rows = rows[chosen]
    return rows[np.argsort((rows != 0).sum(1), kind="stable")]


def _time(models: Sequence[Any], histories: np.ndarray, batch: int, rounds: int) -> list[list[float]]:
    """Seconds per user of each model and round: side by side, in alternating order, after a first batch each.

    What slows the machine meanwhile slows all of them.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for model in models:
        memory.score_all(model, histories[-batch:], batch)
    turns = [(index, turn) for turn in range(rounds) for index in range(len(models))[:: 1 - 2 * (turn % 2)]]
    for index, _ in tqdm(turns, "Time", ncols=100):
        started = time.perf_counter()
        memory.score_all(models[index], histories, batch)
        seconds[index].append((time.perf_counter() - started) / len(histories))
    return seconds


def _memory(one: Prepared, dataset: Any, histories: np.ndarray, batch: int) -> float:
    """Peak growth in MiB while a process that has just loaded the model as a bundle scores the histories."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        header = {"model": one.config["model"], "settings": plain_settings(one.config)}
        checkpoint.save_weights(folder / WEIGHTS, one.model, header)
        if one.model.candidates is not None:
            one.model.candidates.save(folder / CANDIDATES)
        write_bundle(folder, one.config, dataset)
        np.save(folder / "histories.npy", histories, allow_pickle=False)
        given = [name, str(folder / "histories.npy"), str(batch), str(torch.get_num_threads())]
        done = subprocess.run(
            [sys.executable, "-m", memory.__name__, *given], capture_output=True, text=True, env=_environment()
        )
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _environment() -> dict[str, str]:
    """Environment in which another Python finds this very package."""
    here = str(Path(str(recbole_bbqrec.__file__)).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}


def _described(variant: Variant, model: Any, seconds: list[float], mib: float) -> dict[str, Any]:
    lists = [] if model.candidates is None else model.candidates.signals.values()
    tensors = [*model.parameters(), *model.buffers(), *(part for signal in lists for part in signal[:3])]
    return {
        "scoring": variant.scoring,
        "code": variant.code,
        "seconds_per_user": seconds,
        "peak_growth_mib": mib,
        "model_mib": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20,
    }


def write(measured: Mapping[str, Any], results: Path) -> None:
    """Write `inference-cost-<Dataset>` as Markdown, JSON and figure."""
    stem = results / f"inference-cost-{measured['dataset']}"
    report.write_file(stem.with_suffix(".png"), figure(measured))
    report.write_file(stem.with_suffix(".md"), markdown(measured))
    storage.write_json(stem.with_suffix(".json"), measured)


def markdown(measured: Mapping[str, Any]) -> str:
    """Return the page of a measurement."""
    header = ["scoring", "ms/user with", "ms/user without", "ratio", *("peak MiB with", "peak MiB without")]
    header += ["model MiB with", "model MiB without"]
    by_scoring: dict[str, dict[str, Any]] = {}
    for entry in measured["variants"]:
        by_scoring.setdefault(entry["scoring"], {})[entry["code"]] = entry
    table = report.markdown_table(header, [_cells(name, pair) for name, pair in by_scoring.items()])
    plain = ", ".join(f"{key}: {value}" for key, value in PLAIN.items())
    torch_version, threads = measured["versions"].get("torch"), measured["threads"]
    parts = [
        f"# Inference cost of BBQRec on {measured['dataset']}",
        f"{measured['users']} histories (mean length {measured['mean_length']:.1f}) against all {measured['items']} "
        f"items, in batches of {measured['batch']}; {threads} thread{'s' * (threads > 1)}, torch {torch_version}, "
        f"{measured['machine']}.",
        table,
        f"*with* and *without* the additional code; without: `{plain}`.",
        f"ms/user: median [least, most] of {measured['rounds']} rounds, all variants side by side in one process, in "
        "alternating order; what all histories share, as the rows of the items, is computed once a round; ratio: with "
        "over without. peak: largest growth of resident memory while scoring, each variant in a process of its own "
        "that holds the loaded model and nothing else. model: weights, tables and lists of neighbours. Weights are "
        "untrained: the cost does not depend on their values. Compare ratios; the milliseconds belong to the machine.",
        f"![Time and memory of each way of scoring](inference-cost-{measured['dataset']}.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _cells(name: str, pair: Mapping[str, Mapping[str, Any]]) -> list[str]:
    milliseconds = {code: [1000 * value for value in entry["seconds_per_user"]] for code, entry in pair.items()}
    medians = {code: statistics.median(values) for code, values in milliseconds.items()}
    times = [f"{medians[code]:.3f} [{min(values):.3f}, {max(values):.3f}]" for code, values in milliseconds.items()]
    sizes = [f"{pair[code][key]:.0f}" for key in ("peak_growth_mib", "model_mib") for code in CODES]
    return [name, *times, f"{medians['with'] / medians['without']:.2f}", *sizes]


def figure(measured: Mapping[str, Any]) -> bytes:
    """Draw time per user and peak memory of all variants; returns a PNG."""
    times, sizes = {}, {}
    for entry in measured["variants"]:
        label = f"{entry['scoring']}, {entry['code']}"
        values = [1000 * value for value in entry["seconds_per_user"]]
        times[label] = report.Bar(statistics.median(values), min(values), max(values))
        sizes[label] = report.Bar(*[entry["peak_growth_mib"]] * 3)
    title = f"Inference cost of BBQRec on {measured['dataset']}, with and without the additional code"
    return report.bar_figure(title, {"ms per user": times, "peak memory, MiB": sizes})
