from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import settings, write_dataset

import recbole_bbqrec
from recbole_bbqrec import quick_start, registry, storage
from recbole_bbqrec.second_stage.linear import HALVES
from recbole_bbqrec.training.checkpoint import LAST_FILE, TRAINING, WEIGHTS, WEIGHTS_FILE


@pytest.fixture(scope="module")
def given(tiny, tmp_path_factory):
    """Settings of runs that share a folder."""
    place = str(tmp_path_factory.mktemp("saved"))
    return lambda **changes: settings(tiny, checkpoint_dir=place, **changes)


@pytest.fixture(scope="module")
def run(given):
    return quick_start.execute(config_dict=given(final=True))


def test_candidate_settings_share_one_training(given, run):
    folder = Path(run[0]["run_dir"])
    training = folder.with_name(folder.name.rpartition("-")[0])
    before = (training / "last.safetensors").stat().st_mtime_ns
    other = quick_start.run(config_dict=given(candidate_similarity=["text"]))
    without = quick_start.run(config_dict=given(second_stage="off"))
    assert Path(without["run_dir"]) == training and Path(other["run_dir"]).parent == folder.parent
    assert len({run[0]["run_dir"], other["run_dir"], without["run_dir"]}) == 3
    assert (training / "last.safetensors").stat().st_mtime_ns == before
    ndcg = [record["metrics"]["valid"]["masked"]["ndcg@10"] for record in (run[0], other, without)]
    assert ndcg[0] > ndcg[2] and ndcg[1] != ndcg[2]


def test_a_finished_fit_is_read_and_an_unfinished_one_is_made_again(given, run):
    path = Path(run[0]["run_dir"]) / WEIGHTS_FILE
    weights, header = storage.load(path, WEIGHTS)
    before = path.stat().st_mtime_ns
    again = quick_start.run(config_dict=given())
    assert again["metrics"]["valid"] == run[0]["metrics"]["valid"]
    assert again["seconds"]["second stage"] == run[0]["seconds"]["second stage"] == header["second_stage_seconds"] > 0
    assert path.stat().st_mtime_ns == before
    path.unlink()  # as a kill during the fit leaves it
    assert quick_start.run(config_dict=given())["metrics"]["valid"] == run[0]["metrics"]["valid"]
    found = storage.load(path, WEIGHTS)[0]
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    assert any(name.startswith("model.second_stage.") for name in weights)


def test_what_was_fitted_for_another_encoder_is_fitted_again(given, run):
    path = Path(run[0]["run_dir"]) / WEIGHTS_FILE
    weights, header = storage.load(path, WEIGHTS)
    name = "model.position_embedding.weight"
    storage.save(path, WEIGHTS, {**weights, name: weights[name] + 1}, header)  # as a training anew would leave it
    assert quick_start.run(config_dict=given())["metrics"]["valid"] == run[0]["metrics"]["valid"]
    assert torch.equal(storage.load(path, WEIGHTS)[0][name], weights[name])


def test_training_learns_and_keeps_the_encoder_alone(given, run):
    folder = Path(run[0]["run_dir"])
    training = folder.with_name(folder.name.rpartition("-")[0])
    for file, kind in ((WEIGHTS_FILE, WEIGHTS), (LAST_FILE, TRAINING)):
        assert not any("second_stage" in name for name in storage.load(training / file, kind)[0])
    without = quick_start.run(config_dict=given(candidate_similarity=[]))
    assert run[0]["parameters"] == without["parameters"]


def test_whoever_asks_for_validation_gets_the_figures_of_the_run(given, run):
    """A trainer that goes on, RecBole's evaluator, what is loaded later, and a bundle: one rank for each history."""
    record, ranks = run
    config, model, dataset, train, valid, _ = quick_start.load_data_and_model(record["run_dir"])
    trainer = registry.get_trainer(config)(config, model)
    trainer.eval_collector.data_collect(train)
    assert np.array_equal(trainer.rank(valid, [train._dataset]).masked, ranks["valid"].masked)
    trainer.fit(train, valid)
    trainer.finish(valid)
    for found in (trainer.evaluate(valid), trainer.evaluate(valid, load_best_model=False)):
        assert found["ndcg@10"] == pytest.approx(record["metrics"]["valid"]["unmasked"]["ndcg@10"], abs=6e-5)
    bundle, rows = recbole_bbqrec.load_bundle(record["run_dir"]), valid._dataset[range(len(valid._dataset))]
    tokens = dataset.field2id_token[dataset.iid_field]
    histories = [[str(tokens[item]) for item in row if item] for row in rows[model.ITEM_SEQ].tolist()]
    listed = bundle.recommend(histories, k=dataset.item_num, exclude_seen=False)
    for row, (target, recommended) in enumerate(zip(rows[model.ITEM_ID].tolist(), listed, strict=True)):
        assert recommended.items.index(str(tokens[target])) + 1 == ranks["valid"].unmasked[row]


def test_validation_is_judged_by_halves_and_test_by_the_mean(given, run):
    """With the weights of one half spoilt, exactly the validation ranks of that half may change, and no test rank."""
    record, ranks = run
    config, model, _, train, valid, test = quick_start.load_data_and_model(record["run_dir"])
    candidates, trainer = model.second_stage, registry.get_trainer(config)(config, model)
    histories, later = (data._dataset.lists() for data in (valid, test))
    half = candidates.halves(histories).numpy()
    assert 0 < half.mean() < 1 and set(half) == {0, 1}
    assert (candidates.halves(later) == HALVES).all()
    candidates.weights[0, 1:] = torch.linspace(-50, 50, candidates.n_weights)
    again = trainer.rank(valid, [train._dataset]), trainer.rank(test, [train._dataset, valid._dataset])
    changed = again[0].masked != ranks["valid"].masked
    assert changed[half == 0].any() and not changed[half == 1].any()
    assert (again[1].masked == ranks["test"].masked).all()


def test_generate_ranks_what_its_beam_finds(given):
    wide, few, exact = (
        quick_start.execute(config_dict=given(scoring="generate", beam_size=beam)) for beam in (100, 5, 0)
    )
    for column in ("masked", "unmasked"):
        assert np.array_equal(getattr(wide[1]["valid"], column), getattr(exact[1]["valid"], column))
    found = few[1]["valid"].masked <= 5
    assert 0 < found.mean() < 1 and (few[1]["valid"].masked[~found] > 5).all()
    assert quick_start.load_data_and_model(wide[0]["run_dir"])[1].second_stage is None


def test_a_signal_that_the_items_lack_leaves_a_run_without_a_second_stage(given):
    record = quick_start.run(config_dict=given(candidate_similarity=["image"]))
    without = quick_start.run(config_dict=given(candidate_similarity=[]))
    assert record["metrics"] == without["metrics"]
    assert recbole_bbqrec.load_bundle(record["run_dir"]).recommend([["i01", "i02"]], k=3)[0].items


def test_a_bundle_that_generates_leaves_seen_items_out_of_its_beam(given):
    record = quick_start.run(config_dict=given(scoring="generate", beam_size=6))
    bundle = recbole_bbqrec.load_bundle(record["run_dir"])
    histories = [bundle.item_tokens[start : start + 12] for start in range(1, 25)]
    for history, (items, scores, _) in zip(histories, bundle.recommend(histories, k=6), strict=True):
        assert len(items) == 6 and not set(items) & set(history) and scores == sorted(scores, reverse=True)
    seen = bundle.recommend(histories, k=6, exclude_seen=False)
    assert any(set(result.items) & set(history) for history, result in zip(histories, seen, strict=True))


def test_a_single_user_is_enough_for_a_run(tmp_path):
    write_dataset(tmp_path, rows=[("u", f"i{item:02d}", item) for item in range(12)])
    record, ranks = quick_start.execute(config_dict=settings(tmp_path, final=True))
    assert len(ranks["test"].masked) == 1 and record["users"] == {"valid": 1, "test": 1}
