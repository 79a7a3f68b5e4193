"""Runs with items held out: what the record says, what stops training, that use gives the same ranks, and resuming."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from conftest import settings

import recbole_bbqrec
from recbole_bbqrec import quick_start
from recbole_bbqrec.evaluation.ranking import METRICS
from recbole_bbqrec.model.catalogue import ItemFeatures
from recbole_bbqrec.tokenizer.registry import load
from recbole_bbqrec.training.trainer import ProtocolTrainer

TIGER = {"sid_steps": 40, "sid_code_dim": 8, "sid_codebook_size": 8, "sid_levels": 3, "report_card": False}
TIGER |= {"hidden_size": 16, "inner_size": 32, "n_layers": 1, "n_decoder_layers": 1, "eval_step": 1, "beam_size": 50}
MODELS = {"BBQRec": {}, "SASRecPlusFT": {}, "UniSRec": {}, "TIGER": TIGER, "ContentNeighbors": {}}


def given(tiny, folder, model="BBQRec", **changes):
    own = {"cold_items": 0.2, "second_stage": "off", "checkpoint_dir": str(folder), **MODELS[model], **changes}
    return settings(tiny, model, **own)


@pytest.mark.parametrize("model", MODELS)
def test_the_ranks_are_those_of_the_bundle_with_the_new_items(tiny, tmp_path, model):
    """`grown` with features and the tokenizer's codes, as in use, puts every target where the run has ranked it."""
    place = str(tmp_path / "ranks.csv")
    record = quick_start.run(config_dict=given(tiny, tmp_path, model, ranks_file=place))
    config, _, dataset, _, valid, _ = recbole_bbqrec.load_data_and_model(record["run_dir"])
    whole = valid._dataset.catalogue
    bundle, new = recbole_bbqrec.load_bundle(record["run_dir"]), whole.tokens[whole.n_trained :]
    assert bundle.item_tokens == whole.tokens[: whole.n_trained] == dataset.catalogue.tokens
    known = whole.features.reindex(new)
    encoded = None
    if dataset.tokenizer_file:
        fitted = load(bundle.folder / "tokenizer.safetensors")
        encoded = fitted.encode(known.matrices, known.present, unique=model == "TIGER")
    grown = bundle.grown(ItemFeatures(new, known.matrices, known.present), encoded)
    assert grown.item_tokens == whole.tokens

    frame = pl.read_csv(place)
    rows = {user: row for row, user in enumerate(dataset.field2id_token["user_id"])}
    users = valid._dataset.inter_feat["user_id"].tolist()
    histories = {user: list(items) for user, items in zip(users, valid._dataset.histories, strict=True)}
    judged = 0
    for user, item, rank, cold in frame.select("user", "item", "masked", "cold").iter_rows():
        history = [whole.tokens[at] for at in histories[rows[user]]]
        found = grown.recommend([history], k=len(whole.tokens))[0].items
        assert cold == (item in new)
        if item in history:
            continue
        assert (found.index(item) + 1 if item in found else None) == rank, (user, item)
        judged += cold
    assert judged, "some cold targets"

    # The rows of the same items, handed to the finished run as a table.
    table = pd.read_csv(tiny / "tiny" / "tiny.item", sep="\t", dtype=str, keep_default_na=False)
    table = table.rename(columns=lambda name: name.partition(":")[0]).set_index("item_id")
    told = [token for token in new if table.loc[token, "title"]]  # of one item nothing is known
    added, known = bundle.add_items(table.loc[told].reset_index()), known.reindex(told)
    torch.testing.assert_close(added.catalogue.features.matrices["text"][-len(told) :], known.matrices["text"])
    if encoded is not None:
        encoded = fitted.encode(known.matrices, known.present, unique=model == "TIGER")
    asked = [[whole.tokens[at] for at in items] for items in histories.values()]
    lists = [[found.items for found in one.recommend(asked, k=10)] for one in (added, bundle.grown(known, encoded))]
    assert lists[0] == lists[1] and any(set(told) & set(items) for items in lists[0])
    assert config["cold_items"] == 0.2


@pytest.mark.parametrize("model", ["BBQRec", "ContentNeighbors"])
def test_figures_by_group_add_up_and_stand_in_record_and_table(tiny, tmp_path, capsys, model):
    record = quick_start.run(config_dict=given(tiny, tmp_path, model, final=True, metrics=list(METRICS)))
    table = capsys.readouterr().out
    for split, groups in record["groups"].items():
        assert set(groups) == {"all", "warm", "cold"} and groups["all"]["metrics"] == record["metrics"][split]
        assert groups["all"]["rows"] == groups["warm"]["rows"] + groups["cold"]["rows"] == record["rows"][split]
        for column, metrics in record["metrics"][split].items():
            for name, value in metrics.items():
                parts = [groups[kind]["rows"] * groups[kind]["metrics"][column][name] for kind in ("warm", "cold")]
                assert sum(parts) / record["rows"][split] == pytest.approx(value)
        for name, group in groups.items():
            shown = f"{group['metrics']['masked']['recall@10']:.4f}"
            assert any(f"{name} ({group['rows']})" in line and shown in line for line in table.splitlines())
    assert "groups" not in quick_start.run(config_dict=given(tiny, tmp_path, model, cold_items=0.0))


def test_cold_targets_do_not_decide_when_training_ends(tiny, tmp_path, monkeypatch):
    """Wherever cold targets rank, the scores that stop training are the same."""
    ranked, scores = ProtocolTrainer.rank, []
    for rank in (1, 10**6):

        def spoilt(self, *arguments, rank=rank, **more):
            found = ranked(self, *arguments, **more)
            found.masked[found.cold] = found.unmasked[found.cold] = rank
            return found

        monkeypatch.setattr(ProtocolTrainer, "rank", spoilt)
        found = []
        watch = {"after_epoch": lambda trainer, found=found: found.append(trainer.best_valid_score)}
        changes = {"checkpoint_dir": str(tmp_path / str(rank)), "cache_dir": str(tmp_path)}
        record, ranks = quick_start.execute(config_dict=given(tiny, tmp_path, **changes), **watch)
        warm = ranks["valid"].groups()["warm"].metrics(["NDCG"], [10])["masked"]["ndcg@10"]
        assert max(found) == warm and record["metrics"]["valid"]["masked"]["ndcg@10"] != warm
        scores.append(found)
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_a_killed_run_goes_on_to_the_same_ranks(tiny, tmp_path):
    def run(place, stop=None):
        def kill(trainer):
            if trainer.state.epochs_done == stop:
                raise KeyboardInterrupt

        changes = {"checkpoint_dir": str(tmp_path / place), "cache_dir": str(tmp_path / "cache"), "epochs": 4}
        return quick_start.execute(config_dict=given(tiny, tmp_path, **changes), after_epoch=kill if stop else None)

    whole, whole_ranks = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop=2)
    again, ranks = run("parts")
    assert again["groups"] == whole["groups"] and again["epochs"] == whole["epochs"]
    assert np.array_equal(ranks["valid"].masked, whole_ranks["valid"].masked)


def test_a_run_without_cold_items_is_not_the_run_with_them(tiny, tmp_path):
    changes = {"model": "ContentNeighbors", "checkpoint_dir": str(tmp_path)}
    folders = [quick_start.run(config_dict=given(tiny, tmp_path, **changes, cold_items=share))["run_dir"]
               for share in (0.0, 0.1, 0.2)]  # fmt: skip
    assert len({*folders}) == 3
    content = json.loads((tmp_path / folders[2].rpartition("/")[2] / "bundle.json").read_text())
    assert content["settings"]["cold_items"] == 0.2 and len(content["item_tokens"]) == 33


def test_new_items_have_no_id_part(tiny, tmp_path):
    record = quick_start.run(config_dict=given(tiny, tmp_path, "SASRecPlusFT", epochs=1))
    config, model, _, _, valid, _ = recbole_bbqrec.load_data_and_model(record["run_dir"])
    grown = type(model)(config, valid._dataset)
    grown.load_state_dict(model.state_dict())
    n_trained = valid._dataset.catalogue.n_trained
    assert not grown.item_table.id_embedding.weight[n_trained:].any()
    assert torch.equal(grown.item_table.id_embedding.weight[:n_trained], model.item_table.id_embedding.weight)
