"""The recipe of a run, read top to bottom: settings, data, features and codes, model, training, judgement."""

import json
import sys
import time
import traceback
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import recbole
from recbole.utils import init_logger, init_seed

from . import checkpoint, registry, report, storage
from .config import Config
from .data.dataloader import split_loaders
from .errors import InputError
from .inference import load_bundle, write_bundle
from .settings import plain_settings, settings_to_load


def main(arguments: Sequence[str]) -> int:
    """Run one command line; return the exit code: 0, or 2 where the user has something to mend."""
    try:
        run(arguments)
    except (InputError, ValueError, KeyError, NotImplementedError) as error:
        if not (isinstance(error, InputError) or _raised_by_recbole(error)):
            raise
        if any(argument.startswith("--debug") for argument in arguments):
            traceback.print_exc()
        text = " ".join(str(error).split())
        if not isinstance(error, InputError):
            text = f"RecBole refuses these settings ({type(error).__name__}: {text}); --debug shows where"
        print(f"error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after the last finished epoch", file=sys.stderr)
        return 130
    return 0


def _raised_by_recbole(error: Exception) -> bool:
    """Whether RecBole's own code raised the error: its way of refusing settings it only reads while it builds."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).is_relative_to(Path(str(recbole.__file__)).parent)


def run(arguments: Sequence[str] = (), config_dict: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train and judge one model on one data set, print its table and return its record.

    Parameters
    ----------
    arguments : `--key=value` strings, as on the command line.
    config_dict : settings from Python; the command line wins over them.

    Returns
    -------
    The record: model, dataset, seed, metrics by split and column, users, epochs, seconds, peak memory (MiB), number of
    parameters, settings, versions, and the folder of the run.

    Raises
    ------
    InputError : settings, data or files are not as they should be.
    """
    config = Config(arguments=arguments, config_dict=config_dict)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    logger = getLogger()
    logger.info(config)

    dataset = registry.get_dataset(config["model"])(config)
    logger.info(dataset)
    train, valid, test = split_loaders(config, dataset)

    init_seed(config["seed"], config["reproducibility"])  # the model's start does not depend on what data took
    model = registry.get_model(config["model"])(config, train._dataset).to(config["device"])
    logger.info(model)

    trainer = registry.get_trainer(config)(config, model)
    trainer.fit(train, valid, show_progress=config["show_progress"])
    trainer.load_best()

    started = time.perf_counter()
    earlier, shown = [train._dataset, valid._dataset], config["show_progress"]
    ranks = {"valid": trainer.rank(valid, earlier[:1], shown)}
    if config["final"]:
        ranks["test"] = trainer.rank(test, earlier, shown)
    logger.info(f"judged in {time.perf_counter() - started:.1f} s")

    record = _record(config, dataset, model, trainer, ranks)
    _keep_bundle(trainer.run_dir, config, dataset)
    if config["result_file"]:
        storage.write_json(config["result_file"], record)
    print("\n" + report.result_table(record))
    return record


def _record(config: Config, dataset: Any, model: Any, trainer: Any, ranks: dict[str, Any]) -> dict[str, Any]:
    done, best = trainer.state["epochs_done"], trainer.state["best_epoch"]
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "metrics": {split: rank.metrics(config["metrics"], config["topk"]) for split, rank in ranks.items()},
        "users": {split: len(rank.users) for split, rank in ranks.items()},
        "epochs": {"best": best + 1, "done": done, "hit_cap": done >= config["epochs"]},
        "times_tested": _count_tests(config, dataset, trainer.run_dir),
        "seconds": {**dataset.seconds, **trainer.timings()},
        "peak_memory_mib": report.peak_memory_mib(),
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "run_dir": str(trainer.run_dir),
        "settings": plain_settings(config),
        "versions": report.versions(),
    }


def _count_tests(config: Config, dataset: Any, run_dir: Path) -> int:
    """Count how often this configuration has seen the test split, this run included."""
    path = dataset.cache_dir / "times_tested.json"
    counts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config["final"]:
        counts[run_dir.name] = counts.get(run_dir.name, 0) + 1
        storage.write_json(path, counts)
    return counts.get(run_dir.name, 0)


def _keep_bundle(run_dir: Path, config: Config, dataset: Any) -> None:
    write_bundle(run_dir, config, dataset)
    logger = getLogger()
    try:
        bundle = load_bundle(run_dir)
        bundle.recommend([[bundle.item_tokens[1]]], k=1)
    except (InputError, KeyError, AttributeError) as error:
        if config["model"] in registry.MODELS:
            raise
        # Some of RecBole's models ask the data set or the user for more than a history.
        (run_dir / "bundle.json").unlink()
        logger.warning(
            f"no bundle: {config['model']} needs its data set to recommend ({error}); use load_data_and_model"
        )
    else:
        logger.info(f"bundle: recbole_bbqrec.load_bundle({str(run_dir)!r}).recommend([[item tokens]], k=10)")


def load_data_and_model(path: str | Path, config_dict: dict[str, Any] | None = None) -> tuple[Any, ...]:
    """Read a run's folder back, with its data, to the same scores.

    Parameters
    ----------
    path : folder of a run, or its `weights.safetensors`.
    config_dict : settings to change, such as `data_path` where the data has moved.

    Returns
    -------
    config, model, dataset, train_data, valid_data, test_data, as RecBole's function of this name does.
    """
    weights = Path(path) / "weights.safetensors" if Path(path).is_dir() else Path(path)
    _, header = storage.load(weights, checkpoint.WEIGHTS)
    config = Config(config_dict={**settings_to_load(header["settings"]), **(config_dict or {})})
    init_seed(config["seed"], config["reproducibility"])
    dataset = registry.get_dataset(config["model"])(config)
    train, valid, test = split_loaders(config, dataset)
    model = registry.get_model(config["model"])(config, train._dataset).to(config["device"])
    checkpoint.load_weights(weights, model)
    return config, model.eval(), dataset, train, valid, test
