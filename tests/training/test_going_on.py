"""Trainings that are the beginning of others, that nobody validates, or that have odd numbers of epochs."""

import contextlib
import logging
from pathlib import Path

import pytest
import torch
from conftest import settings

import recbole_bbqrec
from recbole_bbqrec import compat, quick_start, registry, storage
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.training import trainer
from recbole_bbqrec.training.checkpoint import LAST_FILE, TRAINING, WEIGHTS, WEIGHTS_FILE

MODELS = ["BBQRec", "SASRec"]
TEST_ONLY = {"split": {"LS": "test_only"}, "group_by": "user", "order": "TO", "mode": "full"}


def made(given):
    """A trainer as a script makes it, and its loaders."""
    config = Config(config_dict=given)
    loaders = split_loaders(config, registry.get_dataset(config["model"])(config))
    compat.init_seed(config)
    return registry.get_trainer(config)(config, registry.build_model(config, loaders[0]._dataset)), loaders


def tensors(folder, file=WEIGHTS_FILE, kind=WEIGHTS):
    return storage.load(Path(folder) / file, kind)[0]


def assert_equal(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def epochs_trained(monkeypatch):
    """Epochs that are trained in the test, in their order."""
    found, train = [], trainer.ProtocolTrainer._train_epoch
    monkeypatch.setattr(trainer.ProtocolTrainer, "_train_epoch", lambda self, data, epoch, *rest, **more: (
        found.append(epoch), train(self, data, epoch, *rest, **more))[1])  # fmt: skip
    return found


@pytest.mark.parametrize("model", MODELS)
def test_more_epochs_go_on_to_the_result_of_a_run_from_zero(tiny, tmp_path, caplog, epochs_trained, model):
    def run(place, epochs):
        given = settings(tiny, model, checkpoint_dir=str(tmp_path / place), cache_dir=str(tmp_path), epochs=epochs)
        return quick_start.run(config_dict={**given, "final": True})

    def training(record):
        folder = Path(record["run_dir"])
        return folder.with_name(folder.name.rpartition("-")[0]) if model == "BBQRec" else folder

    whole = run("whole", 4)
    epochs_trained.clear()
    first = run("parts", 2)
    with caplog.at_level(logging.INFO):
        last = run("parts", 4)
    assert f"{training(first)}: the same training with fewer epochs, taken over" in caplog.text
    assert last["metrics"] == whole["metrics"] and last["epochs"] == whole["epochs"]
    assert_equal(tensors(last["run_dir"]), tensors(whole["run_dir"]))
    states = [tensors(training(record), LAST_FILE, TRAINING) for record in (last, whole)]
    assert_equal(*states)
    assert any("average" in name for name in states[0]) == (model == "BBQRec")
    run("parts", 3)
    assert epochs_trained == [0, 1, 2, 3, 2], "fewer epochs than there are go on from still fewer ones"


def test_what_stopped_early_stays_stopped(tiny, tmp_path, epochs_trained):
    given = settings(tiny, "SASRec", checkpoint_dir=str(tmp_path), learning_rate=0.3, stopping_step=0)
    few = quick_start.run(config_dict={**given, "epochs": 8})
    done = few["epochs"]["done"]
    assert done < 8 and not few["epochs"]["hit_cap"]
    more = quick_start.run(config_dict={**given, "epochs": 20})
    assert len(epochs_trained) == done and more["epochs"] == few["epochs"] and more["metrics"] == few["metrics"]


def test_an_evaluation_that_a_longer_training_lacks_is_not_taken_over(tiny, tmp_path, epochs_trained):
    """A cap of 2 with `eval_step` 3 evaluates after the second epoch, a cap of 4 after the third."""
    given = settings(tiny, "SASRec", checkpoint_dir=str(tmp_path), eval_step=3)
    short = quick_start.run(config_dict={**given, "epochs": 2})
    assert short["epochs"] == {"best": 2, "done": 2, "hit_cap": True}
    long = quick_start.run(config_dict={**given, "epochs": 4})
    assert epochs_trained == [0, 1, 0, 1, 2, 3] and long["epochs"] == {"best": 3, "done": 4, "hit_cap": True}
    longer = quick_start.run(config_dict={**given, "epochs": 6})
    assert epochs_trained[6:] == [4, 5]
    whole = quick_start.run(config_dict={**given, "epochs": 6, "checkpoint_dir": str(tmp_path / "whole")})
    assert longer["metrics"] == whole["metrics"] and longer["epochs"] == whole["epochs"]


def test_a_copy_that_was_cut_short_is_no_training(tiny, tmp_path, monkeypatch, epochs_trained):
    given = settings(tiny, "SASRec", checkpoint_dir=str(tmp_path))
    quick_start.run(config_dict={**given, "epochs": 1})
    with monkeypatch.context() as patch:
        copy = trainer.checkpoint.shutil.copyfile

        def full_disk(source, target):
            copy(source, target)
            if Path(source).name == WEIGHTS_FILE:
                raise OSError("disk full")

        patch.setattr(trainer.checkpoint.shutil, "copyfile", full_disk)
        with pytest.raises(OSError, match="disk full"):
            quick_start.run(config_dict={**given, "epochs": 2})
    assert not [path for path in tmp_path.glob("SASRec-*/*") if path.suffix == ".tmp"]
    assert len(list(tmp_path.glob(f"SASRec-*/{LAST_FILE}"))) == 1
    assert quick_start.run(config_dict={**given, "epochs": 2})["epochs"]["done"] == 2 and epochs_trained == [0, 1]


@pytest.mark.parametrize("model", MODELS)
def test_without_validation_the_last_epoch_is_kept(tiny, tmp_path, caplog, capsys, model):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path / "saved"), eval_args=TEST_ONLY, epochs=3)
    record = quick_start.run(config_dict={**given, "final": True})
    assert list(record["metrics"]) == ["test"] and record["users"] == record["rows"] == {"test": 60}
    assert record["epochs"] == {"best": 3, "done": 3, "hit_cap": False}
    assert "no validation in eval_args.split: nothing was chosen" in capsys.readouterr().out
    left_out = "second stage: left out, there is no validation" in caplog.text
    assert left_out == (model == "BBQRec") and not any("second_stage" in name for name in tensors(record["run_dir"]))
    # The last epoch, by hand: the state after it, or the average over its last steps.
    runner, (train, *_) = made({**given, "checkpoint_dir": str(tmp_path / "other")})
    assert runner.fit(train, saved=False) == (-float("inf"), None)
    with getattr(runner, "_averaged", contextlib.nullcontext)():
        assert_equal(
            tensors(record["run_dir"]), {f"model.{name}": value for name, value in runner.model.state_dict().items()}
        )
    assert recbole_bbqrec.load_bundle(record["run_dir"]).recommend([["i01", "i02"]], k=3)[0].items
    alone = quick_start.run(config_dict=given)
    assert alone["metrics"] == {} and alone["run_dir"] == record["run_dir"]


@pytest.fixture
def killed_in(monkeypatch):
    """Have a run killed at the end of an epoch, before anything of it is kept."""

    def run(given, at):
        with monkeypatch.context() as patch:
            train = trainer.ProtocolTrainer._train_epoch

            def killed(self, data, epoch, *rest, **more):
                loss = train(self, data, epoch, *rest, **more)
                if epoch == at:
                    raise KeyboardInterrupt
                return loss

            patch.setattr(trainer.ProtocolTrainer, "_train_epoch", killed)
            with pytest.raises(KeyboardInterrupt):
                quick_start.run(config_dict=given)

    return run


@pytest.mark.parametrize("model", MODELS)
def test_killed_without_validation(tiny, tmp_path, epochs_trained, killed_in, model):
    changes = {"cache_dir": str(tmp_path), "eval_args": TEST_ONLY, "epochs": 3, "final": True}
    whole, cut = (settings(tiny, model, checkpoint_dir=str(tmp_path / place), **changes) for place in ("whole", "cut"))
    undisturbed = quick_start.run(config_dict=whole)
    epochs_trained.clear()
    killed_in(cut, 2)
    again = quick_start.run(config_dict=cut)
    assert epochs_trained == [0, 1, 2, 2] and again["metrics"] == undisturbed["metrics"]
    assert_equal(tensors(again["run_dir"]), tensors(undisturbed["run_dir"]))


def test_more_epochs_go_on_from_a_run_that_was_killed(tiny, tmp_path, epochs_trained, killed_in):
    given = settings(tiny, "SASRec", checkpoint_dir=str(tmp_path))
    killed_in({**given, "epochs": 3}, 1)
    longer = quick_start.run(config_dict={**given, "epochs": 4})
    assert epochs_trained == [0, 1, 1, 2, 3]
    whole = quick_start.run(config_dict={**given, "epochs": 4, "checkpoint_dir": str(tmp_path / "whole")})
    assert longer["metrics"] == whole["metrics"] and longer["epochs"] == whole["epochs"]


def test_a_script_may_leave_validation_out(tiny, tmp_path):
    """As RecBole's `trainer.fit(train)`: it ends at the cap, and `evaluate` finds the weights of the last epoch."""
    for model in MODELS:
        runner, (train, _, test) = made(settings(tiny, model, checkpoint_dir=str(tmp_path)))
        runner.fit(train, verbose=False)
        runner.finish(None)
        assert runner.state.epochs_done == 2 and runner.state.best_epoch == 1
        assert runner.evaluate(test)["ndcg@10"] > 0


def test_transition_graph_without_validation_takes_the_first_of_each_list(tiny, tmp_path, caplog):
    grid = {
        "graph_hops": [2, 1],
        "graph_last_items": [3, 1],
        "graph_hop_decay": [0.5],
        "graph_position_decay": [0.7, 1.0],
    }
    given = settings(tiny, "TransitionGraph", checkpoint_dir=str(tmp_path), eval_args=TEST_ONLY, final=True)
    with caplog.at_level(logging.INFO):
        record = quick_start.run(config_dict={**given, **grid, "graph_cosine_weight": [0.0, 1.0]})
    expected = {**{key: values[0] for key, values in grid.items()}, "graph_cosine_weight": 0.0}
    assert record["chosen"] == expected and list(record["metrics"]) == ["test"]
    assert "no validation, first of each list: graph_hops 2" in caplog.text


def test_parts_that_the_split_does_not_have_are_not_asked_for(tiny):
    split = {**TEST_ONLY, "split": {"RS": [0.8, 0.2, 0.0]}}
    with pytest.raises(
        InputError, match=r"^final: nothing is left to judge test on, eval_args.split .* no such part; "
    ):
        quick_start.run(config_dict=settings(tiny, "Pop", eval_args=split, final=True))
    with pytest.raises(InputError, match=r"^ranks_file: nothing is judged, .*--final"):
        quick_start.run(config_dict=settings(tiny, "Pop", eval_args=TEST_ONLY, ranks_file="a.csv"))


def test_a_finished_training_without_its_weights_is_not_judged_by_others(tiny, tmp_path):
    given = settings(tiny, "SASRecPlus", checkpoint_dir=str(tmp_path))
    folder = Path(quick_start.run(config_dict=given)["run_dir"])
    for path in tmp_path.glob("SASRecPlus-*/weights.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        quick_start.run(config_dict=given)
    assert not (folder / "weights.safetensors").exists()


def test_no_epochs_keep_the_model_as_it_begins(tiny, tmp_path):
    """RecBole's own settings allow it; ours refuse it at once."""
    for model in MODELS:
        runner, (train, valid, _) = made(settings(tiny, model, checkpoint_dir=str(tmp_path)))
        runner.epochs = 0
        before = {name: value.clone() for name, value in runner.model.state_dict().items()}
        runner.fit(train, valid)
        runner.load_best()
        assert_equal(before, runner.model.state_dict())
    with pytest.raises(InputError, match="epochs: found 0, expected a number above 0"):
        made(settings(tiny, epochs=0))


@pytest.mark.parametrize("changes", [{"eval_step": 50}, {"stopping_step": 10**9}])
def test_the_cap_ends_training_whatever_the_steps_are(tiny, tmp_path, changes):
    record = quick_start.run(config_dict=settings(tiny, "SASRec", checkpoint_dir=str(tmp_path), epochs=3, **changes))
    assert record["epochs"] == {"best": record["epochs"]["best"], "done": 3, "hit_cap": True}
    assert record["epochs"]["best"] == 3 or "stopping_step" in changes


def test_two_runs_of_one_command_do_not_train_in_one_folder(tiny, tmp_path):
    given = settings(tiny, "BPR", checkpoint_dir=str(tmp_path), epochs=1)
    one, loaders = made(given)
    other, _ = made(given)

    def meanwhile(epoch, score):
        with pytest.raises(InputError, match=r"another run of the same command is training there; wait for its end"):
            other.fit(*loaders[:2])

    one.fit(*loaders[:2], callback_fn=meanwhile)
    other.fit(*loaders[:2])  # finds the finished run
    assert other.state.epochs_done == 1 and not list(tmp_path.glob(".*claim*"))
