"""Bundles of models with random weights, in place of a training."""

import shutil

import pytest
import torch
from conftest import QUICK, settings

import recbole_bbqrec
from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.serving.saving import write_bundle
from recbole_bbqrec.settings import plain_settings
from recbole_bbqrec.training import checkpoint


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """What makes the bundle of a model on the data set `tiny` below a folder, all its weights drawn by a seed."""

    def make(folder, model, **changes):
        place = tmp_path_factory.mktemp(model)
        config = Config(
            config_dict=settings(
                folder, model, **{"checkpoint_dir": str(place), "cache_dir": str(folder / "cache"), **changes}
            )
        )
        data = registry.get_dataset(model)(config)
        train, _, _ = split_loaders(config, data)
        torch.manual_seed(3)
        net = registry.build_model(config, train._dataset)
        if isinstance(net, registry.Pop):
            net.count(train._dataset.train_sequences.offsets, train._dataset.train_sequences.items)
        for value in net.parameters():
            torch.nn.init.normal_(value, std=0.3)
        checkpoint.save_weights(place / "weights.safetensors", net, {"settings": plain_settings(config)})
        write_bundle(place, config, data)
        return recbole_bbqrec.load_bundle(place)

    return make


SMALL = {"hidden_size": 16, "inner_size": 32, "n_layers": 1, "feature_dim": 16, "second_stage": "off"}


@pytest.fixture(scope="session")
def _small(tiny, untrained):
    return untrained(tiny, "SASRecPlusFT", **SMALL).folder


@pytest.fixture
def small(_small, tmp_path):
    """A bundle with texts that a test may change: a copy of its own."""
    return recbole_bbqrec.load_bundle(shutil.copytree(_small, tmp_path / "small"))


@pytest.fixture(scope="session")
def _coded(tiny, untrained):
    return untrained(tiny, "BBQRec", **{**QUICK, "second_stage": "off"}).folder


@pytest.fixture
def coded(_coded, tmp_path):
    """As `small`, of a model whose items have codes too."""
    return recbole_bbqrec.load_bundle(shutil.copytree(_coded, tmp_path / "coded"))
