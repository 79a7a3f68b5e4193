"""The trials of a search: kept in one file, shown as a table, the best of them as settings to use."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import storage
from ..evaluation import report
from . import records

DONE, CUT, FAILED, RUNNING = "done", "cut", "failed", "running"
"""States of a trial. A running or cut one is gone on with before another begins."""

Trial = dict[str, Any]


@dataclass
class Search:
    """A search as its file holds it.

    Attributes
    ----------
    path : its file; the best settings stand beside it, as YAML.
    head : what the search is, the same in every call of its command: model, data set, key, seed, metric, space, given.
    trials : in their order, each with number, settings, state, metrics (masked, validation), epochs, CPU seconds, error
        of a failed one, and the source code's fingerprint.
    minutes : CPU time it may use in all.
    """

    path: Path
    head: dict[str, Any]
    trials: list[Trial]
    minutes: float

    @classmethod
    def load(cls, folder: Path, head: Mapping[str, Any], minutes: float) -> "Search":
        """Read a search, or begin it; the name of its file stands for all that it depends on.

        Raises
        ------
        InputError : the file is damaged.
        """
        path = folder / f"{head['model']}-{head['key']}.json"
        return cls(path, dict(head), records.read(path)["trials"] if path.is_file() else [], minutes)

    @property
    def used(self) -> float:
        """CPU seconds of all trials, those of killed calls included."""
        return sum(trial["cpu_seconds"] for trial in self.trials)

    @property
    def left(self) -> float:
        """CPU seconds that may still be used; not above 0 where there are none."""
        return 60 * self.minutes - self.used

    def score(self, trial: Trial) -> float | None:
        """Value by which trials are compared; none where validation has not judged it."""
        return None if trial["state"] == FAILED else trial["metrics"].get(self.head["metric"])

    @property
    def ordered(self) -> list[Trial]:
        """All trials, the best first; those that were not judged last."""
        scores = [(self.score(trial), trial) for trial in self.trials]
        judged = [(score, trial) for score, trial in scores if score is not None]
        best_first = [trial for _, trial in sorted(judged, key=lambda pair: -pair[0])]
        return [*best_first, *(trial for score, trial in scores if score is None)]

    @property
    def best(self) -> Trial | None:
        """The best trial; none where none was judged."""
        first = self.ordered[:1]
        return first[0] if first and self.score(first[0]) is not None else None

    def keep(self) -> None:
        """Write the file."""
        storage.write_json(self.path, {**self.head, "minutes": self.minutes, "trials": self.trials})

    def keep_best(self) -> Path | None:
        """Write the best settings as a file for `--config_files`; return its path, or none where there is no best."""
        if self.best is None:
            return None
        spent = f"{len(self.trials)} trials after {self.used / 60:.1f} CPU minutes"
        about = f"# {self._title}\n# Best of {spent}, on validation: {self.summary(self.best)}.\n"
        settings = json.loads(json.dumps({**self.head["given"], **self.best["settings"]}))  # no tuples
        path = self.path.with_suffix(".yaml")
        report.write_file(path, about + yaml.safe_dump(settings, sort_keys=False))
        return path

    def page(self) -> str:
        """All trials as a table, the best first."""
        keys, names = list(self.head["space"]), self._metrics
        rows = []
        for trial in self.ordered:
            judged = self.score(trial) is not None
            values = [f"{trial['metrics'][name]:.4f}" if judged else "-" for name in names]
            epochs = f"{trial['epochs']['best']} of {trial['epochs']['done']}" if judged else "-"
            state = trial["state"] + ("" if trial["source"] == records.code_fingerprint() else "‡")
            settings = [_short(trial["settings"][key]) for key in keys]
            rows.append([str(trial["number"]), *settings, *values, epochs, f"{trial['cpu_seconds']:.0f}", state])
        table = report.markdown_table(["trial", *keys, *names, "epochs", "CPU s", "state"], rows)
        spent = f"{self.used / 60:.1f} of {self.minutes:g} CPU minutes used"
        lines = [self._title, "", table, "", f"{len(rows)} trials, {spent}; trial 0: the defaults"]
        if any(trial["state"] == CUT for trial in self.trials):
            lines += ["cut: stopped where the budget ended; its best epoch counts, nothing is fitted after training"]
        lines += [f"failed: trial {trial['number']}: {trial['error']}" for trial in self.trials if trial["error"]]
        if any(trial["source"] != records.code_fingerprint() for trial in self.trials):
            lines += ["‡ made by another version of the code"]
        return "\n".join(lines)

    def summary(self, trial: Trial) -> str:
        """What a trial has reached, in a few words."""
        if self.score(trial) is None:
            return trial["state"] if trial["error"] is None else f"{trial['state']}: {trial['error']}"
        values = ", ".join(f"{name} {trial['metrics'][name]:.4f}" for name in self._metrics)
        cut = ", cut by the budget" if trial["state"] == CUT else ""
        return f"{values} (masked), {trial['epochs']['done']} epochs{cut}"

    @property
    def _title(self) -> str:
        return f"{self.head['model']} on {self.head['dataset']}, search {self.head['key']}, seed {self.head['seed']}"

    @property
    def _metrics(self) -> list[str]:
        """The metric of the search, and NDCG@10 and recall@10 where they were measured."""
        measured = [trial["metrics"] for trial in self.trials if trial["metrics"]]
        names = dict.fromkeys([self.head["metric"], "ndcg@10", "recall@10"])
        return [name for name in names if not measured or name in measured[0]]


def new_trial(number: int, settings: Mapping[str, Any], source: str) -> Trial:
    """A trial that is about to begin."""
    fresh = {"state": RUNNING, "metrics": {}, "epochs": {"best": 0, "done": 0}, "cpu_seconds": 0.0, "error": None}
    return {"number": number, "settings": dict(settings), **fresh, "source": source}


def _short(value: Any) -> str:
    return ", ".join(map(_short, value)) if isinstance(value, list) else str(value)
