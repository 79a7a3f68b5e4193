import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import arguments, settings, write_dataset
from experiments.fakes import FakeExecute, in_place_of_runs

from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import report
from recbole_bbqrec.experiments import ablation, records
from recbole_bbqrec.experiments.ablation import ablate, applicable, changes_of, chosen_rows, remake

ROWS, FORMS = (list(ablation.definition()[part]) for part in ("rows", "forms"))

RESULTS = Path(__file__).parents[2] / "results"
OFF = ["identity-codes", "similarity-attention"]  # which the model does not have
IMAGE = ["candidate-image", "text-only", "image-only", "neither"]
MEDIA = ["candidate-audio", "candidate-video", "audio-only", "video-only"]
NO_AUDIO = "the items have no audio"
BOTH = {"image_fields": "image_codes", "image_encoder": "codes"}


@pytest.fixture
def real_figures():
    """Asked for by tests in which figures are drawn: that takes longer than all the rest."""


@pytest.fixture(autouse=True)
def _figures(request, monkeypatch):
    if "real_figures" not in request.fixturenames:
        monkeypatch.setattr(report, "bar_figure", lambda *given: json.dumps(given).encode())


def full(folder, model="BBQRec", **changes):
    return records.comparable_settings(Config(config_dict=settings(folder, model, **changes)))


def run(
    folder, tmp_path, rows=("no-codes", "random-codes"), seeds=2, execute=None, final=False, form="full", **changes
):
    execute = execute or FakeExecute()
    with in_place_of_runs(execute):
        given = arguments(folder, model=ablation.model_of(form), **changes)
        code = ablate("tiny", rows, seeds, given, final, tmp_path / "results", form)
    return code, execute


def test_rows_that_apply(tiny):
    found, left_out = applicable(ROWS, full(tiny))
    assert list(found) == [name for name in ROWS if name not in IMAGE + MEDIA + OFF]
    assert set(left_out) == {*OFF, *IMAGE, *MEDIA}
    found, left_out = applicable(ROWS, full(tiny, **BOTH))
    assert list(found) == [name for name in ROWS if name not in OFF + MEDIA] and set(left_out) == {*OFF, *MEDIA}
    found, left_out = applicable(ROWS, full(tiny, **BOTH, video_fields="text_codes", video_encoder="codes"))
    assert found["video-only"] == {**dict.fromkeys(("text_encoder", "image_encoder", "audio_encoder")), "sid_levels": 4}
    assert "video" not in found["candidate-video"]["candidate_similarity"] and left_out["audio-only"] == NO_AUDIO
    _, left_out = applicable(ROWS, full(tiny, text_encoder=None))
    assert "the items have no features" in left_out["no-codes"] and "independence" in left_out


@pytest.mark.parametrize("page", sorted(RESULTS.glob("files/ablation-*.json")), ids=lambda page: page.stem)
def test_pages_that_are_kept_can_be_made_again(page):
    kept = json.loads(page.read_text(encoding="utf-8"))
    found, _ = applicable(ROWS, kept["settings"])
    shown = {row["row"] for rows in kept["splits"].values() for row in rows}
    assert shown - {"club"} <= found.keys()  # a row of a part that is gone


def test_every_row_is_a_valid_configuration_of_its_own_with_the_key_that_the_table_looks_for(tiny):
    keys, n_rows = set(), 0
    for form in FORMS:
        base = full(tiny, ablation.model_of(form), **BOTH)
        found, left_out = applicable(ROWS, base)
        for name, changes in found.items():
            changed = full(tiny, ablation.model_of(form), **{**BOTH, **changes})
            key = records.run_key(changed, "data")
            assert key == records.run_key({**base, **changes}, "data"), name
            keys.add(key)
        assert found.keys() | left_out.keys() == {*ROWS}
        n_rows += len(found)
    assert len(keys) == n_rows


def test_rows_where_an_item_is_nothing_but_its_codes(tiny):
    found, left_out = applicable(ROWS, full(tiny, "BBQRecCodes"))
    applying = ["full", "independence", "shared-codebook", "id-signal", "sequence-contrast", "cross-contrast"]
    applying += ["rqvae", "aligned", "kmeans"]
    rest = ["with-similarity-attention", "discretisation", "random-codes", "shuffled-codes"]
    assert list(found) == [*applying, "identity-codes", *rest]
    assert found["aligned"]["sid_levels"] == found["rqvae"]["sid_levels"] == 4, "text and ID have 2 codes each"
    assert left_out["similarity-attention"] == "it changes nothing under these settings"
    assert left_out["code-embeddings"].startswith("items have no ID of their own")
    assert left_out["no-codes"] == "scoring codes needs codes" and "no second stage" in left_out["candidate-text"]
    assert list(applicable(ROWS, full(tiny, "BBQRecCodesDense"))[0]) == list(found)
    found, left_out = applicable(ROWS, full(tiny, "BBQRecGenerate"))
    assert list(found) == [*applying, *rest] and left_out["identity-codes"] == "there are no identity codes"
    assert "code-embeddings" in applicable(ROWS, full(tiny))[0]


@pytest.mark.parametrize(
    ("given", "row", "levels"),
    [
        ({}, "text-only", 3),
        ({}, "image-only", 3),
        ({}, "neither", 6),
        ({"sid_levels": 4}, "text-only", 6),
        ({"sid_mode": "fused"}, "text-only", 2),
        ({"sid_use_id": False}, "image-only", 4),
        ({"tokenizer": "rqvae"}, "text-only", 2),
    ],
)
def test_rows_without_a_modality_keep_the_number_of_codes(tiny, given, row, levels):
    assert changes_of(row, full(tiny, **BOTH, **given))["sid_levels"] == levels


def test_codes_that_cannot_be_shared_evenly_leave_the_row_out(tiny):
    with pytest.raises(ablation.NotApplicableError, match="3 codes per item cannot be shared by 2 signals"):
        changes_of("text-only", full(tiny, **BOTH, sid_levels=1))
    with pytest.raises(ablation.NotApplicableError, match="4 codes per item cannot be shared by 0 signals"):
        changes_of("neither", full(tiny, **BOTH, sid_use_id=False))


def test_a_row_that_changes_nothing_is_left_out(tiny):
    found, left_out = applicable(ROWS, full(tiny, candidate_similarity=[], codes="random"))
    assert not {"candidate-text", "candidate-behavior", "candidate-similarity", "random-codes"} & set(found)
    assert left_out["candidate-similarity"] == "there is no second stage"


def test_chosen_rows():
    assert chosen_rows([]) == ROWS
    assert chosen_rows(["no-codes", "independence"]) == ["full", "independence", "no-codes"]
    with pytest.raises(InputError, match=r"--rows: found 'no-code', .* did you mean no-codes\?"):
        chosen_rows(["no-code"])
    with pytest.raises(InputError, match=r"choose some of full, independence"):
        chosen_rows(["zzz"])


def test_the_order_of_runs_and_their_settings(tiny, tmp_path):
    code, execute = run(tiny, tmp_path, seed=10)
    assert code == 0
    expected = [(codes, seed) for seed in (10, 11) for codes in (None, "none", "random")]
    assert [(call.get("codes"), call["seed"]) for call in execute.calls] == expected
    assert all(call["hidden_size"] == 16 and call["final"] is False for call in execute.calls)


def test_a_row_wins_over_settings_and_files(tiny, tmp_path):
    file = tmp_path / "more.yaml"
    file.write_text("n_layers: 2\nsid_independence_weight: 0.5\n")
    given = [*arguments(tiny), "--sid_independence_weight=0.7", f"--config_files={file}"]
    execute = FakeExecute()
    with in_place_of_runs(execute):
        ablate(
            "tiny", ["independence"], 1, [one for one in given if "n_layers" not in one], False, tmp_path / "results"
        )
    assert [call["sid_independence_weight"] for call in execute.calls] == [0.7, 0.0]
    (path,) = (tmp_path / "results/runs/tiny").glob("independence-*.json")
    assert records.read(path)["settings"]["n_layers"] == 2


def test_the_table(tiny, tmp_path, capsys):
    run(tiny, tmp_path, seeds=5)
    page = (tmp_path / "results/ablation-tiny.md").read_text()
    assert page in capsys.readouterr().out
    assert "60 users, 40 items" in page and "## Validation" in page and "## Test" not in page
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    assert set(lines) == {"row", "full", "no-codes\\*", "random-codes"}
    content = json.loads((tmp_path / "results/files/ablation-tiny.json").read_text())
    rows = {row["row"]: row for row in content["splits"]["valid"]}
    assert (
        rows["full"]["seeds"] == [2020, 2021, 2022, 2023, 2024] and rows["full"]["masked"]["ndcg@10"]["change"] is None
    )
    worse = rows["random-codes"]["masked"]["ndcg@10"]
    assert worse["low"] < worse["mean"] < worse["high"] < rows["full"]["masked"]["ndcg@10"]["mean"]
    assert worse["change"]["mean"] < worse["change"]["high"] < 0 and worse["p_holm"] < 0.001
    assert f"{worse['mean']:.4f} [{worse['low']:.4f}, {worse['high']:.4f}]" in lines["random-codes"]
    assert f"{worse['change']['mean']:+.1f}" in lines["random-codes"] and "< 0.001" in lines["random-codes"]
    same = rows["no-codes"]["masked"]["ndcg@10"]
    assert same["change"]["mean"] == 0 and [same["p"], same["p_holm"]] == pytest.approx([1.0, 1.0])
    assert rows["full"]["unmasked"]["recall@10"]["mean"] < rows["full"]["masked"]["recall@10"]["mean"]
    assert "ended at the cap on epochs, not by early stopping: no-codes 5 of 5" in page
    assert "one seed" not in page and "another version" not in page
    assert "p: the chance of a difference at least this large if both were equally good" in page
    settings_shown = yaml.safe_load(page.split("```yaml")[1].split("```")[0])
    assert settings_shown["hidden_size"] == 16 and settings_shown["sid_codebook_size"] == 8
    title, panels, reference = json.loads((tmp_path / "results/files/ablation-tiny.png").read_bytes())
    assert title == "BBQRec on tiny, validation, seen items masked" and reference == "full"
    assert list(panels) == ["R@10", "N@10", "Δ R@10 in %", "Δ N@10 in %"]
    assert panels["N@10"]["random-codes"] == worse and panels["Δ N@10 in %"]["random-codes"] == worse["change"]
    assert panels["Δ N@10 in %"]["full"] is None
    assert str(tiny) not in page + json.dumps(content)


def test_the_mean_of_the_table_is_that_of_the_records(tiny, tmp_path):
    run(tiny, tmp_path)
    kept = [records.read(path) for path in (tmp_path / "results/runs/tiny").glob("random-codes-*.json")]
    content = json.loads((tmp_path / "results/files/ablation-tiny.json").read_text())
    (row,) = (row for row in content["splits"]["valid"] if row["row"] == "random-codes")
    for column in ("masked", "unmasked"):
        for name, entry in row[column].items():
            by_run = [record["metrics"]["valid"][column][name] for record in kept]
            assert entry["mean"] == pytest.approx(sum(by_run) / 2, abs=1e-12)


def test_further_metrics_stand_below_the_table_where_asked_for(tiny, tmp_path):
    run(tiny, tmp_path, metrics=["Recall", "NDCG", "MRR"])
    page = (tmp_path / "results/ablation-tiny.md").read_text()
    lines = [line for line in page.split("further metrics, seen items masked")[1].split("\n") if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:4]]
    assert [row[0] for row in rows if row[0]] == ["row", "full", "no-codes", "random-codes"] and rows[0][1] == "mrr@10"
    found = records.runs_in(records.folder_of(tmp_path / "results", "tiny"), "full-*")
    assert float(rows[1][1]) == pytest.approx(
        np.mean([of.ranks["valid"].metrics(["MRR"], [10])["masked"]["mrr@10"] for of in found]), abs=1e-4
    )
    run(tiny, tmp_path)
    assert "further metrics" not in (tmp_path / "results/ablation-tiny.md").read_text()


def test_studies_rank_among_all_items(tiny, tmp_path):
    with pytest.raises(InputError, match="found mode uni5, but an ablation compares by the ranks among all items"):
        run(tiny, tmp_path, eval_args={"mode": "uni5"})


def test_holm_counts_all_tests_of_the_table(tiny, tmp_path):
    run(tiny, tmp_path, rows=("random-codes",))
    content = json.loads((tmp_path / "results/files/ablation-tiny.json").read_text())
    (row,) = (row for row in content["splits"]["valid"] if row["row"] == "random-codes")
    p_values = [entry["p"] for entry in row["masked"].values()]
    assert min(row["masked"].values(), key=lambda entry: entry["p"])["p_holm"] == pytest.approx(2 * min(p_values))


def test_final_adds_test_and_only_judges_what_is_trained(tiny, tmp_path):
    run(tiny, tmp_path, seeds=1)
    _, execute = run(tiny, tmp_path, seeds=1, final=True)
    assert len(execute.calls) == 3 and all(call["final"] for call in execute.calls)
    page = (tmp_path / "results/ablation-tiny.md").read_text()
    assert "## Validation" in page and "## Test" in page and "judged on test more than 1 times" in page
    _, execute = run(tiny, tmp_path, seeds=1)
    assert not execute.calls, "records with test serve validation too"
    assert "## Test" not in (tmp_path / "results/ablation-tiny.md").read_text(), "test is shown only where asked for"


def test_table_only_gives_the_same_files_without_data_or_model(tmp_path, capsys, real_figures):
    data = write_dataset(tmp_path / "data")
    run(data, tmp_path, ["random-codes"], seeds=1, final=True)
    results = tmp_path / "results"
    files = {path: path.read_bytes() for path in results.rglob("ablation-*")}
    page, beside = results / "ablation-tiny.md", results / "files"
    assert set(files) == {page, beside / "ablation-tiny.json", beside / "ablation-tiny.png"}
    assert files[beside / "ablation-tiny.png"].startswith(b"\x89PNG")
    shutil.rmtree(data)
    for kept in (files, []):  # with the table on disk, and from records alone
        for path in files:
            if path not in kept:
                path.unlink()
        capsys.readouterr()
        remake("tiny", True, results)
        assert {path: path.read_bytes() for path in results.rglob("ablation-*")} == files
        assert files[page].decode() in capsys.readouterr().out


def test_table_only_keeps_what_the_page_showed_on_demand(tiny, tmp_path):
    run(tiny, tmp_path, ["random-codes"], seeds=1, metrics=["Recall", "NDCG", "MRR"])
    page = (tmp_path / "results/ablation-tiny.md").read_text()
    assert "mrr@10" in page.lower()
    remake("tiny", False, tmp_path / "results")
    assert (tmp_path / "results/ablation-tiny.md").read_text() == page


def test_forms_have_pages_of_their_own_over_shared_records(tiny, tmp_path, capsys):
    results = tmp_path / "results"
    run(tiny, tmp_path, ["random-codes"], seeds=1)
    whole = (results / "ablation-tiny.md").read_bytes()
    _, execute = run(tiny, tmp_path, ["random-codes"], seeds=1, form="codes")
    assert [(call["model"], call.get("codes")) for call in execute.calls] == [
        ("BBQRecCodes", None),
        ("BBQRecCodes", "random"),
    ]
    assert (results / "ablation-tiny.md").read_bytes() == whole
    pages = {name: (results / f"{name}.md").read_text() for name in ("ablation-tiny", "ablation-codes-tiny")}
    heads = {name: page.split("\n\n")[1] for name, page in pages.items()}
    assert heads["ablation-tiny"] == "What does each part add where item IDs and features are there too?"
    assert heads["ablation-codes-tiny"].startswith("What is each part worth where an item is nothing but its codes")
    assert "# Ablation of BBQRecCodes on tiny" in pages["ablation-codes-tiny"]
    assert (
        "(files/ablation-codes-tiny.png)" in pages["ablation-codes-tiny"]
        and "scoring: codes" in pages["ablation-codes-tiny"]
    )
    title, *_ = json.loads((results / "files" / "ablation-codes-tiny.png").read_bytes())
    assert title == "BBQRecCodes on tiny, validation, seen items masked"
    for form, name in (("full", "ablation-tiny"), ("codes", "ablation-codes-tiny")):  # both have a record named full
        (results / "files" / f"{name}.json").unlink()
        remake("tiny", False, results, form)
        assert (results / f"{name}.md").read_text() == pages[name]
    with pytest.raises(InputError, match=r"--table-only: found 0 ablations of BBQRecGenerate on tiny"):
        remake("tiny", False, results, "generate")
    with pytest.raises(InputError, match=r"--form: found 'code', expected one of full, codes, codes-dense, generate"):
        remake("tiny", False, results, "code")


def test_a_leaderboards_run_of_the_model_serves_as_full(tiny, tmp_path):
    run(tiny, tmp_path, ["full"], seeds=1, form="codes")
    for path in (tmp_path / "results/runs/tiny").glob("full-*"):
        path.rename(path.with_name(path.name.replace("full", "BBQRecCodes")))
    _, execute = run(tiny, tmp_path, ["random-codes"], seeds=1, form="codes")
    assert [call.get("codes") for call in execute.calls] == ["random"]
    page = (tmp_path / "results/ablation-codes-tiny.md").read_text()
    (tmp_path / "results/files/ablation-codes-tiny.json").unlink()
    remake("tiny", False, tmp_path / "results", "codes")
    assert (tmp_path / "results/ablation-codes-tiny.md").read_text() == page and "| full" in page


def test_records_from_before_there_were_forms_of_a_second_stage(tiny, tmp_path):
    """Their settings say nothing of it; it was the linear one, and codes belonged to behaviour."""
    run(tiny, tmp_path, seeds=1, second_stage="linear", candidate_similarity=["behavior", "text", "codes"])
    results = tmp_path / "results"
    for path in (results / "runs/tiny").glob("*.json"):
        record = records.read(path)
        del record["settings"]["second_stage"]
        record["settings"]["candidate_similarity"] = ["behavior", "text"]
        path.write_text(json.dumps(record))
    (results / "files" / "ablation-tiny.json").unlink()
    remake("tiny", False, results)
    page = (results / "ablation-tiny.md").read_text()
    assert "| full" in page and "| random-codes" in page and "second_stage" not in page.split("## Settings")[1]


def test_table_only_asks_which_of_several_is_meant(tiny, tmp_path):
    results = tmp_path / "results"
    with pytest.raises(InputError, match=r"--table-only: found 0 ablations of BBQRec on tiny"):
        remake("tiny", False, results)
    run(tiny, tmp_path, seeds=1)
    run(tiny, tmp_path, seeds=1, hidden_size=32)
    page = (results / "ablation-tiny.md").read_bytes()
    assert b"hidden_size: 32" in page
    remake("tiny", False, results)
    assert (results / "ablation-tiny.md").read_bytes() == page, "the table on disk says which"
    (results / "files" / "ablation-tiny.json").unlink()
    with pytest.raises(InputError, match=r"found 2 ablations .* expected one"):
        remake("tiny", False, results)


def test_screening_other_code_and_a_missing_row_are_said(tiny, tmp_path, monkeypatch):
    run(tiny, tmp_path, seeds=1)
    page = (tmp_path / "results/ablation-tiny.md").read_text()
    assert "| random-codes† " in page and "one seed: screening; neither interval nor p knows" in page
    assert "‡" not in page
    path = next((tmp_path / "results/runs/tiny").glob("random-codes-*.json"))
    path.write_text(path.read_text().replace(records.read(path)["source"], "changed"))
    monkeypatch.setattr(records, "code_fingerprint", lambda: "later")  # the code of today decides nothing
    remake("tiny", False, tmp_path / "results")
    page = (tmp_path / "results/ablation-tiny.md").read_text()
    assert "| random-codes†‡" in page and page.count("†‡") == 1
    assert "‡ runs made by another version of the code than `full`: random-codes 1 of 1" in page
    _, execute = run(tiny, tmp_path, seeds=1)
    assert not execute.calls, "records of other code are used"


def test_failures_end_with_code_1_and_stand_in_the_table_until_they_succeed(tiny, tmp_path, capsys):
    code, _ = run(tiny, tmp_path, ["full"], seeds=1, execute=FakeExecute(fails={None}))
    assert code == 1 and "no run has a record yet" in capsys.readouterr().out
    code, _ = run(tiny, tmp_path, seeds=1, execute=FakeExecute(fails={"none"}))
    assert code == 1
    assert "failed: no-codes, seed 2020: RuntimeError: out of memory" in capsys.readouterr().err
    page = (tmp_path / "results/ablation-tiny.md").read_text()
    assert "Failed and not in the table:\n\n- no-codes, seed 2020" in page and "| no-codes" not in page
    code, execute = run(tiny, tmp_path, seeds=1)
    assert code == 0 and len(execute.calls) == 1
    assert "Failed" not in (tmp_path / "results/ablation-tiny.md").read_text()


def test_without_full_there_is_no_comparison(tiny, tmp_path, capsys):
    class FullFails(FakeExecute):
        def __call__(self, arguments=(), config_dict=None, inspect=None):
            if "codes" not in config_dict:
                raise RuntimeError("no")
            return super().__call__(arguments, config_dict)

    code, _ = run(tiny, tmp_path, seeds=1, execute=FullFails())
    assert code == 1
    page = (tmp_path / "results/ablation-tiny.md").read_text()
    assert "`full` has no run yet" in page and "| random-codes†" in page


def test_an_interrupted_ablation_has_a_table_of_what_is_done(tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path, seeds=1, execute=FakeExecute(interrupted_at=2))
    page = (tmp_path / "results/ablation-tiny.md").read_text()
    assert "| full" in page and "| no-codes" in page and "| random-codes" not in page
    _, execute = run(tiny, tmp_path, seeds=1)
    assert [call["codes"] for call in execute.calls] == ["random"]


def test_rows_left_out_are_said(tiny, tmp_path, capsys):
    run(tiny, tmp_path, rows=("text-only",), seeds=1)
    assert "row text-only is left out: the items have fewer than two" in capsys.readouterr().err
    assert "- text-only: the items have fewer than two" in (tmp_path / "results/ablation-tiny.md").read_text()


@pytest.mark.parametrize(
    ("rows", "seeds", "extra", "message"),
    [
        (["independence"], 0, [], "--seeds: found 0"),
        ([], 1, ["--model=SASRec"], "--model: an ablation sets it"),
        ([], 1, ["--result_file=x.json"], "--result_file: an ablation sets it"),
        ([], 1, ["--hidden_sise=8"], "unknown key 'hidden_sise'"),
        ([], 1, ["hidden_size"], "expected --key=value"),
    ],
)
def test_mistakes_are_said_before_the_first_run(tiny, tmp_path, rows, seeds, extra, message):
    execute = FakeExecute()
    with pytest.raises(InputError, match=message), in_place_of_runs(execute):
        ablate("tiny", rows, seeds, [*arguments(tiny), *extra], False, tmp_path / "results")
    assert not execute.calls and not (tmp_path / "results").exists()
