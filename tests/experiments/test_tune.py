import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
import yaml
from conftest import arguments, settings
from hypothesis import given as given_by
from hypothesis import settings as effort
from hypothesis import strategies
from training.test_labelled import LABELLED, write_rated

from recbole_bbqrec import cli, registry, storage
from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.experiments import tune as module
from recbole_bbqrec.experiments.tune import SPACES, checked_space, read_space, tune
from recbole_bbqrec.experiments.tune_trials import CUT, NAMES, Search, drawn

SPACE = {"learning_rate": [0.001, 0.01], "hidden_dropout_prob": [0.1, 0.3, 0.5], "n_layers": [1, 2]}
EPOCHS, EPOCH = 4, 5.0


class Clock:
    """CPU time that passes only where a test lets it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module.time, "process_time", lambda: self.now)


class Run:
    """Stands in for `quick_start.execute`: four epochs of five CPU seconds, and one for what comes before and after.

    Epochs done are kept in the trial's folder, as trainings do it.
    """

    def __init__(self, clock, fails=lambda settings: False, killed_at=None):
        self.clock, self.fails, self.killed_at = clock, fails, killed_at
        self.calls, self.epochs, self.snapshot = [], 0, None

    def __call__(self, arguments, config_dict, inspect, after_epoch):
        self.calls.append({key: config_dict[key] for key in sorted(SPACE)})
        assert not config_dict.get("final") and config_dict["state"] == "WARNING"
        self.clock.now += 1
        if self.fails(config_dict):
            raise RuntimeError("the loss is\nnot finite")
        kept = Path(config_dict["checkpoint_dir"]) / "done.json"
        done = json.loads(kept.read_text()) if kept.is_file() else 0
        for epoch in range(done + 1, EPOCHS + 1):
            self.clock.now += EPOCH
            storage.write_json(kept, epoch)
            after_epoch(self.trainer(config_dict, epoch))
            self.epochs += 1
            if self.epochs == self.killed_at:
                raise KeyboardInterrupt
        metrics = self.trainer(config_dict, EPOCHS).best_valid_result
        masked = {name.removeprefix("masked_"): value for name, value in metrics.items() if name.startswith("masked_")}
        record = {"metrics": {"valid": {"masked": masked, "unmasked": {}}}, "epochs": {"best": 4, "done": 4}}
        return record, {}

    @staticmethod
    def trainer(config, epoch):
        """A trainer whose score is higher the nearer the learning rate is to .01 and dropout to .3."""
        score = (0.1 + config["learning_rate"] - abs(config["hidden_dropout_prob"] - 0.3) / 10) * epoch / EPOCHS
        result = {"masked_ndcg@10": score, "masked_recall@10": 2 * score, "ndcg@10": 0.0}
        return SimpleNamespace(best_valid_result=result, state=SimpleNamespace(best_epoch=epoch - 1, epochs_done=epoch))


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(module, "_share_features", lambda *_: None)
    return Clock(monkeypatch)


def write_space(folder, content=SPACE):
    path = folder / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def kept(results, storage=None):
    """What the one search in a folder or database holds, read with Optuna alone."""
    if storage is None:
        (path,) = results.rglob("*.jsonl")
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    (name,) = optuna.study.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    trials = [
        {"number": one.number, "state": NAMES[one.state], "error": None, **one.user_attrs} for one in study.trials
    ]
    return {**study.user_attrs, "trials": trials}


def search(tiny, tmp_path, execute, minutes=1.0, model="SASRecPlus", space=SPACE, storage=None, **changes):
    """Run the command, with `execute` in place of a run; return its exit code and what it has kept."""
    given = arguments(tiny, model=model, checkpoint_dir=str(tmp_path / "saved"), **changes)
    with pytest.MonkeyPatch.context() as patch:
        if execute is not None:
            patch.setattr(module.quick_start, "execute", execute)
        code = tune(model, "tiny", minutes, given, write_space(tmp_path, space), tmp_path / "results", storage)
    return code, kept(tmp_path / "results", storage)


def test_other_metrics_and_cut_offs_go_on_with_the_same_search(tiny, tmp_path, clock, capsys):
    class Ndcg(Run):
        @staticmethod
        def trainer(config, epoch):
            found = Run.trainer(config, epoch)
            found.best_valid_result.pop("masked_recall@10")
            return found

    search(tiny, tmp_path, Run(clock), minutes=0.3)
    assert "recall@10" in capsys.readouterr().out
    code, found = search(tiny, tmp_path, Ndcg(clock), minutes=0.6, metrics="['NDCG']", topk="[10]")
    page = capsys.readouterr().out
    assert code == 0 and len(found["trials"]) == 2 and "ndcg@10" in page and "recall@10" not in page


# What is searched


@effort(max_examples=50, deadline=None)
@given_by(
    strategies.dictionaries(
        strategies.sampled_from("abcde"),
        strategies.lists(strategies.integers(0, 9), min_size=1, max_size=3, unique=True),
    ).filter(bool),
    strategies.integers(0, 2**32),
)
def test_settings_are_drawn_in_one_order_and_none_twice(space, seed):
    defaults = {key: values[0] for key, values in space.items()}
    order = list(drawn(space, defaults, seed))
    assert order == list(drawn(dict(reversed(space.items())), defaults, seed)), "the order of keys means nothing"
    assert order[0] == defaults
    assert len({json.dumps(settings, sort_keys=True) for settings in order}) == len(order)
    size = 1
    for values in space.values():
        size *= len(values)
    assert len(order) == size and all(settings[key] in space[key] for settings in order for key in space)


def test_another_seed_draws_another_order_and_defaults_need_not_be_in_the_space():
    space = {key: list(range(6)) for key in "abc"}
    defaults = dict.fromkeys("abc", 9)
    one, other = (list(drawn(space, defaults, seed)) for seed in (1, 2))
    assert len(one) == len(other) == 6**3 + 1 and one[0] == other[0] == defaults
    assert one[1:11] != other[1:11] and sorted(map(str, one)) == sorted(map(str, other))


def test_all_spaces_that_come_with_the_program_fit_their_models(tiny):
    files = sorted(SPACES.glob("*.yaml"))
    models = {"BBQRec", "SASRecPlus", "SASRecPlusFT", "UniSRec", "TIGER", "SASRec", "GRU4Rec", "BERT4Rec", "FDSA"}
    assert models | {"TransitionGraph"} <= {path.stem for path in files}
    checked = []
    for path in files:
        registry.get_model(path.stem)
        space = read_space(path)
        given = {**settings(tiny, path.stem), "final": False, "train_batch_size": 512}
        given = {key: value for key, value in given.items() if key not in space}
        assert len(space) >= 5 and all(len(values) > 1 for values in space.values()), path
        if space in checked:  # of a model that shares it: its keys are known there as well
            space = {key: values[:1] for key, values in space.items()}
        assert set(checked_space(path, space, given)) == set(space)
        checked.append(space)


def test_the_controls_are_tuned_as_bbqrec_is_and_its_item_tokenizer_besides():
    space, whole = read_space(SPACES / "SASRecPlus.yaml"), read_space(SPACES / "BBQRec.yaml")
    for name in ("SASRecPlusT", "SASRecPlusFT", "SASRecPlusSeen", "UniSRec"):
        assert read_space(SPACES / f"{name}.yaml") == space
    assert {key: values for key, values in whole.items() if not key.startswith("sid_")} == space
    assert read_space(SPACES / "BBQRecWithoutCandidates.yaml") == whole
    of_ids = {key: values for key, values in whole.items() if key.startswith("sid_")}
    for name in ("BBQRecCodes", "BBQRecCodesDense", "BBQRecGenerate"):
        codes_alone = read_space(SPACES / f"{name}.yaml")
        assert of_ids and of_ids.keys() == {key for key in codes_alone if key.startswith("sid_")}


def test_keys_that_no_trial_would_use_are_not_searched(tiny, capsys):
    given = {"model": "BBQRec", "dataset": "tiny", "data_path": str(tiny)}
    path = SPACES / "BBQRec.yaml"
    found = checked_space(path, read_space(path), {**given, "codes": "none"})
    assert found == read_space(SPACES / "SASRecPlus.yaml")
    assert "not searched, for no trial would use it: sid_levels, sid_shared_codebook" in capsys.readouterr().err
    space = {"scoring": ["joint", "generate"], "beam_size": [10, 20]}
    assert checked_space(path, space, given) == space, "a key that some values of another make needless"


def test_a_space_may_extend_that_of_another_model(tmp_path):
    path = write_space(tmp_path, "extends: BBQRec\nn_layers: [4]\nmore: [1]")
    assert read_space(path) == {**read_space(SPACES / "BBQRec.yaml"), "n_layers": [4], "more": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found no keys"),
        ("- 1", "found no keys"),
        ("a: [1", "not a readable YAML file"),
        ("extends: Nobody", "extends 'Nobody', expected another model"),
        ("n_layers: 3", "n_layers: found 3, expected a list of different values"),
        ("n_layers: []", r"n_layers: found \[\], expected a list of different values"),
        ("n_layers: [1, 2, 1]", r"n_layers: found \[1, 2, 1\], expected a list of different values"),
        ("n_layer: [1]", "n_layer: unknown key 'n_layer' for model SASRecPlus; did you mean n_layers"),
        ("n_layers: [1, two]", r"n_layers: n_layers: found 'two', expected a whole number"),
        ("hidden_dropout_prob: [0.5, 1.5]", r"hidden_dropout_prob: .*expected a probability"),
        ("seed: [1, 2]", "seed: all trials share it"),
        ("valid_metric: [Recall@10]", "valid_metric: all trials share it"),
        ("eval_batch_size: [10, 20]", "eval_batch_size: no result depends on it"),
    ],
)
def test_wrong_space_files_are_named_with_the_key(tiny, tmp_path, content, message):
    with pytest.raises(InputError, match=f"space.yaml: .*{message}"):
        search(tiny, tmp_path, None, space=content)


def test_a_missing_space_says_where_to_put_one(tiny, tmp_path):
    with pytest.raises(InputError, match=r"--model=Pop: found no space.*--space=FILE, or into .*tune/Pop.yaml"):
        tune("Pop", "tiny", 1, [f"--data_path={tiny}"])
    with pytest.raises(InputError, match=r"--space=nowhere.yaml: no such file"):
        tune("BBQRec", "tiny", 1, [f"--data_path={tiny}"], Path("nowhere.yaml"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--final"], "final: settings are chosen on validation alone"),
        (["--final=True"], "final: settings are chosen on validation alone"),
        (["--result_file=x"], "--result_file: tuning sets it"),
        (["--seed=1", "--worker=2"], "worker: found 2, which this run of SASRecPlus would not use"),
        (["--nlayers=1"], "unknown key 'nlayers'"),
    ],
)
def test_what_is_refused(tiny, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        tune("SASRecPlus", "tiny", 1, [f"--data_path={tiny}", *arguments], results=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_final_in_a_file_is_refused_as_well(tiny, tmp_path):
    (tmp_path / "more.yaml").write_text("final: True")
    with pytest.raises(InputError, match="final: settings are chosen on validation"):
        tune("SASRecPlus", "tiny", 1, [f"--data_path={tiny}", f"--config_files={tmp_path / 'more.yaml'}"])


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_are_above_zero(minutes):
    with pytest.raises(InputError, match="--minutes: found"):
        tune("SASRecPlus", "tiny", minutes)


# The budget


def test_trials_until_the_budget_is_spent_and_the_last_one_cut(tiny, tmp_path, clock, capsys):
    execute = Run(clock)
    code, found = search(tiny, tmp_path, execute, minutes=1.0)  # a trial takes 21 seconds
    assert code == 0 and found["minutes"] == 1.0 and found["metric"] == "ndcg@10" and found["seed"] == 2020
    trials = found["trials"]
    assert [trial["state"] for trial in trials] == ["done", "done", "cut"]
    assert [trial["cpu_seconds"] for trial in trials] == [21, 21, 21], "it ends with the epoch that uses the budget up"
    assert trials[2]["epochs"] == {"best": 4, "done": 4}
    defaults = Config(config_dict=settings(tiny, "SASRecPlus"))
    assert trials[0]["settings"] == {key: defaults[key] for key in sorted(SPACE)} == execute.calls[0]
    assert [trial["settings"] for trial in trials] == execute.calls and len(set(map(str, execute.calls))) == 3
    again, _ = search(tiny, tmp_path, Run(clock), minutes=1.0)
    assert again == 0 and len(trials) == 3
    assert "the budget is used up" in capsys.readouterr().err


def test_a_cut_trial_counts_as_far_as_it_came_and_more_minutes_go_on_with_it(tiny, tmp_path, clock, capsys):
    _, found = search(tiny, tmp_path, Run(clock), minutes=32 / 60)
    trial = found["trials"][1]
    assert trial["state"] == "cut" and trial["epochs"] == {"best": 2, "done": 2} and trial["cpu_seconds"] == 11
    assert trial["metrics"]["ndcg@10"] == pytest.approx(
        Run.trainer({**found["defaults"], **trial["settings"]}, 2).best_valid_result["masked_ndcg@10"]
    )
    shown = capsys.readouterr().out
    assert "| cut |" in re.sub(" +", " ", shown) and "cut: stopped where the budget ended" in shown
    execute = Run(clock)
    search(tiny, tmp_path, execute, minutes=32 / 60)
    assert execute.calls == [], "the budget is used up"
    _, found = search(tiny, tmp_path, execute, minutes=60 / 60)
    assert execute.calls[0] == trial["settings"] and execute.epochs == 2 + 3, "two epochs are not trained again"
    assert [trial["cpu_seconds"] for trial in found["trials"]] == [21, 22, 21]
    assert [trial["state"] for trial in found["trials"]] == ["done", "done", "cut"]


def test_a_budget_of_two_calls_gives_the_trials_of_one(tiny, tmp_path, clock):
    execute = Run(clock)
    _, once = search(tiny, tmp_path, execute, minutes=3.0)
    halves = tmp_path / "halves"
    halves.mkdir()
    for minutes in (1.0, 2.0, 3.0):
        _, twice = search(tiny, halves, Run(clock), minutes=minutes)
    assert [trial["settings"] for trial in twice["trials"]] == [trial["settings"] for trial in once["trials"]]
    assert twice["key"] == once["key"] and len(once["trials"]) > 8


@pytest.mark.parametrize("killed_at", [1, 6, 7])
def test_a_kill_gains_no_time_and_changes_no_trial(tiny, tmp_path, clock, killed_at):
    _, whole = search(tiny, tmp_path, Run(clock), minutes=90 / 60)
    killed = tmp_path / "killed"
    killed.mkdir()
    began = clock.now
    with pytest.raises(KeyboardInterrupt):
        search(tiny, killed, Run(clock, killed_at=killed_at), minutes=90 / 60)
    left = kept(killed / "results")["trials"]
    assert left[-1]["state"] == "running" and left[-1]["metrics"]["ndcg@10"] > 0
    assert sum(trial["cpu_seconds"] for trial in left) == clock.now - began
    _, found = search(tiny, killed, Run(clock), minutes=90 / 60)
    assert sum(trial["cpu_seconds"] for trial in found["trials"]) == clock.now - began >= 90
    assert clock.now - began < 90 + EPOCH
    for trial, other in zip(found["trials"], whole["trials"], strict=False):
        assert trial["settings"] == other["settings"]
        if trial["state"] == other["state"] == "done":
            assert trial["metrics"] == other["metrics"]


def test_what_a_kill_leaves_on_the_disk_counts_the_running_epoch_s_trial(tiny, tmp_path, clock):
    """A kill runs no clean-up: the file as it lies there after the third epoch is all that is left."""
    left = {}

    class Watched(Run):
        def __call__(self, *given, **more):
            try:
                return super().__call__(*given, **more)
            except KeyboardInterrupt:
                left.update(kept(tmp_path / "results"))
                raise

    with pytest.raises(KeyboardInterrupt):
        search(tiny, tmp_path, Watched(clock, killed_at=3))
    (trial,) = left["trials"]
    assert trial["cpu_seconds"] == 16 and trial["epochs"] == {"best": 3, "done": 3} and trial["state"] == "running"


def test_other_code_trains_a_killed_trial_anew_and_its_time_counts(tiny, tmp_path, clock, monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt):
        search(tiny, tmp_path, Run(clock, killed_at=5), minutes=1.0)
    monkeypatch.setattr(module.records, "code_fingerprint", lambda: "other")

    def nothing_yet(arguments, config_dict, inspect, after_epoch):
        clock.now += 100
        after_epoch(Run.trainer({**config_dict, "learning_rate": 0.0}, 1))

    _, found = search(tiny, tmp_path, nothing_yet, minutes=1.0)
    assert found["trials"][1]["epochs"] == {"best": 1, "done": 1} and found["trials"][1]["cpu_seconds"] == 106
    assert "done‡" in capsys.readouterr().out


def test_a_trial_that_never_ends_an_epoch_is_stopped_too(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_share_features", lambda *_: None)
    monkeypatch.setattr(module, "KEEP_EVERY", 0.05)
    optimizer, seen = torch.optim.AdamW([torch.zeros(1, requires_grad=True)]), []
    optimizer.step()  # the first one takes its time

    def forever(*_, **__):
        while True:
            try:
                optimizer.step()
            except Exception:
                pytest.fail("the end of the budget taken for a failure")
            seen.append(kept(tmp_path / "results")["trials"][0].get("cpu_seconds", 0.0))

    code, found = search(tiny, tmp_path, forever, minutes=0.5 / 60)
    (trial,) = found["trials"]
    assert code == 1 and trial["state"] == "cut" and trial["metrics"] == {}
    assert 0.5 <= trial["cpu_seconds"] < 1.0
    assert len(set(seen)) >= 3 and seen == sorted(seen), "time is kept while the trial runs"
    assert not list((tmp_path / "results").rglob("*.yaml"))
    optimizer.step()  # nobody looks any more


# Trials and their table


def test_a_failing_trial_is_kept_and_the_search_goes_on(tiny, tmp_path, clock, capsys):
    execute = Run(clock, fails=lambda given: given["n_layers"] == 2 and given["learning_rate"] == 0.001)
    code, found = search(tiny, tmp_path, execute, minutes=10)
    states = [trial["state"] for trial in found["trials"]]
    assert code == 0 and states.count("failed") == 3 and states.count("done") == len(states) - 3 == 12 - 3
    assert {trial["error"] for trial in found["trials"]} == {None, "RuntimeError: the loss is not finite"}
    captured = capsys.readouterr()
    assert captured.out.count("failed: trial") == 3
    assert "every setting of the space has been tried" in captured.err
    assert not list((tmp_path / "saved").rglob("done.json")), "trainings are not kept"
    execute = Run(clock)
    search(tiny, tmp_path, execute, minutes=10)
    assert execute.calls == [], "a failed trial is not tried again"


def test_a_search_in_which_all_fails_stops(tiny, tmp_path, clock):
    execute = Run(clock, fails=lambda _: True)
    with pytest.raises(InputError, match=r"5 trials in a row failed, .*RuntimeError: the loss is not finite"):
        search(tiny, tmp_path, execute, minutes=10)
    assert len(execute.calls) == 5


def test_the_table_and_the_best_settings(tiny, tmp_path, clock, capsys):
    _, found = search(tiny, tmp_path, Run(clock), minutes=10, weight_decay=0.02)
    captured = capsys.readouterr()
    rows = [re.split(r" *\| *", line)[1:-1] for line in captured.out.splitlines() if line.startswith("|")]
    assert rows[0] == ["trial", *SPACE, "ndcg@10", "recall@10", "epochs", "CPU s", "state"] or set(rows[0]) >= set(
        SPACE
    )
    scores = [float(row[rows[0].index("ndcg@10")]) for row in rows[2:]]
    assert len(scores) == 12 and scores == sorted(scores, reverse=True) and scores[0] == 0.11
    assert rows[2][-4:] == ["0.2200", "4 of 4", "21", "done"] and float(rows[2][rows[0].index("learning_rate")]) == 0.01
    title = f"SASRecPlus on tiny, search {found['key']}, seed 2020"
    assert title in captured.out and "12 trials, 4.2 of 10 CPU minutes used; trial 0: the defaults" in captured.out
    assert (
        "[0.0 of 10 CPU minutes] trial 0 (the defaults): hidden_dropout_prob 0.3, learning_rate 0.001" in captured.err
    )
    assert "CPU minutes, best so far ndcg@10 0." in captured.err
    (path,) = (tmp_path / "results/tune/tiny").glob("*.yaml")
    assert path.stem == f"SASRecPlus-{found['key']}" and f"--seeds=3 --config_files={path}" in captured.out
    content = yaml.safe_load(path.read_text())
    assert (
        content["learning_rate"] == 0.01 and content["hidden_dropout_prob"] == 0.3 and content["weight_decay"] == 0.02
    )
    assert "data_path" not in content and "checkpoint_dir" not in content and "seed" not in content
    assert path.read_text().startswith(
        f"# {title}\n# Best of 12 trials after 4.2 CPU minutes, on validation: ndcg@10 0.11"
    )
    given = {"model": "SASRecPlus", "dataset": "tiny", "data_path": str(tiny)}
    config = Config(config_file_list=[str(path)], config_dict=given)
    assert config["learning_rate"] == 0.01 and config["weight_decay"] == 0.02


def test_other_settings_and_other_spaces_are_other_searches(tiny, tmp_path, clock):
    keys = {search(tiny, tmp_path, Run(clock), minutes=0.1)[1]["key"]}
    for number, (space, changes) in enumerate(
        [(SPACE, {"seed": 3}), (SPACE, {"weight_decay": 0.5}), ({**SPACE, "n_layers": [1, 3]}, {})]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        keys.add(search(tiny, folder, Run(clock), minutes=0.1, space=space, **changes)[1]["key"])
    assert len(keys) == 4
    execute = Run(clock)
    search(tiny, tmp_path, execute, minutes=0.1, eval_batch_size=17)
    assert execute.calls == [], "what decides no result makes no other search"


def test_a_key_that_the_command_gives_is_not_searched(tiny, tmp_path, clock, capsys):
    _, found = search(tiny, tmp_path, Run(clock), minutes=10, n_layers=1)
    assert set(found["space"]) == {"learning_rate", "hidden_dropout_prob"} and len(found["trials"]) == 6
    assert found["given"]["n_layers"] == 1 and "the command fixes it: n_layers" in capsys.readouterr().err
    with pytest.raises(InputError, match="the command fixes all of its keys"):
        search(tiny, tmp_path, Run(clock), space={"n_layers": [1, 2]}, n_layers=1)


def test_a_file_of_settings_moves_the_defaults(tiny, tmp_path, clock):
    (tmp_path / "start.yaml").write_text("learning_rate: 0.007\n")
    execute = Run(clock)
    search(tiny, tmp_path, execute, minutes=0.8, config_files=tmp_path / "start.yaml")
    assert execute.calls[0]["learning_rate"] == 0.007
    assert {call["learning_rate"] for call in execute.calls[1:]} <= {0.001, 0.01}


def test_a_running_trial_is_not_taken_by_another_call(tiny, tmp_path, clock):
    def another(*_, **__):
        execute = Run(clock)
        search(tiny, tmp_path, execute, minutes=40 / 60)
        assert len(execute.calls) == 2, "the next trials, until the budget that both share is used up"
        raise RuntimeError("enough")

    _, found = search(tiny, tmp_path, another, minutes=40 / 60)
    assert [(trial["state"], trial["cpu_seconds"]) for trial in found["trials"]] == [
        ("failed", 42), ("done", 21), ("cut", 21)
    ]  # fmt: skip


WORKER = """
import json, os, sys, time
from pathlib import Path
from types import SimpleNamespace
from recbole_bbqrec.experiments import tune
log, url, space, killed_at = Path(sys.argv[1]), *sys.argv[2:5]
done = 0
def execute(arguments, config_dict, inspect, after_epoch):
    global done
    kept = Path(config_dict["checkpoint_dir"]) / "done"
    for epoch in range(len(kept.read_text()) if kept.is_file() else 0, 3):
        until = time.process_time() + 0.05
        while time.process_time() < until: pass
        kept.write_text("x" * (epoch + 1))
        with log.open("a") as file:
            print(os.getpid(), config_dict["hidden_dropout_prob"], config_dict["learning_rate"], epoch, file=file)
        result = {"masked_ndcg@10": config_dict["learning_rate"]}
        state = SimpleNamespace(best_epoch=epoch, epochs_done=epoch + 1)
        after_epoch(SimpleNamespace(best_valid_result=result, state=state))
        done += 1
        if done == int(killed_at):
            os.kill(os.getpid(), 9)
    metrics = {"valid": {"masked": {"ndcg@10": config_dict["learning_rate"]}}}
    return {"metrics": metrics, "epochs": {"best": 3, "done": 3}}, {}
tune._share_features = lambda *_: None
tune.quick_start.execute = execute
tune.tune("SASRecPlus", "tiny", 5.0, sys.argv[5:], Path(space), storage=url)
"""


def test_two_processes_share_a_search_and_one_of_them_is_killed(tiny, tmp_path):
    url, log = f"sqlite:///{tmp_path / 'search.db'}", tmp_path / "log"
    space = write_space(tmp_path, {"learning_rate": [i / 1000 for i in range(1, 6)], "hidden_dropout_prob": [0.1, 0.2]})
    given = arguments(tiny, model="SASRecPlus", checkpoint_dir=str(tmp_path / "saved"))
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(log), url, str(space), killed_at, *given], cwd=tmp_path)
        for killed_at in ("2", "-1")
    ]
    assert [worker.wait(120) for worker in workers] == [-9, 0]
    found = kept(tmp_path, optuna.storages.RDBStorage(url))
    assert len(found["trials"]) == 11, "the defaults and ten others"
    assert {trial["state"] for trial in found["trials"]} == {"done"}, "the killed one's trial went on in the other"
    rows = [line.split() for line in log.read_text().splitlines()]
    assert len(rows) == len({tuple(row[1:]) for row in rows}) == 11 * 3, "nobody ran an epoch twice"
    assert {row[0] for row in rows} == {str(worker.pid) for worker in workers}
    assert sum(trial["cpu_seconds"] for trial in found["trials"]) >= 11 * 3 * 0.05
    (path,) = (tmp_path / "results").rglob("*.yaml")
    assert yaml.safe_load(path.read_text())["learning_rate"] == 0.005
    assert not list((tmp_path / "results").rglob("*.jsonl"))


@pytest.mark.parametrize("url", ["nothing", "sqlite:////no/such/folder/search.db"])
def test_a_database_that_cannot_be_used_is_named(tiny, tmp_path, url):
    with pytest.raises(InputError, match=r"study tiny/SASRecPlus-\w+ in --storage: not readable .*sqlite:///search.db"):
        search(tiny, tmp_path, None, storage=url)


HEAD = {"model": "SASRec", "dataset": "tiny", "key": "k", "seed": 1, "metric": "ndcg@10", "given": {}}


def test_a_process_killed_between_two_steps_leaves_nothing_in_the_way(tmp_path):
    head = {**HEAD, "space": {"n_layers": [1, 2]}, "defaults": {"n_layers": 1}}
    found = Search(head, 1.0, tmp_path / "results", tmp_path / "saved")
    found.study.ask()  # and killed: the trial exists, nothing is known of it
    held = [found.take("code"), found.take("code")]
    assert [trial.number for trial, _ in held] == [0, 1]
    assert [trial.user_attrs["settings"] for trial, _ in held] == [{"n_layers": 1}, {"n_layers": 2}]
    found.study.ask()  # as another machine might that saw settings left at the same moment
    assert found.take("code") is None and found.take("code") is None
    assert [trial.number for trial in found.trials] == [0, 1] and "2 trials" in found.page()


def test_a_trial_of_another_machine_is_left_alone_and_a_cut_one_goes_anywhere(tmp_path, monkeypatch):
    head = {**HEAD, "space": {"n_layers": [1, 2]}, "defaults": {"n_layers": 1}}

    def machine(name):
        monkeypatch.setattr("platform.node", lambda: name)
        return Search(head, 1.0, tmp_path / "results", tmp_path / name, f"sqlite:///{tmp_path / 'search.db'}")

    one, other = machine("one"), machine("other")
    held = [one.take("code"), other.take("code")]
    assert [trial.number for trial, _ in held] == [0, 1]
    held[0][1].release()  # as by a kill
    assert other.take("code") is None
    trial, lock = one.take("code")
    assert trial.number == 0
    one.keep(trial, CUT)
    lock.release()
    again = other.take("code")
    assert again[0].number == 0 and one.take("code") is None, "it runs on the other machine now"


RESULTS = Path(__file__).parents[2] / "results/tune"


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_searches_that_were_kept_as_json_are_shown_and_go_on(path, tmp_path):
    folder = tmp_path / "results/tune" / path.parent.name
    folder.mkdir(parents=True)
    shutil.copy(path, folder)
    old = json.loads(path.read_text())
    head = {key: value for key, value in old.items() if key not in ("minutes", "trials")}
    for minutes in (60.0, 61.0):  # read again, it is not taken over twice
        found = Search(head, minutes, tmp_path / "results", tmp_path / "saved")
    trials = kept(tmp_path / "results")["trials"]
    assert [{key: trial.get(key) for key in old["trials"][0]} for trial in trials] == old["trials"]
    assert found.keep_best().read_text() == path.with_suffix(".yaml").read_text()
    assert f"{len(trials)} trials, {found.used / 60:.1f} of 61 CPU minutes used" in found.page()
    trial, _ = found.take("other code")
    assert trial.number == len(trials) - 1, "the one that was cut"
    assert trial.user_attrs["settings"] == old["trials"][-1]["settings"]
    assert trial.user_attrs["metrics"] == {} and trial.user_attrs["cpu_seconds"] == old["trials"][-1]["cpu_seconds"]
    trial, _ = found.take("other code")
    assert trial.number == len(trials) and trial.user_attrs["settings"] not in [
        one["settings"] for one in old["trials"]
    ]


def test_a_damaged_file_is_named(tiny, tmp_path, clock):
    search(tiny, tmp_path, Run(clock))
    (path,) = (tmp_path / "results").rglob("*.jsonl")
    path.write_text("{\n{\n")
    with pytest.raises(InputError, match=f"{path.name}: not readable .*delete it to begin again"):
        search(tiny, tmp_path, Run(clock))


def test_the_command_line(tiny, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(module, "tune", lambda *given: calls.append(given) or 0)
    assert cli.main(["tune", "--model=BBQRec", "--dataset=Beauty"]) == 0
    given = ["--minutes=2.5", "--space=own.yaml", "--results=out", "--storage=sqlite:///x.db", "--n_layers=1"]
    assert cli.main(["tune", "--model=TIGER", "--dataset=Beauty", *given]) == 0
    assert calls == [
        ("BBQRec", "Beauty", 60.0, [], None, Path("results"), None),
        ("TIGER", "Beauty", 2.5, ["--n_layers=1"], Path("own.yaml"), Path("out"), "sqlite:///x.db"),
    ]
    monkeypatch.undo()
    assert cli.main(["tune", "--model=BBQRec", "--dataset=tiny", f"--data_path={tiny}", "--final"]) == 2
    assert capsys.readouterr().err.startswith("error: final: settings are chosen on validation alone")


# Real runs


@pytest.fixture
def counted(monkeypatch):
    """How often tokenizers were learned and features encoded, and which splits were ranked."""
    from recbole_bbqrec.data import features, semantic_ids
    from recbole_bbqrec.training.trainer import ProtocolTrainer

    calls = {"tokenizer": 0, "features": 0, "earlier": set()}
    learn, encode, rank = semantic_ids.TOKENIZERS["behavior_bind"].fit, features._encode, ProtocolTrainer.rank

    def counting(name, original):
        def call(*given):
            calls[name] += 1
            return original(*given)

        return call

    def watch(self, data, earlier, *rest):
        calls["earlier"].add(len(earlier))
        return rank(self, data, earlier, *rest)

    monkeypatch.setattr(semantic_ids.TOKENIZERS["behavior_bind"], "fit", counting("tokenizer", learn))
    monkeypatch.setattr(features, "_encode", counting("features", encode))
    monkeypatch.setattr(ProtocolTrainer, "rank", watch)
    return calls


def test_a_real_search(tiny, tmp_path, counted, capsys):
    from recbole_bbqrec import quick_start

    given = settings(tiny, checkpoint_dir=str(tmp_path / "saved"))
    record = quick_start.run(config_dict=given)
    capsys.readouterr()
    assert counted["tokenizer"] == counted["features"] == 1
    space = {"learning_rate": [0.001, 0.01]}
    code, found = search(tiny, tmp_path, None, minutes=5, model="BBQRec", space=space)
    assert code == 0 and [trial["state"] for trial in found["trials"]] == ["done", "done"]
    assert found["trials"][0]["metrics"] == record["metrics"]["valid"]["masked"], (
        "the defaults, as any other run has them"
    )
    assert found["trials"][0]["metrics"] != found["trials"][1]["metrics"]
    assert found["trials"][0]["epochs"]["done"] == 2 and found["trials"][0]["cpu_seconds"] > 0.1
    assert counted["tokenizer"] == 2, "the search pays for its own tokenizer, once"
    assert counted["features"] == 1, "features are the same for all models"
    assert counted["earlier"] == {1}, "test is ranked after two earlier splits, validation after one"
    assert not list((tmp_path / "saved/tune").rglob("weights.safetensors"))
    captured = capsys.readouterr()
    assert "every setting of the space has been tried" in captured.err
    assert captured.out.startswith("BBQRec on tiny, search "), "no tables of single trials, which ask for --final"


@pytest.mark.parametrize("model", ["SASRec", "TransitionGraph"])
def test_other_models_are_searched_alike(tiny, tmp_path, model):
    key = {"SASRec": "n_layers", "TransitionGraph": "graph_hops"}[model]
    space = {key: [1, 2] if model == "SASRec" else [[1], [2]]}
    code, found = search(tiny, tmp_path, None, minutes=5, model=model, space=space)
    assert code == 0 and {trial["state"] for trial in found["trials"]} == {"done"}
    assert all(0 < trial["metrics"]["ndcg@10"] < 1 for trial in found["trials"])


@pytest.mark.parametrize("metrics", [["AUC"], ["LogLoss", "AUC", "NDCG"]])
def test_a_search_may_go_by_a_metric_of_labels(tmp_path, metrics):
    folder, space = write_rated(tmp_path), {"learning_rate": [0.001, 0.01]}
    given = {**LABELLED, "metrics": metrics, "valid_metric": metrics[0]}
    code, found = search(folder, tmp_path, None, minutes=5, model="FM", space=space, **given)
    assert code == 0 and [trial["state"] for trial in found["trials"]] == ["done", "done"]
    assert all(trial["metrics"][metrics[0].lower()] > 0 for trial in found["trials"])
    (best,) = (tmp_path / "results").rglob("*.yaml")
    again = Config(arguments=[f"--config_files={best}"], config_dict=settings(folder, "FM"))
    assert again["metrics"] == metrics and again["valid_metric"] == metrics[0]


KILLED = """
import os, sys
from pathlib import Path
from recbole_bbqrec.experiments import tune
execute = tune.quick_start.execute
def killed(arguments, given, inspect, after_epoch):
    def then_killed(trainer):
        after_epoch(trainer)
        if trainer.state.epochs_done == 2:
            os.kill(os.getpid(), 9)
    return execute(arguments, given, inspect, after_epoch=then_killed)
tune.quick_start.execute = killed
tune.tune("SASRecPlus", "tiny", 5.0, sys.argv[2:], Path(sys.argv[1]))
"""


def test_a_killed_search_ends_at_the_numbers_of_an_undisturbed_one(tiny, tmp_path):
    given = arguments(tiny, model="SASRecPlus", epochs=3, checkpoint_dir=str(tmp_path / "saved"))
    space = write_space(tmp_path, {"learning_rate": [0.001, 0.01]})
    done = subprocess.run([sys.executable, "-c", KILLED, str(space), *given], cwd=tmp_path, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    (trial,) = kept(tmp_path / "results")["trials"]
    assert trial["state"] == "running" and trial["epochs"]["done"] == 2 and trial["cpu_seconds"] > 0
    _, found = search(tiny, tmp_path, None, minutes=5, space={"learning_rate": [0.001, 0.01]}, epochs=3)
    assert found["trials"][0]["cpu_seconds"] > trial["cpu_seconds"] and len(found["trials"]) == 2
    whole = tmp_path / "whole"
    whole.mkdir()
    _, undisturbed = search(tiny, whole, None, minutes=5, space={"learning_rate": [0.001, 0.01]}, epochs=3)
    assert found["key"] == undisturbed["key"]
    for ours, theirs in zip(found["trials"], undisturbed["trials"], strict=True):
        assert (ours["settings"], ours["metrics"], ours["epochs"]) == (
            theirs["settings"], theirs["metrics"], theirs["epochs"]
        )  # fmt: skip
