import json

import numpy as np
import pytest
from conftest import arguments, settings, tiny_interactions, write_dataset
from experiments.fakes import FakeExecute, in_place_of_runs

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import report
from recbole_bbqrec.evaluation.ranking import Ranks
from recbole_bbqrec.experiments import general
from recbole_bbqrec.experiments.general import FORMS, few_interactions, study

MODELS = ("GRU4Rec", "SASRec")


@pytest.fixture(autouse=True)
def _figures(monkeypatch):
    monkeypatch.setattr(general, "FEW", 9)  # the tiny set has no item of fewer than five
    monkeypatch.setattr(report, "bar_figure", lambda *given: json.dumps(given).encode())


class Fake(FakeExecute):
    """Targets are 20th with IDs alone; learned codes bring those of every third user to the top, features all."""

    def ranks(self, config_dict, split):
        users = np.arange(1, 61)[::-1]
        added = config_dict["item_semantics"]
        known = np.where(users % 3 == 0, 1, 20) if config_dict.get("codes") is None and "codes" in added else 20
        masked = np.full(60, 2) if "features" in added else np.broadcast_to(known, 60) + config_dict["seed"] % 2
        return Ranks(users, masked, masked)


def run(tiny, tmp_path, seeds=1, execute=None, final=False, models=MODELS, **changes):
    execute = execute or Fake()
    given = arguments(tiny, model=models[0], **{"seed": 2020, "item_semantics": "codes", **changes})
    given = [argument for argument in given if "item_semantics" not in argument]
    with in_place_of_runs(execute):
        code = study("tiny", models, seeds, given, final, tmp_path / "results")
    page = tmp_path / "results/files/general-tiny.json"
    return code, execute, json.loads(page.read_text()) if page.is_file() else None


def test_every_model_runs_in_every_form_first_seeds_first(tiny, tmp_path):
    code, execute, found = run(tiny, tmp_path, seeds=2)
    shown = [(call["seed"], call["item_semantics"], call.get("codes"), call["model"]) for call in execute.calls]
    one = [(changes["item_semantics"], changes.get("codes"), model) for changes in FORMS.values() for model in MODELS]
    assert code == 0 and shown == [(seed, *row) for seed in (2020, 2021) for row in one]
    assert len({*found["keys"].values()}) == len(one), "every row has a key of its own"
    again = run(tiny, tmp_path, seeds=2)
    assert not again[1].calls and again[2] == found


def test_rows_are_compared_with_ids_alone_of_the_same_model(tiny, tmp_path, capsys):
    _, _, found = run(tiny, tmp_path)
    judged = found["splits"]["valid"]
    rows = {(row["model"], row["form"]): row["groups"]["all"] for row in judged["rows"]}
    assert len(rows) == 12 and judged["targets"]["all"] == 60
    for model in MODELS:
        assert rows[model, "codes"]["recall@10"]["mean"] == pytest.approx(1 / 3)
        assert rows[model, "features"]["ndcg@10"]["p_holm"] < 0.001
        assert rows[model, "random codes"]["recall@10"] == rows[model, "shuffled codes"]["recall@10"]
        assert rows[model, "IDs"]["recall@10"]["p"] is None and rows[model, "IDs"]["recall@10"]["change"] is None
    assert [control["model"] for control in judged["controls"]] == list(MODELS)
    over_random = judged["controls"][0]["groups"]["all"]
    assert over_random["ndcg@10"]["p_holm"] < 0.001 and over_random["recall@10"]["change"] is None, (
        "random ones find none"
    )
    page = capsys.readouterr().out
    assert "- SASRec, learned codes against random ones: R@10 p " in page
    assert "### All targets (60)" in page and "| SASRec  | codes and features†" in page
    assert "- SASRec, all targets: codes **from nothing**, features **from nothing**, codes and" in page
    written = (tmp_path / "results/general-tiny.md").read_text()
    assert "with what `item_semantics` adds" in written and "](files/" in written, "links to docs that are not there go"


def test_few_are_the_targets_that_training_has_seldom(tiny, tmp_path):
    by_user = {}
    for user, item, _ in tiny_interactions():
        by_user.setdefault(user, []).append(item)
    trained = [item for items in by_user.values() for item in items[:-2]]
    expected = {user: trained.count(items[-2]) < 9 for user, items in by_user.items()}
    given = {"model": "SASRec", "dataset": "tiny", "data_path": str(tiny), "checkpoint_dir": str(tmp_path)}
    users, few = few_interactions(Config(config_dict=given))["valid"]
    assert users.tolist() == list(range(1, 61)) and few.sum() == sum(expected.values()) > 1
    judged = run(tiny, tmp_path)[2]["splits"]["valid"]
    assert judged["targets"]["few"] == few.sum()
    codes = next(row for row in judged["rows"] if row["form"] == "codes")
    assert codes["groups"]["few"]["recall@10"]["mean"] == pytest.approx((few & (users % 3 == 0)).sum() / few.sum())


def test_test_has_a_table_of_its_own_where_it_is_asked_for(tiny, tmp_path):
    assert list(run(tiny, tmp_path)[2]["splits"]) == ["valid"]
    assert list(run(tiny, tmp_path, final=True)[2]["splits"]) == ["valid", "test"]


def test_without_features_of_the_items_two_rows_are_left_out(tiny, tmp_path, capsys):
    _, execute, found = run(tiny, tmp_path, text_encoder=None, models=("SASRec",))
    assert found["forms"] == ["IDs", "codes", "random codes", "shuffled codes"] and len(execute.calls) == 4
    assert "features: left out, the items of tiny have neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "changes", "message"),
    [
        (("SASRec",), {"codes": "random"}, "codes: the study sets it for its rows"),
        (("SASRec", "BBQRec"), {}, "--models: found BBQRec, expected models of RecBole's own"),
        (("SASRek",), {}, "--model=SASRek: no .*model of this name; did you mean SASRec"),
    ],
)
def test_mistakes_are_said_before_the_first_run(tiny, tmp_path, models, changes, message):
    given = [f"--{key}={value}" for key, value in {"data_path": tiny, **changes}.items()]
    execute = Fake()
    with in_place_of_runs(execute), pytest.raises(InputError, match=message):
        study("tiny", models, 1, given, results=tmp_path / "results")
    assert not execute.calls


def test_an_item_that_a_user_has_several_times_in_a_part_is_one_target(tmp_path):
    rows = [(f"u{user}", f"i{at % 4 + user % 3}", at) for user in range(12) for at in range(20)]
    given = settings(write_dataset(tmp_path, rows=rows), "BPR", eval_args={"split": {"RS": [0.4, 0.3, 0.3]}})
    config = Config(config_dict=given)
    train, *judged = split_loaders(config, registry.get_dataset("BPR")(config))
    trainer = registry.get_trainer(config)(config, registry.build_model(config, train._dataset))
    ranks = trainer.judge("valid", judged[0], [train._dataset])
    users, few = few_interactions(Config(config_dict=given))["valid"]
    assert users.tolist() == sorted(ranks.users) and len(few) == len(users) < len(judged[0]._dataset.inter_feat)
