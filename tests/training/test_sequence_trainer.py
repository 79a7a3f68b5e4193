from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import settings, write_dataset

import recbole_bbqrec
from recbole_bbqrec import quick_start
from recbole_bbqrec.model.candidates import CANDIDATES, CandidateSimilarity
from recbole_bbqrec.training import sequence_trainer
from recbole_bbqrec.training.sequence_trainer import halves_of


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
    without = quick_start.run(config_dict=given(candidate_similarity=[]))
    assert Path(without["run_dir"]) == training and Path(other["run_dir"]).parent == folder.parent
    assert len({run[0]["run_dir"], other["run_dir"], without["run_dir"]}) == 3
    assert (training / "last.safetensors").stat().st_mtime_ns == before
    ndcg = [record["metrics"]["valid"]["masked"]["ndcg@10"] for record in (run[0], other, without)]
    assert ndcg[0] > ndcg[2] and ndcg[1] >= ndcg[2]


def test_weights_that_serve_users_worse_are_left_out(given, run, monkeypatch, caplog):
    record, ranks = run
    without = quick_start.execute(config_dict=given(candidate_similarity=[]))[1]
    path = Path(record["run_dir"]) / CANDIDATES
    kept = path.read_bytes()

    def spoil(candidates: CandidateSimilarity, *_: object) -> None:
        candidates.weights[:] = torch.randn(candidates.weights.shape, generator=torch.Generator().manual_seed(0))

    path.unlink()
    monkeypatch.setattr(sequence_trainer, "fit_candidates", spoil)
    spoilt = quick_start.execute(config_dict=given())[1]
    assert "with candidate similarity: it is left out" in caplog.text
    assert not CandidateSimilarity.load(path).weights[:, 1:].any()
    for split, expected in without.items():
        assert (spoilt[split].masked == expected.masked).all() and (ranks[split].masked != expected.masked).any()
    path.write_bytes(kept)


def test_a_finished_fit_is_read_and_an_unfinished_one_is_made_again(given, run):
    path = Path(run[0]["run_dir"]) / CANDIDATES
    weights = CandidateSimilarity.load(path).weights
    before = path.stat().st_mtime_ns
    assert quick_start.run(config_dict=given())["metrics"]["valid"] == run[0]["metrics"]["valid"]
    assert path.stat().st_mtime_ns == before
    path.unlink()  # as a kill during the fit leaves it
    assert quick_start.run(config_dict=given())["metrics"]["valid"] == run[0]["metrics"]["valid"]
    assert torch.equal(CandidateSimilarity.load(path).weights, weights)


def test_validation_is_judged_by_halves_and_test_by_the_mean(given, run, monkeypatch):
    """With the weights of one half spoilt, exactly the other users' validation ranks and all test ranks may change."""
    record, ranks = run
    path = Path(record["run_dir"]) / CANDIDATES
    spoilt = CandidateSimilarity.load(path)
    kept = spoilt.weights.clone()
    spoilt.weights[0, 1:] = torch.linspace(-50, 50, spoilt.n_weights)
    spoilt.save(path)
    try:
        _, again = quick_start.execute(config_dict=given(final=True))
    finally:
        spoilt.weights = kept
        spoilt.save(path)
    _, _, _, _, valid, _ = quick_start.load_data_and_model(record["run_dir"])
    half = halves_of(valid._dataset)
    changed = again["valid"].masked != ranks["valid"].masked
    assert 0 < half.mean() < 1
    assert changed[half == 0].any() and not changed[half == 1].any()
    assert (again["test"].masked == ranks["test"].masked).all()  # judged with the third row, the mean


def test_halves_go_by_the_users_token(run):
    _, _, _, _, valid, test = quick_start.load_data_and_model(run[0]["run_dir"])
    by_user = dict(zip(valid._dataset.inter_feat["user_id"].tolist(), halves_of(valid._dataset), strict=True))
    for user, half in zip(test._dataset.inter_feat["user_id"].tolist(), halves_of(test._dataset), strict=True):
        assert by_user[user] == half


def test_generate_ranks_what_its_beam_finds(given):
    wide, few, exact = (
        quick_start.execute(config_dict=given(scoring="generate", beam_size=beam)) for beam in (100, 5, 0)
    )
    for column in ("masked", "unmasked"):
        assert np.array_equal(getattr(wide[1]["valid"], column), getattr(exact[1]["valid"], column))
    found = few[1]["valid"].masked <= 5
    assert 0 < found.mean() < 1 and (few[1]["valid"].masked[~found] > 5).all()
    assert not list(Path(wide[0]["run_dir"]).glob(CANDIDATES))


def test_a_signal_that_the_items_lack_leaves_a_run_without_candidate_similarity(given):
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
