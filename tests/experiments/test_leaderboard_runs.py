import json

import pytest
from conftest import arguments
from experiments.fakes import FakeExecute, in_place_of_runs

from recbole_bbqrec import cli, quick_start
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import report
from recbole_bbqrec.evaluation.ranking import Ranks
from recbole_bbqrec.experiments import ablation, many, records, runner
from recbole_bbqrec.experiments.many import asked_for, run_many

MODELS = ["GRU4Rec", "SASRec", "BBQRec"]
RANDOM = {"split": {"RS": [8, 1, 1]}, "order": "RO"}


@pytest.fixture(autouse=True)
def _no_figures(request, monkeypatch):
    if "real" not in request.node.name:
        monkeypatch.setattr(report, "bar_figure", lambda *given: b"figure")


class Fake(FakeExecute):
    """GRU4Rec is untrained here and SASRec's ranks are worse; models named in `fails` fail."""

    def __call__(self, arguments=(), config_dict=None, inspect=None):
        record, ranks = super().__call__(arguments, config_dict)
        model = config_dict["model"]
        if model in self.fails:
            raise RuntimeError("out of\nmemory")
        if model == "GRU4Rec":
            record["epochs"] = {"best": 0, "done": 0, "hit_cap": False}
        if model == "SASRec":
            ranks = {split: Ranks(of.users, 2 * of.masked, 2 * of.unmasked) for split, of in ranks.items()}
        return record, ranks


@pytest.fixture
def two(tmp_path):
    """Folder with the data sets `tiny` and `other`."""
    from conftest import tiny_interactions, write_dataset

    write_dataset(tmp_path / "data")
    return write_dataset(tmp_path / "data", "other", tiny_interactions(seed=1))


def run(folder, tmp_path, *given, execute=None, models="GRU4Rec,SASRec,BBQRec", datasets="tiny,other"):
    execute = execute or Fake()
    arguments = [f"--model={models}", f"--dataset={datasets}", f"--results={tmp_path / 'results'}", *given]
    with in_place_of_runs(execute):
        return run_many([*arguments, f"--data_path={folder}", "--text_encoder=tfidf"]), execute


def calls(execute):
    return [(call["model"], call["dataset"], call["seed"]) for call in execute.calls]


def test_first_seeds_of_all_pairs_come_first_and_untrained_models_have_no_second(two, tmp_path, capsys):
    code, execute = run(two, tmp_path, "--seeds=3", "--single=SASRec", "--seed=5")
    first = [(model, dataset, 5) for dataset in ("tiny", "other") for model in MODELS]
    assert code == 0 and calls(execute) == [
        *first,
        *[("BBQRec", dataset, seed) for seed in (6, 7) for dataset in ("tiny", "other")],
    ]
    quiet = {**runner.QUIET, "final": False}
    assert (
        quiet.items() - {("report_card", False)} <= execute.calls[0].items() and "text_encoder" not in execute.calls[0]
    )
    assert {**quiet, "text_encoder": "tfidf"}.items() <= execute.calls[2].items()
    assert not {"seeds", "single"} & set(execute.calls[0])
    assert execute.calls[0]["results"] == str(tmp_path / "results"), "where test is counted"
    shown = capsys.readouterr()
    assert "[1/14] GRU4Rec on tiny, seed 5" in shown.err and "[10/10] BBQRec on other, seed 7 (elapsed" in shown.err
    assert shown.err.count("GRU4Rec trains nothing, so one seed is enough") == 2, "once for each data set"
    for dataset in ("tiny", "other"):
        page = (tmp_path / f"results/{dataset}.md").read_text()
        table = next(line for line in page.splitlines() if line.startswith("| SASRec† "))
        assert table in shown.out and "untrained" in page and "## Settings" not in shown.out
        content = json.loads((tmp_path / f"results/files/{dataset}.json").read_text())
        seeds = {row["model"]: row["seeds"] for row in content["rows"]}
        assert seeds == {"GRU4Rec": [5], "SASRec": [5], "BBQRec": [5, 6, 7]}


def test_a_killed_leaderboard_goes_on_and_has_a_page_meanwhile(two, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(two, tmp_path, "--seeds=2", execute=Fake(interrupted_at=3))
    assert "| BBQRec" in (tmp_path / "results/tiny.md").read_text()
    assert not (tmp_path / "results/other.md").exists()
    _, execute = run(two, tmp_path, "--seeds=2")
    assert calls(execute)[0] == ("GRU4Rec", "other", 2020) and len(execute.calls) == 7
    page = (tmp_path / "results/tiny.md").read_bytes()
    capsys.readouterr()
    _, execute = run(two, tmp_path, "--seeds=2")
    assert execute.calls == [] and (tmp_path / "results/tiny.md").read_bytes() == page
    assert "nothing left to run" in capsys.readouterr().err


def test_a_fresh_clone_needs_no_run_and_no_data_for_its_page(two, tmp_path, monkeypatch, capsys):
    run(two, tmp_path, "--final")
    names = ["overview.md", "tiny.md", *(f"files/tiny.{suffix}" for suffix in ("csv", "json", "png", "tex"))]
    pages = {path: path.read_bytes() for path in (tmp_path / "results" / name for name in names)}
    for path in pages:
        path.unlink()
    monkeypatch.setattr(quick_start, "fetch_missing", None)
    assert cli.main(["leaderboard", "--dataset=tiny", f"--results={tmp_path / 'results'}", "--final"]) == 0
    assert {path: path.read_bytes() for path in pages} == pages
    assert "## Test, seen items masked" in capsys.readouterr().out


def test_options_of_the_page_alone(two, tmp_path, capsys):
    run(two, tmp_path)
    place = f"--results={tmp_path / 'results'}"
    assert cli.main(["leaderboard", "--dataset=tiny", place, "--models=SASRec,BBQRec", "--against=SASRec"]) == 0
    content = json.loads((tmp_path / "results/files/tiny.json").read_text())
    assert content["reference"] == "SASRec" and {row["model"] for row in content["rows"]} == {"SASRec", "BBQRec"}
    assert cli.main(["leaderboard", "--dataset=tiny", place, "--keys=nope"]) == 2
    assert cli.main(["leaderboard", "--dataset=tiny", place, "--epochs=3"]) == 2
    assert cli.main(["leaderboard", "--dataset=nowhere", place]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_failures_are_kept_reported_and_tried_again(two, tmp_path, capsys):
    code, _ = run(two, tmp_path, execute=Fake(fails={"SASRec"}), datasets="tiny")
    assert code == 1 and "failed: SASRec, seed 2020: RuntimeError: out of memory" in capsys.readouterr().err
    page = (tmp_path / "results/tiny.md").read_text()
    assert "failed and not in the tables: SASRec, seed 2020" in page and "| BBQRec" in page
    code, execute = run(two, tmp_path, datasets="tiny")
    assert code == 0 and calls(execute) == [("SASRec", "tiny", 2020)]
    assert "failed" not in (tmp_path / "results/tiny.md").read_text()


def test_where_all_runs_fail_there_is_no_page_and_code_1(two, tmp_path, capsys):
    code, _ = run(two, tmp_path, execute=Fake(fails=MODELS), datasets="tiny")
    assert code == 1 and "no leaderboard of tiny: " in capsys.readouterr().err


def test_other_settings_replace_a_row_only_once_they_have_run(two, tmp_path):
    def shown():
        content = json.loads((tmp_path / "results/files/tiny.json").read_text())
        return {row["model"]: content["settings"][row["model"]]["hidden_size"] for row in content["rows"]}

    run(two, tmp_path, models="SASRec,BBQRec", datasets="tiny")
    code, _ = run(
        two, tmp_path, "--hidden_size=32", models="SASRec,BBQRec", datasets="tiny", execute=Fake(fails=["SASRec"])
    )
    assert code == 1 and shown() == {"BBQRec": 32}, "rows of other settings are not mixed in"
    assert "other settings of SASRec with records" in (tmp_path / "results/tiny.md").read_text()


def test_shuffled_ties_stand_beside_the_rows(two, tmp_path):
    run(two, tmp_path, models="SASRec,BBQRec", datasets="tiny")
    code, execute = run(two, tmp_path, "--shuffle_ties=3", models="SASRec,BBQRec", datasets="tiny")
    content = json.loads((tmp_path / "results/files/tiny.json").read_text())
    assert code == 0 and len(execute.calls) == 2 and len(content["rows"]) == 2
    assert [(row["model"], row["shuffle_ties"]) for row in content["other_ties"]] == [("BBQRec", 3), ("SASRec", 3)]


def test_an_ablation_takes_the_run_of_the_leaderboard_for_its_full_row(two, tmp_path):
    run(two, tmp_path, datasets="tiny")
    given = [f"--data_path={two}", "--text_encoder=tfidf"]
    execute = Fake()
    with in_place_of_runs(execute):
        assert ablation.ablate("tiny", ["no-codes"], 1, given, False, tmp_path / "results") == 0
    assert [call["codes"] for call in execute.calls] == ["none"], "the leaderboard has run full"
    page = (tmp_path / "results/ablation-tiny.md").read_bytes()
    for name in ("ablation-tiny.md", "files/ablation-tiny.json"):  # with the table on disk, and from records alone
        (tmp_path / "results" / name).unlink()
        ablation.remake("tiny", False, tmp_path / "results")
        assert (tmp_path / "results/ablation-tiny.md").read_bytes() == page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model=SASRec,BBQRek", "--dataset=tiny"], "--model=BBQRek: no model of this name; did you mean"),
        (["--model=SASRec", "--dataset=tiny,nowhere"], "--dataset=nowhere: no file"),
        (["--model=SASRec,SASRec", "--dataset=tiny"], "--model: found 'SASRec' 2 times"),
        (["--model=SASRec", "--dataset=1,2"], "--dataset=1: no file"),
        (["--model=SASRec", "--dataset=tiny,tiny"], "--dataset: found 'tiny' 2 times"),
        (["--model=SASRec", "--dataset=tiny", "--seeds=0"], "--seeds: found '0', expected how many"),
        (["--model=SASRec", "--dataset=tiny", "--seeds=few"], "--seeds: found 'few'"),
        (["--model=SASRec", "--dataset=tiny", "--seeds=2", "--seeds=3"], "--seeds is given twice"),
        (
            ["--model=SASRec", "--dataset=tiny", "--single=BBQRec", "--seeds=2"],
            "--single: found 'BBQRec', expected some of",
        ),
        (["--model=BBQRec", "--dataset=tiny", "--seeds=2", "--cold_items=0.1"], "--cold_items: leaderboards show"),
        (
            ["--model=BPR", "--dataset=tiny", "--seeds=2", f"--eval_args={RANDOM}"],
            "found order 'RO', .* give --seeds=1",
        ),
        (
            ["--model=BPR,SASRec", "--dataset=tiny", "--eval_args={'split': {'RS': [8, 1, 1]}}"],
            "by which BPR and SASRec judge different targets; take {'LS'",
        ),
        (["--model=SASRec", "--seeds=2"], "--dataset: found no name"),
        (["--model=SASRec", "--dataset=tiny", "--seeds=2", "--final=no"], "final: found 'no', expected True or False"),
        (["--model=SASRec", "--dataset=tiny", "--seeds=2", "--result_file=x.json"], "--result_file: found it beside"),
        (["--model=SASRec,Pop", "--dataset=tiny", "--n_negatives=5"], "unknown key 'n_negatives' for model SASRec"),
        (
            ["--model", "Pop,TransitionGraph", "-d", "tiny", "--epochs=5"],
            "epochs: found 5, which this run of Pop",
        ),
    ],
)
def test_mistakes_are_said_before_the_first_run(two, tmp_path, given, message):
    execute = Fake()
    with pytest.raises(InputError, match=message), in_place_of_runs(execute):
        run_many([*given, f"--data_path={two}", f"--results={tmp_path / 'results'}"])
    assert not execute.calls and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "given",
    [
        ["--model=BPR,NeuMF", "--seeds=2", "--eval_args={'split': {'RS': [8, 1, 1]}}"],
        ["--model=BPR,NeuMF", "--seeds=2", "--single=BPR,NeuMF", f"--eval_args={RANDOM}"],
        ["--model=BPR,SASRec", "--seeds=2"],
        ["--model=BPR,SASRec", "--eval_args={'split': {'TS': [8, 1, 1]}, 'group_by': 'none'}"],
    ],
)
def test_runs_with_the_same_targets_are_made(two, tmp_path, given):
    execute = Fake()
    with in_place_of_runs(execute):
        assert run_many([*given, "--dataset=tiny", f"--data_path={two}", f"--results={tmp_path / 'results'}"]) == 0
    assert len({call["model"] for call in execute.calls}) == 2


def test_settings_reach_the_models_that_use_them(two, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("n_negatives: 5\neval_args: {group_by: none}\n")
    given = [f"--config_files={tmp_path / 'a.yaml'}", "--epochs", "3", "--eval_args={'split': {'RS': [8, 1, 1]}}"]
    _, execute = run(two, tmp_path, *given, models="Pop,SASRec,BBQRec", datasets="tiny")
    pop, sasrec, bbqrec = execute.calls
    assert bbqrec["n_negatives"] == 5 and "n_negatives" not in pop | sasrec and sasrec["epochs"] == 3
    assert "epochs" not in pop, "else Pop would be another configuration on the page"
    assert all(call["eval_args"] == {"split": {"RS": [8, 1, 1]}, "group_by": "none"} for call in execute.calls)
    assert "SASRec on tiny does not use n_negatives, text_encoder\n" in capsys.readouterr().err


def test_a_public_data_set_that_is_missing_is_fetched_once_everything_is_checked(two, tmp_path, monkeypatch):
    fetched = []

    def fetch(name, folder, **_):
        fetched.append(name)
        raise InputError("no network")

    monkeypatch.setattr(quick_start.obtain, "obtain", fetch)
    with pytest.raises(InputError, match="--dataset=nowhere"):
        run(two, tmp_path, datasets="Sports,nowhere")
    assert fetched == []
    with pytest.raises(InputError, match="no network"):
        run(two, tmp_path, datasets="tiny,Sports")
    assert fetched == ["Sports"]


def test_one_model_and_one_data_set_are_a_single_run(monkeypatch):
    found = []
    monkeypatch.setattr(quick_start, "run", lambda arguments: found.append(("one", arguments)))
    monkeypatch.setattr(many, "run_many", lambda arguments: found.append(("many", arguments)) or 1)
    one, two = ["--model=SASRec", "--dataset=tiny"], ["--model=SASRec,BBQRec", "--dataset=tiny"]
    assert [cli.run([*one, "--debug"]), cli.run(two), cli.run([*one, "--seeds=1"])] == [
        0,
        1,
        1,
    ]
    assert found == [("one", one), ("many", two), ("many", [*one, "--seeds=1"])]
    assert not asked_for(["--model=A", "--text_fields=a,b"]) and asked_for(["--dataset=a,b"])
    assert asked_for(["-m", "A,B", "-d", "a"]) and asked_for(["--seeds", "2"]) and not asked_for(["-m", "A", "-d", "a"])


def test_real_runs_of_two_models_from_the_command_line(tiny, tmp_path, capsys):
    given = arguments(tiny, model="SASRec", checkpoint_dir=str(tmp_path / "saved"), epochs=1)
    given += ["--model=SASRec,GRU4Rec", "--dataset=tiny", "--seeds=2", "--single=GRU4Rec", "--final"]
    assert cli.run([*given, f"--results={tmp_path / 'results'}"]) == 0
    folder = tmp_path / "results/runs/tiny"
    kept = records.runs_in(folder)
    assert [(run.record["name"], run.record["seed"]) for run in kept] == [
        ("GRU4Rec", 2020),
        ("SASRec", 2020),
        ("SASRec", 2021),
    ]
    assert all(run.record["leakage_check"] == "passed" and run.record["finished"] for run in kept)
    content = json.loads((tmp_path / "results/files/tiny.json").read_text())
    assert content["reference"] == "SASRec", "without BBQRec, the first that the command names"
    (row,) = [row for row in content["rows"] if row["model"] == "SASRec"]
    for column in ("masked", "unmasked"):
        for name, entry in row[column].items():
            expected = sum(run.record["metrics"]["test"][column][name] for run in kept[1:]) / 2
            assert entry["mean"] == pytest.approx(expected, abs=1e-12)
    assert content["users"] == kept[0].record["users"]["test"] == 60
    assert (tmp_path / "results/files/tiny.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "results" / "tiny.md").read_text()
    assert "passed: GRU4Rec, SASRec" in page.replace("SASRec, GRU4Rec", "GRU4Rec, SASRec")
