"""Whole runs: metrics of ranks and of lists beside those of RecBole's own evaluator, and sampled candidates."""

import pytest
from conftest import settings, tiny_interactions, write_dataset

from recbole_bbqrec import quick_start, recbole_keys
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.sequences import seen_before
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.candidates import Sampling, draw_candidates
from recbole_bbqrec.evaluation.metrics import LIST_METRICS

NAMES = [name.lower() for name in recbole_keys.METRICS]
ASKED = {"metrics": list(recbole_keys.METRICS), "topk": [1, 5, 10]}
SAMPLED = {"eval_args": {"mode": "uni10"}}
SMALL = {"sid_steps": 40, "sid_code_dim": 8, "sid_codebook_size": 8, "sid_levels": 3, "hidden_size": 16}
SMALL |= {"inner_size": 32, "n_layers": 1, "n_decoder_layers": 1, "eval_step": 1, "beam_size": 50}


def trained(config_dict):
    """A run's metrics on validation, and those of RecBole's evaluator on the same weights."""
    config = Config(config_dict={**config_dict, "metric_decimal_place": 9})
    train = quick_start.train(config)
    datasets = [loader._dataset for loader in train.loaders]
    ranks = train.trainer.judge("valid", train.loaders[1], datasets[:1])
    recboles = train.trainer.evaluate(train.loaders[1], load_best_model=False)
    return ranks, ranks.metrics(config["metrics"], config["topk"]), recboles


@pytest.mark.parametrize(
    ("model", "column", "split"),
    [
        ("SASRecPlus", "unmasked", {"LS": "valid_and_test"}),
        ("SASRec", "unmasked", {"RS": [0.6, 0.3, 0.1]}),
        ("BPR", "masked", {"LS": "valid_and_test"}),
        ("BPR", "masked", {"RS": [0.6, 0.3, 0.1]}),
    ],
)
def test_all_metrics_of_a_run_are_those_of_recboles_evaluator(tiny, tmp_path, model, column, split):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path), eval_args={"split": split}, epochs=1, **ASKED)
    _, found, recboles = trained(given)
    assert [*found[column]] == [f"{name}@{k}" for name in NAMES for k in ASKED["topk"]]
    assert found[column] == pytest.approx(dict(recboles), abs=1e-6)
    assert found["masked"] != found["unmasked"]


def test_an_item_that_a_user_repeats_is_one_target(tmp_path):
    rows = tiny_interactions()
    last = {user: (user, item) for user, item, _ in rows}
    rows += [(*pair, 1000 + at) for pair in last.values() for at in range(4)]
    folder = write_dataset(tmp_path, rows=rows)
    split = {"split": {"RS": [0.6, 0.3, 0.1]}}
    ranks, found, recboles = trained(settings(folder, "BPR", eval_args=split, epochs=1, **ASKED))
    assert found["masked"] == pytest.approx(dict(recboles), abs=1e-6)
    assert ranks.rows is not None and ranks.per_user


def test_rows_with_a_context_of_their_own_are_targets_of_their_own(tmp_path):
    rows = [f"{user}\t{item}\t{item}\t{time}" for user, item, time in tiny_interactions()]
    folder = write_dataset(tmp_path)
    head = "user_id:token\titem_id:token\tplace:token\ttimestamp:float"
    (folder / "tiny" / "tiny.inter").write_text("\n".join([head, *rows]) + "\n")
    given = {"load_col": {"inter": ["user_id", "item_id", "place", "timestamp"]}, "epochs": 10, "learning_rate": 0.02}
    split = {"split": {"RS": [0.4, 0.4, 0.2]}}
    asked = {"metrics": ["NDCG", "MAP", "Precision"], "topk": [5], "valid_metric": "NDCG@5"}
    record, ranks = quick_start.execute(config_dict=settings(folder, "DeepFM", eval_args=split, **given, **asked))
    found = ranks["valid"]
    assert not found.per_user and len(found.users) > len({*found.users})
    assert all(0 < value <= 1 for column in record["metrics"]["valid"].values() for value in column.values())


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("Pop", {}),
        ("BBQRec", {"second_stage": "off"}),
        ("BBQRec", {"second_stage": "gbdt"}),
        ("TIGER", SMALL),
    ],
)
def test_asking_for_lists_changes_no_rank_and_first_places_are_hits(tiny, tmp_path, model, more):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path), epochs=1, **more)
    plain, _ = quick_start.execute(config_dict={**given, "topk": [1, 5, 10]})
    record, ranks = quick_start.execute(config_dict={**given, **ASKED})
    for column, of in plain["metrics"]["valid"].items():
        assert of == {name: record["metrics"]["valid"][column][name] for name in of}
    assert record["tail_ratio"] == {"valid": 0.1} and "tail_ratio" not in plain
    counts, n_rows = ranks["valid"].shown.counts, len(ranks["valid"].users)
    assert not counts[:, :, 0].any()
    full = [[n_rows * k for k in ASKED["topk"]]] * 2
    assert (counts.sum(2) <= full).all() if model == "TIGER" else counts.sum(2).tolist() == full
    assert (
        counts[:, 0].sum(1) >= [n_rows * record["metrics"]["valid"][of]["recall@1"] for of in plain["metrics"]["valid"]]
    ).all()


def test_a_metric_that_is_better_when_smaller_stops_training_at_its_smallest(tiny, tmp_path):
    given = settings(tiny, "SASRecPlus", checkpoint_dir=str(tmp_path), epochs=5, metrics=["GiniIndex"], topk=[5])
    found = []
    record, _ = quick_start.execute(
        config_dict={**given, "valid_metric": "GiniIndex@5", "stopping_step": 9},
        after_epoch=lambda trainer: found.append(trainer.best_valid_score),
    )
    assert found == sorted(found, reverse=True) and len(set(found)) > 1
    assert record["metrics"]["valid"]["masked"]["giniindex@5"] == min(found)


@pytest.mark.parametrize("model", ["SASRecPlus", "SASRec", "BPR", "Pop"])
def test_targets_among_sampled_items(tiny, tmp_path, model):
    given = settings(tiny, model, checkpoint_dir=str(tmp_path), epochs=1)
    _, whole = quick_start.execute(config_dict=given)
    record, sampled = quick_start.execute(config_dict={**given, **SAMPLED})
    assert record["ranked_among"] == {"valid": "10 sampled items"}
    for column in ("masked", "unmasked"):
        few, all_ranks = getattr(sampled["valid"], column), getattr(whole["valid"], column)
        assert few.min() == 1 and 8 < few.max() <= 11
        if model == "Pop":  # the same model, whatever has been asked of it
            assert (few <= all_ranks).all() and (few < all_ranks).any()


def test_two_models_have_the_same_candidates(tiny, tmp_path):
    drawn = []
    for model in ("SASRecPlus", "BPR"):
        config = Config(config_dict=settings(tiny, model, checkpoint_dir=str(tmp_path), epochs=1, **SAMPLED))
        found = quick_start.train(config)
        train, valid = (loader._dataset for loader in found.loaders[:2])
        seen = seen_before(valid, [train])
        of_rows = draw_candidates(valid, train, Sampling(10, False), seen)["masked"].toarray()
        rows = zip(valid.inter_feat["user_id"].tolist(), of_rows, strict=True)
        drawn.append(
            {
                user: set(row.nonzero()[0]) - {int(target)}
                for (user, row), target in zip(rows, valid.inter_feat["item_id"], strict=True)
            }
        )
    assert drawn[0] == drawn[1]


def test_what_sampled_candidates_do_not_go_with(tiny, tmp_path):
    given = settings(tiny, "SASRecPlus", checkpoint_dir=str(tmp_path), epochs=1)
    with pytest.raises(InputError, match="found itemcoverage with eval_args mode uni10"):
        Config(config_dict={**given, **SAMPLED, "metrics": ["NDCG", "ItemCoverage"]})
    with pytest.raises(InputError, match="found mode 'uni0', expected full"):
        Config(config_dict={**given, "eval_args": {"mode": "uni0"}})
    config = Config(config_dict={**given, **SAMPLED})
    found = quick_start.train(config)
    with pytest.raises(InputError, match="RecBole's evaluator samples other items"):
        found.trainer.evaluate(found.loaders[1])


def test_the_names_of_the_settings_are_those_that_are_judged():
    assert {*LIST_METRICS} < {*NAMES}
