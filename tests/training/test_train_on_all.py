"""`train_on: all`: validation decides in an ordinary run, then everything is trained on, for use."""

import json
from pathlib import Path

import pytest
import torch
from conftest import settings, tiny_interactions

import recbole_bbqrec
from recbole_bbqrec import cli, quick_start, storage
from recbole_bbqrec.data import dataset
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.second_stage import boosted_fit
from recbole_bbqrec.second_stage.linear import HALVES, CandidateSimilarity, Signal
from recbole_bbqrec.second_stage.ranker import FOLDS
from recbole_bbqrec.training import trainer
from recbole_bbqrec.training.checkpoint import WEIGHTS, WEIGHTS_FILE

MODELS = ["BBQRec", "SASRec", "TransitionGraph"]
SEQUENCES = {}
for user, item, _ in tiny_interactions():
    SEQUENCES.setdefault(user, []).append(item)


@pytest.fixture
def spied(monkeypatch):
    """What the tokenizer is fitted on, and the epochs that are trained, with the number of training rows."""
    found = {"tokenizer": [], "epochs": []}
    fit, train = dataset.fit_semantic_ids, trainer.ProtocolTrainer._train_epoch

    def spy(self, data, epoch, *rest, **more):
        found["epochs"].append((len(self._train_dataset), epoch))
        return train(self, data, epoch, *rest, **more)

    monkeypatch.setattr(dataset, "fit_semantic_ids", lambda config, catalogue, sequences, *rest: (
        found["tokenizer"].append(sequences), fit(config, catalogue, sequences, *rest))[1])  # fmt: skip
    monkeypatch.setattr(trainer.ProtocolTrainer, "_train_epoch", spy)
    return found


def tokens_of(sequences, data):
    names = data.field2id_token[data.iid_field]
    return [names[sequences[at]].tolist() for at in range(len(sequences))]


@pytest.mark.parametrize("model", MODELS)
def test_validation_decides_and_everything_is_trained_on(tiny, tmp_path, capsys, spied, model):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path / "saved"), epochs=4, learning_rate=0.01)
    if model == "TransitionGraph":
        given.pop("learning_rate")
    ordinary = quick_start.run(config_dict=given)
    capsys.readouterr()
    record, ranks = quick_start.execute(config_dict={**given, "train_on": "all", "result_file": "all.json"})
    best = ordinary["epochs"]["best"]
    rows = {part: sum(len(items) - back for items in SEQUENCES.values()) for part, back in (("train", 3), ("all", 1))}
    n_epochs = 0 if model == "TransitionGraph" else 4
    expected = [(rows["train"], epoch) for epoch in range(n_epochs)] + [(rows["all"], epoch) for epoch in range(best)]
    assert spied["epochs"] == expected, "the ordinary run is reused from its folder"
    assert ranks == record["metrics"] == record["users"] == record["rows"] == {} and record["times_tested"] == 0
    assert record["epochs"] == {"best": best, "done": best, "hit_cap": ordinary["epochs"]["hit_cap"]}
    assert record["chosen"] == ordinary["chosen"]
    assert record["settings"]["train_on"] == json.loads(Path("all.json").read_text())["settings"]["train_on"] == "all"
    table = capsys.readouterr().out
    assert "no metrics: trained on all interactions" in table and "seen items" not in table and "--final" not in table

    folder = Path(record["run_dir"])
    assert folder.parent == Path(ordinary["run_dir"]).parent and "-all-" in folder.name
    assert json.loads((folder / "bundle.json").read_text())["settings"]["train_on"] == "all"
    _, net, data, train, valid, test = quick_start.load_data_and_model(folder)
    assert tokens_of(train._dataset.train_sequences, data) == [SEQUENCES[user] for user in sorted(SEQUENCES)]
    assert len(train._dataset) == rows["all"] and len(valid) == len(test) == 0
    if model == "BBQRec":
        learned_from = [tokens_of(sequences, data) for sequences in spied["tokenizer"]]
        parts = [[SEQUENCES[user][:end] for user in sorted(SEQUENCES)] for end in (-2, None)]
        assert learned_from == [parts[0], parts[0], parts[1], parts[1]], (
            "twice for the ordinary run, and once again now"
        )
    if model == "TransitionGraph":
        assert net.counts.sum() == sum(map(len, SEQUENCES.values())) and net.chosen == ordinary["chosen"]

    with pytest.raises(InputError, match=r"train_on: found 'train', but .* was trained on 'all'"):
        quick_start.load_data_and_model(folder, {"train_on": "train"})
    recbole_bbqrec.load_bundle(ordinary["run_dir"])

    history = SEQUENCES["u07"]
    found = recbole_bbqrec.load_bundle(folder).recommend([history], k=5)[0]
    ids = torch.tensor([[data.token2id(data.iid_field, item) for item in history[-50:]]])
    with torch.no_grad():
        scores = quick_start.registry.get_trainer(data.config)(data.config, net).ranker.score(ids)[0]
    expected_scores = [scores[data.token2id(data.iid_field, item)].item() for item in found.items]
    assert found.scores == pytest.approx(expected_scores, rel=1e-5) and not {*found.items} & {*history}


@pytest.mark.parametrize("killed_at", [(0, 1), (1, 0), (1, 1)], ids=["ordinary run", "second, at once", "second"])
def test_a_kill_in_either_stage_changes_nothing(tiny, tmp_path, monkeypatch, spied, killed_at):
    def run(place):
        given = settings(tiny, checkpoint_dir=str(tmp_path / place), epochs=3, learning_rate=0.001, train_on="all")
        return quick_start.run(config_dict=given)

    whole = run("whole")
    assert whole["epochs"]["best"] > 1
    with monkeypatch.context() as patch:
        train = trainer.ProtocolTrainer._train_epoch
        sizes = sorted({rows for rows, _ in spied["epochs"]})

        def killed(self, data, epoch, *rest, **more):
            loss = train(self, data, epoch, *rest, **more)
            if (sizes.index(len(self._train_dataset)), epoch) == killed_at:
                raise KeyboardInterrupt
            return loss

        patch.setattr(trainer.ProtocolTrainer, "_train_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    again = run("cut")
    assert len(spied["epochs"]) == 2 * (3 + whole["epochs"]["done"]) + 1, "the epoch of the kill alone is trained twice"
    weights = [storage.load(Path(of["run_dir"]) / WEIGHTS_FILE, WEIGHTS)[0] for of in (whole, again)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_candidates_keep_the_mean_of_the_weights_over_neighbours_of_everything(tiny, tmp_path):
    given = settings(tiny, checkpoint_dir=str(tmp_path / "saved"))
    ordinary, record = (quick_start.run(config_dict={**given, **more}) for more in ({}, {"train_on": "all"}))
    (before, after) = (quick_start.load_data_and_model(of["run_dir"])[1].second_stage for of in (ordinary, record))
    assert not len(after.halves.fitted) and len(before.halves.fitted) > 0
    assert torch.equal(after.weights[0], after.weights[HALVES])
    assert torch.equal(after.weights[0, :2], before.weights[HALVES, :2]) and after.weights[0, 2:].any()
    assert not torch.equal(after.signals["transition"].items, before.signals["transition"].items)


def test_trees_of_all_histories_rank_by_signals_of_everything(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(boosted_fit, "LEAST_GAIN", -float("inf"))  # sixty users show no gain
    given = settings(tiny, checkpoint_dir=str(tmp_path / "saved"), second_stage="gbdt")
    ordinary, record = quick_start.run(config_dict=given), quick_start.run(config_dict={**given, "train_on": "all"})
    loaded = [quick_start.load_data_and_model(of["run_dir"]) for of in (ordinary, record)]
    before, after = (model.second_stage for _, model, *_ in loaded)
    assert len(before.folds.fitted) and not len(after.folds.fitted), "no history of this run has been fitted on"
    assert all(torch.equal(trees.content, before.trees[FOLDS].content) for trees in after.trees)
    counts = [int(stage.signals["next_1"].values.sum()) for stage in (before, after)]
    n_pairs = [sum(len(items) - back - 1 for items in SEQUENCES.values()) for back in (2, 0)]
    assert counts == n_pairs
    bundle, model = recbole_bbqrec.load_bundle(record["run_dir"]), loaded[1][1]
    histories = [items[-4:] for items in SEQUENCES.values()]
    ids = torch.tensor([[bundle.item_tokens.index(item) for item in items] for items in histories])
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(bundle.scores(histories)), model.score(ids)[:, 1:])


def test_weights_go_to_buckets_of_the_same_number():
    def candidates(*buckets):
        def signal(numbers):
            return Signal(torch.tensor([0, 0, len(numbers)]), torch.ones(len(numbers)), torch.tensor(numbers).short())

        return CandidateSimilarity({f"s{at}": signal(of) for at, of in enumerate(buckets)}, 2, torch.zeros(2).long())

    fitted, new = candidates([0, 1, 2], [0, 1], []), candidates([0, 1], [0, 1, 2], [0])
    assert fitted.n_weights == 1 + 2 * 5
    fitted.weights[HALVES] = torch.arange(12.0)  # scale 0, seen 1, then the buckets by signal and position
    new.take_over(fitted)
    first, second = [2, 3, 5, 6], [8, 9, 9, 10, 11, 11]
    assert new.weights.tolist() == [[0, 1, *first, *second, 0, 0]] * 3 and not len(new.halves.fitted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final": True}, r"^final: nothing is left to judge test on, train_on all trains on everything; drop final"),
        ({"ranks_file": "ranks.csv"}, r"^ranks_file: nothing is judged, train_on all"),
        ({"train_on": "alles"}, r"^train_on: found 'alles', expected one of train, all"),
    ],
)
def test_what_cannot_be_had_with_it_is_one_line_before_the_run(tiny, changes, message):
    with pytest.raises(InputError, match=message):
        quick_start.run(config_dict=settings(tiny, "Pop", **{"train_on": "all", **changes}))


TEST_ONLY = "{'split': {'LS': 'test_only'}, 'group_by': 'user', 'order': 'TO', 'mode': 'full'}"


@pytest.mark.parametrize(
    ("command", "setting", "message"),
    [
        ([], "train_on=all", "train_on: found all, which leaves no validation to compare models by; drop it"),
        ([], f"eval_args={TEST_ONLY}", "eval_args: found {'LS': 'test_only'}, which leaves no validation"),
        (["tune"], f"eval_args={TEST_ONLY}", "eval_args: found {'LS': 'test_only'}, which leaves no validation"),
        (["tune"], "train_on=all", "--train_on: tuning sets it for its runs; drop it"),
        (["cost"], f"eval_args={TEST_ONLY}", "eval_args: found {'LS': 'test_only'}, which leaves no validation"),
    ],
)
def test_studies_need_validation(tiny, tmp_path, capfd, command, setting, message):
    given = settings(tiny, results=str(tmp_path / "results"))
    if command == ["cost"]:
        given.pop("model")
    arguments = [f"--{key}={value}" for key, value in given.items()] + [f"--{setting}"]
    assert (cli.main([*command, *arguments]) if command else cli.run([*arguments, "--seeds=2"])) == 2
    assert f"error: {message}" in capfd.readouterr().err


def test_without_validation_nothing_is_decided_first(tiny, tmp_path, spied):
    split = {"split": {"LS": "test_only"}, "group_by": "user", "order": "TO", "mode": "full"}
    given = settings(tiny, "SASRec", checkpoint_dir=str(tmp_path), eval_args=split, train_on="all")
    assert quick_start.run(config_dict=given)["epochs"] == {"best": 2, "done": 2, "hit_cap": False}
    assert len(spied["epochs"]) == 2
