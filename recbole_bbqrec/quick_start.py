"""The recipe of a run, read top to bottom: settings, data, features and codes, model, training, judgement."""

import json
import os
import time
from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

from . import compat, distributed, registry, run_log, storage
from .config import Config
from .data.dataloader import split_loaders
from .data.feature_sources import image_folder
from .errors import InputError, MissingDataSetError
from .evaluation import report
from .evaluation.configuration import TimesTested, judged_parts
from .evaluation.ranking import Ranks
from .evaluation.ranks_file import check_name, write_ranks
from .layers import parse_command_line
from .preparation import obtain
from .preparation.image_download import addresses_of, fetch_images
from .preparation.public import describe
from .refusals import recbole_refusals
from .run_record import record_of
from .serving.folder import BUNDLE, runs_of
from .serving.saving import try_bundle, write_bundle
from .settings import public_source, settings_to_load
from .tokenizer.memory import PeakMemory
from .training import checkpoint
from .training.afterwards import Decided
from .training.labelled import check_rows


def run(arguments: Sequence[str] = (), config_dict: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train and judge one model on one data set, print its table and return its record; see `execute`."""
    if isinstance(arguments, str):
        raise InputError("run: found a text, expected a list, such as run(['--model=BBQRec', '--dataset=ml-100k'])")
    return execute(arguments, config_dict)[0]


def execute(
    arguments: Sequence[str] = (),
    config_dict: dict[str, Any] | None = None,
    inspect: Callable[[Any, Any, Any, Any], dict[str, Any]] | None = None,
    after_epoch: Callable[[Any], None] | None = None,
) -> tuple[dict[str, Any], dict[str, Ranks]]:
    """Train and judge one model on one data set, print its table, and return its record and, by split, all ranks.

    Settings come as `--key=value` strings and as a dict; the strings win. `inspect` looks at the data set and its
    training, validation and test loaders before the training, and what it returns goes into the record; `after_epoch`
    is handed the trainer after every epoch that validation has judged, once its state is on the disk.

    With `train_on: all` an ordinary run comes first, to its end but unjudged, and decides on validation what there is
    to decide; then a second training learns from all interactions, and the record and the folder are of that one.

    The record holds model, dataset, seed, metrics by split and column (with `group_metrics` and `cold_items` also by
    `groups` of targets, of labelled rows also `labels`; `ranked_among` says where not all items are ranked), judged
    users and rows, epochs, seconds, peak memory (MiB), number of parameters, settings, versions, and the folder of the
    run. For work that a cache or an earlier process has spared, seconds and memory are those of the time when it was
    done; none where nobody measured them.
    """
    distributed.start()
    with distributed.main_first():
        fetch_missing(arguments, config_dict)
    config = Config(arguments=arguments, config_dict=config_dict)
    _check_processes(config)
    _check_outputs(config)
    tested = TimesTested(config)
    memory = PeakMemory()
    logger = getLogger()
    if distributed.is_main():
        run_log.start(config)
        logger.info(config, extra=run_log.DETAIL)
    else:
        logger.setLevel("ERROR")

    watch: dict[str, Any] = {"inspect": inspect, "after_epoch": after_epoch}
    decided = None
    if config["train_on"] == "all":
        decided = _ordinary_run(Config(arguments=arguments, config_dict=config_dict), watch)
    trained = train(config, **(watch if decided is None else {}), decided=decided)
    trainer, loaders = trained.trainer, trained.loaders

    started = time.perf_counter()
    datasets, ranks, labels = [loader._dataset for loader in loaders], {}, {}
    for at, split in _judged(config):
        ranks[split] = trainer.judge(split, loaders[at], datasets[:at], config["show_progress"])
        labels[split] = trainer.judge_labels(split, loaders[at])
    if ranks:
        logger.info(f"judged in {time.perf_counter() - started:.1f} s", extra=run_log.DETAIL)

    record = {
        **record_of(config, trained, ranks, memory),
        **({"labels": labels} if any(labels.values()) else {}),
        **trained.inspected,
    }
    if distributed.is_main():
        record["times_tested"] = tested.after_run()
        if config["result_file"]:
            storage.write_json(config["result_file"], record)
        if config["ranks_file"]:
            write_ranks(config["ranks_file"], ranks, dict(zip(("valid", "test"), datasets[1:], strict=True)))
        write_bundle(trainer.folder.path, config, trained.dataset)
    run_dir = trainer.folder.path
    del trained, trainer, loaders, datasets  # the bundle to be tried loads as much again
    if distributed.is_main():
        shown = try_bundle(run_dir, config)
        print("\n" + report.result_table(record))
        print(report.next_steps(run_dir, shown))
    distributed.barrier()
    return record, ranks


def _ordinary_run(config: Config, watch: dict[str, Any]) -> Decided | None:
    """Make the unjudged run that decides for one on all interactions; none where nothing is validated."""
    config["train_on"] = "train"
    if "valid" not in judged_parts(config):
        return None
    trained = train(config, **watch)
    decided, run_dir = trained.trainer.decide(), trained.trainer.folder.path
    if distributed.is_main():
        write_bundle(run_dir, config, trained.dataset)
    del trained  # the bundle to be tried loads as much again
    if distributed.is_main():
        try_bundle(run_dir, config)
    getLogger().info(f"the ordinary run is done ({decided.epochs} epochs); now training on all interactions")
    return decided


def _judged(config: Config) -> list[tuple[int, str]]:
    """The splits that a run is judged on, with their places among the loaders."""
    found = [split for split in judged_parts(config) if split == "valid" or config["final"]]
    return [(at, split) for at, split in enumerate(("valid", "test"), start=1) if split in found]


class Trained(NamedTuple):
    """A model that has been trained, with its data set and loaders, and what `inspect` has found."""

    dataset: Any
    loaders: tuple[Any, Any, Any]
    trainer: Any
    inspected: dict[str, Any]


def train(
    config: Config,
    inspect: Callable[[Any, Any, Any, Any], dict[str, Any]] | None = None,
    after_epoch: Callable[[Any], None] | None = None,
    decided: Decided | None = None,
    finish: bool = True,
) -> Trained:
    """Read the data, build the model and train it to its end, or as far as another run has decided.

    Where it is not to `finish`, the model has its best weights and no second stage.
    """
    logger = getLogger()
    if decided is not None and decided.epochs:
        config["epochs"] = decided.epochs
    compat.init_seed(config)
    with recbole_refusals(config):
        dataset = registry.get_dataset(config["model"], config["kg"])(config)
        logger.info(str(dataset), extra=run_log.DETAIL)
        logger.info(
            f"data: {dataset.user_num - 1} users, {dataset.item_num - 1} items, {dataset.inter_num} interactions"
        )
        loaders = train, valid, test = split_loaders(config, dataset)
        for at, split in _judged(config):
            check_rows(config, loaders[at]._dataset, split)

        compat.init_seed(config)  # the model's initial weights do not depend on what the data drew
        model = registry.build_model(config, train._dataset).to(config["device"])
        logger.info(model, extra=run_log.DETAIL)

    inspected = inspect(dataset, train, valid, test) if inspect else {}
    trainer = registry.get_trainer(config)(config, model)
    trainer.decided = decided
    watched = (lambda *_: after_epoch(trainer)) if after_epoch else None
    trainer.fit(train, valid, show_progress=config["show_progress"], callback_fn=watched)
    if finish:
        trainer.finish(valid, show_progress=config["show_progress"])
    else:
        trainer.load_best()
    return Trained(dataset, loaders, trainer, inspected)


def fetch_missing(arguments: Sequence[str], config_dict: dict[str, Any] | None) -> None:
    """Fetch and build a public data set that is not there yet, and the images that a run reads and does not find."""
    given = {"arguments": arguments, "config_dict": config_dict}
    try:
        config = Config(**given)
    except MissingDataSetError as error:
        if public_source(error.name) is None or (error.folder / error.name).exists():
            raise
        shown = {"show_progress": True, **(config_dict or {}), **parse_command_line(arguments)}["show_progress"]
        print(f"{error.name} is not in {error.folder} yet: fetching and building it from its public files", flush=True)
        try:
            print(describe(obtain.obtain(error.name, error.folder, progress=shown)), flush=True)
        except InputError:
            if not (error.folder / error.name).exists():  # else another process was faster
                raise
        config = Config(**given)
    folder, place = Path(config["data_path"]), image_folder(config)
    if place is not None and not place.is_dir() and addresses_of(folder / f"{folder.name}.item"):
        print(f"{place} does not exist yet: fetching the items' images", flush=True)
        print(fetch_images(folder, place, config["show_progress"], partial=False))


def _check_processes(config: Config) -> None:
    """Refuse, before a run of several processes, what they cannot do together."""
    if distributed.world() == 1:
        return
    if config["model"] not in registry.MODELS:
        ours = "their losses may look at a whole batch at once; run it without torchrun"
        raise InputError(f"--model={config['model']}: RecBole's own models are trained by one process, {ours}")
    distributed.check_devices(config["device"].type)
    distributed.check_folder(Path(config["checkpoint_dir"]))


def _check_outputs(config: Config) -> None:
    """Refuse, before the run and not after it, what it is asked for but cannot give or write."""
    kept = judged_parts(config)
    split = f"eval_args.split {config['eval_args']['split']}"
    on_all = config["train_on"] == "all"
    why = "train_on all trains on everything" if on_all else f"{split} keeps no such part"
    if config["valid_users"] and "valid" not in kept and not on_all:
        raise InputError(f"valid_users: found {config['valid_users']}, but nothing is validated, {why}; drop it")
    if config["final"] and "test" not in kept:
        raise InputError(f"final: nothing is left to judge test on, {why}; drop final or change that")
    if config["ranks_file"] and "valid" not in kept and not config["final"]:
        how = "drop one of the two" if on_all else "drop ranks_file, add --final or change that"
        raise InputError(f"ranks_file: nothing is judged, {why}; {how}")
    check_name(config["ranks_file"])
    for key in ("result_file", "ranks_file", "checkpoint_dir"):
        if not (path := config[key]):
            continue
        kind = "folder" if key == "checkpoint_dir" else "file"
        place = Path(path) if kind == "folder" else Path(path).resolve().parent
        try:
            place.mkdir(parents=True, exist_ok=True)
            why = None if os.access(place, os.W_OK) else "Permission denied"
        except OSError as error:
            why = error.strerror
        if kind == "file" and Path(path).is_dir():
            why = "Is a directory"
        if why:
            raise InputError(f"{key}: {path} cannot be written ({why}); name another {kind}")


def load_data_and_model(model_file: str | Path, config_dict: dict[str, Any] | None = None) -> tuple[Any, ...]:
    """Read a run's folder back, with its data, to the same scores.

    Parameters
    ----------
    model_file : folder of a run, or its `weights.safetensors`.
    config_dict : settings to change, such as `data_path` where the data has moved.

    Returns
    -------
    config, model, dataset, train_data, valid_data, test_data, as RecBole's function of this name does. Of a run on all
    interactions (`train_on`) the last two are empty.
    """
    path = Path(model_file)
    weights = path / checkpoint.WEIGHTS_FILE if path.is_dir() else path.with_name(checkpoint.WEIGHTS_FILE)
    if finished := runs_of(weights.parent):
        raise InputError(
            f"{weights.parent}: this is a training, finished runs of it are {', '.join(finished)}; name one"
        )
    if not weights.is_file():
        raise InputError(f"{path}: no folder of a finished run; a run names its folder at its end ('kept in ...')")
    settings, bundle = storage.load(weights, checkpoint.WEIGHTS)[1]["settings"], weights.with_name(BUNDLE)
    if bundle.is_file():  # by which metrics the model was judged last: with others it is not trained anew
        settings = json.loads(bundle.read_text(encoding="utf-8"))["settings"]
    config = Config(config_dict={**settings_to_load(settings), **(config_dict or {})})
    if settings.get("train_on") != config["train_on"] and "all" in (settings.get("train_on"), config["train_on"]):
        trained_on = settings.get("train_on", "train")
        raise InputError(f"train_on: found {config['train_on']!r}, but {path} was trained on {trained_on!r}; drop it")
    compat.init_seed(config)
    dataset = registry.get_dataset(config["model"], config["kg"])(config)
    train, valid, test = split_loaders(config, dataset)
    compat.init_seed(config)  # as in training: some of RecBole's models draw what is no weight when they are built
    model = registry.build_model(config, train._dataset).to(config["device"])
    checkpoint.load_weights(weights, model)
    return config, model.eval(), dataset, train, valid, test
