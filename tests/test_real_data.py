"""Real data sets through the main job, only their properties file differing; and one control on ml-100k."""

import numpy as np
import pytest
import torch
from conftest import QUICK

from recbole_bbqrec import quick_start, registry
from recbole_bbqrec.second_stage.linear_fit import fit_linear
from recbole_bbqrec.settings import MAY_BE_UNUSED

SMALL = {
    **QUICK,
    "epochs": 1,
    "train_batch_size": 4096,
    "sid_codebook_size": 256,
    "eval_batch_size": 256,
    "n_candidate_neighbours": 10,
    "n_candidate_last": 1,
}
SIZES = {
    "sports-tiny": (190, ["text"]),
    "Beauty": (22363, ["text"]),
    "Instruments": (17112, ["text", "image"]),
    "Sports": (35598, ["text"]),
}


def job(real_data, tmp_path, name, **changes):
    given = {"model": "BBQRec", "dataset": name, "data_path": str(real_data), "checkpoint_dir": str(tmp_path)}
    record = quick_start.run(config_dict={**given, **SMALL, **changes, MAY_BE_UNUSED: True})
    _, _, dataset, *_ = quick_start.load_data_and_model(record["run_dir"])
    return record, dataset


@pytest.mark.parametrize("name", SIZES)
def test_the_main_job(real_data, tmp_path, name):
    # Fitting a second stage takes half a minute on the large ones; two sets suffice to see that it works.
    changes = {"second_stage": "off"} if name in ("Beauty", "Sports") else {}
    record, dataset = job(real_data, tmp_path, name, **changes)
    n_users, modalities = SIZES[name]
    assert record["users"] == {"valid": n_users}
    assert list(dataset.catalogue.features.matrices) == modalities
    assert dataset.catalogue.semantic_ids.signals == [*modalities, "id"]
    codes = {tuple(row) for row in dataset.catalogue.semantic_ids.codes[1:].tolist()}
    assert len(codes) == dataset.item_num - 1
    assert 0 < record["metrics"]["valid"]["masked"]["recall@20"] < 1


def test_posters_through_a_vision_model_made_on_the_spot(real_data, tmp_path):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **shape)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    record, dataset = job(real_data, tmp_path, "ml-100k-poster", image_encoder=str(tmp_path / "vit"))
    assert record["users"] == {"valid": 943}
    present = dataset.catalogue.features.present
    assert int(present["image"].sum()) == 1663 and int(present["text"].sum()) == 1682


def test_candidate_similarity_beats_neighbours_of_other_items(tmp_path):
    """On ml-100k, which comes with RecBole: the same lists with their items permuted add nothing to a young encoder."""
    given = {**QUICK, "model": "SASRecPlusT", "dataset": "ml-100k", "checkpoint_dir": str(tmp_path), "epochs": 1}
    given[MAY_BE_UNUSED] = True
    record = quick_start.run(config_dict=given)
    config, model, _, train, valid, _ = quick_start.load_data_and_model(record["run_dir"])
    trainer, judged = registry.get_trainer(config)(config, model), valid._dataset

    def ndcg() -> float:
        return trainer.rank(valid, [train._dataset]).metrics(["ndcg"], [10])["masked"]["ndcg@10"]

    honest, candidates = ndcg(), model.second_stage
    assert honest == record["metrics"]["valid"]["masked"]["ndcg@10"]
    others = torch.from_numpy(np.r_[0, 1 + np.random.default_rng(0).permutation(model.n_items - 1)]).int()
    for signal in candidates.signals.values():
        signal.items = others[signal.items.long()]
    with torch.no_grad():
        fit_linear(candidates, model.first_stage, judged.lists(), judged.inter_feat[model.ITEM_ID], config["seed"])
    control = ndcg()
    model.second_stage = None
    assert honest > 1.5 * control and control < 1.2 * ndcg()
