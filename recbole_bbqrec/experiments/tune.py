"""Tuning with equal budgets: the same CPU time and the same search for every model, judged on validation alone.

The first trial is the defaults; the others are drawn from the model's space by the run's seed. The search cannot be cut
short to its gain: a trial's time is kept while it runs, and item tokenizers and trainings are the search's own, so that
nothing that another run has left behind is had for free. Item features are: they are the same for all models.
"""

import contextlib
import functools
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import quick_start, registry
from ..config import Config
from ..data.feature_sources import modalities
from ..errors import InputError
from ..evaluation.leakage import check_leakage
from . import records
from .runner import QUIET, Execute, Planned, given_and_files, say
from .tune_budget import BudgetSpent, cpu_seconds, looking_every
from .tune_space import Space, checked_space, drawn, read_space, space_file
from .tune_trials import CUT, DONE, FAILED, RUNNING, Search, Trial, new_trial

LOOK_EVERY = 2.0
"""CPU seconds between two looks at the budget, at each of which the time of the running trial is kept."""

FAILURES = 5
"""So many failed trials in a row end the search: it is not their settings then."""


def tune(
    model: str,
    dataset: str,
    minutes: float = 60.0,
    arguments: Sequence[str] = (),
    space: Path | None = None,
    results: Path = Path("results"),
    execute: Execute | None = None,
) -> int:
    """Search a model's space until the budget is used up or nothing is left to try, and print all trials.

    The same command goes on where it stopped, and so does one with more minutes, a trial that was cut included.

    Parameters
    ----------
    minutes : CPU time of this and all earlier calls, over all trials: training, evaluation and item tokenizer.
    arguments : `--key=value` settings of all trials; a key that the space has too is not searched.
    space : file of the space, in place of the one that comes with the program.
    results : folder that holds `tune/<Dataset>/<Model>-<key>.json` and `.yaml`.
    execute : stands in for `quick_start.execute` with its check for leakage.

    Returns
    -------
    Exit code: 0, or 1 where no trial could be judged.

    Raises
    ------
    InputError : the test split is asked for, a setting or the space is wrong, another process runs this search.
    """
    if not 0 < minutes < float("inf"):
        raise InputError(f"--minutes: found {minutes:g}, expected CPU minutes above 0")
    run = _planned(model, dataset, arguments)
    registry.get_model(model)
    path = space_file(model, space)
    config = quick_start.configured(run.files, dict(run.given))
    _check(config)
    searched = checked_space(path, _free(read_space(path, config.yaml_loader), run, path), run)
    head = _head(config, run, searched)
    place = Path(config["checkpoint_dir"]) / "tune" / f"{model}-{dataset}-{head['key']}"
    place.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place / ".lock", timeout=0):
            return _go_on(Search.load(results / "tune" / dataset, head, minutes), run, config, place, execute)
    except Timeout as error:
        raise InputError(f"{place}: another process runs this search; wait for it, or end it") from error


def _planned(model: str, dataset: str, arguments: Sequence[str]) -> Planned:
    """The settings that all trials share."""
    given, files = given_and_files(arguments, "tuning")
    if given.get("final"):
        _refuse_final()
    return Planned(model, {**QUIET, **given, "model": model, "dataset": dataset}, files)


def _refuse_final() -> None:
    raise InputError("final: settings are chosen on validation alone; drop it, and judge the chosen ones on test")


def _check(config: Config) -> None:
    """Refuse what would make the budget or the choice mean something else."""
    if config["final"]:
        _refuse_final()
    if config["worker"]:
        raise InputError(f"worker: found {config['worker']}, expected 0: the time of further processes is not counted")


def _free(space: Space, run: Planned, path: Path) -> Space:
    """The keys of a space that the command has not fixed."""
    fixed = [key for key in space if key in run.given]
    if fixed:
        say(f"not searched, for the command fixes it: {', '.join(fixed)}")
    if len(fixed) == len(space):
        raise InputError(f"{path}: the command fixes all of its keys ({', '.join(fixed)}); nothing is left to search")
    return {key: values for key, values in space.items() if key not in fixed}


def _head(config: Config, run: Planned, space: Space) -> dict[str, Any]:
    """What a search is; its `key` stands for all that its trials depend on."""
    base = records.comparable_settings(config)
    what = {"settings": base, "space": space, "seed": config["seed"]}
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "key": records.run_key(what, records.data_fingerprint(config)),
        "seed": config["seed"],
        "metric": config["valid_metric"].lower(),
        "space": space,
        "defaults": {key: config[key] for key in space},
        "given": {key: value for key, value in run.given.items() if key in base and key not in ("model", "dataset")},
    }


def _go_on(search: Search, run: Planned, config: Config, place: Path, execute: Execute | None) -> int:
    """Run trials until the budget is used up, and print all of them."""
    execute = execute or functools.partial(quick_start.execute, inspect=check_leakage)
    source = records.code_fingerprint()
    trial = _next(search, source)
    if search.left > 0 and trial is not None:
        _share_features(config, place / "cache")
    while search.left > 0 and trial is not None:
        say(_line(search, trial))
        _run(search, trial, run, place, execute)
        say(f"  {search.summary(trial)}, {trial['cpu_seconds']:.0f} CPU seconds")
        search.keep_best()
        _stop_where_all_fail(search)
        trial = _next(search, source)
    best = search.keep_best()
    print(search.page())
    say("every setting of the space has been tried" if trial is None else "the budget is used up; --minutes raises it")
    if best is None:
        return 1
    files = " ".join([*(argument.partition("=")[2] for argument in run.files), str(best)])
    place_of_data = f" --data_path={run.given['data_path']}" if "data_path" in run.given else ""
    what = f"--model={run.name} --dataset={config['dataset']}{place_of_data} --seeds=3 --config_files='{files}'"
    print(f"\n{best}, the best of them:\n{best.read_text(encoding='utf-8')}\npython run_recbole_bbqrec.py {what}")
    return 0


def _next(search: Search, source: str) -> Trial | None:
    """The trial to go on with, or a new one; none where everything has been tried."""
    if search.trials and search.trials[-1]["state"] in (RUNNING, CUT):
        return _again(search.trials[-1], source)
    tried = [trial["settings"] for trial in search.trials]
    for settings in drawn(search.head["space"], search.head["defaults"], search.head["seed"]):
        if settings not in tried:
            return new_trial(len(tried), settings, source)
    return None


def _again(trial: Trial, source: str) -> Trial:
    """A trial to go on with; other code begins it anew, and its time is counted all the same."""
    if trial["source"] == source:
        return {**trial, "state": RUNNING}
    return {**new_trial(trial["number"], trial["settings"], source), "cpu_seconds": trial["cpu_seconds"]}


def _run(search: Search, trial: Trial, run: Planned, place: Path, execute: Execute) -> None:
    """Run a trial to its end or to that of the budget, its time kept all along."""
    search.trials[trial["number"] :] = [trial]
    before, started = trial["cpu_seconds"], cpu_seconds()

    def look() -> None:
        trial["cpu_seconds"] = before + cpu_seconds() - started
        search.keep()
        if search.left <= 0:
            raise BudgetSpent

    def after_epoch(trainer: Any) -> None:
        trial.update(_so_far(trainer))
        look()

    own = {"checkpoint_dir": str(place / "trial"), "cache_dir": str(place / "cache")}
    given = {**run.given, **trial["settings"], **own}
    try:
        # A run prints its own table and that --final judges test; a trial has a row among the others instead.
        with looking_every(LOOK_EVERY, look), contextlib.redirect_stdout(io.StringIO()):
            record, _ = execute(arguments=run.files, config_dict=given, after_epoch=after_epoch)
        trial.update(state=DONE, metrics=record["metrics"]["valid"]["masked"], epochs=record["epochs"])
    except BudgetSpent:
        trial["state"] = CUT
    except Exception as error:  # whatever it is, other settings may be better
        trial.update(state=FAILED, error=" ".join(f"{type(error).__name__}: {error}".split()))
    finally:
        trial["cpu_seconds"] = before + cpu_seconds() - started
        search.keep()
    if trial["state"] != CUT:
        shutil.rmtree(place / "trial", ignore_errors=True)


def _so_far(trainer: Any) -> dict[str, Any]:
    """What a training has reached, as a finished run's record would say it."""
    masked, state = "masked_", trainer.state
    found = {
        name.removeprefix(masked): value for name, value in trainer.best_valid_result.items() if name.startswith(masked)
    }
    return {"metrics": found, "epochs": {"best": state.best_epoch + 1, "done": state.epochs_done}}


def _share_features(config: Config, cache: Path) -> None:
    """Encode the item features where they are not yet, off the clock, and give the search's own cache links to them."""
    if not modalities(config):
        return
    folder = registry.get_dataset(config["model"])(config).cache_dir
    own = cache / folder.name
    own.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("features-*.safetensors"):
        if not (own / path.name).exists():
            _link(path, own / path.name)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, target)


def _line(search: Search, trial: Trial) -> str:
    """What is about to run, and how far the search is."""
    best = search.best
    reached = "" if best is None else f", best so far {search.head['metric']} {search.score(best):.4f}"
    what = ", ".join(f"{key} {value}" for key, value in trial["settings"].items())
    name = f"trial {trial['number']}" + (" (the defaults)" if not trial["number"] else "")
    return f"[{search.used / 60:.1f} of {search.minutes:g} CPU minutes{reached}] {name}: {what}"


def _stop_where_all_fail(search: Search) -> None:
    last = search.trials[-FAILURES:]
    if len(last) == FAILURES and all(trial["state"] == FAILED for trial in last):
        raise InputError(
            f"{FAILURES} trials in a row failed, the last one with {last[-1]['error']}; mend that and delete "
            f"{search.path} to begin again, or give the same command, which tries the next"
        )
