"""RecBole's models of users and items: one epoch, the way back to the data, the place in docs/models.md."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import settings, write_dataset
from test_stock_models import write_graph

from recbole_bbqrec import load_bundle, quick_start, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.protocol import NeedsDataError

DOCS = Path(__file__).parents[1] / "docs" / "models.md"
PACKAGES = {"general": "general", "context_aware": "context-aware", "knowledge_aware": "knowledge-aware"}
MODELS = {
    name: kind
    for package, kind in PACKAGES.items()
    for name in registry.recbole_models(package)
    if name not in registry.NOT_RUN and name not in registry.MODELS
}
UNLIKE = {"AsymKNN", "ItemKNN", "SLIMElastic", "NNCF", "KTUP", "Random"}
"""Models that give several items the same score but for its last bit at most, or (the last two) draw while they score:
RecBole's evaluator sees another order."""
OWN = {
    "NCL": {"num_clusters": 8},
    "ConvNCF": {"cnn_channels": [1, 4, 4, 4, 4]},
    "AsymKNN": {"k": 10},
    "RippleNet": {"n_memory": 4, "embedding_size": 8},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = write_dataset(tmp_path_factory.mktemp("others"))
    write_graph(folder)
    return folder


@pytest.mark.parametrize("model", sorted(MODELS, key=str.lower))
def test_it_runs_and_is_read_back_to_the_same_ranks(place, model):
    given = settings(place, model, epochs=1, state="CRITICAL", **OWN.get(model, {}))
    record, ranks = quick_start.execute(config_dict=given)
    assert ranks["valid"].per_user and np.isfinite(record["metrics"]["valid"]["masked"]["ndcg@10"])
    assert record["epochs"]["done"] == 1
    config, net, _, train, valid, _ = quick_start.load_data_and_model(record["run_dir"])
    trainer = registry.get_trainer(config)(config, net)
    again = trainer.rank(valid, [train._dataset])
    assert np.array_equal(again.masked, ranks["valid"].masked)
    assert np.array_equal(again.unmasked, ranks["valid"].unmasked)
    with pytest.raises(NeedsDataError, match=f"{model} needs its data set"):
        load_bundle(record["run_dir"])
    if model in UNLIKE:
        return
    trainer.eval_collector.data_collect(train)
    theirs = trainer.evaluate(valid, load_best_model=False)
    ours = record["metrics"]["valid"]["masked"]
    assert {name: pytest.approx(value, abs=6e-5) for name, value in ours.items()} == dict(theirs)


def rows_below(header):
    """Cells of the rows of a table in the docs."""
    table = DOCS.read_text(encoding="utf-8").split(f"{header}\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[1:]]


def test_the_tables_name_every_model_and_why_one_does_not_run():
    rows = rows_below("| kind | models that run and are read back |")
    assert {name.strip("`"): kind for kind, names in rows for name in names.split(", ")} == MODELS
    refused = {f"`{name}`": why for name, why in registry.NOT_RUN.items() if name != "S3Rec"}
    assert dict(rows_below("| model | why it does not run |")) == refused
    for name in refused:
        with pytest.raises(InputError, match=f"--model={name.strip('`')}: {refused[name]}"):
            registry.get_model(name.strip("`"))


def test_a_run_that_was_stopped_goes_on_to_the_numbers_it_would_have_had(place, tmp_path):
    """RecVAE has two optimisers, MultiVAE counts its steps, MKR trains on a graph in between, LightGCN keeps sums."""
    for model in ("RecVAE", "MultiVAE", "MKR", "LightGCN"):
        given = settings(place, model, epochs=3, eval_step=1, state="CRITICAL")
        whole, _ = quick_start.execute(config_dict={**given, "checkpoint_dir": str(tmp_path / "whole")})

        class Stopped(Exception):
            pass

        def stop(trainer):
            if trainer.state.epochs_done == 1:
                raise Stopped

        parts = {**given, "checkpoint_dir": str(tmp_path / "parts")}
        with pytest.raises(Stopped):
            quick_start.execute(config_dict=parts, after_epoch=stop)
        gone_on, _ = quick_start.execute(config_dict=parts)
        assert gone_on["metrics"] == whole["metrics"] and gone_on["epochs"] == whole["epochs"], model
        one, other = (
            json.loads((Path(record["run_dir"]) / "bundle.json").read_text(encoding="utf-8"))["needs"]
            for record in (whole, gone_on)
        )
        assert (one == other and "the column user_id" in one) or "needs its data set" in one


@pytest.mark.parametrize("model", ["BPR", "NeuMF", "DeepFM"])
def test_models_that_learn_from_negatives_refuse_to_go_without(place, model):
    with pytest.raises(InputError, match=f"train_neg_sample_args: found none, but {model} here trains on negatives"):
        Config(config_dict=settings(place, model, train_neg_sample_args=None))


@pytest.mark.parametrize("model", ["MultiVAE", "EASE"])
def test_models_that_read_all_of_a_user_or_count_need_none(place, model):
    record = quick_start.run(config_dict=settings(place, model, epochs=1, train_neg_sample_args=None))
    assert record["epochs"]["done"] == 1


def test_keys_that_models_of_users_and_items_do_not_use_are_refused(place):
    plain = [f"--data_path={place}", "--dataset=tiny", "--model=BPR"]
    for key, value, why in (
        ("MAX_ITEM_LIST_LENGTH", 10, "in models that read histories"),
        ("second_stage", "linear", "not in models of users and items"),
        ("length_groups", False, "in RecBole's sequential models"),
        ("similarity_attention", "additive", "BBQRec, its controls and RecBole's sequential models"),
    ):
        with pytest.raises(InputError, match=f"{key}: found .*which this run of BPR would not use .*{why}"):
            Config(arguments=[*plain, f"--{key}={value}"])
    with pytest.raises(InputError, match="epochs: found 3, which this run of EASE would not use"):
        Config(arguments=[*plain[:2], "--model=EASE", "--epochs=3"])


def test_clusters_that_are_more_than_the_items_are_one_line(place):
    with pytest.raises(InputError, match="num_clusters: found 1000, expected at most 40"):
        quick_start.execute(config_dict=settings(place, "NCL", epochs=1, state="CRITICAL"))
