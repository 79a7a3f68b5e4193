"""A search as Optuna keeps it: which trial is next, what each has reached in how much time, their table, the best one.

A trial's number stands for its settings, so a new trial is one atomic step of the storage and no settings run twice.
"""

import itertools
import json
import math
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from filelock import FileLock
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from .. import claims
from ..claims import Claim
from ..errors import InputError
from ..evaluation import report
from ..evaluation.metrics import SMALLER
from . import records

RUNNING, CUT, DONE, FAILED = TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE, TrialState.FAIL
NAMES = {RUNNING: "running", CUT: "cut", DONE: "done", FAILED: "failed"}
"""States of a trial. A cut one waits to be continued; so does a running one whose process was killed."""


class Search:
    """The trials of a search, in a storage that all its processes share.

    Parameters
    ----------
    head : what the search is, the same in every call: model, dataset, key, seed, metric, space, defaults, given.
    minutes : CPU time that it may use in all.
    results : folder below which it is kept, as `tune/<Dataset>/<Model>-<key>`.
    place : folder of its processes on this disk.
    url : database to keep the trials in, or a journal, a .jsonl file that several machines share; without one, a
        journal beside the best settings.
    """

    def __init__(self, head: dict[str, Any], minutes: float, results: Path, place: Path, url: str | None = None):
        self.head, self.minutes, self.place = head, minutes, place
        name = f"{head['dataset']}/{head['model']}-{head['key']}"
        self.title = f"{head['model']} on {head['dataset']}, search {head['key']}, seed {head['seed']}"
        self.path = results / "tune" / f"{name}.jsonl"
        self.is_shared = bool(url) and "://" not in str(url) and Path(str(url)).suffix == self.path.suffix
        is_database, journal = bool(url) and not self.is_shared, Path(str(url)) if self.is_shared else self.path
        # Where its trials run. A journal beside the settings belongs to one machine: an unknown place is this one.
        self.here = (f"{platform.node()}:{place.resolve()}",) if url else (str(place), None)
        # Where claims to trials are kept: beside a shared journal, so that all machines see them, else on each machine.
        self.claims = journal.with_name(f"{journal.name}.claims") / head["key"] if self.is_shared else place
        self.where = f"study {name} in --storage" if url else str(self.path)
        for folder in (place, self.path.parent, journal.parent):
            folder.mkdir(parents=True, exist_ok=True)
        before = self.path.with_suffix(".json")  # the form in which searches were kept before there were journals
        earlier = records.read(before)["trials"] if before.is_file() else []
        # Optuna's own lock on a journal outlives a kill by half a minute; the system's does not.
        lock: Any = JournalFileOpenLock(str(journal)) if self.is_shared else FileLock(place / ".journal.lock")
        try:
            with claims.alone(place / "search"):
                if is_database:
                    self.storage = RDBStorage(str(url))
                else:
                    self.storage = JournalStorage(JournalFileBackend(str(journal), lock))
                direction = "minimize" if self._is_smaller_better else "maximize"
                self.study = optuna.create_study(
                    study_name=name, storage=self.storage, direction=direction, load_if_exists=True
                )
                for key, value in {**head, "minutes": minutes}.items():
                    if self.study.user_attrs.get(key) != value:
                        self.study.set_user_attr(key, value)
                for trial in earlier[len(self.study.trials) :]:
                    state = {"done": DONE, "failed": FAILED}.get(trial["state"], CUT)
                    score = trial["metrics"][head["metric"]] if state == DONE else None
                    kept = {**trial, "metrics": {} if state == FAILED else trial["metrics"]}
                    self.study.add_trial(optuna.create_trial(state=state, value=score, user_attrs=kept))
        except Exception as error:  # every database has errors of its own
            text = " ".join(f"{type(error).__name__}: {error}".split())
            mend = (
                "give a URL such as sqlite:///search.db or a file such as search.jsonl"
                if url
                else "delete it to begin again"
            )
            raise InputError(f"{self.where}: not readable ({text}); {mend}") from error

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials that have begun, by number, as the storage has them now."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "source" in trial.user_attrs]

    @property
    def used(self) -> float:
        """CPU seconds of all trials, those of other and of killed processes included."""
        return sum(trial.user_attrs["cpu_seconds"] for trial in self.trials)

    @property
    def is_spent(self) -> bool:
        return self.used >= 60 * self.minutes

    def take(self, source: str) -> tuple[Trial, Claim] | None:
        """Take a trial that was killed, or else cut, or else a new one, with the claim that makes it this process's.

        What it has reached with other code than `source` does not count, its time does. None where nothing is left.
        """
        with claims.alone(self.place / "search"):  # others here wait until the trial is claimed
            if (taken := self._killed()) is None:
                known = self.study.get_trials(deepcopy=False)
                if all(trial.state != CUT for trial in known) and self._settings(len(known)) is None:
                    return None
                trial = self.study.ask()
                if (claim := self._claimed(trial.number)) is None:
                    return None  # another machine has taken it for one that was killed
                taken = trial, claim
        trial, reached = taken[0], taken[0].user_attrs
        if (settings := self._settings(trial.number)) is None:  # another machine was faster to take the last ones
            self.keep(trial, FAILED)
            return None
        if reached.get("source") != source:
            begun = {"settings": settings, "metrics": {}, "epochs": {"best": 0, "done": 0}}
            self.keep(trial, **begun, cpu_seconds=reached.get("cpu_seconds", 0.0), source=source)  # the source last
        self.keep(trial, place=self.here[0])
        return taken

    def _killed(self) -> tuple[Trial, Claim] | None:
        """The first trial whose process is gone; in a database, of those that ran on this machine."""
        for trial in self.study.get_trials(deepcopy=False, states=(RUNNING,)):
            place = trial.user_attrs.get("place")
            if (place is not None if self.is_shared else place in self.here) and (claim := self._claimed(trial.number)):
                if self.storage.get_trial(trial._trial_id).state == RUNNING:  # it may just have ended
                    return Trial(self.study, trial._trial_id), claim
                claim.release()
        return None

    def _settings(self, number: int) -> dict[str, Any] | None:
        """The settings of a trial, which follow from its number; none where the space has no more."""
        order = drawn(self.head["space"], self.head["defaults"], self.head["seed"])
        return next(itertools.islice(order, number, None), None)

    def folder(self, number: int) -> Path:
        """Folder of what a trial writes while it runs."""
        return self.place / f"trial-{number}"

    def _claimed(self, number: int) -> Claim | None:
        """The claim to a trial, and its folder made; none where another process has it."""
        self.folder(number).mkdir(exist_ok=True)
        return claims.take(self.claims / f"trial-{number}")

    def keep(self, trial: Trial, state: TrialState = RUNNING, **known: Any) -> None:
        """Keep what is known of a trial, and how it has ended; done and failed are final, a cut one has no place."""
        if state == CUT:
            known["place"] = None
        for key, value in known.items():
            trial.set_user_attr(key, value)
        if state != RUNNING:
            values = [known["metrics"][self.head["metric"]]] if state == DONE else None
            self.storage.set_trial_state_values(trial._trial_id, state, values)

    @property
    def _is_smaller_better(self) -> bool:
        return self.head["metric"].partition("@")[0] in SMALLER

    def score(self, trial: FrozenTrial) -> float:
        """Value by which trials are compared, more is better; below all others where validation has not judged it."""
        value = trial.user_attrs["metrics"].get(self.head["metric"])
        return -math.inf if value is None else -value if self._is_smaller_better else value

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
        about = f"# {self.title}\n# Best of {spent}, on validation: {self.summary(best)}.\n"
        settings = json.loads(json.dumps({**self.head["given"], **best.user_attrs["settings"]}))  # no tuples
        report.write_file(path, about + yaml.safe_dump(settings, sort_keys=False))
        return path

    def summary(self, trial: FrozenTrial) -> str:
        """What a trial has reached, in a few words."""
        known = trial.user_attrs
        if self.score(trial) == -math.inf:
            return NAMES[trial.state] + (f": {known['error']}" if trial.state == FAILED else "")
        values = ", ".join(f"{name} {known['metrics'][name]:.4f}" for name in self._metrics)
        masked = " (masked)" * any("@" in name for name in self._metrics)
        return f"{values}{masked}, {known['epochs']['done']} epochs" + ", cut by the budget" * (trial.state == CUT)

    @property
    def _metrics(self) -> list[str]:
        """The search's metric, NDCG@10, recall@10 and others at its cut-off, where all judged trials have them."""
        measured = [trial.user_attrs["metrics"] for trial in self.ordered if self.score(trial) > -math.inf]
        cut_off = "@" + self.head["metric"].partition("@")[2]
        others = [name for name in (measured[0] if measured else ()) if name.endswith(cut_off)]
        names = dict.fromkeys([self.head["metric"], "ndcg@10", "recall@10", *others])
        return [name for name in names if all(name in metrics for metrics in measured)]

    def page(self) -> str:
        """All trials as a table, the best first."""
        source, rows, notes = records.code_fingerprint(), [], []
        for trial in self.ordered:
            known, judged = trial.user_attrs, self.score(trial) > -math.inf
            settings = [str(known["settings"][key]).strip("[]") for key in self.head["space"]]
            values = [f"{known['metrics'][name]:.4f}" if judged else "-" for name in self._metrics]
            epochs = f"{known['epochs']['best']} of {known['epochs']['done']}" if judged else "-"
            state = NAMES[trial.state] + "‡" * (known["source"] != source)
            rows.append([str(trial.number), *settings, *values, epochs, f"{known['cpu_seconds']:.0f}", state])
        header = ["trial", *self.head["space"], *self._metrics, "epochs", "CPU s", "state"]
        spent = f"{self.used / 60:.1f} of {self.minutes:g} CPU minutes used"
        if any(trial.state == CUT for trial in self.trials):
            notes += [
                "cut: stopped where the budget ended; its best epoch counts, "
                "of more than 10,000 targets on a sample, and nothing is fitted after training"
            ]
        failed = [trial for trial in self.trials if trial.state == FAILED]
        notes += [f"failed: trial {trial.number}: {trial.user_attrs['error']}" for trial in failed]
        if any(trial.user_attrs["source"] != source for trial in self.trials):
            notes += ["‡ made by another version of the code"]
        about = f"{len(rows)} trials, {spent}; trial 0: the defaults"
        return "\n".join([self.title, "", report.markdown_table(header, rows), "", about, *notes])


def drawn(space: Mapping[str, list[Any]], defaults: Mapping[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    """Yield the defaults, then settings drawn evenly from the space, none of them twice, until all have been.

    Equal spaces give equal settings in equal order, whatever the order of their keys. Each key has a default, which
    need not be one of its values.
    """
    generator = np.random.default_rng(seed)
    keys = sorted(space)
    yield {key: defaults[key] for key in keys}
    size, known = math.prod(len(space[key]) for key in keys), set[tuple[int, ...]]()
    while len(known) < size:
        places = tuple(int(generator.integers(len(space[key]))) for key in keys)
        settings = {key: space[key][place] for key, place in zip(keys, places, strict=True)}
        if places not in known and any(settings[key] != defaults[key] for key in keys):
            yield settings
        known.add(places)
