"""A search as Optuna keeps it: which trial is next, what each has reached in how much time, their table, the best one.

A trial's number stands for its settings, so a new trial is one atomic step of the storage and no settings run twice.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from ..errors import InputError
from ..evaluation import report
from . import records
from .tune_space import drawn

RUNNING, CUT, DONE, FAILED = TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.FAIL
NAMES = {RUNNING: "running", CUT: "cut", DONE: "done", FAILED: "failed"}
"""States of a trial. A cut one waits to be gone on with; so does a running one whose process was killed."""


class Search:
    """The trials of a search, in a storage that all its processes share.

    Parameters
    ----------
    head : what the search is, the same in every call: model, dataset, key, seed, metric, space, defaults, given.
    minutes : CPU time that it may use in all.
    results : folder below which it is kept, as `tune/<Dataset>/<Model>-<key>`.
    place : folder of its processes on this disk.
    url : database to keep the trials in; where none is given, a journal beside the best settings does.

    Raises
    ------
    InputError : the journal is damaged, or the database cannot be used.
    """

    def __init__(self, head: dict[str, Any], minutes: float, results: Path, place: Path, url: str | None = None):
        self.head, self.minutes, self.place, self.url = head, minutes, place, url
        name = f"{head['dataset']}/{head['model']}-{head['key']}"
        self.path = results / "tune" / f"{name}.jsonl"
        self.where = f"study {name} in --storage" if url else str(self.path)
        for folder in (place, self.path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        # Optuna's own lock on a journal outlives a kill by half a minute; the system's does not.
        lock: Any = FileLock(place / ".journal.lock")
        try:
            with FileLock(place / ".lock"):
                self.storage = RDBStorage(url) if url else JournalStorage(JournalFileBackend(str(self.path), lock))
                self.study = optuna.create_study(
                    study_name=name, storage=self.storage, direction="maximize", load_if_exists=True
                )
                self._begin()
        except InputError:
            raise
        except Exception as error:  # every database has errors of its own
            text = " ".join(f"{type(error).__name__}: {error}".split())
            mend = "give a URL such as sqlite:///search.db" if url else "delete it to begin again"
            raise InputError(f"{self.where}: not readable ({text}); {mend}") from error

    def _begin(self) -> None:
        """Say what the search is, and take over the trials of one that was kept as JSON, before there were journals."""
        for key, value in {**self.head, "minutes": self.minutes}.items():
            if self.study.user_attrs.get(key) != value:
                self.study.set_user_attr(key, value)
        path = self.path.with_suffix(".json")
        earlier = records.read(path)["trials"] if path.is_file() else []
        for trial in earlier[len(self.trials) :]:
            state = {"done": DONE, "failed": FAILED}.get(trial["state"], CUT)
            value = trial["metrics"][self.head["metric"]] if state == DONE else None
            kept = {key: known for key, known in trial.items() if key not in ("number", "state")}
            kept |= {"metrics": {}} if state == FAILED else {}
            self.study.add_trial(optuna.create_trial(state=state, value=value, user_attrs=kept))

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials by number, as the storage has them now."""
        return self.study.get_trials(deepcopy=False)

    @property
    def used(self) -> float:
        """CPU seconds of all trials, those of other and of killed processes included."""
        return sum(trial.user_attrs.get("cpu_seconds", 0.0) for trial in self.trials)

    @property
    def is_spent(self) -> bool:
        """Whether the budget is used up."""
        return self.used >= 60 * self.minutes

    def take(self, source: str) -> tuple[Trial, FileLock] | None:
        """Take a trial that was killed, or else cut, or else a new one, with the lock that makes it this process's.

        What it has reached with other code than `source` does not count, its time does. None where nothing is left.
        """
        with FileLock(self.place / ".lock"):  # others here wait until the trial is locked
            for one in self.trials:
                # In a database it may run on another machine: then its folder is not here.
                here = one.state == RUNNING and (not self.url or self.folder(one.number).is_dir())
                if here and (lock := self._locked(one.number)):
                    trial = Trial(self.study, one._trial_id)
                    break
            else:
                if not any(one.state == CUT for one in self.trials) and self._settings(len(self.trials)) is None:
                    return None
                trial = self.study.ask()
                lock = self._locked(trial.number)
        settings = self._settings(trial.number)
        if settings is None or lock is None:
            self.keep(trial, FAILED, error="another machine took the last settings at the same moment")
            return None
        if trial.user_attrs.get("source") != source:
            self.keep(trial, settings=settings, source=source, metrics={}, epochs={"best": 0, "done": 0})
        return trial, lock

    def _settings(self, number: int) -> dict[str, Any] | None:
        """The settings of a trial, which follow from its number; none where the space has no more."""
        order = drawn(self.head["space"], self.head["defaults"], self.head["seed"])
        return next(itertools.islice(order, number, None), None)

    def folder(self, number: int) -> Path:
        """Folder of what a trial writes while it runs."""
        return self.place / f"trial-{number}"

    def _locked(self, number: int) -> FileLock | None:
        """The lock of a trial; none where another process has it."""
        self.folder(number).mkdir(exist_ok=True)
        lock = FileLock(self.folder(number) / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock

    def keep(self, trial: Trial, state: TrialState = RUNNING, **known: Any) -> None:
        """Keep what is known of a trial, and how it has ended; done and failed are for good."""
        for key, value in known.items():
            trial.set_user_attr(key, value)
        if state != RUNNING:
            values = [known["metrics"][self.head["metric"]]] if state == DONE else None
            self.storage.set_trial_state_values(trial._trial_id, state, values)

    def score(self, trial: FrozenTrial) -> float:
        """Value by which trials are compared; below all others where validation has not judged it."""
        return trial.user_attrs.get("metrics", {}).get(self.head["metric"], -math.inf)

    @property
    def ordered(self) -> list[FrozenTrial]:
        """All trials, the best first; those that were not judged last."""
        return sorted(self.trials, key=self.score, reverse=True)

    def keep_best(self) -> Path | None:
        """Write the best settings as a file for `--config_files`; return its path, or none where none was judged."""
        best, path = self.ordered[0], self.path.with_suffix(".yaml")
        if self.score(best) == -math.inf:
            return None
        spent = f"{len(self.trials)} trials after {self.used / 60:.1f} CPU minutes"
        about = f"# {self._title}\n# Best of {spent}, on validation: {self.summary(best)}.\n"
        settings = json.loads(json.dumps({**self.head["given"], **best.user_attrs["settings"]}))  # no tuples
        report.write_file(path, about + yaml.safe_dump(settings, sort_keys=False))
        return path

    def page(self) -> str:
        """All trials as a table, the best first."""
        source, rows = records.code_fingerprint(), []
        for trial in self.ordered:
            known, judged = trial.user_attrs, self.score(trial) > -math.inf
            state = NAMES[trial.state] + "‡" * (known.get("source") != source)
            rows.append([
                str(trial.number),
                *(_short(known.get("settings", {}).get(key, "-")) for key in self.head["space"]),
                *(f"{known['metrics'][name]:.4f}" if judged else "-" for name in self._metrics),
                f"{known['epochs']['best']} of {known['epochs']['done']}" if judged else "-",
                f"{known.get('cpu_seconds', 0):.0f}",
                state,
            ])  # fmt: skip
        header = ["trial", *self.head["space"], *self._metrics, "epochs", "CPU s", "state"]
        spent = f"{len(rows)} trials, {self.used / 60:.1f} of {self.minutes:g} CPU minutes used; trial 0: the defaults"
        lines = [self._title, "", report.markdown_table(header, rows), "", spent]
        if any(trial.state == CUT for trial in self.trials):
            lines += ["cut: stopped where the budget ended; its best epoch counts, nothing is fitted after training"]
        failed = [trial for trial in self.trials if trial.state == FAILED]
        lines += [f"failed: trial {trial.number}: {trial.user_attrs['error']}" for trial in failed]
        if any("‡" in row[-1] for row in rows):
            lines += ["‡ made by another version of the code"]
        return "\n".join(lines)

    def summary(self, trial: FrozenTrial) -> str:
        """What a trial has reached, in a few words."""
        if trial.state == FAILED:
            return f"failed: {trial.user_attrs['error']}"
        if self.score(trial) == -math.inf:
            return NAMES[trial.state]
        values = ", ".join(f"{name} {trial.user_attrs['metrics'][name]:.4f}" for name in self._metrics)
        cut = ", cut by the budget" * (trial.state == CUT)
        return f"{values} (masked), {trial.user_attrs['epochs']['done']} epochs{cut}"

    @property
    def _title(self) -> str:
        return "{model} on {dataset}, search {key}, seed {seed}".format(**self.head)

    @property
    def _metrics(self) -> list[str]:
        """The metric of the search, and NDCG@10 and recall@10 where they were measured."""
        measured = next((metrics for trial in self.trials if (metrics := trial.user_attrs.get("metrics"))), None)
        names = dict.fromkeys([self.head["metric"], "ndcg@10", "recall@10"])
        return [name for name in names if measured is None or name in measured]


def _short(value: Any) -> str:
    return ", ".join(map(_short, value)) if isinstance(value, (list, tuple)) else str(value)
