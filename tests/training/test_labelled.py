import re

import numpy as np
import pytest
import torch
from conftest import settings, tiny_interactions, write_items

from recbole_bbqrec import quick_start, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import report
from recbole_bbqrec.training.labelled import judge_labels, predictions

LABELLED = {
    "threshold": {"rating": 4},
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
    "eval_args": {"split": {"RS": [0.6, 0.2, 0.2]}, "mode": "labeled"},
    "metrics": ["AUC", "LogLoss", "NDCG"],
    "valid_metric": "AUC",
}
CODES = {"code_fields": ["prefixes", "vectors"], "sid_codebook_size": 8, "sid_code_dim": 8, "sid_epochs": 1}
CODES |= {"sid_min_steps": 20, "feature_dim": 8, "report_card": False, "eval_batch_size": 4096}

CONTEXT_AWARE = (
    *("AFM", "AutoInt", "DCN", "DCNV2", "DSSM", "DeepFM", "EulerNet", "FFM", "FM", "FNN", "FiGNN"),
    *("KD_DAGFM", "LR", "NFM", "PNN", "WideDeep", "xDeepFM"),
)


def write_rated(folder, swap=()):
    """The tiny set with ratings by which items of even numbers are liked; the rows `swap` are of item i00."""
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for at, (user, item, time) in enumerate(tiny_interactions()):
        rating = 5 - (int(item[1:]) + at % 7 // 6) % 2 * 3
        lines.append(f"{user}\t{'i00' if at in swap else item}\t{rating}\t{time}")
    (folder / "tiny" / "tiny.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_items(folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    return write_rated(tmp_path_factory.mktemp("rated"))


@pytest.fixture(scope="module")
def built(rated):
    config = Config(config_dict=settings(rated, "FM", **LABELLED, **CODES))
    dataset = registry.get_dataset("FM")(config)
    return config, dataset, split_loaders(config, dataset)


def test_a_run_judges_labels_and_ranks_what_users_liked(rated):
    given = settings(rated, "DeepFM", **{**LABELLED, **CODES, "epochs": 8, "learning_rate": 0.02})
    record, ranks = quick_start.execute(config_dict=given)
    found = record["labels"]["valid"]["all"]
    assert found["auc"] > 0.8, "which items are liked is plain"
    assert 0 < found["positives"] < found["rows"] and found["positives"] == record["rows"]["valid"] == len(
        ranks["valid"].users
    )
    assert set(record["metrics"]["valid"]["masked"]) == {"ndcg@5", "ndcg@10", "ndcg@20"}
    config, model, _, train, valid, _ = quick_start.load_data_and_model(record["run_dir"])
    again = judge_labels(config, model, valid._dataset, train._dataset, "valid")
    assert again == record["labels"]["valid"], "code columns and labels are read back with the weights"
    table = report.result_table(record)
    assert "| valid   | all (" in table and " logloss " in table and " ndcg@10 " in table


def test_training_stops_by_the_smallest_log_loss(rated):
    found = []

    def after_epoch(trainer):
        found.append(trainer.best_valid_score)

    given = {**LABELLED, "valid_metric": "LogLoss", "epochs": 6, "learning_rate": 0.3, "stopping_step": 1}
    record, _ = quick_start.execute(config_dict=settings(rated, "FM", **given), after_epoch=after_epoch)
    assert found == sorted(found, reverse=True) and record["labels"]["valid"]["all"]["logloss"] == pytest.approx(
        found[-1]
    )
    assert record["epochs"]["best"] == 1 + found.index(found[-1])


def test_labels_are_judged_as_recboles_evaluator_does(built, rated):
    config, _, (train, valid, _) = built
    own = Config(config_dict={**settings(rated, "FM"), **LABELLED, **CODES, "metrics": ["AUC", "LogLoss"]})
    own["metric_decimal_place"] = 12
    own.note("numerical_features", config["numerical_features"])
    model = registry.build_model(own, train._dataset)
    recbole = registry.get_trainer(own)(own, model).evaluate(valid, load_best_model=False)
    found = judge_labels(own, model, valid._dataset, train._dataset, "valid")["all"]
    assert (found["auc"], found["logloss"]) == pytest.approx((recbole["auc"], recbole["logloss"]), abs=1e-6)
    assert len(predictions(model, valid._dataset, 7, own["device"])) == found["rows"]


def test_the_tokenizer_learns_from_positive_rows_alone(built):
    _, dataset, (train, *_) = built
    rows = train._dataset.inter_feat
    liked = rows["label"].numpy() > 0
    assert 0 < liked.sum() < len(liked)
    learned, items = train._dataset.train_sequences, rows[dataset.iid_field].numpy()
    assert len(learned.items) == liked.sum()
    assert np.array_equal(np.sort(learned.items), np.sort(items[liked]))


@pytest.mark.parametrize("model", CONTEXT_AWARE)
def test_all_context_aware_models_learn_from_the_columns(model, built, rated):
    config, _, (train, *_) = built
    own = Config(config_dict={**settings(rated, model), **LABELLED, **CODES})
    own.note("numerical_features", config["numerical_features"])
    torch.manual_seed(0)
    network = registry.build_model(own, train._dataset)
    assert {"sid_1", "sid_vector_text", "sid_vector_id"} <= {*network.token_field_names, *network.float_seq_field_names}
    batch = next(iter(train))

    def learned():
        network.zero_grad()
        torch.manual_seed(1)
        loss = network.calculate_loss(batch)
        loss.backward()
        named = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
        return loss.detach(), {name: gradient for name, gradient in named.items() if "float_seq" in name}

    loss, found = learned()
    assert torch.isfinite(loss) and len(found) >= 2 and all(gradient[1:].any() for gradient in found.values())
    faster = [vars(module).pop("embed_float_seq_fields", None) for module in network.modules()]  # to RecBole's own way
    assert any(faster)
    torch.testing.assert_close(learned(), (loss, found))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "BPR"}, "eval_args: found mode labeled, expected a context-aware model"),
        ({"threshold": None}, "eval_args: found mode labeled, .* and labels: --threshold"),
        ({"eval_args": {"mode": "full"}}, "metrics: found 'auc' .of labelled rows, with eval_args.mode labeled"),
        ({"train_neg_sample_args": {"distribution": "uniform"}}, "train_neg_sample_args: found uniform beside labels"),
    ],
)
def test_labels_that_are_not_there_or_not_learned_are_an_error(rated, changes, words):
    with pytest.raises(InputError, match=words):
        Config(config_dict={**settings(rated, "FM"), **LABELLED, **changes})


def test_a_part_whose_rows_have_one_label_is_an_error_before_the_training(tmp_path):
    path = write_rated(tmp_path) / "tiny" / "tiny.inter"
    head, *rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    for row in {row[0]: row for row in sorted(rows, key=lambda row: float(row[3]))}.values():
        row[2] = "5"  # the last one of a user is that of test
    path.write_text("".join("\t".join(row) + "\n" for row in [head, *rows]), encoding="utf-8")
    split, epochs = {"split": {"LS": "valid_and_test"}, "mode": "labeled"}, []
    given = settings(tmp_path, "FM", **{**LABELLED, "eval_args": split, "final": True})
    with pytest.raises(InputError, match="metrics auc, logloss: found only positive rows in test"):
        quick_start.execute(config_dict=given, after_epoch=epochs.append)
    assert not epochs


def test_rows_have_labels_or_sampled_negatives(rated):
    labelled = Config(config_dict={**settings(rated, "FM"), **LABELLED})
    assert labelled["train_neg_sample_args"]["distribution"] == "none"
    assert Config(config_dict=settings(rated, "FM"))["train_neg_sample_args"]["distribution"] == "uniform"


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("FwFM", {"code_fields": "vectors"}, "not in FwFM.*give --code_fields=prefixes"),
        ("BPR", {"code_fields": "prefixes"}, "only in context-aware models"),
        ("FM", {"code_fields": "prefixes", "codes": "none"}, "codes not none"),
        ("FM", {"code_levels": 1, "code_fields": "vectors"}, "with prefixes among code_fields"),
        ("FM", {"kg": "codes"}, "only in knowledge-aware models"),
    ],
)
def test_a_run_says_why_it_would_not_use_the_codes(rated, model, changes, words):
    refused = Config(config_dict=settings(rated, model, **changes)).unused
    assert re.search(words, str(refused[next(iter(changes))]))
