"""One table over the leaderboards of several data sets: which of them count, in which order its rows stand."""

import json

import pytest

from recbole_bbqrec.evaluation import report
from recbole_bbqrec.experiments import overview
from recbole_bbqrec.storage import write_json

DATA = {"users": 9, "items": 5, "interactions": 30, "interactions_per_user": 10 / 3, "modalities": []}


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(report, "bar_figure", lambda *given: json.dumps(given).encode())


def row(model, mean, seeds=(1, 2, 3), second_stage=False, **more):
    masked = {metric: {"mean": mean, "low": mean / 2, "high": mean * 2} for metric in ("recall@10", "ndcg@10")}
    kept = {"model": model, "seeds": list(seeds), "second_stage": second_stage, "untrained": False, "masked": masked}
    return {**kept, "hit_cap": 0, "other_code": 0, **more}


def keep(results, dataset, rows, split="test", name=None, headlines=()):
    """Write what a leaderboard has as its JSON."""
    (results / "runs" / dataset).mkdir(parents=True, exist_ok=True)
    content = {"dataset": dataset, "split": split, "data": DATA, "rows": rows, "headlines": list(headlines)}
    write_json(results / f"files/{name or dataset}.json", content)


def two(results):
    difference = {"mean": 0.1, "low": 0.05, "high": 0.15}
    sides = [{"model": "B"}, {"model": "A"}]
    pair = {"sides": sides, "metrics": {"ndcg@10": {"difference": difference, "p": 0.01, "p_holm": 0.02}}}
    keep(results, "X", [row("A", 0.4), row("B", 0.5, second_stage=True), row("C", 0.1, hit_cap=1)], headlines=[pair])
    keep(results, "Y", [row("A", 0.3, seeds=[1]), row("B", 0.2, second_stage=True)])


def test_rows_stand_by_their_share_of_the_best_on_the_sets_that_have_all(tmp_path):
    two(tmp_path)
    overview.write(tmp_path)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "overview.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert lines[:4] == [
        ["model", "second stage", "seeds", "[X](X.md)", "[Y](Y.md)", "% of the best"],
        ["B", "yes", "3", "**0.5000** / **0.5000**", "0.2000 / 0.2000", "100.0"],
        ["A", "", "1 to 3", "0.4000 / 0.4000", "**0.3000** / **0.3000**", "80.0"],
        ["C\\*", "", "3", "0.1000 / 0.1000", "", "20.0"],
    ]
    assert lines[5] == ["B minus A", "+0.1000 [+0.0500, +0.1500] (+25.0 %)", "0.020", "", ""]
    title, panels, reference = json.loads((tmp_path / "files/overview.png").read_bytes())
    assert list(panels) == ["X", "Y"] and list(panels["Y"]) == ["B", "A", "C"] and panels["Y"]["C"] is None
    assert panels["X"]["A"] == {"mean": 0.4, "low": 0.2, "high": 0.8} and reference == "BBQRec" and "test" in title


def test_where_no_set_has_all_rows_the_share_is_over_those_of_the_row(tmp_path):
    keep(tmp_path, "X", [row("A", 0.4), row("B", 0.5)])
    keep(tmp_path, "Y", [row("A", 0.3), row("C", 0.2)])
    overview.write(tmp_path)
    rows = json.loads((tmp_path / "files/overview.json").read_text())["rows"]
    assert [(one["model"], one["of_best"]) for one in rows] == [
        ("B", 1.0),
        ("A", pytest.approx(0.9)),
        ("C", pytest.approx(2 / 3)),
    ]
    assert "over the sets that the row is on" in (tmp_path / "overview.md").read_text()


def test_validation_sampled_candidates_and_splits_by_time_stay_out(tmp_path):
    keep(tmp_path, "X", [row("A", 0.4)])
    keep(tmp_path, "Y", [row("A", 0.9)], split="valid")
    for other in ("Y-uni100", "Y-TS"):
        keep(tmp_path, "Y", [row("A", 0.9)], name=other)
    keep(tmp_path, "Y", [row("A", 0.9)], split="valid")
    overview.write(tmp_path)
    assert not (tmp_path / "overview.md").exists(), "one set is no overview"
    keep(tmp_path, "Z", [row("A", 0.2)])
    overview.write(tmp_path)
    assert list(json.loads((tmp_path / "files/overview.json").read_text())["sets"]) == ["X", "Z"]
    keep(tmp_path, "Z", [row("A", 0.2), row("B", 0.3)])
    overview.write(tmp_path)
    content = json.loads((tmp_path / "files/overview.json").read_text())
    assert list(content["sets"]) == ["Z", "X"], "sets of more rows first"
