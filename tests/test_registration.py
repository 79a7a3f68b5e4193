"""RecBole's own entry points after `register()`, in fresh processes, since it changes RecBole's tables."""

import json
import subprocess
import sys
import textwrap

import pytest
from conftest import QUICK

GIVEN = {**QUICK, "epochs": 1, "eval_batch_size": 64, "text_fields": "title", "text_encoder": "tfidf"}


def in_recbole(tiny, place, script):
    """What a script prints as its last line, as JSON, with `register` behind it and `given` as settings."""
    given = {"data_path": str(tiny), "checkpoint_dir": str(place / "saved"), "show_progress": False, "state": "ERROR"}
    head = f"""
        import recbole_bbqrec
        recbole_bbqrec.register()
        recbole_bbqrec.register()
        import json, torch
        from recbole.config import Config
        from recbole.quick_start import run, run_recbole, objective_function, load_data_and_model
        from recbole.utils import get_model, get_trainer
        given, ours = {given!r}, {{**{GIVEN!r}, **{given!r}}}
    """
    source = textwrap.dedent(head) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=place, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_our_models_are_known_by_name_and_recboles_stay_as_they_are(tiny, tmp_path):
    script = """
        stock = Config(model="SASRec", dataset="tiny", config_dict={"train_neg_sample_args": None})
        ours = Config(model="SASRecPlusT", dataset="tiny")
        pop = Config(model="Pop", dataset="tiny")  # RecBole has a model of this name
        print(json.dumps({
            "anomaly": torch.is_anomaly_enabled(),
            "stock": [stock["topk"], stock["length_groups"], get_trainer(stock["MODEL_TYPE"], "SASRec").__module__],
            "ours": [ours["n_layers"], ours["candidate_similarity"], ours["extends"], get_model("BBQRec").__module__],
            "trainer": get_trainer(ours["MODEL_TYPE"], "SASRecPlusT").__name__,
            "pop": [get_model("Pop").__module__, get_trainer(pop["MODEL_TYPE"], "Pop").__name__],
        }))
    """
    assert in_recbole(tiny, tmp_path, script) == {
        "anomaly": False,
        "stock": [[10], None, "recbole.trainer.trainer"],
        "ours": [2, ["behavior"], None, "recbole_bbqrec.model.bbqrec"],
        "trainer": "SequenceTrainer",
        "pop": ["recbole.model.general_recommender.pop", "TraditionalTrainer"],
    }


def test_our_models_run_tune_and_are_read_back(tiny, tmp_path):
    script = """
        from pathlib import Path
        found = {}
        for model in ("BBQRec", "SASRecPlusT"):
            found[model] = run(model=model, dataset="tiny", config_dict=ours)
        tuned = objective_function({**ours, "model": "BBQRec", "dataset": "tiny", "n_heads": 1})
        weights = max(Path("saved").glob("SASRecPlus-*/weights.safetensors"))  # what the two train alike
        config, model, dataset, train, valid, test = load_data_and_model(str(weights))
        trainer = get_trainer(config["MODEL_TYPE"], "SASRecPlusT")(config, model)
        trainer.eval_collector.data_collect(train)
        again = trainer.evaluate(test, load_best_model=False)
        print(json.dumps({"found": found, "again": again, "tuned": [tuned["model"], tuned["best_valid_score"]]}))
    """
    said = in_recbole(tiny, tmp_path, script)
    assert 0 < said["found"]["BBQRec"]["test_result"]["ndcg@10"] < 1
    assert "masked_ndcg@10" in said["found"]["BBQRec"]["best_valid_result"]
    assert said["again"] == said["found"]["SASRecPlusT"]["test_result"]
    assert said["tuned"][0] == "BBQRec" and 0 < said["tuned"][1] < 1


def test_settings_of_our_models_are_refused_at_the_start_and_recboles_are_not(tiny, tmp_path):
    script = """
        changes = [
            {"eval_args": {"mode": "uni100", "order": "TO", "split": {"LS": "valid_and_test"}}},
            {"eval_args": {"mode": {"valid": "full", "test": "pop100"}, "order": "TO"}},
            {"metrics": ["Recall", "AUC"]},
            {"metrics": ["GAUC"], "valid_metric": "GAUC"},
            {"codes": "bogus"},
            {"n_layers": "two"},
            {"hidden_size": 30, "n_heads": 4},
            {"train_on": "all"},
            {"ranks_file": "ranks.csv"},
        ]
        def refused(call):
            try:
                call()
            except recbole_bbqrec.errors.InputError as error:
                return str(error)
        import recbole_bbqrec.errors
        found = [refused(lambda: run(model="BBQRec", dataset="tiny", config_dict={**ours, **one})) for one in changes]
        tuned = refused(lambda: objective_function({**ours, **changes[4], "model": "BBQRec", "dataset": "tiny"}))
        stock = {**changes[0], "metrics": ["Recall", "ItemCoverage"], "train_neg_sample_args": None}
        Config(model="SASRec", dataset="tiny", config_dict=stock)
        part = Config(model="BBQRec", dataset="tiny", config_dict={**ours, "eval_args": {"group_by": "none"}})
        assert part["eval_args"]["order"] == "TO" and part["eval_args"]["split"] == {"LS": "valid_and_test"}
        print(json.dumps([*found, tuned]))
    """
    beginnings = [
        "eval_args: found mode",
        "eval_args: found mode",
        "metrics: found 'auc'",
        "metrics: found 'gauc'",
        "codes: found 'bogus', expected one of",
        "n_layers: found 'two', expected a whole number",
        "hidden_size: found 30, expected a multiple of n_heads 4",
        "train_on: found 'all', which RecBole's own scripts do not use",
        "ranks_file: found 'ranks.csv', which RecBole's own scripts do not use",
        "codes: found 'bogus', expected one of",
    ]
    found = in_recbole(tiny, tmp_path, script)
    assert len(found) == len(beginnings)
    for text, beginning in zip(found, beginnings, strict=True):
        assert text.startswith(beginning) and "\n" not in text


@pytest.mark.parametrize("algorithm", ["exhaustive", "bayes"])
def test_recboles_tuning_runs_on_a_current_hyperopt(tiny, tmp_path, algorithm):
    pytest.importorskip("hyperopt")
    script = f"""
        from recbole.trainer import HyperTuning
        fixed = dict(ours, model="BBQRec", dataset="tiny")
        with open("fixed.yaml", "w") as file:
            file.writelines(f"{{key}}: {{value!r}}\\n" for key, value in fixed.items())
        space = {{"choice": {{"learning_rate": [0.01, 0.0001], "n_heads": [1, 2]}}}}
        files = ["fixed.yaml"]
        tuning = HyperTuning(objective_function, params_dict=space, fixed_config_file_list=files,
                             algo="{algorithm}", max_evals=4)
        tuning.run()
        print()
        print(json.dumps([tuning.best_params, tuning.best_score, list(tuning.params2result), tuning.score_list]))
    """
    best, score, tried, scores = in_recbole(tiny, tmp_path, script)
    assert score == max(scores) and best["learning_rate"] in (0.01, 0.0001)
    assert len(tried) == 4 or algorithm == "bayes"


STOCK = ["SASRec", "BERT4Rec", "SASRecF", "Pop", "BPR", "LightGCN", "EASE", "ItemKNN", "NCEPLRec"]
"""Sequential and general; with blanks in columns of items; with tensors, arrays and matrices beside the weights."""


def test_recboles_models_are_judged_by_their_checkpoint_and_read_back(tiny, tmp_path):
    script = """
        from pathlib import Path
        columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title", "brand"]}
        own = dict.fromkeys(("SASRec", "BERT4Rec", "SASRecF"), {"train_neg_sample_args": None})
        own["SASRecF"] = {**own["SASRecF"], "load_col": columns, "selected_features": ["title", "brand"]}
        columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
        found = {}
        for name in NAMES:
            result = run(model=name, dataset="tiny", config_dict={**given, **columns, "epochs": 2, **own.get(name, {})})
            path = max(Path("saved").glob(f"{name}-*.pth"))
            config, model, dataset, train, valid, test = load_data_and_model(str(path))
            trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
            trainer.eval_collector.data_collect(train)
            trainer.resume_checkpoint(path)
            again = trainer.evaluate(test, load_best_model=False)
            found[name] = [result["test_result"], again, trainer.start_epoch, str(config["MODEL_TYPE"])]
        print(json.dumps(found))
    """
    found = in_recbole(tiny, tmp_path, script.replace("NAMES", repr(STOCK)))
    for name in STOCK:
        trained, again, start, kind = found[name]
        assert trained == again and 0 < trained["recall@10"] <= 1, name
        assert start in (1, 2) and kind.startswith("ModelType.")


def test_lists_of_files_that_are_split_already_have_their_lengths(tiny, tmp_path):
    (tmp_path / "tiny").mkdir()
    for part in ("train", "valid", "test"):
        rows = ["user_id:token\titem_id_list:token_seq\titem_id:token", "u1\ta b\tc", "u2\tc\ta"]
        (tmp_path / "tiny" / f"tiny.{part}.inter").write_text("\n".join(rows) + "\n")
    script = """
        from recbole.data import create_dataset
        columns = {"load_col": {"inter": ["user_id", "item_id", "item_id_list"]}, "alias_of_item_id": ["item_id_list"]}
        split = {"benchmark_filename": ["train", "valid", "test"], "data_path": ".", "train_neg_sample_args": None}
        config = Config(model="SASRec", dataset="tiny", config_dict={**given, **columns, **split})
        print(json.dumps(create_dataset(config).inter_feat["item_length"].tolist()))
    """
    assert in_recbole(tiny, tmp_path, script) == [2, 1] * 3


def test_both_stages_of_s3rec_run(tiny, tmp_path):
    script = """
        own = {**given, "train_neg_sample_args": None, "epochs": 1, "pretrain_epochs": 1, "save_step": 1}
        own |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}}
        own["item_attribute"] = "title"
        run(model="S3Rec", dataset="tiny", config_dict={**own, "train_stage": "pretrain"})
        second = {**own, "train_stage": "finetune", "pre_model_path": given["checkpoint_dir"] + "/S3Rec-tiny-1.pth"}
        print(json.dumps(run(model="S3Rec", dataset="tiny", config_dict=second)["test_result"]))
    """
    assert 0 < in_recbole(tiny, tmp_path, script)["recall@10"] < 1


@pytest.mark.parametrize(
    ("content", "why"), [("{'config': print}", "no checkpoint of plain data"), (None, "No such file or directory")]
)
def test_a_checkpoint_that_would_run_code_is_refused(tiny, tmp_path, content, why):
    script = f"""
        if {content!r}:
            torch.save({content}, "old.pth")
        try:
            load_data_and_model("old.pth")
        except recbole_bbqrec.InputError as error:
            print(json.dumps(str(error)))
    """
    said = in_recbole(tiny, tmp_path, script.replace("recbole_bbqrec.InputError", "ValueError"))
    assert said.startswith(f"old.pth: {why}") and "\n" not in said
