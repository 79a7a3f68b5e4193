"""Many runs, one after the other: those that have a record are not run again, a failing one does not end the others."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from .. import quick_start
from ..config import Config
from ..ranking import Ranks
from . import records

Execute = Callable[..., tuple[dict[str, Any], Mapping[str, Ranks]]]

QUIET = {"state": "WARNING", "report_card": False}
"""Settings of runs among many, unless they are given: each run's own log would hide which one is running, and the ID
report card costs time that no table shows."""


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

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.given["seed"]

    def config(self) -> Config:
        """Settings of the run, checked."""
        return Config(arguments=self.files, config_dict=dict(self.given))


@dataclass(frozen=True)
class Data:
    """What a record says about the data: `records.data_fingerprint` and `records.data_statistics`."""

    fingerprint: str
    statistics: dict[str, Any]

    @classmethod
    def of(cls, config: Any) -> "Data":
        """Read the files of the configured data set."""
        return cls(records.data_fingerprint(config), records.data_statistics(config))


def run_all(
    planned: Sequence[Planned],
    data: Data,
    folder: Path,
    splits: tuple[str, ...],
    after: Callable[[], None],
    execute: Execute | None = None,
) -> dict[str, str]:
    """Run what has no record yet, in the given order, and keep a record of each.

    Parameters
    ----------
    folder : of the records.
    splits : what a record has to be judged on to count.
    after : called after every run.
    execute : stands in for `quick_start.execute`.

    Returns
    -------
    "name, seed n" -> message of the error, for each run that failed.
    """
    execute = execute or quick_start.execute
    source = records.code_fingerprint()  # of the code that is running, whatever is edited meanwhile
    missing: list[tuple[Planned, dict[str, Any], str]] = []
    for run in planned:
        comparable = records.comparable_settings(run.config())
        key = records.run_key(comparable, data.fingerprint)
        if records.find(folder, run.seed, key, splits) is None:
            missing.append((run, comparable, key))
    _say(f"{len(planned)} runs, {len(planned) - len(missing)} of them finished before")
    started, failures = time.monotonic(), {}
    for done, (run, comparable, key) in enumerate(missing):
        title = f"{run.name}, seed {run.seed}"
        _say(f"[{done + 1}/{len(missing)}] {title}{_estimate(started, done, len(missing))}")
        try:
            record, ranks = execute(arguments=run.files, config_dict=dict(run.given))
        except Exception as error:  # whatever it is, the other runs are worth having
            failures[title] = " ".join(f"{type(error).__name__}: {error}".split())
            records.keep_error(folder, run.name, run.seed, key, traceback.format_exc())
            _say(f"  failed: {failures[title]}")
        else:
            described = {"data": data.statistics, "data_fingerprint": data.fingerprint, "source": source}
            kept = {**_without_paths(record), **described, "settings": comparable, "run_key": key}
            records.write(folder, run.name, kept, ranks)
        after()
    _say(f"{len(missing)} runs in {_clock(time.monotonic() - started)}" if missing else "nothing left to run")
    return failures


def _without_paths(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without this machine's folders; the run's own keeps its name."""
    return {**record, "run_dir": Path(record["run_dir"]).name}


def _estimate(started: float, done: int, total: int) -> str:
    if not done:
        return ""
    elapsed = time.monotonic() - started
    return f" (elapsed {_clock(elapsed)}, about {_clock(elapsed / done * (total - done))} left)"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
