"""What holds for every model of this project; a model in `MODELS` is covered without a line here."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import epoch_losses, settings, where

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import WindowDataLoader, split_loaders
from recbole_bbqrec.evaluation.ranking import COLUMNS
from recbole_bbqrec.model.protocol import Ranker, ranker_of
from recbole_bbqrec.settings import property_files
from recbole_bbqrec.training import checkpoint, row_ranks
from recbole_bbqrec.training.untrained_trainer import UntrainedTrainer

SMALL = {
    "hidden_size": 16,
    "inner_size": 32,
    "n_layers": 1,
    "n_decoder_layers": 1,
    "n_heads": 2,
    "heads": 2,
    "head_size": 4,
    "n_experts": 2,
    "n_negatives": 16,
    "beam_size": 20,
    "train_batch_size": 128,
    "feature_dim": 16,
    "sid_codebook_size": 8,
    "sid_code_dim": 8,
    "sid_epochs": 1,
    "sid_min_steps": 30,
    "sid_steps": 40,
    "report_card": False,
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
}
"""Sizes under which a model takes a second, and no dropout; a model is given those of its own keys."""
TRAINED = [name for name, trainer in registry.TRAINERS.items() if trainer is not UntrainedTrainer]


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """By name: a model, trained for a few epochs or counted, with its settings, data and losses; made once."""
    place, known = str(tmp_path_factory.mktemp("contract")), {}

    def make(name):
        if name not in known:
            files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in property_files(name, "tiny")]
            changes = {key: value for key, value in SMALL.items() if any(key in file for file in files)}
            config = Config(config_dict=settings(tiny, name, **{"checkpoint_dir": place, **changes}))
            train, valid, _ = split_loaders(config, registry.get_dataset(name)(config))
            known[name] = case = SimpleNamespace(config=config, train=train._dataset, valid=valid)
            case.model, sequences = fresh(case, seed=0), case.train.train_sequences
            if name in TRAINED:
                case.batches = [batch.to(where()) for batch in WindowDataLoader(config, case.train, sequences)]
                case.losses = epoch_losses(case.model, case.batches, epochs=4, learning_rate=5e-3)
            else:
                case.model.count(sequences.offsets, sequences.items)
            case.rows = valid.collate_fn(range(20))[0].to(where())
            case.histories = case.rows[case.model.ITEM_SEQ]
            case.scores = score(case.model, case.histories)
        return known[name]

    return make


def fresh(case, seed):
    torch.manual_seed(seed)
    return registry.build_model(case.config, case.train).to(where())


@torch.no_grad()
def score(model, histories, *arguments):
    return model.eval().score(histories, *arguments)


@pytest.mark.parametrize("name", TRAINED)
def test_training_lowers_the_loss(made, name):
    losses = made(name).losses
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_gets_a_gradient(made, name):
    case = made(name)
    model = fresh(case, seed=1).train()
    sum(model.calculate_loss(batch) for batch in case.batches).backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", registry.MODELS)
def test_saved_and_loaded_it_gives_equal_scores(made, name, tmp_path):
    case = made(name)
    checkpoint.save_weights(tmp_path / "weights.safetensors", case.model, {})
    other = fresh(case, seed=1)
    if name == "ContentNeighbors":  # it counts nothing: what a file brings are the values that validation has chosen
        other.choose({key: values[-1] for key, values in other.grid.items()})
    assert not torch.equal(score(other, case.histories), case.scores)
    checkpoint.load_weights(tmp_path / "weights.safetensors", other)
    assert torch.equal(score(other, case.histories), case.scores)


@pytest.mark.parametrize("name", registry.MODELS)
def test_neighbours_and_padding_change_nothing(made, name):
    case = made(name)
    order = torch.randperm(len(case.histories), generator=torch.Generator().manual_seed(0)).to(where())
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(score(case.model, case.histories[order]), case.scores[order], **tolerance)
    torch.testing.assert_close(score(case.model, case.histories[3:4]), case.scores[3:4], **tolerance)
    padded = torch.nn.functional.pad(case.histories, (0, 5))
    torch.testing.assert_close(score(case.model, padded), case.scores, **tolerance)


@pytest.mark.parametrize("name", registry.MODELS)
def test_items_have_one_score_however_it_is_asked_for(made, name):
    case = made(name)
    model, some, targets = (
        case.model,
        torch.tensor([5, 2, 9], device=where()),
        case.rows[case.model.ITEM_ID].unsqueeze(1),
    )
    assert isinstance(model, Ranker) and ranker_of(model, case.config) is model
    assert case.scores.shape == (len(case.histories), model.n_items)
    assert case.scores[:, 1:].isfinite().all() or model.is_beam_search
    with torch.no_grad():
        shared = model.shared()
        assert torch.equal(model.score(case.histories, shared=shared), case.scores)
        # What is asked for by id is scored beyond the beam too, and as the beam scores what it finds.
        by_id = model.score(case.histories, torch.arange(model.n_items, device=where()))
        found = case.scores.isfinite()
        torch.testing.assert_close(by_id[found], case.scores[found])
        assert by_id[:, 1:].isfinite().all()
        torch.testing.assert_close(model.score(case.histories, some), by_id[:, some])
        torch.testing.assert_close(model.score(case.histories, some, shared=shared), by_id[:, some])
        torch.testing.assert_close(model.full_sort_predict(case.rows), case.scores)
        torch.testing.assert_close(model.predict(case.rows), by_id.gather(1, targets).squeeze(1))


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_batch_size_of_evaluation_gives_the_same_ranks(made, name, monkeypatch):
    case, ranks = made(name), []
    for size in (7, 64):
        monkeypatch.setitem(case.config.final_config_dict, "eval_batch_size", size)
        ranks.append(registry.get_trainer(case.config)(case.config, case.model).rank(case.valid, [case.train]))
    for column in ("masked", "unmasked"):
        assert np.array_equal(*(getattr(found, column) for found in ranks))


@pytest.mark.parametrize("name", registry.MODELS)
def test_products_are_the_scores_and_rank_alike_in_blocks_and_parts(made, name, monkeypatch):
    case = made(name)
    with torch.no_grad():
        products = case.model.products(case.histories, case.model.shared())
    makes_products = name not in ("TransitionGraph", "TIGER") and not getattr(case.model, "is_beam_search", False)
    assert (products is not None) == makes_products
    rank = registry.get_trainer(case.config)(case.config, case.model).rank
    if products is not None:
        torch.testing.assert_close(products.queries @ products.keys.T, case.scores)
    found = rank(case.valid, [case.train])
    monkeypatch.setattr(type(case.model), "products", lambda *_: None)
    monkeypatch.setattr(row_ranks, "CELLS", 5 * case.model.n_items)  # five rows at a time
    whole = rank(case.valid, [case.train])
    for column in COLUMNS:
        assert np.array_equal(getattr(found, column), getattr(whole, column))


def test_recboles_models_are_rankers_by_their_adapter(tiny, tmp_path):
    config = Config(config_dict=settings(tiny, "SASRec", checkpoint_dir=str(tmp_path)))
    train, valid, _ = split_loaders(config, registry.get_dataset("SASRec")(config))
    model = registry.build_model(config, train._dataset).to(where()).eval()
    rows, ranker = valid.collate_fn(range(5))[0].to(where()), ranker_of(model, config)
    assert isinstance(ranker, Ranker) and not ranker.is_beam_search
    histories, some = rows[model.ITEM_SEQ], torch.tensor([4, 1], device=where())
    short = histories[:, : int((histories != 0).sum(1).max())]
    expected = model.full_sort_predict(rows)
    assert torch.equal(ranker.score(short), expected) and torch.equal(ranker.score(short, some), expected[:, some])
