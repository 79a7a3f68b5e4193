"""Many runs, one after the other: those that have a record are not run again, a failing one does not end the others."""

import functools
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from .. import quick_start
from ..config import Config, parse_command_line
from ..errors import InputError
from ..evaluation.leakage import check_leakage
from ..evaluation.ranking import Ranks
from . import records

Execute = Callable[..., tuple[dict[str, Any], Mapping[str, Ranks]]]

QUIET = {"state": "WARNING", "report_card": False}
"""Settings of runs among many, unless they are given: each run's own log would hide which one is running, and the ID
report card costs time that no table shows."""


def given_and_files(arguments: Sequence[str], owner: str = "") -> tuple[dict[str, Any], list[str]]:
    """Read `--key=value` settings, and keep the argument that names their files apart: they stand below the settings.

    Parameters
    ----------
    owner : what sets model and data set by itself and has results of its own, in words.

    Raises
    ------
    InputError : no setting, or one that its owner sets.
    """
    files = [argument for argument in arguments if argument.startswith("--config_files=")]
    given = parse_command_line([argument for argument in arguments if argument not in files])
    for key in ("model", "dataset", "result_file"):
        if owner and key in given:
            raise InputError(f"--{key}: {owner} sets it for its runs; drop it")
    return given, files


@dataclass(frozen=True)
class Planned:
    """One run that a table asks for.

    Attributes
    ----------
    name : what it is called there.
    given : settings, over those of the properties; `seed` among them.
    files : the settings' YAML files, as one command-line argument or none.
    """

    name: str
    given: Mapping[str, Any]
    files: Sequence[str] = ()

    def config(self) -> Config:
        """Settings of the run, checked."""
        return Config(arguments=self.files, config_dict=dict(self.given))


class Job:
    """A planned run, the data it reads, and the folder its record goes to.

    Attributes
    ----------
    name, dataset, seed : of the run.
    settings : `records.comparable_settings` of the run.
    key : `records.run_key` of the run, the same for all its seeds.
    """

    def __init__(self, run: Planned, data: records.Data, folder: Path) -> None:
        self.run, self.data, self.folder = run, data, folder
        self.name, self.dataset, self.seed = run.name, run.given["dataset"], run.given["seed"]
        self.settings = records.comparable_settings(run.config())
        self.key = records.run_key(self.settings, data.fingerprint)


def run_jobs(
    jobs: Sequence[Job], final: bool, after: Callable[[Job], object], execute: Execute | None = None
) -> dict[str, str]:
    """Run what has no record yet, in the given order, and keep a record of each.

    A model that turns out to be untrained has nothing that a seed could change: its further seeds are passed over.

    Parameters
    ----------
    final : whether a record has to be judged on test to count.
    after : called after every run.
    execute : stands in for `quick_start.execute` with its check for leakage.

    Returns
    -------
    "name, seed n" -> message of the error, for each run that failed; the data set is named where there are several.
    """
    execute = execute or functools.partial(quick_start.execute, inspect=check_leakage)
    source = records.code_fingerprint()  # of the code that is running, whatever is edited meanwhile
    splits = ("valid", "test") if final else ("valid",)
    found = {job: records.find(job.folder, job.seed, job.key, splits) for job in jobs}
    untrained = {run.key for run in found.values() if run and run.record["epochs"]["done"] == 0}
    missing = [job for job in jobs if found[job] is None and job.key not in untrained]
    say(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them finished before")
    several = len({job.folder for job in jobs}) > 1
    started, done, failures = time.monotonic(), 0, {}
    while missing:
        job, total = missing[0], done + len(missing)
        title = job.name + f" on {job.dataset}" * several + f", seed {job.seed}"
        say(f"[{done + 1}/{total}] {title}{_estimate(started, done, total)}")
        try:
            record, ranks = execute(arguments=job.run.files, config_dict=dict(job.run.given))
        except Exception as error:  # whatever it is, the other runs are worth having
            failures[title] = " ".join(f"{type(error).__name__}: {error}".split())
            records.keep_error(job.folder, job.name, job.seed, job.key, traceback.format_exc())
            say(f"  failed: {failures[title]}")
        else:
            records.write(job.folder, job.name, _kept(record, job, source), ranks)
            if record["epochs"]["done"] == 0:
                untrained.add(job.key)
        after(job)
        missing, done = [left for left in missing[1:] if left.key not in untrained], done + 1
    say(f"{done} runs in {timedelta(seconds=round(time.monotonic() - started))}" if done else "nothing left to run")
    return failures


def exit_code(failures: Mapping[str, str]) -> int:
    """Name the runs that failed; return 0, or 1 where there are any."""
    for title, message in failures.items():
        say(f"failed: {title}: {message}")
    return 1 if failures else 0


def _kept(record: Mapping[str, Any], job: Job, source: str) -> dict[str, Any]:
    """What is kept of a finished run: its record, and what the table that asked for it knows."""
    return {
        **record,
        "run_dir": Path(record["run_dir"]).name,  # not this machine's folders
        "data": job.data.statistics,
        "data_fingerprint": job.data.fingerprint,
        "source": source,
        "settings": job.settings,
        "run_key": job.key,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _estimate(started: float, done: int, total: int) -> str:
    if not done:
        return ""
    elapsed = time.monotonic() - started
    passed, left = (str(timedelta(seconds=round(seconds))) for seconds in (elapsed, elapsed / done * (total - done)))
    return f" (elapsed {passed}, about {left} left)"


def say(text: str) -> None:
    """Report progress, apart from what a command prints as its result."""
    print(text, file=sys.stderr, flush=True)
