import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import report
from recbole_bbqrec.evaluation.ranking import Ranks, per_row
from recbole_bbqrec.evaluation.statistics import PairedValues
from recbole_bbqrec.experiments import leaderboard, leaderboard_page, records, tables

USERS = 24
SETTINGS = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "valid_metric": "NDCG@10",
    "stopping_step": 10,
    "epochs": 300,
    "shuffle_ties": None,
    "text_encoder": "tfidf",
    "hidden_size": 64,
}
DATA = {"users": 24, "items": 50, "interactions": 1200, "interactions_per_user": 50.0, "density": 0.25}
DATA |= {"modalities": ["text (tfidf)"]}


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(report, "bar_figure", lambda *given: json.dumps(given).encode())


@pytest.fixture
def keep(tmp_path):
    """Write a record; `masked` is the rank of all users or one for each."""

    def write(
        model,
        masked,
        unmasked=None,
        seed=1,
        *,
        splits=("valid",),
        name=None,
        data="d" * 16,
        users=USERS,
        targets=1,
        on_test=None,
        **more,
    ):
        settings = {**SETTINGS, "model": model, **more.pop("settings", {})}
        users = users + targets - 1  # the last user has all of these targets
        ranks = Ranks(
            np.minimum(np.arange(1, users + 1), users - targets + 1),
            np.broadcast_to(masked, users).astype(int),
            np.broadcast_to(masked if unmasked is None else unmasked, users).astype(int),
        )
        record = {
            "model": model,
            "seed": seed,
            "metrics": {split: {} for split in splits},
            "epochs": {"best": 20, "done": 30, "hit_cap": False},
            "times_tested": 1,
            "seconds": {"features": 1.0, "tokenizer": 2.0, "train": 100.0, "epoch": 3.25, "evaluate": 0.5},
            "peak_memory_mib": 1234.5,
            "parameters": 1000,
            "source": "s" * 16,
            "settings": settings,
            "data": DATA,
            "data_fingerprint": data,
            "run_key": records.run_key(settings, data),
            "run_dir": f"{model}-Toy-{seed}-{records.run_key(settings, data)}",
            "leakage_check": "passed",
            "finished": "2026-01-01T00:00:00+00:00",
            **more,
        }
        of_splits = dict.fromkeys(splits, ranks)
        if on_test is not None:
            of_splits["test"] = Ranks(ranks.users, *2 * [np.full(users, on_test)])
        records.write(folder(tmp_path), name or model, record, of_splits)
        return record["run_key"]

    return write


def folder(tmp_path):
    return records.folder_of(tmp_path, "Toy")


def content(tmp_path, **more):
    return leaderboard.content("Toy", folder(tmp_path), **more)


def table(page, title):
    """Cells of the table below a heading, without the line of dashes."""
    lines = [line for line in page.split(f"## {title}\n\n")[1].split("\n\n")[0].splitlines() if ":--" not in line]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_further_metrics_and_groups_are_shown_where_asked_for(keep, tmp_path):
    def told(gini):
        group = {"rows": 7, "metrics": {"masked": {"recall@10": gini / 2, "ndcg@10": gini / 4}}}
        groups = {"valid": {"all": group, "popularity 0": group, "length 0-4": group}}
        columns = {column: {"giniindex@10": gini} for column in ("masked", "unmasked")}
        return {"metrics": {"valid": columns}, "groups": groups}

    for seed, gini in ((1, 0.25), (2, 0.75)):
        keep("A", 2, 4, seed=seed, **told(gini))
    keep("B", 4)
    asked = {"metrics": tables.named(["MRR@5", "GiniIndex", "NDCG@10"]), "groups": ["popularity"]}
    found = content(tmp_path, **asked)
    assert found["further"]["masked"] == {"mrr@5": {"A": 0.5, "B": 0.25}, "giniindex@10": {"A": 0.5, "B": None}}
    assert found["further"]["unmasked"]["mrr@5"] == {"A": 0.25, "B": 0.25}
    assert found["groups"]["recall@10"] == {"popularity 0": {"rows": 7, "means": {"A": 0.25, "B": None}}}
    page, _ = leaderboard_page.pages(found)
    rows = table(page, "Validation, further metrics, seen items masked")
    assert rows == [["model", "mrr@5", "giniindex@10"], ["A", "0.5000", "0.5000"], ["B", "0.2500", "-"]]
    rows = table(page, "Validation, N@10 by groups of targets, seen items masked")
    assert rows == [["model", "popularity 0 (7)"], ["A", "0.1250"], ["B", "-"]]
    assert "further metrics" not in leaderboard_page.pages(content(tmp_path))[0]
    with pytest.raises(InputError, match="--metrics: found 'AUC', expected some of Recall"):
        tables.named(["AUC"])
    judged = {"metrics": ["AUC", "MRR"], "topk": [5], "group_metrics": None}
    assert tables.asked_of(judged) == {"metrics": ["mrr@5"], "groups": []}, "what runs judge beside rankings is theirs"
    with pytest.raises(InputError, match="--group_metrics: found 'age'"):
        tables.grouped(["age"])


def test_targets_among_sampled_items_stand_on_a_page_of_their_own(keep, tmp_path):
    sampled = {"eval_args": {**SETTINGS["eval_args"], "mode": {"valid": "uni100", "test": "uni100"}}}
    keep("A", 3)
    keep("A", 1, settings=sampled, finished="2026-02-01T00:00:00+00:00")
    keep("B", 2, settings=sampled)
    whole, few = content(tmp_path), content(tmp_path, mode="uni100")
    assert [row["model"] for row in whole["rows"]] == ["A"] and not whole["others"], "later, but of another ranking"
    assert [row["model"] for row in few["rows"]] == ["A", "B"] and few["among"] == "100 sampled items"
    page, tex = leaderboard_page.pages(few)
    assert page.startswith("# Toy, targets among 100 sampled items\n") and "among 100 sampled items;" in tex
    assert "every target is ranked among 100 sampled items" in page and "(files/Toy-uni100.png)" in page
    leaderboard_page.write("Toy", tmp_path, mode="uni100")
    assert {path.name for path in tmp_path.glob("Toy*.md")} == {"Toy-uni100.md"}
    with pytest.raises(InputError, match=r"--eval_args=.{'mode': 'pop9'}"):
        content(tmp_path, mode="pop9")
    by_mode = {run.among("valid"): {1: run} for run in records.runs_in(folder(tmp_path)) if run.model == "A"}
    with pytest.raises(InputError, match="found targets ranked among different items"):
        tables.paired_values({str(mode): of for mode, of in by_mode.items()}, "valid", ["ndcg@10"])


def test_models_of_users_beside_models_of_sequences_are_judged_target_by_target(keep, tmp_path):
    keep("A", [1] * USERS + [4], targets=2)
    alone = content(tmp_path)
    assert alone["rows"][0]["masked"]["recall@5"]["mean"] == 1.0 and "is_mixed" not in alone
    path = next(iter(folder(tmp_path).glob("A-*.npz")))
    ranks = records.unpack_ranks(path.read_bytes())["valid"]
    keep("B", [1] * USERS + [4], targets=2)
    (of_users,) = folder(tmp_path).glob("B-*.npz")
    of_users.write_bytes(records.pack_ranks({"valid": replace(ranks, per_user=True)}))
    found = content(tmp_path)
    by_model = {row["model"]: row["masked"] for row in found["rows"]}
    assert by_model["A"] == by_model["B"] and "every target counts by itself here" in leaderboard_page.pages(found)[0]
    whole = content(tmp_path, models=["B"])["rows"][0]["masked"]["ndcg@5"]["mean"]
    assert whole != pytest.approx(by_model["B"]["ndcg@5"]["mean"]), "of users, each with all of his targets"


def three(keep):
    keep("A", 1, 2)
    keep("B", 3)
    keep("C", 30, 40)


def test_costs_are_means_of_the_seeds_that_tell(keep, tmp_path):
    more = {"peak_memory_is_bound": False}
    known, unknown = {"tokenizer": 90.0, "train": 1000.0, "candidates": 30.0}, {"train": 500.0, "candidates": None}
    keep("B", 1, seconds={**known, "features": 10.0}, **more)
    keep("B", 1, seed=0, seconds={**unknown, "features": 20.0, "tokenizer": None}, peak_memory_mib=None, **more)
    keep("C", 2, seconds={**known, "features": None}, peak_memory_mib=None)
    found = content(tmp_path)
    rows = {row["model"]: row for row in found["rows"]}
    assert rows["B"]["train_seconds"] == 750 + 30 and rows["B"]["feature_seconds"] == 15 + 90
    assert rows["B"]["peak_memory_mib"] == 1234.5 and rows["C"]["peak_memory_mib"] is None
    assert rows["C"]["feature_seconds"] is None, "a part that no seed tells is not taken for nothing"
    assert rows["C"]["memory_is_bound"] and not rows["B"]["memory_is_bound"]
    page, _ = leaderboard_page.pages(found)
    assert [row[6] for row in table(page, "Cost")[1:]] == (
        ["105", "-"] if found["rows"][0]["model"] == "B" else ["-", "105"]
    )
    assert "An upper bound, for one process may have made several runs, is the memory of C." in page


def test_all_rows_together_count_a_shared_training_once(keep, tmp_path):
    seconds = {"features": 10.0, "tokenizer": 90.0, "train": 1000.0, "candidates": 30.0}
    for seed in (1, 2):
        keep("B", 1, seed=seed, run_dir=f"B-Toy-{seed}-{seed:016x}-00c0ffee", seconds=seconds)
        keep("C", 2, seed=seed, run_dir=f"C-Toy-{seed}-{seed:016x}", seconds={"train": 1000.0, "candidates": 0.0})
    found = leaderboard.content("Toy", folder(tmp_path))
    assert found["total_seconds"] == 2 * (100 + 1000 + 30)
    keep("D", 3, run_dir="D-Toy-1-00000000000000aa", seconds={"train": 3600.0})
    assert leaderboard.content("Toy", folder(tmp_path))["total_seconds"] == 2 * 1130 + 3600
    page = leaderboard_page.write("Toy", tmp_path)
    assert "All 5 runs together: 1.6 hours; a training that rows share counts once." in page


def test_the_page_of_a_small_case(keep, tmp_path):
    three(keep)
    page = leaderboard_page.write("Toy", tmp_path, against="A")
    assert tables.outside_checkout(page) == (tmp_path / "Toy.md").read_text() and "](../docs" in page
    one, half, zero = ["1.0000", "1.0000"], ["1.0000", "0.5000"], ["0.0000", "0.0000"]
    best = ["1.0000 [1.0000, 1.0000]", "", "**1.0000** [1.0000, 1.0000]", ""]
    assert table(page, "Validation, seen items masked") == [
        ["model", "second stage", "R@5", "N@5", "R@10 [95 %]", "p (Holm)", "N@10 [95 %]", "p (Holm)", "R@20", "N@20"],
        ["A†", "", *one, *best, *one],
        ["B†", "", *half, "1.0000 [1.0000, 1.0000]", "1.000", "0.5000 [0.5000, 0.5000]", "< 0.001", *half],
        ["C†", "", *zero, "0.0000 [0.0000, 0.0000]", "< 0.001", "0.0000 [0.0000, 0.0000]", "< 0.001", *zero],
    ]
    assert "p: the chance of a difference at least this large if both were equally good" in page
    assert "† one seed; neither interval nor p knows how much seeds differ" in page
    assert "- R@10: A does not differ significantly from B; so nothing is bold here (significant: p < 0.01" in page
    assert "- N@10: A is significantly better than every other row (significant: p < 0.01" in page
    assert table(page, "Validation, seen items not masked")[1] == ["A", "1.0000", "0.6309"] + 2 * ["1.0000", "0.6309"]
    header = ["model", "seeds", "parameters", "training s", "epoch s", "evaluation s", "tokenizer, features s"]
    assert table(page, "Cost")[:2] == [
        [*header, "peak MiB", "epochs", "on test"],
        ["A", "1", "1,000", "100", "3.2", "0.5", "3", "1,234", "30", "1"],
    ]
    assert "All 3 runs together: 0.1 hours" in page
    keep("A", 1, 2, seed=2, seconds={"train": 7000.0})
    later = leaderboard_page.write("Toy", tmp_path, against="A")
    assert "All 4 runs together: 2.0 hours" in later and "is taken from the rows that have several" in later
    assert table(page, "Data statistics")[1] == ["24", "50", "1,200", "50.00", "75.000", "text (tfidf)"]
    assert "users evaluated: 24, the same" in page and "passed: A, B, C" in page and "ties in time" not in page
    assert " minus " not in page and "of 3" not in page and "Not shown" not in page and "‡" not in page


def test_csv_tex_json_and_figure_say_the_same(keep, tmp_path):
    three(keep)
    leaderboard_page.write("Toy", tmp_path, against="A")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "files/Toy.csv").read_text())))
    assert [row["model"] for row in rows] == ["A", "B", "C"]
    assert rows[0]["ndcg@10 difference"] == rows[0]["ndcg@10 p (Holm)"] == ""
    assert float(rows[1]["masked ndcg@10"]) == 0.5 and float(rows[1]["ndcg@10 difference"]) == -0.5
    assert float(rows[1]["ndcg@10 p (Holm)"]) == 0.0 and rows[1]["second_stage"] == "False"
    assert float(rows[1]["recall@10 p (Holm)"]) == 1.0 and rows[2]["parameters"] == "1000.0"
    n, r = "1.0000", "0.6309"
    assert (tmp_path / "files/Toy.tex").read_text().splitlines() == [
        "% Toy, valid; bold: significantly better than every other row, p < 0.01 (Holm)",
        "\\begin{tabular}{lrrrrrrrrrrrr}",
        "\\toprule",
        " & \\multicolumn{6}{c}{seen items masked} & \\multicolumn{6}{c}{not masked} \\\\",
        "\\cmidrule(lr){2-7} \\cmidrule(lr){8-13}",
        "model & " + " & ".join(2 * ["R@5", "N@5", "R@10", "N@10", "R@20", "N@20"]) + " \\\\",
        "\\midrule",
        f"A$^{{\\dagger}}$ & {n} & {n} & {n} & \\textbf{{{n}}} & {n} & {n} & {n} & {r} & {n} & {r} & {n} & {r} \\\\",
        "B$^{\\dagger}$ & " + " & ".join(6 * ["1.0000", "0.5000"]) + " \\\\",
        "C$^{\\dagger}$ & " + " & ".join(12 * ["0.0000"]) + " \\\\",
        "\\bottomrule",
        "\\end{tabular}",
    ]
    assert json.loads((tmp_path / "files/Toy.json").read_text()) == json.loads(
        json.dumps(content(tmp_path, against="A"))
    )
    title, panels, reference = json.loads((tmp_path / "files/Toy.png").read_bytes())
    assert (title, reference) == ("Toy, validation, seen items masked", "A")
    bars = {row: [bar[end] for end in ("mean", "low", "high")] for row, bar in panels["N@10"].items()}
    assert bars == {"A": [1.0, 1.0, 1.0], "B": [0.5, 0.5, 0.5], "C": [0.0, 0.0, 0.0]}


def test_p_is_that_of_each_rows_own_seeds(keep, tmp_path):
    generator, users = np.random.default_rng(0), np.arange(1, USERS + 1)
    ranks = {"A": {seed: generator.integers(1, 15, USERS) for seed in (1, 2, 3)}}
    ranks["B"] = {1: generator.integers(3, 18, USERS)}
    for model, by_seed in ranks.items():
        for seed, values in by_seed.items():
            keep(model, values, seed=seed)
    p_values = {}
    for metric in ("recall", "ndcg"):
        values = {
            model: {seed: (users, per_row(of, metric, 10)) for seed, of in by_seed.items()}
            for model, by_seed in ranks.items()
        }
        p_values[metric] = PairedValues(values).p_value("B", "A")
    found = content(tmp_path, against="A")
    assert [row["seeds"] for row in found["rows"]] == [[1, 2, 3], [1]]
    entries = found["rows"][1]["masked"]
    assert [entries["recall@10"]["p"], entries["ndcg@10"]["p"]] == list(p_values.values())
    low, high = sorted(p_values.values())
    adjusted = {low: min(1, 2 * low), high: max(min(1, 2 * low), high)}
    assert [entries[f"{metric}@10"]["p_holm"] for metric in p_values] == [adjusted[p] for p in p_values.values()]
    best = found["rows"][0]["masked"]["ndcg@10"]
    assert best["low"] < best["mean"] < best["high"] and best["difference"] is None


def test_nobody_is_bold_where_one_row_is_not_told_apart(keep, tmp_path):
    three(keep)
    mixed = np.where(np.arange(USERS) < 2, 2, 1)  # two users of 24 apart: p = 0.16
    keep("D", mixed)
    page = leaderboard_page.write("Toy", tmp_path, against="A")
    assert "**" not in page and "textbf" not in (tmp_path / "files/Toy.tex").read_text()
    assert "- N@10: A does not differ significantly from D; so nothing is bold here" in page


def test_comparison_with_a_named_row(keep, tmp_path):
    three(keep)
    keep("BBQRec", 40)
    page = leaderboard_page.write("Toy", tmp_path, against="B")
    assert "**" not in page and "Against B, which was named beforehand" in page
    assert "- N@10: B is significantly worse than A; so nothing is bold here" in page
    assert "- R@10: B does not differ significantly from A; so" in page
    assert [row[7] for row in table(page, "Validation, seen items masked")[1:]] == ["< 0.001", "", *2 * ["< 0.001"]]
    with pytest.raises(InputError, match=r"--against: found 'Z', expected one of A, B, BBQRec, C"):
        leaderboard_page.write("Toy", tmp_path, against="Z")


def test_the_reference_is_named_beforehand_and_never_the_best_of_the_split(keep, tmp_path):
    three(keep)
    page = leaderboard_page.write("Toy", tmp_path)
    assert content(tmp_path)["reference"] is None and "no tests: there is no row of BBQRec" in page
    assert "`bbqrec leaderboard --against=MODEL`" in page and "**" not in page and "differ significantly" not in page
    assert all(row[5] == row[7] == "" for row in table(page, "Validation, seen items masked")[1:])
    assert content(tmp_path, models=["C", "A"])["reference"] == "C"
    planned = {row["model"]: row["run_key"] for row in content(tmp_path)["rows"]}
    assert content(tmp_path, planned={"Z": "0" * 16, "B": planned["B"], "A": planned["A"]})["reference"] == "B"
    keep("BBQRec", 30)
    assert content(tmp_path, models=["C", "BBQRec"])["reference"] == "BBQRec"


def test_a_page_that_is_written_again_keeps_its_reference_unless_another_is_named(keep, tmp_path):
    three(keep)
    planned = {row["model"]: row["run_key"] for row in content(tmp_path)["rows"]}
    page = leaderboard_page.write("Toy", tmp_path, planned={name: planned[name] for name in "CAB"})
    assert "Against C, which was named beforehand" in page, "the first that the command named, not the best"
    assert leaderboard_page.write("Toy", tmp_path) == page
    keep("D", 2)
    assert "Against C, which was named beforehand" in leaderboard_page.write("Toy", tmp_path)
    assert "Against B, which was named" in leaderboard_page.write("Toy", tmp_path, models=["B", "A"])
    assert "Against B, which was named" in leaderboard_page.write("Toy", tmp_path)
    for path in folder(tmp_path).glob("B-*"):
        path.unlink()
    assert "no tests: there is no row of BBQRec" in leaderboard_page.write("Toy", tmp_path)
    keep("BBQRec", 30)
    assert "Against BBQRec, which was named" in leaderboard_page.write("Toy", tmp_path)


def test_one_row_has_nothing_to_be_compared_with(keep, tmp_path):
    keep("A", 1)
    assert "One row: nothing to compare it with" in leaderboard_page.write("Toy", tmp_path)


def seen_alone(keep, masked):
    """SASRecPlus and, from the same training, SASRecPlusSeen and SASRecPlusT."""
    for model, fitted in (("SASRecPlus", []), ("SASRecPlusSeen", ["seen"]), ("SASRecPlusT", ["behavior"])):
        more = {
            "settings": {"candidate_similarity": fitted},
            "run_dir": f"{model}-Toy-1-{7:016x}" + "-00c0ffee" * bool(fitted),
        }
        keep(model, masked - (model == "SASRecPlusT"), **more)


def test_rows_that_cannot_differ_are_one_test(keep, tmp_path):
    seen_alone(keep, masked=np.where(np.arange(USERS) < 18, 3, 2))
    keep("BBQRec", 1)
    keep("Other", np.where(np.arange(USERS) < 18, 3, 2))  # the same ranks, but a model of its own
    rows = {row["model"]: row["masked"]["ndcg@10"] for row in content(tmp_path)["rows"]}
    tested = {name: row["p"] for name, row in rows.items() if name not in ("BBQRec", "SASRecPlusSeen")}
    assert rows["SASRecPlusSeen"]["p_holm"] == rows["SASRecPlus"]["p_holm"] and len(tested) == 3
    recall = 3  # tests of recall@10, in which nobody differs: p = 1
    most = max(tested, key=lambda name: tested[name])
    assert rows[most]["p_holm"] == pytest.approx(max(min(1, (1 + recall) * tested[most]), rows[most]["p_holm"]))
    least = min(row["p_holm"] for name, row in rows.items() if name != "BBQRec")
    assert least == pytest.approx((len(tested) + recall) * min(tested.values()))
    found = content(tmp_path, against="SASRecPlusSeen")
    twin = next(row for row in found["rows"] if row["model"] == "SASRecPlus")["masked"]["ndcg@10"]
    assert twin["difference"] is None and twin["p"] is None, "the reference itself, under another name"
    assert all("SASRecPlus" not in side for side in found["standing"]["ndcg@10"].values())


def test_rows_with_a_second_stage_are_marked(keep, tmp_path):
    seen_alone(keep, masked=3)
    keep("BBQRecGenerate", 9, settings={"candidate_similarity": ["text"], "scoring": "generate"})
    keep("SASRec", 20)
    page = leaderboard_page.write("Toy", tmp_path)
    marked = {row[0].strip("†"): row[1] for row in table(page, "Validation, seen items masked")[1:]}
    assert [name for name, mark in marked.items() if mark == "yes"] == ["SASRecPlusT", "SASRecPlusSeen"]
    assert "fitted on targets of validation after training" in page


@pytest.mark.parametrize(("ours", "said"), [(5, "-0.1131 [-0.1131, -0.1131], p < 0.001"), (3, "+0.0000 [+0.0000")])
def test_headlines_stand_first_whatever_they_are(keep, tmp_path, ours, said):
    both = {"candidate_similarity": ["text"]}
    keep("BBQRec", ours, settings=both)
    keep("SASRecPlusFT", 3, settings=both)
    keep("A", 1)
    question, line, meaning = leaderboard_page.write("Toy", tmp_path).split("\n\n")[1:4]
    assert "ranked among all items" in question and question.endswith("p compares it with BBQRec.")
    start = "- **BBQRec** (1 of 3 seeds) minus SASRecPlusFT (1 of 3 seeds), both with a second stage: R@10 +0.0000 ["
    assert line.startswith(start) and f"N@10 {said}" in line and "\n" not in line
    assert "p: the chance of a difference at least this large if both were equally good" in meaning


def test_fair_pairs_and_their_seeds(keep, tmp_path):
    for seed in range(5):
        keep("BBQRecWithoutCandidates", 2, seed=seed)
        keep("BBQRec", 1, seed=seed, settings={"candidate_similarity": ["text"]})
    keep("SASRecPlus", 3)
    keep("SASRecPlusFT", 3)
    lines = leaderboard_page.write("Toy", tmp_path).split("\n\n")[2].splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "- **BBQRecWithoutCandidates** minus SASRecPlus (1 of 3 seeds), neither with a second stage",
        "- **BBQRec** minus SASRecPlusFT (1 of 3 seeds), one of them with a second stage",
    ]
    found = content(tmp_path)
    assert [pair["metrics"]["ndcg@10"]["p_holm"] for pair in found["headlines"]] == [0.0, 0.0]
    cost = {row[0]: row[1] for row in table((tmp_path / "Toy.md").read_text(), "Cost")[1:]}
    assert cost == dict.fromkeys(("BBQRec", "BBQRecWithoutCandidates"), "5") | dict.fromkeys(
        ("SASRecPlus", "SASRecPlusFT"), "1 of 3"
    )


def test_the_latest_settings_are_shown_unless_a_key_is_named(keep, tmp_path):
    old = keep("A", 3, finished="2026-01-02T00:00:00+00:00", settings={"hidden_size": 32})
    new = keep("A", 1, finished="2026-01-03T00:00:00+00:00")
    undated = keep("A", 2, finished="", settings={"hidden_size": 128})
    many = keep("A", 5, finished="", settings={f"key_{at}": at for at in range(9)})
    keep("B", 4)
    assert content(tmp_path)["rows"][0]["run_key"] == new
    page = leaderboard_page.write("Toy", tmp_path)
    assert f"`--keys={many}`: 9 of them (seeds 1)" in page
    assert f"- other settings of A with records, `--keys={old}`: hidden_size: 32 (seeds 1)" in page
    assert f"`--keys={undated}`: hidden_size: 128 (seeds 1)" in page
    assert content(tmp_path, keys=[old[:8]])["rows"][0]["run_key"] == old
    with pytest.raises(InputError, match="--keys: found 0 keys that begin with 'zz'"):
        content(tmp_path, keys=["zz"])
    with pytest.raises(InputError, match="two keys of A"):
        content(tmp_path, keys=[old, new])


def test_a_planned_row_is_not_stood_in_for_by_other_settings(keep, tmp_path):
    keep("A", 1)
    keep("B", 3)
    found = content(tmp_path, planned={"A": "f" * 16, "C": "e" * 16})
    assert [row["model"] for row in found["rows"]] == ["B"]
    assert [entry["model"] for entry in found["others"]] == ["A"], "it is said that there is one"


def test_records_of_other_data_are_left_out_and_named(keep, tmp_path):
    keep("A", 1, data="e" * 16)
    keep("B", 3, finished="2026-02-01T00:00:00+00:00")
    page = leaderboard_page.write("Toy", tmp_path)
    assert [row[0] for row in table(page, "Validation, seen items masked")[1:]] == ["B†"]
    assert "other settings of A with records" in page and "other data (seeds 1)" in page


def test_models_that_do_not_know_all_items_are_no_rows(keep, tmp_path):
    keep("BBQRec", 3)
    keep("BBQRec", 1, settings={"cold_items": 0.1}, finished="2026-02-02T00:00:00+00:00")
    keep("SASRec", 1, settings={"cold_items": 0.1}, name="full")
    (row,) = content(tmp_path)["rows"]
    assert (row["model"], row["masked"]["recall@5"]["mean"], row["masked"]["ndcg@5"]["mean"]) == ("BBQRec", 1.0, 0.5)


def test_rows_of_an_ablation_are_no_models_but_its_full_row_is_one(keep, tmp_path):
    keep("BBQRec", 3, name="full")
    keep("BBQRec", 1, name="no-codes", settings={"codes": "none"})
    found = content(tmp_path)
    assert [(row["model"], row["masked"]["ndcg@10"]["mean"]) for row in found["rows"]] == [("BBQRec", 0.5)]
    assert found["others"] == []


def test_models_choose_rows(keep, tmp_path):
    three(keep)
    assert [row["model"] for row in content(tmp_path, models=["C", "A"])["rows"]] == ["A", "C"]
    with pytest.raises(InputError, match=r"--models: found 'Z', expected some of A, B, C"):
        content(tmp_path, models=["Z"])


def test_test_is_shown_only_of_records_that_have_it(keep, tmp_path):
    keep("A", 1, splits=("valid", "test"))
    keep("B", 3)
    page = leaderboard_page.write("Toy", tmp_path, final=True)
    assert [row[0] for row in table(page, "Test, seen items masked")[1:]] == ["A†"]
    assert [row[0] for row in table(page, "Validation, seen items masked")[1:]] == ["A"]
    with pytest.raises(InputError, match=r"no record of Nope .* judged on test; run first: bbqrec train .* --final"):
        leaderboard_page.write("Nope", tmp_path, final=True)


def test_a_page_of_test_shows_the_same_runs_on_validation(keep, tmp_path):
    for seed, rank in enumerate((1, 3)):
        keep("A", rank, seed=seed, splits=("valid", "test"), on_test=30)
    keep("A", 30, seed=2)  # judged on validation alone: no run of this page
    page = leaderboard_page.write("Toy", tmp_path, final=True)
    half = ["1.0000", "0.7500"]
    assert table(page, "Test, seen items masked")[1][2] == "0.0000"
    assert table(page, "Validation, seen items masked")[1:] == [["A", *half * 3]]
    assert page.index("Toy.png") < page.index("## Validation"), "the figure is of test"
    assert "valid_masked ndcg@5" in (tmp_path / "files/Toy.csv").read_text()
    assert table(leaderboard_page.write("Toy", tmp_path), "Validation, seen items masked")[1][0] == "A"
    assert "valid_masked ndcg@5" not in (tmp_path / "files/Toy.csv").read_text()


def test_means_are_over_targets_where_a_user_has_several(keep, tmp_path):
    ranks = np.r_[np.ones(USERS - 1), [1, 99, 99, 99]]  # the last user has four targets
    keep("A", ranks, targets=4)
    page = leaderboard_page.write("Toy", tmp_path)
    mean = USERS / (USERS + 3)
    assert json.loads((tmp_path / "files/Toy.json").read_text())["rows"][0]["masked"]["recall@10"][
        "mean"
    ] == pytest.approx(mean)
    assert f"users evaluated: {USERS}, on {USERS + 3} targets, which means are over, the same in all rows" in page
    keep("A", 1, settings={"x": 1})
    assert f"users evaluated: {USERS}, the same in all rows" in leaderboard_page.write("Toy", tmp_path)


def test_rows_judged_on_other_users_are_refused(keep, tmp_path):
    keep("A", 1)
    keep("B", 3, users=USERS + 1)
    with pytest.raises(InputError, match=r"found 2[45] users in 2[45] rows, expected the 2[45] in 2[45] of .*--models"):
        leaderboard_page.write("Toy", tmp_path)
    assert not (tmp_path / "Toy.md").exists()


def test_marks(keep, tmp_path):
    for seed in (1, 2):
        keep("A", 1, seed=seed, epochs={"best": 300, "done": 300, "hit_cap": True})
        keep("B", 3, seed=seed, times_tested=seed + 1)
    keep("C", 4, source="t" * 16)
    keep("Pop", 20, epochs={"best": 0, "done": 0, "hit_cap": True})
    page = leaderboard_page.write("Toy", tmp_path)
    rows = table(page, "Validation, seen items masked")
    assert [row[0] for row in rows[1:]] == ["A\\*", "B", "C†‡", "Pop"]
    assert "not by early stopping: A 2 of 2" in page and "than most others: C 1 of 1" in page
    assert [row[1] for row in table(page, "Cost")[1:]] == ["2", "2", "1", "untrained"]
    assert [row[-1] for row in table(page, "Cost")[1:]] == ["1", "3", "1", "1"]


def test_other_code_that_gives_the_same_ranks_is_no_mark(keep, tmp_path):
    for seed in (1, 2, 3):
        keep("A", 1, seed=seed)
    keep("B", 3, source="t" * 16, same_ranks={"source": "s" * 16, "epochs": 2})
    keep("C", 4, source="t" * 16, same_ranks={"source": "u" * 16, "epochs": 2})
    page = leaderboard_page.write("Toy", tmp_path)
    assert [row[0] for row in table(page, "Validation, seen items masked")[1:]] == ["A", "B†", "C†‡"]
    assert "gives the same ranks, user by user (compared after 2 epochs): B\n" in page


def test_records_from_before_there_was_a_check_or_a_count_of_ties(keep, tmp_path):
    keep("A", 1, leakage_check="not made, the split comes with the data")
    path = next(folder(tmp_path).glob("A-*.json"))
    old = json.loads(path.read_text())
    del old["leakage_check"], old["parameters"], old["peak_memory_mib"], old["finished"]
    path.write_text(json.dumps(old))
    page = leaderboard_page.write("Toy", tmp_path)
    assert "not recorded: A" in page and table(page, "Cost")[1][2] == "-"


def test_ties_in_time_and_rows_with_shuffled_ties(keep, tmp_path):
    keep("A", 1)
    keep("A", 3, settings={"shuffle_ties": 7}, finished="2026-03-01T00:00:00+00:00")
    keep("A", 9, settings={"shuffle_ties": 7, "hidden_size": 8})
    for path in folder(tmp_path).glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "data": {**DATA, "tied_times": 0.125}}))
    page = leaderboard_page.write("Toy", tmp_path)
    assert [row[0] for row in table(page, "Validation, seen items masked")[1:]] == ["A†"]
    assert "- ties in time: 12.5 % of the interactions" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| A ") and " 7 |" in line]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["A", "7", "1", "1.0000 (1.0000)", "0.5000 (1.0000)"]


def test_a_data_set_whose_own_settings_shuffle_ties_has_its_page(keep, tmp_path):
    for model, rank in (("A", 1), ("B", 2)):
        keep(model, rank, settings={"shuffle_ties": 2020})
    keep("A", 3, finished="2026-03-01T00:00:00+00:00")
    found = leaderboard.content("ml-100k-poster", folder(tmp_path))
    assert {row["model"]: found["settings"][row["model"]]["shuffle_ties"] for row in found["rows"]} == {
        "A": 2020,
        "B": 2020,
    }
    (beside,) = found["other_ties"]
    assert (beside["model"], beside["shuffle_ties"], beside["seeds"]) == ("A", None, [1])
    assert found["others"] == []


def test_ties_that_all_records_shuffle_are_the_usual_ones(keep, tmp_path):
    keep("A", 1, settings={"shuffle_ties": 4})
    page = leaderboard_page.write("Toy", tmp_path)
    assert [row[0] for row in table(page, "Validation, seen items masked")[1:]] == ["A†"] and "other ties" not in page


def test_what_data_sets_do_about_ties():
    names = ("ml-1m", "ml-100k-poster", "Sports", "MySet")
    assert [leaderboard.default_ties(name) for name in names] == [2020, 2020, None, None]


def test_failed_runs_are_named_but_not_those_of_studies(keep, tmp_path):
    key = keep("A", 1)
    studies = [
        (name, "2" * 16) for name in ("no-codes", "cold-TIGER", "context-labels-DeepFM-IDs", "codes-BPR", "id-64")
    ]
    for name, of in (("A", key), ("A", "0" * 16), ("SASRec", "1" * 16), *studies):
        records.keep_error(folder(tmp_path), name, 5, of, f"Traceback\nRuntimeError: {name} {of[0]}\n")
    found = content(tmp_path)
    assert sorted(found["failed"]) == [f"A, seed 5: RuntimeError: A {key[0]}", "SASRec, seed 5: RuntimeError: SASRec 1"]
    assert "- failed and not in the tables: SASRec, seed 5" in leaderboard_page.write("Toy", tmp_path)


def test_settings_of_all_rows_and_of_each(keep, tmp_path):
    keep("BBQRec", 1, settings={"hidden_act": "gelu", "n_negatives": 5})
    keep("SASRec", 3, settings={"hidden_act": "gelu", "text_encoder": None})
    blocks = [
        yaml.safe_load(part.split("```")[0]) for part in leaderboard_page.write("Toy", tmp_path).split("```yaml\n")[1:]
    ]
    shared, ours, stock = blocks
    assert shared["epochs"] == 300 and "hidden_size" not in shared and "text_encoder" not in shared
    assert ours == {"n_negatives": 5, "hidden_size": 64, "text_encoder": "tfidf"}
    assert stock == {"hidden_size": 64, "hidden_act": "gelu", "text_encoder": None}, "keys of RecBole's own file"


def test_what_a_run_chose_on_validation_stands_with_its_settings(keep, tmp_path):
    keep("A", 1, settings={"eval_step": 2}, chosen={"hops": 2, "decay": 0.20000000298, "weight": None})
    keep("B", 3)
    page = leaderboard_page.write("Toy", tmp_path)
    assert "### A\n\nNone of its own.\n\nChosen on validation, seed 1: hops: 2, decay: 0.2, weight: ~." in page
    assert page.count("Chosen on validation") == 1


def test_runs_of_another_split_have_a_page_of_their_own(keep, tmp_path):
    by_time = {"eval_args": {**SETTINGS["eval_args"], "split": {"TS": [0.8, 0.1, 0.1]}, "group_by": "none"}}
    three(keep)
    keep("A", 7, settings=by_time, finished="2026-02-01T00:00:00+00:00")
    keep("B", 9, settings=by_time, finished="2026-02-01T00:00:00+00:00")
    first = leaderboard_page.write("Toy", tmp_path)
    page = leaderboard_page.write("Toy", tmp_path, of_split="TS")
    assert (tmp_path / "Toy.md").read_text() == tables.outside_checkout(first)
    assert first == leaderboard_page.write("Toy", tmp_path)
    assert (tmp_path / "Toy-TS.md").read_text() == tables.outside_checkout(page)
    assert page.startswith("# Toy, split TS\n")
    assert "](files/Toy-TS.png)" in page and "](files/Toy-TS.csv)" in page and "](files/Toy.png)" in first
    assert [row["model"] for row in content(tmp_path, of_split="TS")["rows"]] == ["A", "B"]
    assert {row["model"] for row in content(tmp_path)["rows"]} == {"A", "B", "C"}
    assert "{'TS': [0.8, 0.1, 0.1]} over all users in order TO" in page and "over all users in order" not in first
    assert "two points in time" in page and "two points in time" not in first
    with pytest.raises(InputError, match=r"judged on valid \(of the splits TS there are some: --split\)"):
        content(tmp_path, of_split="RS")
