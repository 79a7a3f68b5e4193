import pytest
import torch
from conftest import QUICK, settings

import recbole_bbqrec
from recbole_bbqrec import quick_start, registry, storage
from recbole_bbqrec.training.checkpoint import WEIGHTS
from recbole_bbqrec.training.sequence_trainer import SequenceTrainer
from recbole_bbqrec.training.untrained_trainer import UntrainedTrainer

TEXT, BEHAVIOR = {"text"}, {"transition", "cooccurrence", "walk"}
# What each is made of: IDs, features, codes, similarity attention, scoring, signals that compare candidates.
CONTROLS = {
    "SASRecPlus": (True, False, False, False, "dense", None),
    "SASRecPlusT": (True, False, False, False, "dense", BEHAVIOR),
    "SASRecPlusFT": (True, True, False, False, "dense", BEHAVIOR | TEXT),
    "SASRecPlusSeen": (True, False, False, False, "dense", set()),
    "UniSRec": (True, True, False, False, "dense", None),
    "BBQRecCodes": (False, False, True, False, "codes", None),
    "BBQRecCodesDense": (False, False, True, False, "dense", None),
    "BBQRecGenerate": (False, False, True, False, "generate", None),
    "BBQRecWithoutCandidates": (True, True, True, False, "joint", None),
}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """Run a model on the tiny data set; all share one folder."""
    place = str(tmp_path_factory.mktemp("saved"))

    def start(model, **changes):
        quick = dict(QUICK)
        if model not in ("BBQRec", "SASRecPlusT", "SASRecPlusFT"):
            quick.pop("second_stage")  # of the others, that of their name
        changes = {**quick, "final": True, "checkpoint_dir": place, **changes}
        return quick_start.execute(config_dict=settings(tiny, model, **changes))

    return start


@pytest.mark.parametrize("name", CONTROLS)
def test_each_control_is_made_of_what_its_name_says(run, name):
    ids, features, codes, attention, scoring, signals = CONTROLS[name]
    record, _ = run(name)
    config, model, dataset, _, _, _ = quick_start.load_data_and_model(record["run_dir"])
    assert config["model"] == record["model"] == name
    assert (dataset.catalogue.features is not None) == (features or codes), "codes are made of features"
    assert (model.item_table.id_embedding is not None) == ids and bool(model.item_table.modalities) == features
    assert (dataset.catalogue.semantic_ids is not None) == codes == (model.item_table.code_embedding is not None)
    assert model.scoring == scoring or not codes
    assert (model.code_heads is not None) == (codes and scoring in ("codes", "joint"))
    assert (model.decoder is not None) == (scoring == "generate")
    assert (model.similarity is not None) == attention
    assert (None if model.second_stage is None else set(model.second_stage.signals)) == signals
    assert record["seconds"]["tokenizer"] > 0 or not codes
    items = recbole_bbqrec.load_bundle(record["run_dir"]).recommend([["i01", "i02"]], k=4)[0].items
    assert len(items) == 4 and not {"i01", "i02"} & set(items)


def test_everything_but_the_codes_is_bbqrec_without_codes_bit_for_bit(run):
    control, control_ranks = run("SASRecPlusFT")
    same, same_ranks = run("BBQRec", codes="none", attach_semantic_ids=False)
    weights, same_weights = (
        storage.load(f"{record['run_dir']}/weights.safetensors", WEIGHTS)[0] for record in (control, same)
    )
    assert weights.keys() == same_weights.keys()
    assert all(torch.equal(value, same_weights[key]) for key, value in weights.items())
    for split in ("valid", "test"):
        assert (control_ranks[split].masked == same_ranks[split].masked).all()
    assert control["metrics"] == same["metrics"]


@pytest.mark.parametrize(
    ("name", "like"),
    [("SASRecPlusT", "SASRecPlus"), ("SASRecPlusSeen", "SASRecPlus"), ("BBQRecWithoutCandidates", "BBQRec")],
)
def test_models_that_differ_after_training_alone_share_it(run, tmp_path, monkeypatch, name, like):
    alone, alone_ranks = run(name, epochs=3, checkpoint_dir=str(tmp_path / "alone"))
    together = {"epochs": 3, "checkpoint_dir": str(tmp_path / "together")}
    first, _ = run(like, **together)
    monkeypatch.setattr(SequenceTrainer, "_train_epoch", None)  # another training would call it
    second, ranks = run(name, **together)
    assert second["run_dir"] != first["run_dir"] and second["seconds"]["train"] == first["seconds"]["train"]
    assert second["metrics"] == alone["metrics"]
    assert all((ranks[split].masked == alone_ranks[split].masked).all() for split in ("valid", "test"))
    assert quick_start.load_data_and_model(second["run_dir"])[0]["model"] == name


def test_one_weight_for_seen_items_serves_the_unmasked_column_alone(run):
    (plain, plain_ranks), (seen, seen_ranks) = (run(name, epochs=12) for name in ("SASRecPlus", "SASRecPlusSeen"))
    assert (seen_ranks["test"].masked == plain_ranks["test"].masked).all()
    ndcg = [record["metrics"]["test"]["unmasked"]["ndcg@10"] for record in (plain, seen)]
    assert ndcg[1] > ndcg[0]
    _, model, *_ = quick_start.load_data_and_model(seen["run_dir"])
    assert model.second_stage.n_weights == 1 and (model.second_stage.weights[:, 1] < 0).all()


def test_the_names_are_trained_by_the_trainers_they_need():
    assert registry.TRAINERS["Pop"] is registry.TRAINERS["TransitionGraph"] is UntrainedTrainer
    assert all(registry.TRAINERS[name] is SequenceTrainer for name in ("BBQRec", "TIGER", "TIGERPaper", *CONTROLS))
