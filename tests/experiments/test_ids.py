import json

import pytest
from conftest import arguments

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.experiments import ids
from recbole_bbqrec.experiments.ids import AS_SET, NO_PROBE
from recbole_bbqrec.tokenizer.fit import BehaviorBindTokenizer


def test_the_whole_study_goes_on_from_what_is_fitted(tiny, tmp_path, monkeypatch, capsys):
    given = arguments(tiny, checkpoint_dir=str(tmp_path / "saved"))
    measured = ids.study("tiny", 2, given, tmp_path / "results")
    assert list(measured["rows"]) == [AS_SET, NO_PROBE]
    for cards in measured["rows"].values():
        assert [card["seed"] for card in cards] == [2020, 2021]
        assert all(card["items"] == 40 and card["collisions"]["after"]["sharing"] == 0 for card in cards)
        assert all(card["encode_seconds"] > 0 and card["rqvae"]["collisions"]["moved"] >= 0 for card in cards)
    with_probe, without = (measured["rows"][row][0]["disentanglement"] for row in (AS_SET, NO_PROBE))
    assert with_probe["text"]["before"] == without["text"]["before"] and with_probe["text"] != without["text"]
    page = (tmp_path / "results/semantic-ids-tiny.md").read_text()
    assert page in capsys.readouterr().out and "seeds 2020, 2021" in page and str(tmp_path) not in page
    assert json.loads((tmp_path / "results/files/semantic-ids-tiny.json").read_text()) == json.loads(
        json.dumps(measured)
    )

    monkeypatch.setattr(BehaviorBindTokenizer, "fit", lambda *_: pytest.fail("fitted again"))
    again = ids.study("tiny", 1, given, tmp_path / "results")
    for row in again["rows"].values():  # but for the clock
        row[0].pop("encode_seconds")
    for row, cards in measured["rows"].items():
        cards[0].pop("encode_seconds")
        assert again["rows"][row] == cards[:1]


def test_a_tokenizer_without_parts_stands_alone(tiny, tmp_path):
    given = arguments(tiny, checkpoint_dir=str(tmp_path / "saved"), tokenizer="kmeans")
    measured = ids.study("tiny", 1, given, tmp_path)
    assert list(measured["rows"]) == [AS_SET]
    page = (tmp_path / "semantic-ids-tiny.md").read_text()
    assert "kmeans" in page and "Specific and behaviour part" not in page and "seed 2020." in page


def test_cells_show_the_mean_and_where_seeds_differ_the_reach():
    cards = [{"x": 1.0}, {"x": 3.0}, {"x": None}]
    assert ids._over(cards, {"x": ".1f"}) == ["2.0 [1.0, 3.0]"]
    assert ids._over(cards[:1], {"x": ".1f"}) == ["1.0"]
    assert ids._over(cards[2:], {"x": ".1f", "y": ".2f"}) == ["", ""]


def test_mistakes_are_said_before_any_work(tiny, tmp_path):
    with pytest.raises(InputError, match="--seeds: found 0"):
        ids.study("tiny", 0, arguments(tiny), tmp_path)
    with pytest.raises(InputError, match="--model: the study sets it"):
        ids.study("tiny", 1, [*arguments(tiny), "--model=SASRec"], tmp_path)
    file = tmp_path / "none.yaml"
    file.write_text("codes: none\n")
    with pytest.raises(InputError, match="codes: found none"):
        ids.study("tiny", 1, [f"--data_path={tiny}", f"--config_files={file}"], tmp_path)
    with pytest.raises(InputError, match="codes: found none"):
        ids.study("tiny", 1, arguments(tiny, codes="none"), tmp_path)
    file.write_text("train_on: all\n")
    with pytest.raises(InputError, match="train_on: found all, which leaves no validation"):
        ids.study("tiny", 1, [f"--data_path={tiny}", f"--config_files={file}"], tmp_path)
