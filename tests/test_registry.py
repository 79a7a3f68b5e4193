import subprocess
import sys

import pytest
import torch

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


def test_recboles_special_data_sets_keep_what_they_do():
    from recbole.data.dataset import DIENDataset

    made = registry.get_dataset("DIEN")
    assert issubclass(made, DIENDataset) and made.__mro__[1].__name__ == "PrefixDataset"
    assert registry.get_dataset("SASRec").__name__ == "PrefixDataset"
    assert not registry.get_dataset("BBQRec").makes_prefixes
    assert torch.is_anomaly_enabled() is False
