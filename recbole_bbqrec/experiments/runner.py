"""Many runs, one after the other: those that have a record are not run again, a failing one does not end the others.

Several processes may be given the same runs, on machines that share the folder of results: each takes those that no
other is working on, see `claims`.
"""

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from .. import claims, quick_start, registry, schema, storage
from ..config import Config
from ..data.splitting import shares_of_time
from ..errors import InputError
from ..evaluation.candidates import sampling_of
from ..evaluation.configuration import judged_parts
from ..evaluation.leakage import check_leakage
from ..layers import joined, layered, parse_command_line, read_files
from ..settings import FITTED_AFTER_TRAINING, MAY_BE_UNUSED, NOT_LEARNED_FROM, trained_as
from . import records

QUIET = {"state": "WARNING", "report_card": False}
"""Settings of runs among many, unless they are given: each run's own log would hide which one is running, and the ID
report card costs time that no table shows."""


def given_and_files(arguments: Sequence[str], owner: str, n_seeds: int = 1) -> tuple[dict[str, Any], list[str]]:
    """Read settings, and keep the argument that names their files apart: they stand below the settings.

    Settings that the study `owner`, in words, sets by itself are refused, and a study of no run at all.
    """
    if n_seeds < 1:
        raise InputError(f"--seeds: found {n_seeds}, expected at least 1")
    arguments = joined(arguments)
    files = [argument for argument in arguments if argument.startswith("--config_files=")]
    given = parse_command_line([argument for argument in arguments if argument not in files])
    for key in ("model", "dataset", "result_file", "ranks_file", "train_on"):
        if key in given:
            raise InputError(f"--{key}: {owner} sets it for its runs; drop it")
    settings = layered(read_files(files), given)
    if any(sampling_of(settings, split) for split in ("valid", "test")):
        mode = settings["eval_args"]["mode"]
        raise InputError(f"eval_args: found mode {mode}, but {owner} compares by the ranks among all items; drop it")
    return given, files


def check_judged(config: Config) -> None:
    """Raise an `InputError` where a run would have no validation to compare it by."""
    if "valid" not in judged_parts(config):
        key, value = ("train_on", "all") if config["train_on"] == "all" else ("eval_args", config["eval_args"]["split"])
        raise InputError(f"{key}: found {value}, which leaves no validation to compare models by; drop it")


class Job:
    """One run that a table asks for: its name there, its settings with `dataset` and `seed`, and its record's folder.

    `data` is `records.about_data` of what it reads, `key` its `records.run_key`, the same for all its seeds.
    """

    def __init__(
        self, name: str, given: Mapping[str, Any], files: Sequence[str], data: Mapping[str, Any], folder: Path
    ) -> None:
        self.name, self.files, self.data, self.folder = name, files, data, folder
        self.given = {**given, MAY_BE_UNUSED: True}  # a row may change what makes another key count
        self.dataset, self.seed, self.model = given["dataset"], given["seed"], given["model"]
        config = Config(arguments=files, config_dict=self.given)
        check_judged(config)
        self.settings, self.asked = records.comparable_settings(config), records.Asked.of(config)
        self.key = records.run_key(self.settings, data["data_fingerprint"])
        # Runs that share a training are not made at once: the second would train beside the first.
        learned = {key: value for key, value in self.settings.items() if key not in FITTED_AFTER_TRAINING}
        training = {**learned, "model": trained_as(config["model"])}
        name = f"{self.seed}-{storage.fingerprint(training, data['data_fingerprint'])}"
        self.claim = folder / "claims" / name


def check_targets(jobs: Sequence[Job]) -> None:
    """Raise an `InputError` where runs on a data set would judge different targets, which no table can compare.

    A random order is drawn with the seed. Sequential models have no row for a user's first interaction, so that shares
    of rows are cut elsewhere than those of models of users and items.
    """
    met: dict[str, Job] = {}
    for job in jobs:
        given, other = job.settings["eval_args"], met.setdefault(job.dataset, job)
        if job.settings["benchmark_filename"] or shares_of_time(given) is not None:
            continue  # files or times say what is judged
        if given["order"] == "RO" and job.seed != other.seed:
            found = "found order 'RO', which draws other targets for every seed, with several seeds"
            raise InputError(f"eval_args: {found}; give --seeds=1, or order TO")
        of_pairs = {registry.kind_of(one.model) in schema.INTERACTIONS for one in (job, other)}
        if len(of_pairs) > 1 and "LS" not in given["split"]:
            found = f"found split {given['split']}, by which {other.model} and {job.model} judge different targets"
            instead = "{'LS': 'valid_and_test'}, or TS with group_by none"
            raise InputError(f"eval_args: {found}; take {instead}, or run sequential models apart from the others")


def run_jobs(jobs: Sequence[Job], final: bool, after: Callable[[Job], object]) -> dict[str, str]:
    """Run what has no record yet, in the given order, keep a record of each and call `after` with its job.

    A model that turns out to be untrained has nothing that a seed could change: its further seeds are passed over.
    Where `final`, a record has to be judged on test to count. Returns "name, seed n" -> message of the error, for each
    run that failed, here or meanwhile in another process; the data set is named where there are several.
    """
    check_targets(jobs)
    source = records.code_fingerprint()  # of the code that is running, whatever is edited meanwhile
    splits = ("valid", "test") if final else ("valid",)
    found = {job: records.find(job.folder, job.seed, job.key, splits, job.asked) for job in jobs}
    untrained = {run.key for run in found.values() if run and run.record["epochs"]["done"] == 0}
    missing = [job for job in jobs if found[job] is None and job.key not in untrained]
    say(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them finished before")
    several = len({job.folder for job in jobs}) > 1
    before = {job: records.failure_of(job.folder, job.name, job.seed, job.key) for job in missing}
    started, done, failures, left = time.monotonic(), 0, {}, missing
    for job in claims.in_turn(missing, lambda job: job.claim, _waits):
        left = [other for other in left if other.key not in untrained]
        if job not in left:
            continue
        title = job.name + f" on {job.dataset}" * several + f", seed {job.seed}"
        made = records.find(job.folder, job.seed, job.key, splits, job.asked)
        error = records.failure_of(job.folder, job.name, job.seed, job.key)
        if made is None and error == before[job]:  # no other process has been at it
            elapsed = time.monotonic() - started
            times = (timedelta(seconds=round(seconds)) for seconds in (elapsed, elapsed / max(done, 1) * len(left)))
            say(f"[{done + 1}/{done + len(left)}] {title}" + " (elapsed {}, about {} left)".format(*times) * bool(done))
            made, message = _make(job, source)
            after(job)
            done += 1
        else:
            message = f"{error[1]} (in another process)" if made is None and error else ""
        if message:
            failures[title] = message
        elif made and made.record["epochs"]["done"] == 0:
            untrained.add(job.key)
        left.remove(job)
        if job.key in untrained and any(other.key == job.key for other in left):
            say(f"{job.name} trains nothing, so one seed is enough")
    say(f"{done} runs in {timedelta(seconds=round(time.monotonic() - started))}" if done else "nothing left to run")
    return failures


def _make(job: Job, source: str) -> tuple[records.Run | None, str]:
    """Run a job and keep its record; return that, or the message of the error that it failed with."""
    try:
        given = {**job.given, "results": str(job.folder.parent.parent)}
        record, ranks = quick_start.execute(job.files, given, inspect=check_leakage)
    except Exception as error:  # whatever it is, the other runs are worth having
        message = " ".join(f"{type(error).__name__}: {error}".split())
        # Pages show the last line, and a message may have several.
        records.keep_error(job.folder, job.name, job.seed, job.key, f"{traceback.format_exc()}\n{message}\n")
        say(f"  failed: {message}")
        return None, message
    kept = {
        **record,
        "run_dir": Path(record["run_dir"]).name,  # not this machine's folders
        **job.data,
        "source": source,
        "settings": job.settings,
        "run_key": job.key,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    before = records.find(job.folder, job.seed, job.key)
    return records.Run(records.write(job.folder, job.name, *records.joined(before, kept, ranks))), ""


def _waits(n_left: int) -> None:
    say(f"{n_left} more runs are under way in other processes, which this one waits for; it may be interrupted")


def run_with_page(jobs: Sequence[Job], final: bool, write: Callable[[], str]) -> int:
    """As `run_jobs`, with a page that `write` makes anew after every run, and is printed at the end; the exit code."""
    failures = run_jobs(jobs, final, lambda _: write())
    print(write())
    return exit_code(failures)


def said(given: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a study that its page names: those that can change a result and do not stand in `about` already."""
    return {key: value for key, value in given.items() if key not in {*NOT_LEARNED_FROM, *QUIET, *about}}


def exit_code(failures: Mapping[str, str]) -> int:
    """Name the runs that failed; return 0, or 1 where there are any."""
    for title, message in failures.items():
        say(f"failed: {title}: {message}")
    return 1 if failures else 0


def say(text: str) -> None:
    """Report progress, apart from what a command prints as its result."""
    print(text, file=sys.stderr, flush=True)
