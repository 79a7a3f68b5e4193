import json

import numpy as np
import pytest
from conftest import arguments
from experiments.fakes import FakeExecute, in_place_of_runs

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import report
from recbole_bbqrec.evaluation.ranking import Ranks
from recbole_bbqrec.experiments.cold import study


@pytest.fixture(autouse=True)
def _figures(monkeypatch):
    monkeypatch.setattr(report, "bar_figure", lambda *given: json.dumps(given).encode())


class Fake(FakeExecute):
    """Every tenth target is cold: BBQRec has it first, other models 20th; what does not know cold items loses a place.

    Warm targets are 2nd for the odd users, 30th for the others.
    """

    def ranks(self, config_dict, split):
        users = np.arange(1, 401)[::-1]
        cold = users % 10 == 0
        price = int(bool(config_dict["cold_items"]))
        warm = np.where(users % 2, 2 + price, 30)
        masked = np.where(cold, 1 if config_dict["model"] == "BBQRec" else 20, warm) + config_dict["seed"] % 2
        return Ranks(users, masked, masked, cold if price else None)


def run(tiny, tmp_path, models=("BBQRec", "SASRecPlusFT"), seeds=2, execute=None, final=False, **changes):
    execute = execute or Fake()
    given = arguments(tiny, **{"second_stage": "off", "seed": 2020, **changes})
    with in_place_of_runs(execute):
        code = study("tiny", models, seeds, given, final, tmp_path / "results")
    page = tmp_path / "results/files/cold-tiny.json"
    return code, execute, json.loads(page.read_text()) if page.is_file() else None


def test_every_model_runs_with_and_without_cold_items_first_seeds_first(tiny, tmp_path):
    code, execute, found = run(tiny, tmp_path)
    shown = [(call["model"], call["seed"], call["cold_items"]) for call in execute.calls]
    first = [(model, 2020, share) for share in (0.1, 0.0) for model in ("BBQRec", "SASRecPlusFT")]
    assert code == 0 and shown == [*first, *((model, 2021, share) for model, _, share in first)]
    assert all(call["second_stage"] == "off" for call in execute.calls)
    assert len({*found["keys"].values()}) == 4, "runs with and without cold items have keys of their own"
    again = run(tiny, tmp_path)
    assert not again[1].calls and again[2] == found


def test_groups_and_the_price_are_those_of_the_same_targets(tiny, tmp_path, capsys):
    _, _, found = run(tiny, tmp_path, seeds=1)
    judged = found["splits"]["valid"]
    assert judged["targets"] == {"cold": 40, "warm": 360, "all": 400} and judged["reference"] == "BBQRec"
    bbqrec, other = judged["rows"]
    recall = {group: metrics["recall@10"]["mean"] for group, metrics in bbqrec["groups"].items()}
    assert recall == {"cold": 1.0, "warm": pytest.approx(200 / 360), "all": pytest.approx(240 / 400)}
    assert other["groups"]["cold"]["recall@10"]["mean"] == 0.0
    assert bbqrec["groups"]["warm"]["ndcg@10"]["mean"] == pytest.approx(200 / 360 / np.log2(4))
    price = bbqrec["knowing_all"]
    assert price["ndcg@10"]["mean"] == pytest.approx(200 / 360 / np.log2(3)), "of the warm targets alone"
    assert price["ndcg@10"]["change"]["mean"] == pytest.approx(100 * (np.log2(3) / np.log2(4) - 1))
    assert price["recall@10"]["change"]["mean"] == 0.0
    p = {group: metrics["recall@10"].get("p_holm") for group, metrics in other["groups"].items()}
    assert p["cold"] < 0.01 and p["warm"] == 1.0 and bbqrec["groups"]["cold"]["recall@10"]["p"] is None
    page = capsys.readouterr().out
    assert "### Cold targets (40)" in page and "### Warm targets (360)" in page and "-20.8" in page
    assert "| BBQRec†       |       1 |" in page and "`cold_items: 0.1`" in page


def test_test_targets_have_tables_of_their_own_where_they_are_asked_for(tiny, tmp_path):
    assert list(run(tiny, tmp_path, seeds=1)[2]["splits"]) == ["valid"]
    _, execute, found = run(tiny, tmp_path, seeds=1, final=True)
    assert len(execute.calls) == 4 and list(found["splits"]) == ["valid", "test"]


def test_a_failing_model_does_not_end_the_others_and_is_named(tiny, tmp_path):
    class Broken(Fake):
        def ranks(self, config_dict, split):
            if config_dict["model"] == "BBQRec" and not config_dict["cold_items"]:
                raise RuntimeError("out of memory")
            return super().ranks(config_dict, split)

    code, _, found = run(tiny, tmp_path, seeds=1, execute=Broken())
    assert code == 1 and found["failed"] == ["all-items-BBQRec, seed 2020: RuntimeError: out of memory"]
    bbqrec, other = found["splits"]["valid"]["rows"]
    assert bbqrec["knowing_all"] is None and other["knowing_all"]


@pytest.mark.parametrize(
    ("models", "changes", "message"),
    [
        (("BBQRec",), {"codes": "random"}, "cold_items: found 0.1 with codes=random"),
        (("BBQRek",), {}, "--model=BBQRek: no model of this name; did you mean BBQRec"),
        (("BBQRec",), {"cold_items": 0.0}, "cold_items: found 0, expected a share of the items"),
        (("BBQRec",), {"second_stage": "linear"}, "cold_items: found 0.1 with second_stage=linear"),
    ],
)
def test_mistakes_are_said_before_the_first_run(tiny, tmp_path, models, changes, message):
    execute = Fake()
    with pytest.raises(InputError, match=message):
        run(tiny, tmp_path, models, execute=execute, **changes)
    assert not execute.calls
