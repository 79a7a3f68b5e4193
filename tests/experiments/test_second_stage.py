"""The study of the second stage: numbers are those of a run, it goes on where it stopped, its page answers first."""

import json

import numpy as np
import pytest
from conftest import arguments, settings

from recbole_bbqrec import cli, quick_start
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.ranking import Ranks
from recbole_bbqrec.experiments import records, second_stage
from recbole_bbqrec.experiments.second_stage import columns_of, judged_ranks, study
from recbole_bbqrec.experiments.second_stage_page import GBDT, LINEAR, OFF, content, folder_of, write
from recbole_bbqrec.modalities import MODALITIES
from recbole_bbqrec.second_stage import boosted_fit, ranker, trees
from recbole_bbqrec.second_stage.features import Feature

N_USERS = 300


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(boosted_fit, "N_TREES", (5, 10))
    monkeypatch.setattr(trees, "LEAST_IN_LEAF", 5)


def test_all_features_rank_as_a_run_does(tiny, tmp_path, monkeypatch):
    """Not all items are candidates, and of what a user has seen the histories hold a part."""
    monkeypatch.setattr(ranker, "BEST", 24)
    monkeypatch.setattr(ranker, "COUNTED", 2)
    monkeypatch.setattr(second_stage, "PARTS", {})
    changes = {"checkpoint_dir": str(tmp_path), "MAX_ITEM_LIST_LENGTH": 3}
    study("Pop", "tiny", 1, arguments(tiny, model="Pop", second_stage="gbdt", **changes), tmp_path)
    (run,) = records.runs_in(folder_of(tmp_path, "tiny"))
    assert 0 < run.record["targets"]["among_candidates"] < run.record["targets"]["judged"] == 60
    assert run.record["variants"][GBDT]["is_better"], "else a run would leave the second stage out"
    for variant in (OFF, LINEAR, GBDT):
        given = settings(tiny, "Pop", second_stage=variant, **changes)
        real = quick_start.execute(config_dict=given)[1]["valid"]
        order = np.argsort(real.users, kind="stable")
        for column in ("masked", "unmasked"):
            expected, found = getattr(real, column)[order], getattr(run.ranks[variant], column)
            assert (np.minimum(found, 11) == np.minimum(expected, 11)).all(), (variant, column)
    assert run.record["metrics"][GBDT]["masked"]["ndcg@10"] > run.record["metrics"][OFF]["masked"]["ndcg@10"]


def test_a_killed_study_goes_on_and_the_page_follows_from_the_records(tiny, tmp_path, monkeypatch, capsys):
    few = ("behavior", "transitions", "image", "codes")
    monkeypatch.setattr(second_stage, "PARTS", {part: second_stage.PARTS[part] for part in few})
    given = arguments(tiny, checkpoint_dir=str(tmp_path / "saved"), epochs=1, second_stage="gbdt")
    genuine, fits = second_stage.cross_fit, []

    def killed_at_third(*more):
        fits.append(1)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return genuine(*more)

    monkeypatch.setattr(second_stage, "cross_fit", killed_at_third)
    with pytest.raises(KeyboardInterrupt):
        study("BBQRec", "tiny", 1, given, tmp_path)
    (before,) = records.runs_in(folder_of(tmp_path, "tiny"))
    assert list(before.record["variants"]) == [OFF, LINEAR, GBDT, "without behavior"]
    assert "no record yet of SASRecPlusFT" in write("tiny", tmp_path)
    page = study("BBQRec", "tiny", 1, given, tmp_path)
    (run,) = records.runs_in(folder_of(tmp_path, "tiny"))
    assert list(run.record["variants"]) == run.record["planned"] and len(fits) == len(run.record["planned"]) - 2 + 1
    assert all((run.ranks[name].masked == ranks.masked).all() for name, ranks in before.ranks.items())
    assert run.record["left_out"] == {"without image": "the model or the data set has none"}
    assert "without codes" in run.splits
    whole = run.record["variants"][GBDT]["features"]
    left = [run.record["variants"][f"without {part}"]["features"] for part in ("behavior", "transitions")]
    assert 0 < left[0] < left[1] < whole < run.record["variants"]["with popularity"]["features"]
    assert run.record["settings"]["candidate_similarity"] == ["behavior", *MODALITIES, "codes"]
    assert "test" not in run.splits and run.record["times_tested"] == 0 and run.record["leakage_check"]

    monkeypatch.setattr(quick_start, "train", lambda *_, **__: pytest.fail("trained again"))
    assert study("BBQRec", "tiny", 1, given, tmp_path) == page
    assert cli.main(["second-stage", "--dataset=tiny", f"--results={tmp_path}", "--table-only"]) == 0
    assert page in capsys.readouterr().out and str(tmp_path) not in page
    assert (
        json.loads((tmp_path / "files/second-stage-tiny.json").read_text())["models"][0]["rows"][2]["variant"] == GBDT
    )
    assert (tmp_path / "files/second-stage-tiny.png").read_bytes().startswith(b"\x89PNG")
    assert records.find(tmp_path / "runs/tiny", run.seed, run.key) is None, "no table of runs takes it for one"


WHOLE = {"split": {"LS": "valid_and_test"}}
BY_TIME = {"split": {"TS": [0.8, 0.1, 0.1]}, "group_by": "none"}


def fake(folder, model, ranks_of, seeds=(1, 2, 3), data="d", finished="2026", key="k", eval_args=WHOLE):
    ranks_of = {OFF: next(iter(ranks_of.values())) + 1, **ranks_of}
    for seed in seeds:
        noise = np.random.default_rng([seed, len(model)]).integers(0, 2, N_USERS)
        ranks = {name: Ranks(np.arange(N_USERS), ranks + noise, ranks + noise) for name, ranks in ranks_of.items()}
        metrics = {name: one.metrics(["Recall", "NDCG"], [10]) for name, one in ranks.items()}
        clock = {"seconds": 1.0, "cpu_seconds": 2.0}
        record = {
            **{"model": model, "seed": seed, "run_key": f"{model}{key}", "data_fingerprint": data, "metrics": metrics},
            **{"settings": {"candidate_similarity": ["behavior"], "eval_args": eval_args}, "finished": finished},
            **{"seconds": {}, "source": "s"},
            **{"epochs": {"done": 3, "hit_cap": False}, "times_tested": 0, "peak_memory_is_bound": False},
            **{"rows": dict.fromkeys(ranks, N_USERS), "data": {}, "versions": {}, "left_out": {}, "planned": [*ranks]},
            "variants": {name: {"features": 7, "is_better": seed == 1, **clock} for name in ranks},
            "work": {"signals": clock, "candidates": clock},
            "targets": {"judged": N_USERS, "among_candidates": 200},
        }
        records.write(folder, model, record, ranks)


def test_each_split_has_a_page_of_its_own(tmp_path, capsys):
    good = np.random.default_rng(0).integers(1, 15, N_USERS)
    fake(folder_of(tmp_path, "x"), "BBQRec", {GBDT: good})
    alone = write("x", tmp_path)
    fake(folder_of(tmp_path, "x"), "BBQRec", {GBDT: good + 3}, finished="2027", key="time", eval_args=BY_TIME)
    assert write("x", tmp_path) == alone, "another split's records are not looked at"
    assert cli.main(["second-stage", "--dataset=x", f"--results={tmp_path}", "--table-only"]) == 0
    by_time = (tmp_path / "second-stage-x-TS.md").read_text()
    assert "files/second-stage-x-TS.png" in by_time and by_time.split("| gbdt")[1] != alone.split("| gbdt")[1]
    told = capsys.readouterr().out
    assert alone in told and by_time in told and (tmp_path / "second-stage-x.md").read_text() == alone


def test_the_page_begins_with_what_codes_add(tmp_path):
    folder = folder_of(tmp_path, "x")
    good = np.random.default_rng(0).integers(1, 15, N_USERS)
    worse = good + 2
    fake(folder, "BBQRec", {GBDT: good, "without codes": worse, "scores alone": worse, "popularity alone": good})
    fake(folder, "BBQRec", {GBDT: worse}, finished="2025", key="old")
    fake(folder, "SASRecPlusFT", {GBDT: worse})
    fake(folder, "Pop", {GBDT: good}, data="another", finished="2024")
    found = content("x", folder)
    first, codes, counting, *artefacts = found["headlines"]
    assert [model["model"] for model in found["models"]] == ["BBQRec", "SASRecPlusFT"]
    assert first["sides"] == ["BBQRec with gbdt", "SASRecPlusFT with gbdt"] and first["seeds"] == [3, 3]
    for metric, entry in first["metrics"].items():
        runs = [records.runs_in(folder, f"{model}-*k") for model in ("BBQRec", "SASRecPlusFT")]
        means = [np.mean([run.record["metrics"][GBDT]["masked"][metric] for run in of_model]) for of_model in runs]
        assert entry["means"] == pytest.approx(means)
        assert entry["difference"]["mean"] == pytest.approx(entry["means"][0] - entry["means"][1])
        assert entry["difference"]["low"] > 0 and entry["p"] < entry["p_holm"] < 0.05
    assert codes["metrics"]["ndcg@10"]["difference"]["low"] > 0
    assert counting["missing"] == ["TransitionGraph with gbdt"] and not counting["metrics"]
    assert [bool(one["metrics"]) for one in artefacts] == [True, False]
    page = write("x", tmp_path)
    heading, _, line = page.splitlines()[:3]
    assert heading == "# Second stage on x" and line.startswith("**What codes and everything made of them add**: BBQ")
    assert f"p = {first['metrics']['ndcg@10']['p_holm']:.3f}" in line and "(3 seeds)" in line
    assert "not better than that of the model alone by more than chance may bring (2 of 3 seeds)" in page
    row = next(one for one in found["models"][0]["rows"] if one["variant"] == "without codes")["masked"]["recall@10"]
    assert row["change"]["high"] < 0 and row["p"] <= row["p_holm"]


def test_a_target_that_is_no_candidate_keeps_the_rank_of_the_model():
    alone = Ranks(np.array([7, 8, 9]), np.array([3, 130, 5]), np.array([4, 131, 6]))
    history = np.array([0, 0, 0, 1, 1])
    flags = np.array([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]], bool)
    examples = boosted_fit.Examples(
        np.zeros((5, 1)), history, np.arange(5), np.arange(5), *flags, np.array([0, 1]), np.array([2, 0])
    )
    found = judged_ranks(alone, examples, np.array([3.0, 1.0, 2.0, 0.5, 4.0]))
    assert found.masked.tolist() == [1, 130, 2] and found.unmasked.tolist() == [1, 131, 3]
    assert alone.masked.tolist() == [3, 130, 5]


def test_columns_of_variants():
    names = [("model", "score"), ("behavior", "next_1"), ("behavior", "together"), ("popularity", "popularity")]
    features = [Feature(group, signal, "last") for group, signal in [*names, ("codes", "id_log_p")]]
    values = np.arange(10.0).reshape(2, 5)
    found, left_out = columns_of(features, values)
    assert found == {
        "gbdt": [0, 1, 2, 4],
        **{"without behavior": [0, 4], "without transitions": [0, 2, 4], "without together": [0, 1, 4]},
        **{"without codes": [0, 1, 2], "scores alone": [0], "popularity alone": [0, 3]},
        "with popularity": [0, 1, 2, 3, 4],
    }
    assert left_out["without log p of IDs"] == "the same as without codes"
    assert left_out["without text"] == left_out["without walks"] == "the model or the data set has none"
    values[:, 4] = 0.0
    assert columns_of(features, values)[1]["without codes"] == "it says the same of all candidates"


@pytest.mark.parametrize(
    ("model", "seeds", "changes", "message"),
    [
        ("BBQRec", 0, {}, "--seeds: found 0, expected at least 1"),
        ("Nope", 1, {}, "--model=Nope: no model"),
        ("TIGER", 1, {}, "second_stage: found 'gbdt', which this run of TIGER would not use"),
        ("BBQRecGenerate", 1, {}, "second_stage: found 'gbdt', which this run of BBQRecGenerate would not use"),
        ("Pop", 1, {"second_stage": "linear"}, "second_stage: found 'linear', but the study compares everything with"),
        ("Pop", 1, {"candidate_similarity": "[]"}, "candidate_similarity: found no signal"),
        ("Pop", 1, {"candidate_similarity": "['popularity']"}, "candidate_similarity: found popularity"),
        ("Pop", 1, {"final": True}, "final: the study never looks at test"),
        ("Pop", 1, {"dataset": "tiny"}, "--dataset: the study sets it"),
        ("Pop", 1, {"hidden": 3}, "hidden"),
    ],
)
def test_mistakes_are_one_line(tiny, tmp_path, model, seeds, changes, message):
    given = [f"--{key}={value}" for key, value in {"data_path": tiny, **changes}.items()]
    with pytest.raises(InputError, match=message) as error:
        study(model, "tiny", seeds, given, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_too_few_histories_are_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(boosted_fit, "MAX_HISTORIES", 1)
    with pytest.raises(InputError, match=r"second_stage: found 1 histories whose .* too few to fit trees on"):
        study("Pop", "tiny", 1, arguments(tiny, model="Pop", checkpoint_dir=str(tmp_path)), tmp_path)


def test_mistakes_of_the_command_are_one_line(tmp_path, capsys):
    def said(*more):
        assert cli.main(["second-stage", "--dataset=tiny", f"--results={tmp_path}", *more]) == 2
        return capsys.readouterr().err

    assert said().startswith("error: --model: found no name")
    assert said("--table-only").startswith(f"error: {tmp_path}/runs/tiny/second-stage: found no record of tiny")
    assert said("--table-only", "--epochs=3").startswith("error: --table-only reads records alone")
