"""Tuning with equal budgets: the same CPU time and the same search for every model, judged on validation alone.

The first trial is the defaults; the others are drawn from the model's space by the run's seed. A search gains nothing
by being cut short or by what other runs have left behind: a trial's time is kept while it runs, and item tokenizers and
trainings are the search's own. Only item features come for free: they are the same for all models.
"""

import contextlib
import io
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

from .. import quick_start, registry
from ..claims import Claim
from ..config import Config, unused_settings
from ..data.feature_sources import modalities
from ..errors import InputError
from ..evaluation.labels import of_labels
from ..evaluation.leakage import check_leakage
from ..layers import layered, read_files
from ..settings import EXTENDS, MAY_BE_UNUSED, PROPERTIES
from . import records
from .leaderboard import HEADLINE_SEEDS
from .runner import QUIET, check_judged, given_and_files, say
from .tune_trials import CUT, DONE, FAILED, RUNNING, Search

SPACES = PROPERTIES / "tune"
"""Folder of the spaces that come with the program, `<Model>.yaml`."""

# What all trials share, or they could not be compared.
PROTOCOL = (
    *("model", "dataset", "seed", "eval_args", "metrics", "topk", "valid_metric", "repeatable", "shuffle_ties"),
    *("epochs", "stopping_step", "eval_step", "load_col"),
)

KEEP_EVERY = 2.0
"""CPU seconds of training after which a trial's time is kept and compared with the budget."""

FAILURES = 5
"""Failed trials in a row that end the search: their settings are not to blame then."""


class BudgetSpent(BaseException):
    """The CPU time is used up. No `Exception`: what is running must not take it for a failure of its own."""


def tune(
    model: str,
    dataset: str,
    minutes: float = 60.0,
    arguments: Sequence[str] = (),
    space: Path | None = None,
    results: Path = Path("results"),
    storage: str | None = None,
) -> int:
    """Search a model's space until the budget is used up or nothing is left to try, and print all trials.

    The same command goes on where it stopped, and so does one with more minutes, a trial that was cut included. Given
    while another process runs it, both share trials and budget.

    Parameters
    ----------
    minutes : CPU time of this and all other calls, over all trials: training, evaluation and item tokenizer.
    arguments : `--key=value` settings of all trials; a key that the space has too is not searched.
    space : file of the space, in place of the one that comes with the program.
    results : folder that holds `tune/<Dataset>/<Model>-<key>.jsonl` and `.yaml`.
    storage : URL of a database that keeps the trials instead of the `.jsonl` file, or a journal of their own on a disk
        that many machines share.

    Returns
    -------
    Exit code: 0, or 1 where no trial could be judged.
    """
    if not 0 < minutes < float("inf"):
        raise InputError(f"--minutes: found {minutes:g}, expected CPU minutes above 0")
    given, files = given_and_files(arguments, "tuning")
    given = {**QUIET, **given, "model": model, "dataset": dataset}
    registry.get_model(model)
    path = space or SPACES / f"{model}.yaml"
    if not path.is_file():
        where = f"--space={space}: no such file" if space else f"--model={model}: found no space to search"
        raise InputError(f"{where}; write lines key: [value, value] into a file for --space=FILE, or into {path}")
    if layered(read_files(files), given).get("final"):
        raise InputError("final: settings are chosen on validation alone; drop it, and judge the chosen ones on test")
    quick_start.fetch_missing(files, given)
    config = Config(arguments=files, config_dict=given)
    check_judged(config)
    if config["worker"]:
        raise InputError(f"worker: found {config['worker']}, expected 0: the time of further processes is not counted")
    searched = checked_space(path, read_space(path, config.yaml_loader), given, files)
    base = records.comparable_settings(config)
    what = {
        "settings": {**records.COUNTED_ONCE, **base},
        "space": searched,
        "seed": config["seed"],
    }  # all that the trials depend on
    of_all = {*base, "metrics", "topk"} - {"model", "dataset"}  # valid_metric has to be one of the metrics
    head = {
        "model": config["model"],
        "dataset": config["dataset"],
        "key": records.run_key(what, records.data_fingerprint(config)),
        "seed": config["seed"],
        "metric": config["valid_metric"].lower(),
        "space": searched,
        "defaults": {key: config[key] for key in searched},
        "given": {key: value for key, value in given.items() if key in of_all},
    }
    place = Path(config["checkpoint_dir"]) / "tune" / f"{model}-{dataset}-{head['key']}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _go_on(Search(head, minutes, results, place, storage), given, files, config)


def _go_on(search: Search, given: dict[str, Any], files: Sequence[str], config: Config) -> int:
    """Run trials until the budget is used up, and print all of them."""
    source, ended = records.code_fingerprint(), "the budget is used up; --minutes raises it"
    if not search.is_spent:
        _share_features(config, search.place / "cache")
    while not search.is_spent:
        taken = search.take(source)
        if taken is None:
            elsewhere = any(trial.state == RUNNING for trial in search.trials)
            ended = "every setting of the space has been tried" + ", or runs in another process" * elsewhere
            break
        _run(search, *taken, given, files)
        search.keep_best()
        last = [trial for trial in search.trials if trial.state in (DONE, FAILED)][-FAILURES:]
        if [trial.state for trial in last] == [FAILED] * FAILURES:
            raise InputError(
                f"{FAILURES} trials in a row failed, the last one with {last[-1].user_attrs['error']}; mend that and "
                f"delete {search.where} to begin again, or give the same command, which tries the next"
            )
    best = search.keep_best()
    print(search.page())
    say(ended)
    if best is None:
        return 1
    listed = " ".join([*(argument.partition("=")[2] for argument in files), str(best)])
    what = {"model": given["model"], "dataset": given["dataset"], "data_path": given.get("data_path")}
    what |= {"seeds": HEADLINE_SEEDS, "config_files": listed}
    command = " ".join(f"--{key}={shlex.quote(str(value))}" for key, value in what.items() if value is not None)
    print(f"\n{best}, the best of them:\n{best.read_text(encoding='utf-8')}\nbbqrec train {command}")
    return 0


def _run(search: Search, trial: optuna.Trial, claim: Claim, given: dict[str, Any], files: Sequence[str]) -> None:
    """Run a trial to its end or to that of the budget, keeping its time all along."""
    number, taken = trial.number, trial.user_attrs
    settings, before = taken["settings"], taken["cpu_seconds"]
    best = search.ordered[0].user_attrs["metrics"].get(search.head["metric"])
    folder, so_far = search.folder(number), f", best so far {search.head['metric']} {best:.4f}" if best else ""
    name = f"trial {number}" + " (the defaults)" * (number == 0)
    what = ", ".join(f"{key} {value}" for key, value in settings.items())
    say(f"[{search.used / 60:.1f} of {search.minutes:g} CPU minutes{so_far}] {name}: {what}")
    last = started = time.process_time()

    def keep_time(least: float = 0.0) -> None:
        nonlocal last
        if (now := time.process_time()) >= last + least:
            last = now
            search.keep(trial, cpu_seconds=before + now - started)
            if search.is_spent:
                raise BudgetSpent

    def after_epoch(trainer: Any) -> None:
        found, state, mark = trainer.best_valid_result, trainer.state, "masked_"
        masked = {name.removeprefix(mark): value for name, value in found.items() if name.startswith(mark)}
        metrics = {**{name: found[name] for name in of_labels(found)}, **masked}
        search.keep(trial, metrics=metrics, epochs={"best": state.best_epoch + 1, "done": state.epochs_done})
        keep_time()

    places = {"checkpoint_dir": str(folder), "cache_dir": str(search.place / "cache")}
    given = {**given, **settings, **places, MAY_BE_UNUSED: True}  # a trial's values may make another key needless
    state, known = RUNNING, {}
    steps = register_optimizer_step_post_hook(lambda *_: keep_time(KEEP_EVERY))
    try:
        # A run prints its own table and that --final judges test; a trial has a row among the others instead.
        with contextlib.redirect_stdout(io.StringIO()):
            record, _ = quick_start.execute(files, given, inspect=check_leakage, after_epoch=after_epoch)
        labels = record.get("labels", {}).get("valid", {}).get("all", {})
        metrics = {**{name: labels[name] for name in of_labels(labels)}, **record["metrics"]["valid"]["masked"]}
        known = {"metrics": metrics, "epochs": record["epochs"]}
        state = DONE
    except BudgetSpent:
        state = CUT
    except Exception as error:  # whatever it is, other settings may be better
        state, known = FAILED, {"metrics": {}, "error": " ".join(f"{type(error).__name__}: {error}".split())}
    finally:
        steps.remove()
        seconds = before + time.process_time() - started
        search.keep(trial, state, cpu_seconds=seconds, **known)
        claim.release()
    if state != CUT:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"  {search.summary(search.study.trials[number])}, {seconds:.0f} CPU seconds")


def _share_features(config: Config, cache: Path) -> None:
    """Encode the item features where they are not yet, off the clock, and give the search's own cache links to them."""
    if not modalities(config):
        return
    folder = registry.get_dataset(config["model"])(config).cache_dir
    (cache / folder.name).mkdir(parents=True, exist_ok=True)
    for path in folder.glob("features-*.safetensors"):
        if not (own := cache / folder.name / path.name).exists():
            try:
                os.link(path, own)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, own)


def read_space(path: Path, loader: Any = yaml.SafeLoader) -> dict[str, list[Any]]:
    """Read a space, keys with lists of different values; those of the model whose space it `extends` come first."""
    space, files = {}, [path]
    for file in files:
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{file}: not a readable YAML file ({' '.join(str(error).split())})") from error
        if not isinstance(content, dict) or not content:
            raise InputError(f"{file}: found no keys, expected lines of the form key: [value, value]")
        if (base := content.pop(EXTENDS, None)) is not None:
            below = SPACES / f"{base}.yaml"
            if not below.is_file() or below in files:
                raise InputError(f"{file}: {EXTENDS} {base!r}, expected another model that has a file in {SPACES}")
            files.append(below)
        for key, values in content.items():
            if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
                raise InputError(f"{file}: {key}: found {values!r}, expected a list of different values: [0.1, 0.3]")
        space = {**content, **space}
    return space


def checked_space(
    path: Path, space: dict[str, list[Any]], given: dict[str, Any], files: Sequence[str] = ()
) -> dict[str, list[Any]]:
    """Return the keys of a space that the command leaves open, every value checked and in the type of its key.

    `given` and `files` are the settings that all trials share.
    """
    fixed = ", ".join(key for key in space if key in given)
    checked: dict[str, list[Any]] = {key: [] for key in space if key not in given}
    if not checked:
        raise InputError(f"{path}: the command fixes all of its keys ({fixed}); nothing is left to search")
    if fixed:
        say(f"not searched, for the command fixes it: {fixed}")
    deciding = records.comparable_settings(Config(arguments=files, config_dict=given))
    given, configs = {**given, MAY_BE_UNUSED: True}, []
    for key, found in checked.items():
        if key in PROTOCOL:
            raise InputError(f"{path}: {key}: all trials share it; take it out of the space")
        for value in space[key]:
            try:
                configs.append(Config(arguments=files, config_dict={**given, str(key): value}))
                found.append(configs[-1][key])
            except InputError as error:
                raise InputError(f"{path}: {key}: {error}") from error
        if key not in deciding:
            raise InputError(f"{path}: {key}: no result depends on it; take it out of the space")
    needless = [key for key in checked if all(unused_settings(one.final_config_dict, [key], {}) for one in configs)]
    if needless:
        say(f"not searched, for no trial would use it: {', '.join(needless)}")
    return {key: found for key, found in checked.items() if key not in needless}
