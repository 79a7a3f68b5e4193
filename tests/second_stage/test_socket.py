"""A second stage on models of every kind: fitted, carried, read back."""

from pathlib import Path

import pytest
import torch
from conftest import QUICK, settings

import recbole_bbqrec
from recbole_bbqrec import quick_start, registry, storage
from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.protocol import FirstStage
from recbole_bbqrec.second_stage import linear_fit, socket
from recbole_bbqrec.training import afterwards
from recbole_bbqrec.training.checkpoint import LAST_FILE, TRAINING, WEIGHTS, WEIGHTS_FILE

MODELS = ["BBQRec", "SASRecPlusT", "SASRec", "GRU4Rec", "TransitionGraph", "Pop"]


def run(tiny, tmp_path, model, **changes):
    sizes = QUICK if model == "BBQRec" else {}
    given = settings(tiny, model, **{**sizes, "checkpoint_dir": str(tmp_path), "second_stage": "linear", **changes})
    return given, quick_start.execute(config_dict=given)


@pytest.mark.parametrize("model", MODELS)
def test_it_is_fitted_carried_and_read_back_whatever_the_model(tiny, tmp_path, monkeypatch, model):
    monkeypatch.setattr(linear_fit, "_share", lambda *_: 1.0)  # some models know the tiny set too well for any to stay
    without = run(tiny, tmp_path, model, second_stage="off")[1]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(afterwards.socket, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, tmp_path, model)
    record, ranks = run(tiny, tmp_path, model)[1]
    folder = Path(record["run_dir"])
    assert folder.parent == tmp_path and folder.name.startswith(f"{Path(without[0]['run_dir']).name}-")
    assert record["seconds"]["second stage"] > 0 and "second stage" not in without[0]["seconds"]
    assert (ranks["valid"].masked != without[1]["valid"].masked).any()

    config, net, dataset, train, valid, _ = quick_start.load_data_and_model(folder)
    rows = valid.collate_fn(range(len(valid._dataset)))[0]
    with torch.no_grad():
        scores = net.full_sort_predict(rows).view(len(rows), -1)
    trainer = registry.get_trainer(config)(config, net)
    trainer.eval_collector.data_collect(train)
    found = trainer.evaluate(valid, load_best_model=False)
    assert found["ndcg@10"] == pytest.approx(record["metrics"]["valid"]["unmasked"]["ndcg@10"], abs=6e-5)
    assert (trainer.rank(valid, [train._dataset]).masked == ranks["valid"].masked).all()

    bundle, tokens = recbole_bbqrec.load_bundle(folder), dataset.field2id_token[dataset.iid_field]
    histories = [[str(tokens[item]) for item in row if item] for row in rows[net.ITEM_SEQ].tolist()]
    torch.testing.assert_close(torch.from_numpy(bundle.scores(histories)), scores[:, 1:].float(), rtol=1e-4, atol=1e-4)
    socket.attach(net, None)
    with torch.no_grad():
        assert not torch.equal(net.full_sort_predict(rows).view(len(rows), -1), scores)

    training = Path(without[0]["run_dir"])
    states = [(folder, WEIGHTS_FILE, WEIGHTS), (training, WEIGHTS_FILE, WEIGHTS), (training, LAST_FILE, TRAINING)]
    hold = [
        any("second_stage" in name for name in storage.load(place / file, kind)[0])
        for place, file, kind in states
        if (place / file).is_file()  # what counts has no state to go on from
    ]
    assert hold == [True, *[False] * (len(hold) - 1)]
    again = run(tiny, tmp_path, model)[1][0]
    assert again["metrics"] == record["metrics"]
    assert again["seconds"]["second stage"] == record["seconds"]["second stage"], "it is read, not fitted again"


def test_what_is_not_worth_keeping_is_left_out_and_not_tried_again(tiny, tmp_path, monkeypatch):
    without = run(tiny, tmp_path, "Pop", second_stage="off")[1]
    tried = []
    form = socket.FORMS["linear"]._replace(fit=lambda *_: (tried.append(1), ("found nothing", False))[1])
    monkeypatch.setitem(socket.FORMS, "linear", form)
    for _ in range(2):
        record = run(tiny, tmp_path, "Pop")[1][0]
        assert record["metrics"] == without[0]["metrics"] and len(tried) == 1
    assert quick_start.load_data_and_model(record["run_dir"])[1].second_stage is None


@pytest.mark.parametrize(("model", "why"), [("FPMC", "column user_id"), ("TransRec", "column user_id")])
def test_a_model_that_needs_more_than_histories_is_one_line(tiny, tmp_path, model, why):
    message = f"^second_stage: found that {model} needs more than histories .*{why}.*; set --second_stage=off$"
    with pytest.raises(InputError, match=message):
        run(tiny, tmp_path, model, epochs=1)
    assert not list(tmp_path.rglob("*.safetensors")), "it is said before training"


def test_a_second_stage_reads_the_log_probability_of_ids(tiny, tmp_path):
    record = run(tiny, tmp_path, "BBQRec", second_stage="off", scoring="codes", epochs=1)[1][0]
    model, histories = quick_start.load_data_and_model(record["run_dir"])[1], torch.tensor([[3, 4, 0], [7, 0, 0]])
    items = torch.tensor([[5, 6, 1, 9], [8, 2, 3, 3]])
    with torch.no_grad():
        first = model.first_stage(histories)
        torch.testing.assert_close(first.id_log_p(items), first.scores.gather(1, items))  # scoring by codes is that
    assert FirstStage(first.scores).id_log_p is None


def test_beams_have_none_and_signals_need_what_they_are_made_of(tiny, tmp_path):
    def refused(model, **changes):
        with pytest.raises(InputError) as error:
            given = settings(tiny, model, checkpoint_dir=str(tmp_path), **changes)
            Config(config_dict={key: given[key] for key in ("model", "dataset", "data_path", *changes)})
        return str(error.value)

    for model in ("TIGER", "BBQRecGenerate"):
        assert "second_stage: found 'linear'" in refused(model, second_stage="linear")
    assert "candidate_similarity: found ['behavior']" in refused("SASRec", candidate_similarity=["behavior"])
    for signals in (["text"], ["codes"], ["popularity"]):
        assert "would not use" in refused("SASRec", second_stage="linear", candidate_similarity=signals)
    assert "would not use" in refused("SASRec", second_stage="gbdt", candidate_similarity=["seen"])
    assert "n_candidate_last: found 5" in refused("SASRec", second_stage="gbdt", n_candidate_last=5)
