import json
import shutil

import pytest
from conftest import settings
from experiments.fakes import FakeExecute, in_place_of_runs

from recbole_bbqrec import quick_start
from recbole_bbqrec.config import Config
from recbole_bbqrec.experiments import ablation, leaderboard, leaderboard_page, records, runner
from recbole_bbqrec.experiments.runner import Job, run_jobs

DATA = {"data": {"users": 1}, "data_fingerprint": "d" * 16}


def plan(folder, *rows, **changes):
    base = {**settings(folder), "final": False, **changes}
    return [(name, {**base, **change, "seed": seed}) for seed in (1, 2) for name, change in rows]


def run_all(planned, folder, execute=None, data=DATA, final=False, after=lambda _: None):
    with in_place_of_runs(execute):
        return run_jobs([Job(name, given, (), data, folder) for name, given in planned], final, after)


ROWS = (("full", {}), ("narrow", {"hidden_size": 8}))


def test_every_run_gets_a_record_and_is_not_run_again(tiny, tmp_path, capsys):
    execute, written = FakeExecute(), []
    planned = plan(tiny, *ROWS)
    assert run_all(planned, tmp_path, execute, after=written.append) == {}
    assert [(call["hidden_size"], call["seed"]) for call in execute.calls] == [(16, 1), (8, 1), (16, 2), (8, 2)]
    assert len(written) == 4 and len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.npz"))) == 4
    shown = capsys.readouterr().err
    assert "[1/4] full, seed 1" in shown and "[4/4] narrow, seed 2 (elapsed 0:00:00, about 0:00:00 left)" in shown
    assert run_all(planned, tmp_path, execute, after=written.append) == {}
    assert len(execute.calls) == len(written) == 4
    assert "4 runs, 4 of them finished before" in capsys.readouterr().err


def test_what_a_record_says(tiny, tmp_path):
    run_all(plan(tiny, ROWS[0])[:1], tmp_path, FakeExecute())
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert record["name"] == "full" and record["seed"] == 1 and record["data"] == {"users": 1}
    assert record["data_fingerprint"] == DATA["data_fingerprint"] and record["source"] == records.code_fingerprint()
    assert (
        record["run_key"]
        == records.run_key(record["settings"], DATA["data_fingerprint"])
        == path.stem.rpartition("-")[2]
    )
    assert record["run_dir"] == "BBQRec-tiny-1" and "/" not in record["run_dir"]
    assert str(tiny) not in path.read_text()


def test_other_data_and_test_ask_for_runs_of_their_own(tiny, tmp_path):
    execute = FakeExecute()
    run_all(plan(tiny, ROWS[0])[:1], tmp_path, execute)
    run_all(plan(tiny, ROWS[0])[:1], tmp_path, execute, {"data": {}, "data_fingerprint": "e" * 16})
    assert len(execute.calls) == 2
    final = plan(tiny, ROWS[0], final=True)[:1]
    run_all(final, tmp_path, execute, final=True)
    assert len(execute.calls) == 3
    run_all(final, tmp_path, execute, final=True)
    run_all(plan(tiny, ROWS[0])[:1], tmp_path, execute)
    assert len(execute.calls) == 3, "a record with test serves where validation alone is asked for"


def test_other_metrics_and_cut_offs_ask_for_no_runs_of_their_own(tiny, tmp_path):
    execute = FakeExecute()
    run_all(plan(tiny, ROWS[0])[:1], tmp_path, execute)
    run_all(plan(tiny, ROWS[0], topk=[1, 10], metrics=["NDCG", "MRR"])[:1], tmp_path, execute)
    assert len(execute.calls) == 1


def test_a_failing_run_does_not_end_the_others(tiny, tmp_path, capsys):
    planned = plan(tiny, ("full", {}), ("random-codes", {"codes": "random"}))
    failures = run_all(planned, tmp_path, FakeExecute(fails={"random"}))
    assert failures == {f"random-codes, seed {seed}": "RuntimeError: out of memory" for seed in (1, 2)}
    assert len(list(tmp_path.glob("*.json"))) == 2
    kept = sorted(tmp_path.glob("random-codes-1-*.error.txt"))
    assert len(kept) == 1 and "Traceback" in kept[0].read_text()
    said = {text for (_, seed, _), text in records.failures_in(tmp_path).items() if seed == "1"}
    assert said == {"random-codes, seed 1: RuntimeError: out of memory"}, "all lines of the message"
    execute = FakeExecute()
    assert run_all(planned, tmp_path, execute) == {}
    assert len(execute.calls) == 2 and not list(tmp_path.glob("*.error.txt")), "a failed run is tried again"


def test_an_interrupt_keeps_what_is_finished(tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_all(plan(tiny, *ROWS), tmp_path, FakeExecute(interrupted_at=3))
    execute = FakeExecute()
    run_all(plan(tiny, *ROWS), tmp_path, execute)
    assert [(call["hidden_size"], call["seed"]) for call in execute.calls] == [(8, 2)]


def test_estimate_counts_down(tiny, tmp_path, monkeypatch, capsys):
    execute = FakeExecute()
    monkeypatch.setattr(runner.time, "monotonic", lambda: 100.0 * len(execute.calls))
    run_all(plan(tiny, *ROWS), tmp_path, execute)
    shown = capsys.readouterr().err
    assert "[1/4] full, seed 1\n" in shown
    assert "[4/4] narrow, seed 2 (elapsed 0:05:00, about 0:01:40 left)\n" in shown


@pytest.mark.parametrize("model", ["Pop", "BERT4Rec"])  # the second has settings that RecBole adds to
def test_single_runs_and_runs_of_tables_share_a_count_of_looks_at_test(tiny, tmp_path, model):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path / "saved"), final=True)
    counts = [quick_start.run(config_dict=given)["times_tested"]]
    folder, data = records.folder_of(tmp_path / "results", "tiny"), records.about_data(Config(config_dict=given))
    assert run_all([(model, {**given, "seed": 1})], folder, data=data, final=True) == {}
    counts += [run.record["times_tested"] for run in records.runs_in(folder)]
    shutil.rmtree(folder / "tested")
    counts.append(quick_start.run(config_dict=given)["times_tested"])
    assert counts == [1, 2, 3], "a record tells what has been counted"


@pytest.fixture(scope="module")
def real(tiny, tmp_path_factory):
    """Folder of results with the record of one real run."""
    place = tmp_path_factory.mktemp("real")
    given = {**settings(tiny, checkpoint_dir=str(place / "saved")), "final": True, "seed": 3}
    folder = records.folder_of(place, "tiny")
    data = records.about_data(Config(config_dict=given))
    assert run_all([("BBQRec", given)], folder, data=data, final=True) == {}
    return place


def test_a_real_run_and_its_record_agree(real):
    (kept,) = records.runs_in(records.folder_of(real, "tiny"))
    for split in ("valid", "test"):
        for column, values in kept.ranks[split].metrics(["Recall", "NDCG"], [5, 10, 20]).items():
            for name, value in values.items():
                assert value == pytest.approx(kept.record["metrics"][split][column][name], abs=1e-12)
    assert kept.record["data"]["users"] == kept.record["users"]["valid"]


def test_a_real_record_has_what_pages_read_and_what_invented_ones_say(real, capsys):
    folder = records.folder_of(real, "tiny")
    (record,) = [run.record for run in records.runs_in(folder)]
    invented, _ = FakeExecute()(config_dict={"model": "BBQRec", "dataset": "tiny", "seed": 3, "final": True})
    assert set(invented) <= set(record) and set(invented["metrics"]) == set(record["metrics"])
    assert all(set(invented[key]) <= set(record[key]) for key in ("epochs", "seconds"))
    found = leaderboard.content("tiny", folder, final=True)
    (row,) = found["rows"]
    assert all(row[key] is not None for key in leaderboard_page.COSTS), "nothing that a real run has not measured"
    assert row["leakage_checks"] == ["passed"] and row["times_tested"] == 1 and not row["untrained"]
    assert record["finished"] and 0 <= found["data"]["tied_times"] <= 1 and found["total_seconds"] > 0
    assert "| BBQRec" in leaderboard_page.write("tiny", real, True)
    ablation.remake("tiny", True, real)
    assert "| full" in capsys.readouterr().out
