"""Runs that cost nothing: what an execution returns, with ranks that follow from its settings and seed."""

import contextlib

import numpy as np
import pytest

from recbole_bbqrec import quick_start
from recbole_bbqrec.evaluation.ranking import Ranks

N_USERS = 400


@contextlib.contextmanager
def in_place_of_runs(execute):
    """Have `execute` called where `quick_start.execute` would be; none leaves that in its place."""
    with pytest.MonkeyPatch.context() as patch:
        if execute is not None:
            patch.setattr(quick_start, "execute", execute)
        yield


class FakeExecute:
    """Stands in for `quick_start.execute`; remembers its calls, and fails or is interrupted where told to.

    Random codes make every rank half as large again; everything else changes nothing but chance.
    """

    def __init__(self, fails=(), interrupted_at=None):
        self.calls, self.fails, self.interrupted_at = [], set(fails), interrupted_at

    def __call__(self, arguments=(), config_dict=None, inspect=None):
        if len(self.calls) == self.interrupted_at:
            raise KeyboardInterrupt
        self.calls.append(config_dict)
        if config_dict.get("codes") in self.fails:
            raise RuntimeError("out of\nmemory")
        splits = ("valid", "test") if config_dict["final"] else ("valid",)
        ranks = {split: self.ranks(config_dict, at) for at, split in enumerate(splits)}
        metrics = {split: split_ranks.metrics(["Recall", "NDCG"], [5, 10]) for split, split_ranks in ranks.items()}
        record = {
            "model": config_dict["model"],
            "dataset": config_dict["dataset"],
            "seed": config_dict["seed"],
            "metrics": metrics,
            "epochs": {"best": 2, "done": 3, "hit_cap": config_dict.get("codes") == "none"},
            "times_tested": int(config_dict["final"]),
            "seconds": {"train": 12.5},
            "parameters": 12345,
            "run_dir": "/somewhere/of/mine/saved/BBQRec-tiny-1",
        }
        return record, ranks

    @staticmethod
    def ranks(config_dict, split):
        """Ranks of a run: users differ, runs differ a little, rows in no order of users."""
        shared = np.random.default_rng(split)
        strength = shared.exponential(20, N_USERS)
        noise = np.random.default_rng([config_dict["seed"], split]).exponential(5, N_USERS)
        worse = 1.5 if config_dict.get("codes") == "random" else 1.0
        masked = 1 + (worse * (strength + noise)).astype(np.int64)
        order = shared.permutation(N_USERS)
        return Ranks(order + 1, masked[order], (masked + shared.integers(0, 4, N_USERS))[order])
