import pytest
import torch
from conftest import QUICK, settings

from recbole_bbqrec import quick_start, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import WindowDataLoader, split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.unisrec import MixtureOfExperts


def built(tiny, tmp_path, **changes):
    config = Config(config_dict=settings(tiny, "UniSRec", **QUICK, checkpoint_dir=str(tmp_path), **changes))
    train, valid, _ = split_loaders(config, registry.get_dataset("UniSRec")(config))
    dataset = train._dataset
    torch.manual_seed(0)
    model = registry.build_model(config, dataset)
    return model, list(WindowDataLoader(config, dataset, dataset.train_sequences)), valid


def test_the_mixture_is_the_sum_of_whitened_experts_by_their_gates():
    torch.manual_seed(0)
    adaptor = MixtureOfExperts(5, 3, n_experts=2).eval()
    for parameter in adaptor.parameters():
        torch.nn.init.normal_(parameter)
    rows = torch.randn(4, 5)
    for row, found in zip(rows, adaptor(rows), strict=True):
        gates = torch.softmax(row @ adaptor.gate, dim=0)
        parts = [expert.weight @ (row - shift) for expert, shift in zip(adaptor.experts, adaptor.shift, strict=True)]
        torch.testing.assert_close(found, gates[0] * parts[0] + gates[1] * parts[1])


def test_gates_are_noisy_in_training_alone():
    torch.manual_seed(0)
    adaptor = MixtureOfExperts(5, 3, n_experts=2)
    adaptor.dropout.p = 0.0
    rows = torch.randn(4, 5)
    assert not torch.equal(adaptor(rows), adaptor(rows))
    adaptor.eval()
    assert torch.equal(adaptor(rows), adaptor(rows))


def test_features_go_through_the_experts(tiny, tmp_path):
    model, _, _ = built(tiny, tmp_path)
    assert len(model.item_table.projections["text"].experts) == 8


def test_a_run_repeats_itself_read_back_or_trained_anew(tiny, tmp_path):
    def metrics(place, **changes):
        given = settings(tiny, "UniSRec", **{**QUICK, **changes}, checkpoint_dir=str(tmp_path / place))
        return quick_start.run(config_dict=given)["metrics"]

    assert metrics("one") == metrics("one") == metrics("two")
    assert metrics("one", n_experts=2) != metrics("two")


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_experts": 0}, "n_experts: found 0, expected a number above 0"),
    ({"text_encoder": None}, "UniSRec: found no item features, expected some; set text_fields"),
])  # fmt: skip
def test_bad_settings_are_refused(tiny, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        built(tiny, tmp_path, **changes)
