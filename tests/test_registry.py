import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import QUICK

from recbole_bbqrec import registry
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.bbqrec import BBQRec
from recbole_bbqrec.settings import property_files


def test_names_mean_ours_first_then_recboles():
    assert registry.get_model("BBQRec") is BBQRec
    assert registry.get_model("SASRec").__module__ == "recbole.model.sequential_recommender.sasrec"
    with pytest.raises(InputError, match=r"--model=sasrec: .*did you mean SASRec"):
        registry.get_model("sasrec")
    with pytest.raises(InputError, match=r"--model=S3Rec: its second stage .* RecBole's own scripts"):
        registry.get_model("S3Rec")


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_model_of_ours_has_a_trainer_and_a_file_of_its_own(name):
    assert registry.TRAINERS[name] is registry.get_trainer({"model": name})
    assert property_files(name, "nowhere")[-1].name == f"{name}.yaml"


def test_looking_up_recboles_models_leaves_anomaly_mode_alone():
    code = "import torch; from recbole_bbqrec import registry; registry.get_model('SASRec')"
    code += "; assert not torch.is_anomaly_enabled()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def in_recbole(tiny, tmp_path_factory):
    """What RecBole's own entry points print, in a fresh process, since `register` changes RecBole's tables."""
    place = tmp_path_factory.mktemp("recbole")
    changes = {"text_fields": "title", "text_encoder": "tfidf", "epochs": 1, "eval_batch_size": 64}
    given = {**QUICK, **changes, "data_path": str(tiny), "checkpoint_dir": str(place / "saved")}
    (place / "base.yaml").write_text("".join(f"{key}: {value!r}\n" for key, value in given.items()))
    script = """
        import recbole_bbqrec
        recbole_bbqrec.register()
        recbole_bbqrec.register()
        import torch
        assert not torch.is_anomaly_enabled()
        from recbole.config import Config
        from recbole.quick_start import run, run_recbole, objective_function
        from recbole.utils import get_model, get_trainer

        config = Config(model="SASRec", dataset="tiny", config_dict={"train_neg_sample_args": None})
        assert config["topk"] == [10] and config["length_groups"] is None
        assert get_model("BBQRec").__module__ == "recbole_bbqrec.model.bbqrec"
        assert get_trainer(config["MODEL_TYPE"], "SASRec").__module__ == "recbole.trainer.trainer"
        ours = Config(model="SASRecPlusT", dataset="tiny")
        assert (ours["n_layers"], ours["candidate_similarity"], ours["extends"]) == (2, ["behavior"], None)
        assert get_trainer(ours["MODEL_TYPE"], "SASRecPlusT").__name__ == "SequenceTrainer"
        general = Config(model="Pop", dataset="tiny")  # RecBole has a model of this name, which stays
        assert get_model("Pop").__module__ == "recbole.model.general_recommender.pop"
        assert get_trainer(general["MODEL_TYPE"], "Pop").__name__ == "TraditionalTrainer"
        print("tables are right")

        for model in ("BBQRec", "SASRecPlusT"):
            result = run(model=model, dataset="tiny", config_file_list=["base.yaml"])
            assert 0 <= result["test_result"]["ndcg@10"] <= 1
            assert "masked_ndcg@10" in result["best_valid_result"]
        print("run is fine")

        config = {"model": "BBQRec", "dataset": "tiny", "n_heads": 1}
        result = objective_function(config, ["base.yaml"], saved=True)
        assert result["model"] == "BBQRec" and 0 <= result["best_valid_score"] <= 1
        print("tuning is fine")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, cwd=place, check=False)


@pytest.mark.parametrize("what", ["tables are right", "run is fine", "tuning is fine"])
def test_register_makes_our_models_known_to_recbole_and_leaves_its_own(in_recbole, what):
    assert what in in_recbole.stdout, in_recbole.stderr[-3000:]


def test_recboles_special_data_sets_keep_what_they_do():
    from recbole.data.dataset import DIENDataset

    made = registry.get_dataset("DIEN")
    assert issubclass(made, DIENDataset) and made.__mro__[1].__name__ == "MultiModalSequentialDataset"
    assert registry.get_dataset("SASRec").__name__ == "MultiModalSequentialDataset"
    assert torch.is_anomaly_enabled() is False
