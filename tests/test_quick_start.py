import gc
import json
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import QUICK, as_arguments, settings, write_dataset

from recbole_bbqrec import cli, quick_start, storage
from recbole_bbqrec.data import dataset
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model import bbqrec
from recbole_bbqrec.tokenizer.memory import PeakMemory
from recbole_bbqrec.training import sequence_trainer, trainer, untrained_trainer

ROOT = Path(__file__).resolve().parents[1]
IDS = {key: value for key, value in QUICK.items() if key.startswith("sid_")}


@pytest.mark.parametrize("model", ["BBQRec", "SASRec", "GRU4Rec"])
def test_the_main_job(tiny, tmp_path, capsys, model):
    result = tmp_path / "out" / "result.json"
    given = settings(tiny, model, checkpoint_dir=str(tmp_path / "saved"), result_file=str(result), final=True)
    record = quick_start.run(as_arguments(given))
    written = json.loads(result.read_text())
    assert written == json.loads(json.dumps(record))
    names = [f"{name}@{k}" for name in ("recall", "ndcg") for k in (5, 10, 20)]
    for split in ("valid", "test"):
        for column in ("masked", "unmasked"):
            values = written["metrics"][split][column]
            assert list(values) == names and all(0 <= value <= 1 for value in values.values())
        for name in names:  # taking seen items away can only lift the target
            assert written["metrics"][split]["masked"][name] >= written["metrics"][split]["unmasked"][name]
    ours = {"report card", "second stage"} if model == "BBQRec" else set()
    assert set(written["seconds"]) == {"features", "tokenizer", "train", "epoch", "evaluate"} | ours
    assert written["peak_memory_mib"] > 50 and written["parameters"] > 100 and written["times_tested"] == 1
    assert written["settings"]["seed"] == written["seed"] == 2020 and "torch" in written["versions"]
    assert written["epochs"] == {"best": written["epochs"]["best"], "done": 2, "hit_cap": True}
    table = capsys.readouterr().out
    assert f"{model}* on tiny, seed 2020" in table and "ended at the cap" in table
    assert f"{written['metrics']['test']['masked']['ndcg@10']:.4f}" in table


def test_a_log_that_cannot_be_written_is_one_line(tiny, tmp_path):
    (tmp_path / "log").write_text("a file where the folder of logs would be")
    with pytest.raises(InputError, match=r"log/BBQRec: Not a directory; the log goes to log/ in the current folder; "):
        quick_start.run(as_arguments(settings(tiny, checkpoint_dir=str(tmp_path / "saved"))))


def test_test_data_is_looked_at_only_with_final(tiny, tmp_path, capsys, monkeypatch):
    seen = []
    rank = trainer.ProtocolTrainer.rank
    monkeypatch.setattr(trainer.ProtocolTrainer, "rank", lambda self, data, earlier, *rest: (
        seen.append(len(earlier)), rank(self, data, earlier, *rest))[1])  # fmt: skip
    record = quick_start.run(config_dict=settings(tiny, checkpoint_dir=str(tmp_path / "saved")))
    assert list(record["metrics"]) == ["valid"] and record["times_tested"] == 0
    assert set(seen) == {1}, "test is ranked after two earlier splits, validation after one"
    assert "add --final" in capsys.readouterr().out


def test_rows_are_counted_and_so_are_users_where_they_have_several_rows(tmp_path, capsys):
    write_dataset(
        tmp_path,
        rows=[(f"u{user}", f"i{(7 * user + 3 * step) % 40:02d}", step) for user in range(4) for step in range(11)],
    )
    split = {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "user", "order": "TO", "mode": "full"}
    record, ranks = quick_start.execute(config_dict=settings(tmp_path, "Pop", eval_args=split, final=True))
    assert record["users"] == {"valid": 4, "test": 4} and record["rows"] == {"valid": 8, "test": 8}
    assert record["metrics"]["valid"]["masked"]["recall@10"] == np.mean(ranks["valid"].masked <= 10)
    assert "users: 4 valid, 4 test; judged rows: 8 valid, 8 test" in capsys.readouterr().out


def test_same_seed_same_numbers_and_another_seed_others(tiny, tmp_path):
    def metrics(place, **changes):
        given = settings(tiny, checkpoint_dir=str(tmp_path / place), **changes)
        return quick_start.run(config_dict=given)["metrics"]

    assert metrics("a") == metrics("b")
    assert metrics("a", seed=1) != metrics("b")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("model", ["BBQRec", "SASRec"])
@pytest.mark.parametrize("moment", ["in the first epoch", "in a later epoch", "before the state is kept"])
def test_a_killed_run_goes_on_to_the_same_result(tiny, tmp_path, monkeypatch, model, moment):
    def given(place):
        return settings(tiny, model, checkpoint_dir=str(tmp_path / place), epochs=4)

    undisturbed = quick_start.run(config_dict=given("whole"))
    with monkeypatch.context() as patch:
        if moment == "before the state is kept":
            save = trainer.ProtocolTrainer._save_last
            patch.setattr(
                trainer.ProtocolTrainer, "_save_last", lambda self, epoch: _kill_if(epoch == 2, save, self, epoch)
            )
        else:
            when = 1 if moment == "in the first epoch" else 9
            count: list[int] = []
            for optimizer in (torch.optim.Adam, torch.optim.AdamW):
                real = optimizer.step
                patch.setattr(optimizer, "step", lambda self, *a, real=real, **k: (
                    count.append(1), _kill_if(len(count) == when, real, self))[1])  # fmt: skip
        with pytest.raises(Killed):
            quick_start.run(config_dict=given("cut"))
    resumed = quick_start.run(config_dict=given("cut"))
    assert resumed["metrics"] == undisturbed["metrics"]
    assert resumed["epochs"] == undisturbed["epochs"]


def _kill_if(now, function, *arguments):
    if now:
        raise Killed
    return function(*arguments)


def test_killed_while_learning_the_codes(tiny, tmp_path, monkeypatch):
    undisturbed = quick_start.run(config_dict=settings(tiny, checkpoint_dir=str(tmp_path / "whole")))
    given = settings(tiny, checkpoint_dir=str(tmp_path / "cut"))
    with monkeypatch.context() as patch:
        count, real = [], torch.optim.AdamW.step
        patch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (
            count.append(1), _kill_if(len(count) == 7, real, self))[1])  # fmt: skip
        with pytest.raises(Killed):
            quick_start.run(config_dict=given)
    assert not list((tmp_path / "cut").glob("cache/tiny/tokenizer-*")), "nothing half-learned is kept"
    assert quick_start.run(config_dict=given)["metrics"] == undisturbed["metrics"]


def test_a_finished_run_is_only_evaluated_unless_told_to_train_anew(tiny, tmp_path, monkeypatch):
    given = settings(tiny, checkpoint_dir=str(tmp_path / "saved"))
    first = quick_start.run(config_dict=given)
    epochs = []
    train = trainer.ProtocolTrainer._train_epoch
    monkeypatch.setattr(trainer.ProtocolTrainer, "_train_epoch", lambda self, data, epoch, *rest, **more: (
        epochs.append(epoch), train(self, data, epoch, *rest, **more))[1])  # fmt: skip
    assert quick_start.run(config_dict=given)["metrics"] == first["metrics"] and epochs == []
    assert quick_start.run(config_dict={**given, "resume": False})["metrics"] == first["metrics"] and epochs == [0, 1]


@pytest.mark.parametrize("model", ["BBQRec", "SASRec", "Pop"])
def test_other_metrics_and_cut_offs_judge_a_trained_model_anew(tiny, tmp_path, monkeypatch, model):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path / "saved"))
    first, ranks = quick_start.execute(config_dict=given)
    monkeypatch.setattr(trainer.ProtocolTrainer, "_train_epoch", None)  # a training would call it
    changes = {"topk": [1, 10], "metrics": ["NDCG", "MRR"], "use_gpu": False}
    again, ranks_again = quick_start.execute(config_dict={**given, **changes})
    assert again["run_dir"] == first["run_dir"]
    assert (ranks_again["valid"].masked == ranks["valid"].masked).all()
    assert list(again["metrics"]["valid"]["masked"]) == ["ndcg@1", "ndcg@10", "mrr@1", "mrr@10"]
    assert again["metrics"]["valid"]["masked"]["ndcg@10"] == first["metrics"]["valid"]["masked"]["ndcg@10"]
    config = quick_start.load_data_and_model(first["run_dir"])[0]
    assert config["topk"] == [1, 10] and config["metrics"] == ["NDCG", "MRR"]


def test_judging_on_test_is_counted_whatever_is_deleted_and_however_it_is_judged(tiny, tmp_path):
    given = settings(tiny, "SASRec", checkpoint_dir=str(tmp_path / "saved"), final=True, epochs=1)
    counts = [quick_start.run(config_dict=given)["times_tested"]]
    shutil.rmtree(tmp_path / "saved")
    for changes in ({}, {"topk": [10]}, {"metrics": ["NDCG"]}, {"seed": 1}, {"final": False}):
        counts.append(quick_start.run(config_dict={**given, **changes})["times_tested"])
    assert counts == [1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("model", ["BBQRecWithoutCandidates", "TransitionGraph"])
def test_what_a_run_finds_done_is_told_as_what_it_took(tiny, tmp_path, monkeypatch, model):
    """The second run finds everything, and so does the third, but the data's cache is its own and tells no cost."""
    quick = {**QUICK, "report_card": True} if model != "TransitionGraph" else {}
    given = settings(tiny, model, **quick, checkpoint_dir=str(tmp_path / "saved"))
    with monkeypatch.context() as patch:
        held = sequence_trainer.SequenceTrainer, untrained_trainer.UntrainedTrainer
        for kind in held:  # training takes memory that judging does not
            batches = kind._open_run
            patch.setattr(kind, "_open_run", lambda *rest, batches=batches: (hold(300), batches(*rest))[1])
        first = quick_start.run(config_dict=given)
    second = quick_start.run(config_dict=given)
    made = {"features", "train"} | ({"tokenizer", "report card", "epoch"} if quick else set())
    assert all(first["seconds"][name] > 0 for name in made)
    assert {name: second["seconds"][name] for name in made} == {name: first["seconds"][name] for name in made}
    assert second["peak_memory_mib"] > first["peak_memory_mib"] - 30 and second["epochs"] == first["epochs"]
    for path in (tmp_path / "saved/cache/tiny").glob("features-*.safetensors"):
        tensors, header = storage.load(path, "features")
        storage.save(path, "features", tensors, {key: value for key, value in header.items() if key != "cost"})
    third = quick_start.run(config_dict=given)
    assert third["seconds"]["features"] is third["peak_memory_mib"] is None
    assert third["metrics"] == first["metrics"]


@pytest.mark.skipif(not PeakMemory().is_own, reason="the system cannot set its high-water mark back")
def test_a_large_run_before_a_small_one_in_one_process_adds_nothing_to_its_memory(tiny, tmp_path):
    given = settings(tiny, "Pop", checkpoint_dir=str(tmp_path / "saved"))

    def run(mib):
        return quick_start.execute(config_dict=given, inspect=lambda *_: hold(mib))[0]

    records = run(0), run(400), run(0)
    small, large, small_again = (record["peak_memory_mib"] for record in records)
    assert large > small + 350 and small_again < small + 50
    assert not any(record["peak_memory_is_bound"] for record in records)


def hold(mib):
    """Hold memory for a moment."""
    if mib:
        np.ones(mib * 2**17)
    return {}


@pytest.mark.parametrize(
    ("model", "changes"), [("BBQRec", {}), ("BBQRec", {"candidate_similarity": []}), ("SASRec", {})]
)
def test_our_ranker_agrees_with_recboles_evaluator(tiny, tmp_path, model, changes):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path / "saved"), final=True, **changes)
    record = quick_start.run(config_dict=given)
    config, net, _, train, valid, test = quick_start.load_data_and_model(record["run_dir"])
    theirs = quick_start.registry.get_trainer(config)(config, net)
    theirs.eval_collector.data_collect(train)
    for split, data in (("valid", valid), ("test", test)):
        reference = theirs.evaluate(data, load_best_model=False)
        ours = record["metrics"][split]["unmasked"]
        assert {name: pytest.approx(value, abs=6e-5) for name, value in ours.items()} == dict(reference)


def test_mistakes_end_with_one_line_and_code_2(tiny, capfd):
    assert cli.run(["--model=BBQRek", "--dataset=ml-100k"]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: --model=BBQRek") and captured.err.count("\n") == 1
    assert cli.run(["--model=BBQRek", "--dataset=ml-100k", "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_what_recbole_refuses_while_it_builds_is_one_line_too(tiny, tmp_path, capfd):
    load = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]}
    given = settings(tiny, "SASRecF", checkpoint_dir=str(tmp_path), selected_features=["colour"], load_col=load)
    assert cli.run(as_arguments(given)) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error == ["error: RecBole refuses these settings (KeyError: 'colour'); --debug shows where"]


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("SASRec", {"hidden_act": "XX"}, "KeyError: 'XX'"),
        ("GRU4RecKG", {}, r"file \[.*tiny\.ent\] not found"),
    ],
)
def test_other_refusals_of_recbole(tiny, tmp_path, model, changes, message):
    with pytest.raises(InputError, match=f"^RecBole refuses these settings .*{message}"):
        quick_start.run(config_dict=settings(tiny, model, checkpoint_dir=str(tmp_path), **changes))


BRAND = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]}


def a_column_is_lost(patch):
    build = dataset.MultiModalSequentialDataset.build

    def forget(self):
        splits = build(self)
        for split in splits:
            split.field2type.pop("brand", None)
        return splits

    patch.setattr(dataset.MultiModalSequentialDataset, "build", forget)


def the_codes_are_not_attached(patch):
    patch.setattr(dataset.MultiModalSequentialDataset, "_attach_codes", lambda *_: None)


def a_model_asks_for_a_field_that_is_not_there(patch):
    wrong = SimpleNamespace(from_dataset=lambda config, dataset, *sizes: dataset.num("tfidf"))
    patch.setattr(bbqrec, "SimilarityAttention", wrong)


MISTAKES = {
    "a lost column": (a_column_is_lost, "SASRecF", {"selected_features": ["brand"], "load_col": BRAND}),
    "codes not attached": (
        the_codes_are_not_attached,
        "SASRecF",
        {"selected_features": ["semantic_id"], "attach_semantic_ids": True, **IDS},
    ),
    "a field that is not there": (a_model_asks_for_a_field_that_is_not_there, "BBQRec", {}),
}


@pytest.mark.parametrize(("mistake", "model", "changes"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_of_ours_that_fail_inside_recbole_come_out_as_themselves(
    tiny, tmp_path, monkeypatch, mistake, model, changes
):
    mistake(monkeypatch)
    with pytest.raises((KeyError, ValueError), match=r"brand|semantic_id|tfidf") as caught:
        quick_start.run(config_dict=settings(tiny, model, checkpoint_dir=str(tmp_path), **changes))
    assert not isinstance(caught.value, InputError)
    assert "recbole" in Path(str(caught.traceback[-1].path)).parts, "the error was raised in RecBole's code"


def test_a_result_file_that_cannot_be_written_is_said_before_the_run(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"result_file: .* cannot be written"):
        quick_start.run(config_dict=settings(tiny, result_file=str(tmp_path / "file" / "x.json")))
    with pytest.raises(InputError, match=r"result_file: .* cannot be written \(Is a directory\)"):
        quick_start.run(config_dict=settings(tiny, result_file=str(tmp_path)))


def test_faults_of_the_program_keep_their_traceback(tiny, tmp_path, monkeypatch):
    def fault(*_):
        raise ValueError("a fault")

    monkeypatch.setattr(quick_start, "split_loaders", fault)
    with pytest.raises(ValueError, match="a fault"):
        cli.run(as_arguments(settings(tiny, checkpoint_dir=str(tmp_path))))


DIRT = {
    "blank item": (3, "u00\t\t101", r"tiny\.inter, line 3: found a blank item_id"),
    "blank time": (3, "u00\ti01\t", r"tiny\.inter, line 3: found a blank timestamp"),
    "columns": (3, "u00\ti00", r"tiny\.inter, line 3"),
    "time": (4, "u00\ti00\tnoon", r"tiny\.inter, line 4.*noon"),
    "header": (1, "user_id:token\titem:token\ttimestamp:float", r"tiny\.inter.*item_id"),
    "type": (1, "user_id:token\titem_id:token\ttimestamp:token", r"tiny\.inter.*token, expected timestamp:float"),
}


@pytest.mark.parametrize(("line", "text", "message"), DIRT.values(), ids=DIRT.keys())
def test_broken_data_files_are_named_by_line(tmp_path, capfd, line, text, message):
    path = write_dataset(tmp_path) / "tiny" / "tiny.inter"
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    assert cli.run(as_arguments(settings(tmp_path))) == 2
    error = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(error) == 1
    assert re.search(message, error[0])


def test_too_little_data_is_said(tmp_path):
    write_dataset(tmp_path, rows=[("u1", "i01", 1), ("u1", "i02", 2), ("u2", "i01", 1), ("u2", "i03", 2)])
    with pytest.raises(InputError, match="no validation interaction"):
        quick_start.run(config_dict=settings(tmp_path))


def test_the_run_script_from_another_folder(tiny, tmp_path):
    given = as_arguments(settings(tiny, checkpoint_dir=str(tmp_path / "saved"), epochs=1))
    command = [sys.executable, str(ROOT / "run_recbole_bbqrec.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "BBQRec* on tiny" in done.stdout
    wrong = subprocess.run([*command, "--nonsense=1"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr and "unknown key 'nonsense'" in wrong.stderr


def test_a_training_is_not_taken_for_a_run(tiny, tmp_path):
    given = settings(tiny, checkpoint_dir=str(tmp_path), epochs=1)
    run = Path(quick_start.run(config_dict=given)["run_dir"])
    training = next(path for path in tmp_path.glob("BBQRec-*") if path != run)
    for place in (training, training / "weights.safetensors"):
        with pytest.raises(InputError, match=f"this is a training, finished runs of it are {run.name}; name one"):
            quick_start.load_data_and_model(place)
    for place in (tmp_path / "none", tmp_path / "model.pth"):
        with pytest.raises(InputError, match=f"{place}: no folder of a finished run"):
            quick_start.load_data_and_model(place)
    assert quick_start.load_data_and_model(model_file=run / "bundle.json")[1].second_stage is not None


def test_a_checkpoint_dir_that_cannot_be_written_is_said_at_once(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"checkpoint_dir: .*file cannot be written \(File exists\)"):
        quick_start.run(config_dict=settings(tiny, checkpoint_dir=str(tmp_path / "file")))


@pytest.mark.parametrize("changes", [{}, {"train_on": "all"}])
def test_a_bundle_is_tried_once_the_run_is_let_go(tiny, tmp_path, monkeypatch, changes):
    """Else all of a large catalogue would be held twice."""
    held, tried = [], []

    def inspect(dataset, train, valid, test):
        held.extend(weakref.ref(part) for part in (dataset, train._dataset, valid._dataset, test._dataset))
        return {}

    def try_bundle(run_dir, config):
        gc.collect()
        tried.append([part() for part in held])

    monkeypatch.setattr(quick_start, "try_bundle", try_bundle)
    given = settings(tiny, "SASRecPlusFT", epochs=1, checkpoint_dir=str(tmp_path), **changes)
    quick_start.execute(
        config_dict=given, inspect=inspect, after_epoch=lambda trainer: held.append(weakref.ref(trainer))
    )
    assert len(held) == 5 and tried and all(found == [None] * 5 for found in tried)
