import json
import mmap
import time

import numpy as np
import pytest
import torch
from conftest import arguments

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.experiments import cost


def test_all_ways_of_scoring_with_and_without_the_additional_code():
    ways = ["dense", "codes", "joint", "generate"]
    assert [(way, code) for way in ways for code in ("with", "without")] == cost.VARIANTS
    without = {"similarity_attention": "off", "use_code_embedding": False, "second_stage": "off"}
    assert {"with": {"second_stage": "linear"}, "without": without} == cost.CODES


def test_the_whole_measurement(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "VARIANTS", cost.VARIANTS[:2])
    file = tmp_path / "more.yaml"
    file.write_text("temperature: 0.1\n")
    given = [*arguments(tiny, checkpoint_dir=str(tmp_path / "saved")), f"--config_files={file}"]
    measured = cost.cost("tiny", 50, 3, given, tmp_path / "results")
    assert measured["settings"]["temperature"] == 0.1
    assert measured["users"] == 50 and measured["items"] == 40 and measured["rounds"] == 3
    additional, plain = measured["variants"]
    assert (additional["code"], plain["code"]) == ("with", "without")
    for one in measured["variants"]:
        assert len(one["seconds_per_user"]) == 3 and all(value > 0 for value in one["seconds_per_user"])
        assert 0 <= one["peak_growth_mib"] < 1000
    assert additional["model_mib"] > plain["model_mib"] > 0
    page = (tmp_path / "results/inference-cost-tiny.md").read_text()
    assert page in capsys.readouterr().out
    assert "| dense" in page and "untrained" in page and "50 histories" in page and str(tmp_path) not in page
    assert json.loads((tmp_path / "results/files/inference-cost-tiny.json").read_text()) == json.loads(
        json.dumps(measured)
    )
    assert (tmp_path / "results/files/inference-cost-tiny.png").read_bytes().startswith(b"\x89PNG")


def test_page_and_figure_follow_from_the_measurement_alone():
    def variant(code, milliseconds, mib):
        seconds = [value / 1000 for value in milliseconds]
        return {
            "scoring": "joint",
            "code": code,
            "seconds_per_user": seconds,
            "peak_growth_mib": mib,
            "model_mib": mib / 2,
        }

    base = {"dataset": "x", "users": 9, "mean_length": 2.5, "items": 3, "batch": 4, "rounds": 3, "threads": 2}
    both = [variant("with", [3.0, 9.0, 2.0], 20.0), variant("without", [1.5, 1.0, 2.0], 10.0)]
    measured = {**base, "machine": "m", "versions": {"torch": "2"}, "settings": {}, "variants": both}
    (row,) = [line for line in cost.markdown(measured).splitlines() if line.startswith("| joint")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["joint", "3.000 [2.000, 9.000]", "1.500 [1.000, 2.000]", "2.00", "20", "10", "10", "5"]
    assert cost.figure(measured) == cost.figure(measured)


def test_variants_take_turns_in_alternating_order(monkeypatch):
    calls = []
    monkeypatch.setattr(cost, "score_all", lambda model, histories, batch: calls.append((model, len(histories))))
    seconds = cost._time(["a", "b"], np.ones((10, 2)), 4, 3)
    assert calls[:2] == [("a", 4), ("b", 4)], "one batch each before the clock runs"
    assert [model for model, _ in calls[2:]] == ["a", "b", "b", "a", "a", "b"]
    assert all(n == 10 for _, n in calls[2:]) and [len(times) for times in seconds] == [3, 3]


def test_every_history_is_scored_once_in_batches():
    parts, computed = [], []

    class Model(torch.nn.Linear):
        def shared(self):
            computed.append("shared")
            return computed[0]

        def score(self, rows, shared):
            assert shared == "shared"
            parts.append(rows.numpy())

    histories = np.arange(14).reshape(7, 2)
    cost.score_all(Model(1, 1), histories, 3)
    assert [len(part) for part in parts] == [3, 3, 1] and len(computed) == 1
    np.testing.assert_array_equal(np.concatenate(parts), histories)


def test_growth_of_memory_is_seen_although_it_is_given_back():
    def work():
        for _ in range(3):
            with mmap.mmap(-1, 60 * 2**20) as block:  # memory of its own: the heap may hold what was freed before
                np.frombuffer(block, np.uint8)[::512] = 1
                time.sleep(0.05)  # so that it is looked at meanwhile, on a busy machine too

    assert 55 < cost.peak_growth(work) < 90
    assert cost.peak_growth(lambda: None) < 5


def test_a_failing_measurement_says_what_failed_in_the_other_process(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "write_bundle", lambda *_: None)
    monkeypatch.setattr(cost, "VARIANTS", cost.VARIANTS[1:2])
    with pytest.raises(InputError, match=r"bundle\.json"):
        cost.cost("tiny", 5, 1, arguments(tiny, checkpoint_dir=str(tmp_path / "saved")), tmp_path)


def test_mistakes_are_said_before_any_work(tiny, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--users: found 0"):
        cost.cost("tiny", 0, 1, arguments(tiny), tmp_path)
    with pytest.raises(InputError, match="--rounds: found 0"):
        cost.cost("tiny", 1, 0, arguments(tiny), tmp_path)
    with pytest.raises(InputError, match="--model: the measurement sets it"):
        cost.cost("tiny", 1, 1, [*arguments(tiny), "--model=SASRec"], tmp_path)
    monkeypatch.setattr(cost, "CODES", {"with": {}, "without": {"similarity_attention": "nowhere"}})
    with pytest.raises(InputError, match="found 'nowhere'"):
        cost.cost("tiny", 1, 1, arguments(tiny), tmp_path)
