"""Real processes that share the runs of one leaderboard, and the trials of one search."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import optuna
from conftest import arguments, settings
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from recbole_bbqrec import claims
from recbole_bbqrec.experiments import records
from recbole_bbqrec.experiments.runner import Job, run_jobs

TESTS = Path(__file__).resolve().parents[1]

WORKER = """
import json, os, signal, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from pathlib import Path
from experiments.fakes import FakeExecute, in_place_of_runs
from recbole_bbqrec.config import Config
from recbole_bbqrec.evaluation.configuration import TimesTested
from recbole_bbqrec.experiments.runner import Job, run_jobs

place, dies = Path(sys.argv[2]), sys.argv[3] == "dies"
fake = FakeExecute()

def execute(arguments=(), config_dict=None, inspect=None):
    if config_dict["codes"] == "random":
        raise RuntimeError("always")
    with open(place / "begun.txt", "a") as file:
        file.write(f"{config_dict['seed']} {os.getpid()}\\n")
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    record, ranks = fake(arguments, config_dict, inspect)
    record["times_tested"] = TimesTested(Config(config_dict={**config_dict, "results": str(place)})).after_run()
    return record, ranks

plan = json.loads((place / "plan.json").read_text())
data, folder = {"data": {}, "data_fingerprint": "d" * 16}, place / "runs" / "tiny"
jobs = [Job(name, given, (), data, folder) for name, given in plan]
while not (place / "go").exists():
    time.sleep(0.05)
with in_place_of_runs(execute):
    print(json.dumps(run_jobs(jobs, True, lambda job: None)))
"""


def test_two_processes_make_every_run_once_and_that_of_a_killed_one(tiny, tmp_path):
    base = {**settings(tiny, second_stage="off"), "final": True, "results": str(tmp_path)}
    plan = [("full", {**base, "seed": seed, "codes": "learned"}) for seed in range(1, 7)]
    plan.insert(3, ("random", {**base, "seed": 1, "codes": "random"}))
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-c", WORKER, str(TESTS), str(tmp_path)]
    killed = subprocess.Popen([*command, "dies"], stderr=subprocess.DEVNULL)
    (tmp_path / "go").touch()
    assert killed.wait(120) == -9
    assert len(list((tmp_path / "runs" / "tiny" / "claims").iterdir())) == 1
    (tmp_path / "go").unlink()
    started = [
        subprocess.Popen([*command, ""], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    time.sleep(1)
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=120) for process in started]
    begun = [tuple(line.split()) for line in (tmp_path / "begun.txt").read_text().splitlines()]
    assert sorted(seed for seed, _ in begun) == sorted("1123456"), "of the killed one's run there are two"
    assert len({pid for _, pid in begun}) == 3, "both have had runs"
    folder = tmp_path / "runs" / "tiny"
    assert sorted(run.seed for run in records.runs_in(folder)) == [1, 2, 3, 4, 5, 6]
    assert sorted(run.record["times_tested"] for run in records.runs_in(folder)) == [1, 2, 3, 4, 5, 6]
    failures = [json.loads(out) for out, _ in said]
    assert all(list(found) == ["random, seed 1"] for found in failures), said
    assert sum("in another process" in found["random, seed 1"] for found in failures) == 1
    assert not list((folder / "claims").iterdir())


def test_runs_that_share_a_training_are_not_made_at_once(tiny, tmp_path):
    base = {**settings(tiny), "final": False, "seed": 1}

    def claim(model="BBQRec", **changes):
        given = {**base, "model": model, **changes}
        return Job(model, given, (), {"data": {}, "data_fingerprint": "d" * 16}, tmp_path).claim

    assert claim("BBQRecWithoutCandidates") == claim() == claim(second_stage="off")
    assert len({claim(), claim(seed=2), claim(hidden_size=8), claim("SASRecPlus")}) == 4


def test_a_record_made_meanwhile_is_not_made_again(tiny, tmp_path, monkeypatch):
    from experiments.fakes import FakeExecute, in_place_of_runs

    data, execute = {"data": {}, "data_fingerprint": "d" * 16}, FakeExecute()
    given = {**settings(tiny), "final": False}
    jobs = [Job("full", {**given, "seed": seed}, (), data, tmp_path) for seed in (1, 2)]
    real = claims.in_turn

    def in_turn(waiting, *rest):
        monkeypatch.setattr(claims, "in_turn", real)
        run_jobs(jobs[1:], False, lambda _: None)  # another process
        return real(waiting, *rest)

    with in_place_of_runs(execute):
        monkeypatch.setattr(claims, "in_turn", in_turn)
        assert run_jobs(jobs, False, lambda _: None) == {}
    assert [call["seed"] for call in execute.calls] == [2, 1]


SEARCH = """
import json, sys
from pathlib import Path
from recbole_bbqrec.experiments.tune import tune
given = json.loads(sys.argv[1])
sys.exit(tune("BBQRec", "tiny", 60, given["arguments"], Path(given["space"]), Path(given["results"]), given["storage"]))
"""


def test_two_processes_share_a_search_in_a_journal(tiny, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("learning_rate: [0.1, 0.01]\nn_layers: [1, 2]\n")
    given = [each for each in arguments(tiny, epochs=1, second_stage="off") if "checkpoint_dir" not in each]
    given = [each for each in given if "n_layers" not in each]
    started = []
    for name in ("one", "two"):  # two machines: nothing but the journal is shared
        what = {
            "arguments": [*given, f"--checkpoint_dir={tmp_path / name}"],
            "space": str(space),
            "results": str(tmp_path / f"results-{name}"),
            "storage": str(tmp_path / "search.jsonl"),
        }
        command = [sys.executable, "-c", SEARCH, json.dumps(what)]
        own = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own))
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "search.jsonl")))
    (summary,) = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=summary.study_name, storage=storage).trials
    if trials[-1].state.name == "FAIL":  # both took one at the end, when settings were left for one of them
        assert "source" not in trials.pop().user_attrs
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * len(trials) and len(trials) in (4, 5)
    begun = [line for _, err in said for line in err.splitlines() if "] trial " in line]
    assert len(begun) == len(trials), "each trial once"
    assert not list((tmp_path / "search.jsonl.claims").rglob("*claim-*"))
