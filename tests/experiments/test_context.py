import json

import numpy as np
import pytest
from conftest import arguments, settings, write_dataset
from experiments.fakes import FakeExecute, in_place_of_runs
from training.test_labelled import CODES, LABELLED, write_rated

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.data.sequences import targets_by_item
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import report
from recbole_bbqrec.evaluation.ranking import Ranks
from recbole_bbqrec.experiments import context
from recbole_bbqrec.training.labelled import judge_labels


@pytest.fixture(autouse=True)
def _figures(monkeypatch):
    monkeypatch.setattr(report, "bar_figure", lambda *given: json.dumps(given).encode())


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    return write_rated(tmp_path_factory.mktemp("rated"))


class Fake(FakeExecute):
    """With learned codes every fourth target is first, and AUC higher by a tenth; else the targets are far behind."""

    def __call__(self, arguments=(), config_dict=None, inspect=None):
        record, ranks = super().__call__(arguments, config_dict, inspect)
        if config_dict["eval_args"]["mode"] == "labeled":
            auc = (
                0.7
                + 0.1 * self.learned(config_dict)
                + config_dict["seed"] % 5 / (1000 + 100 * self.learned(config_dict))
            )
            values = {"auc": auc, "logloss": 1 - auc}
            found = {"all": {"rows": 800, "positives": 400, **values}, "rare": {"rows": 9, "positives": 4, **values}}
            record["labels"] = {"valid": found}
        return record, ranks

    @staticmethod
    def learned(config_dict):
        return bool(config_dict["code_fields"]) and "codes" not in config_dict

    def ranks(self, config_dict, split):
        users = np.arange(1, 401)
        masked = np.where((users % 4 == 0) & self.learned(config_dict), 1, 20 + config_dict["seed"] % 2)
        return Ranks(users, masked, masked)


def run(folder, tmp_path, monkeypatch, models=("FM",), seeds=2, execute=None, **changes):
    execute = execute or Fake()
    monkeypatch.setattr(context, "rare_targets", lambda *_: {"valid": np.arange(1, 401) % 40 == 0})
    given = [each for each in arguments(folder, model="FM", **changes) if not each.startswith("--text_encoder")]
    with in_place_of_runs(execute):
        code = context.study("tiny", models, seeds, given, False, tmp_path / "results")
    return code, execute, json.loads((tmp_path / "results/files/context-tiny.json").read_text())


def test_rows_differ_in_what_the_model_reads_first_seeds_first(rated, tmp_path, monkeypatch):
    code, execute, found = run(rated, tmp_path, monkeypatch, models=("FM", "LR"), seeds=2)
    assert code == 0 and len(execute.calls) == 48
    assert [call["seed"] for call in execute.calls] == [2020] * 24 + [2021] * 24
    assert [call["model"] for call in execute.calls[:4]] == ["FM", "LR", "FM", "LR"]
    assert [call.get("codes") for call in execute.calls[:12:2]] == [None] * 4 + ["random", "shuffled"]
    assert len({*found["keys"].values()}) == 24
    labels, ranking = execute.calls[:12], execute.calls[12:24]
    assert all(call["threshold"] == {"rating": 4} and call["valid_metric"] == "AUC" for call in labels)
    assert all("threshold" not in call and call["valid_metric"] == "NDCG@10" for call in ranking)
    again = run(rated, tmp_path, monkeypatch, models=("FM", "LR"), seeds=2)
    assert not again[1].calls and again[2] == found


def test_codes_are_tested_against_ids_by_users_and_by_seeds(rated, tmp_path, monkeypatch, capsys):
    _, _, found = run(rated, tmp_path, monkeypatch, seeds=3)
    rows = {row["row"]: row["groups"] for row in found["splits"]["valid"]}
    assert list(rows) == list(context.ROWS)
    ids, both, shuffled = rows["IDs"], rows["prefixes and vectors"], rows["both, shuffled codes"]
    assert both["all"]["ndcg@10"]["mean"] == pytest.approx(0.25) and both["rare"]["ndcg@10"]["mean"] == 1.0
    assert both["all"]["auc"]["mean"] - ids["all"]["auc"]["mean"] == pytest.approx(0.1, abs=1e-3)
    assert both["all"]["ndcg@10"]["p_holm"] < 0.01 and both["all"]["auc"]["p_holm"] < 0.01
    assert shuffled["all"]["auc"]["p_holm"] == 1.0 and ids["all"]["auc"]["p"] is None
    page = capsys.readouterr().out
    assert (
        "### Items with fewer than five training interactions" in page and "| FM      | prefixes and vectors |" in page
    )


def test_one_seed_has_no_test_over_seeds(rated, tmp_path, monkeypatch):
    _, _, found = run(rated, tmp_path, monkeypatch, seeds=1)
    assert all(row["groups"]["all"]["auc"]["p"] is None for row in found["splits"]["valid"])


def test_without_ratings_targets_are_ranked_alone(tmp_path, monkeypatch, capsys):
    _, execute, found = run(write_dataset(tmp_path / "data"), tmp_path, monkeypatch, seeds=1)
    assert len(execute.calls) == 6 and {call["eval_args"]["mode"] for call in execute.calls} == {"full"}
    assert "auc" not in found["splits"]["valid"][0]["groups"]["all"]
    assert "AUC [95 %]" not in capsys.readouterr().out


def test_models_that_read_no_columns_are_refused(rated, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--models: found SASRec, expected context-aware models"):
        run(rated, tmp_path, monkeypatch, models=("SASRec",))


def test_rare_targets_are_those_that_labels_count(rated):
    config = Config(config_dict={**settings(rated, "FM"), **LABELLED, **CODES, "code_fields": []})
    found = context.rare_targets(config, final=True)
    train, *parts = split_loaders(config, registry.get_dataset("FM")(config))
    model = registry.build_model(config, train._dataset)
    for split, part in zip(("valid", "test"), parts, strict=True):
        judged = judge_labels(config, model, part._dataset, train._dataset, split)
        assert len(found[split]) == judged["all"]["rows"] and 0 < found[split].sum() == judged["rare"]["rows"]


def test_rare_targets_are_those_that_are_ranked(tmp_path):
    folder = write_rated(tmp_path, swap=range(3, 629, 4))  # many users have item i00 several times
    split = {"eval_args": {"split": {"RS": [0.4, 0.3, 0.3]}}}
    for some in ({}, {"valid_users": 20}):
        given = settings(folder, "FM", text_encoder=None, **split, **some)
        config = Config(config_dict=given)
        loaders = split_loaders(config, registry.get_dataset("FM")(config))
        train, valid, test = (loader._dataset for loader in loaders)
        trainer = registry.get_trainer(config)(config, registry.build_model(config, train))
        found, counts = (
            context.rare_targets(Config(config_dict=given), final=True),
            targets_by_item(train, train.item_num),
        )
        for name, at, earlier in (("valid", 1, [train]), ("test", 2, [train, valid])):
            ranks, part = trainer.judge(name, loaders[at], earlier), (train, valid, test)[at]
            rows = np.arange(len(part.inter_feat)) if ranks.rows is None else ranks.rows
            assert len(rows) == len(ranks.users) == len(found[name]) < len(part.inter_feat)
            items = part.inter_feat[part.iid_field].numpy()[rows][np.argsort(ranks.users, kind="stable")]
            assert found[name].tolist() == (counts[items] < 5).tolist()
