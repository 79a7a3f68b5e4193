from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recbole.utils import ModelType
from scipy import sparse

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.training.recbole_checkpoint import plain, read_checkpoint, restored, save_checkpoint

SETTINGS = {"model": "M", "MODEL_TYPE": ModelType.GENERAL, "sizes": (1, [2]), "single_spec": True}


def saved(path, **kept):
    """The entries of a checkpoint of a small model that keeps things beside its weights."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1)
    model = SimpleNamespace(state_dict=layer.state_dict, other_parameter=lambda: {**kept, "layer": layer})
    config = type("Settings", (dict,), {"final_config_dict": SETTINGS})(SETTINGS)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    trainer = SimpleNamespace(model=model, optimizer=optimizer, config=config, saved_model_file=str(path))
    trainer.cur_step, trainer.best_valid_score = 3, np.float64(0.5)
    save_checkpoint(trainer, 7, verbose=False)
    return read_checkpoint(path), layer


def test_a_checkpoint_holds_recboles_entries_and_comes_back(tmp_path):
    matrix = sparse.csr_matrix(np.array([[0.0, 2.0], [3.0, 0.0]], dtype=np.float32))
    hops = defaultdict(list, {np.int64(4): [(np.arange(3), torch.ones(2))]})
    kept = {
        "array": np.eye(2),
        "csr": matrix,
        "lil": matrix.tolil(),
        "hops": hops,
        "number": np.float32(2),
        "none": None,
    }
    found, layer = saved(tmp_path / "a.pth", **kept)
    assert found["config"] == {"model": "M", "MODEL_TYPE": "ModelType.GENERAL", "sizes": (1, [2]), "single_spec": True}
    assert (found["epoch"], found["cur_step"], found["best_valid_score"]) == (7, 3, 0.5)
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in found["state_dict"].items())
    assert found["optimizer"]["state"][0]["step"] == 1
    other = restored(found["other_parameter"])
    assert other.keys() == kept.keys()  # the layer is among the weights
    assert np.array_equal(other["array"], np.eye(2)) and other["number"] == 2 and other["none"] is None
    assert other["csr"].format == "csr" and other["lil"].format == "lil" and other["csr"].dtype == np.float32
    assert (other["csr"] != matrix).nnz == 0 == (other["lil"] != matrix).nnz
    ((numbers, ones),) = other["hops"][4]
    assert numbers.tolist() == [0, 1, 2] and torch.equal(ones, torch.ones(2))


def test_what_is_no_plain_data_is_one_line():
    with pytest.raises(InputError, match=r"^other_parameter: found object, expected numbers, text, tensors or arrays"):
        plain("other_parameter", {"a": [object()]})
