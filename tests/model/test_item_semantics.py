import copy
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import N_ITEMS, settings
from recbole.model.layers import FMEmbedding
from torch import nn
from torch.nn.utils import parametrize

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.item_semantics import ItemParts, add_semantics, item_tables
from recbole_bbqrec.training import checkpoint

QUICK = {"sid_codebook_size": 8, "sid_code_dim": 8, "sid_epochs": 1, "sid_min_steps": 10, "report_card": False}
BOTH = {"item_semantics": ["codes", "features"], "feature_dim": 16, **QUICK}


@pytest.fixture(scope="module")
def load(tiny, tmp_path_factory):
    """By model: its settings, loaders and a batch, with codes and features; made once."""
    place, known = tmp_path_factory.mktemp("semantics"), {}

    def data(name):
        if name not in known:
            size = {"cache_dir": str(place), "checkpoint_dir": str(place), "hidden_size": 16, "inner_size": 16}
            config = Config(config_dict=settings(tiny, name, **size, **BOTH))
            train, valid, _ = split_loaders(config, registry.get_dataset(name)(config))
            rows = valid.collate_fn(range(12))[0]
            known[name] = SimpleNamespace(config=config, train=train, valid=valid, batch=next(iter(train)), rows=rows)
        return known[name]

    return data


class Settings(dict):
    """Settings as models read them: a missing key is none."""

    def __missing__(self, key):
        return None


def make(data, weights=None, **changes):
    """The model of the settings in training mode, its parts as they begin or with random weights of this size."""
    torch.manual_seed(0)
    model = registry.build_model(Settings({**data.config.final_config_dict, **changes}), data.train._dataset)
    for part in parts_of(model) if weights else []:
        for each in part.parameters():
            nn.init.normal_(each, std=weights)
    return model.train()


def parts_of(model):
    return [module for module in model.modules() if isinstance(module, ItemParts)]


def scores(model, rows):
    with torch.no_grad():
        return model.eval().full_sort_predict(rows)


def by_hand(model, item, catalogue, table):
    """The row of an item as the docs have it."""
    (part,) = table.parametrizations.weight
    row, codes = table.parametrizations.weight.original[item], catalogue.semantic_ids.codes[item]
    size = catalogue.semantic_ids.codebook_size
    for position, code in enumerate(codes.tolist()):
        if code >= 0:
            row = row + part.codes[1 + position * size + code] / len(codes)
    rows, present = catalogue.content["text"]
    return row + rows[item] @ part.projections["text"] / rows.shape[1] ** 0.5 if present[item] else row


@pytest.mark.parametrize("name", ["BERT4Rec", "SASRec"])
def test_a_row_is_the_sum_of_what_is_known_of_its_item(name, load):
    data = load(name)
    model, known = make(data, weights=1.0), data.train._dataset
    table, tokens = model.item_embedding, known.field2id_token["item_id"].tolist()
    silent = tokens.index("i03")
    assert not known.catalogue.features.present["text"][silent]
    assert (known.catalogue.semantic_ids.codes[silent] < 0).any()
    for item in (silent, 1, N_ITEMS):
        torch.testing.assert_close(table.weight[item], by_hand(model, item, known.catalogue, table))
        assert torch.equal(table(torch.tensor(item)), table.weight[item])
    assert table.weight.shape == table.parametrizations.weight.original.shape
    others = [0, *range(N_ITEMS + 1, len(table.weight))]  # padding, and the mask of BERT4Rec
    assert torch.equal(table.weight[others], table.parametrizations.weight.original[others])


def test_it_begins_as_the_model_without_and_draws_no_random_number(load):
    data = load("SASRec")
    plain = make(data, item_semantics=[])
    after = torch.rand(3)
    model = make(data)
    assert torch.equal(torch.rand(3), after) and len(parts_of(model)) == 1 and not parts_of(plain)
    assert torch.equal(scores(model, data.rows), scores(plain, data.rows))


@pytest.mark.parametrize(("given", "names"), [(["codes"], {"codes"}), (["features"], {"projections.text"})])
def test_only_what_is_asked_for_is_added(given, names, load):
    (part,) = parts_of(make(load("SASRec"), item_semantics=given))
    assert {name for name, _ in part.named_parameters()} == names


def test_a_step_of_adam_moves_no_row_by_more_than_its_id(load):
    data = load("SASRec")
    for given in (["codes"], ["features"]):
        model = make(data, item_semantics=given)
        (part,) = parts_of(model)
        optimizer = torch.optim.Adam(part.parameters(), lr=0.01)
        model.calculate_loss(data.batch).backward()
        optimizer.step()
        assert 0.003 < part.added().abs().max() <= 0.010001


def test_gradients_reach_all_parts_and_a_step_makes_the_table_once(load, monkeypatch):
    data = load("SASRec")
    model, made = make(data), []
    whole = ItemParts._whole
    monkeypatch.setattr(ItemParts, "_whole", lambda self, weight: made.append(1) or whole(self, weight))
    model.calculate_loss(data.batch).backward()
    assert len(made) == 1
    (part,) = parts_of(model)
    assert all(each.grad.any() for each in part.parameters())
    assert model.item_embedding.parametrizations.weight.original.grad.any()


def test_where_nothing_learns_the_table_is_made_anew_only_after_a_change(load, monkeypatch):
    data = load("SASRec")
    model, made = make(data, weights=1.0), []
    whole = ItemParts._whole
    monkeypatch.setattr(ItemParts, "_whole", lambda self, weight: made.append(1) or whole(self, weight))
    first = scores(model, data.rows)
    assert torch.equal(scores(model, data.rows), first) and len(made) == 1
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        parts_of(model)[0].codes.mul_(2)
    assert not torch.equal(scores(model, data.rows), first) and len(made) == 2
    model.load_state_dict(state)
    assert torch.equal(scores(model, data.rows), first) and len(made) == 3


def test_copies_are_models_of_their_own(load):
    data = load("SASRec")
    model = make(data, weights=1.0)
    model.calculate_loss(data.batch).backward()
    expected, twin = scores(model, data.rows), copy.deepcopy(model)
    assert torch.equal(scores(twin, data.rows), expected)
    twin.train().calculate_loss(data.batch)
    with torch.no_grad():
        parts_of(twin)[0].codes.zero_()
    assert torch.equal(scores(model, data.rows), expected) and not torch.equal(scores(twin, data.rows), expected)


def test_weights_come_back_from_their_file_and_are_refused_by_other_parts(load, tmp_path):
    data = load("SASRec")
    model, path = make(data, weights=1.0), tmp_path / "weights.safetensors"
    checkpoint.save_weights(path, model, {})
    fresh = make(data)
    checkpoint.load_weights(path, fresh)
    assert torch.equal(scores(fresh, data.rows), scores(model, data.rows))
    assert not any("features_" in name or "code_ids" in name for name in model.state_dict()), (
        "they have their own files"
    )
    for other in ([], ["codes"]):
        with pytest.raises(InputError, match="weights of other settings"):
            checkpoint.load_weights(path, make(data, item_semantics=other))


def test_codes_of_the_tables_alone_are_no_column_of_a_batch(load):
    data = load("SASRec")
    assert data.train._dataset.item_feat is None and "semantic_id" not in data.batch.interaction


class Autoencoder(nn.Module):
    """Reads and writes rows of N items, with a layer of some width between."""

    def __init__(self, width):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(N_ITEMS + 1, width), nn.Tanh(), nn.Linear(width, 6))
        self.decoder = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, N_ITEMS + 1))


def test_layers_that_read_and_write_items_are_tables_too(load):
    data = load("SASRec")
    model = add_semantics(Autoencoder(8), data.config, data.train._dataset)
    first, last = model.encoder[0], model.decoder[2]
    layers = first, model.encoder[2], model.decoder[0], last
    assert [parametrize.is_parametrized(layer) for layer in layers] == [True, False, False, True]
    catalogue = data.train._dataset.catalogue
    for part in parts_of(model):
        nn.init.normal_(part.codes), nn.init.normal_(part.projections["text"])
    torch.testing.assert_close(last.weight[5], by_hand(model, 5, catalogue, last))
    added = first.weight - first.parametrizations.weight.original
    torch.testing.assert_close(added, first.parametrizations.weight[0].added().T)
    (model.encoder(torch.rand(2, N_ITEMS + 1)).sum() + model.decoder(torch.rand(2, 6)).sum()).backward()
    assert all(each.grad.any() for part in parts_of(model) for each in part.parameters())


def test_layers_as_wide_as_there_are_items_are_refused():
    with pytest.raises(InputError, match=f"Autoencoder has other layers of {N_ITEMS + 1} units, .* change the sizes"):
        item_tables(Autoencoder(N_ITEMS + 1), "item_id", N_ITEMS + 1)


def test_the_part_of_a_shared_table_that_is_of_items(load):
    data = load("SASRec")
    model = nn.Module()
    model.token_field_names, sizes = ["user_id", "item_id", "colour"], [7, N_ITEMS + 1, 5]
    model.token_embedding_table = FMEmbedding(sizes, [0, 7, 8 + N_ITEMS], 4)
    add_semantics(model, data.config, data.train._dataset)
    (part,) = parts_of(model)
    nn.init.normal_(part.codes)
    table = model.token_embedding_table.embedding
    changed = (table.weight != table.parametrizations.weight.original).any(dim=1).nonzero().flatten().tolist()
    assert changed == list(range(8, 8 + N_ITEMS)), "the items without their padding row"


def test_a_model_without_a_table_of_items_is_refused(load):
    data, model = load("SASRec"), nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(InputError, match="no embedding or layer of Sequential has a row for each item; drop it"):
        add_semantics(model, data.config, data.train._dataset)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("SASRec", {"item_semantics": "code"}, "item_semantics: found 'code', expected some of codes, features"),
        ("SASRec", {"item_semantics": "codes", "codes": "none"}, "only codes without codes=none"),
        (
            "SASRec",
            {"item_semantics": "features"},
            "only features with an encoder); name one, as in --text_encoder=tfidf",
        ),
        ("BBQRec", {"item_semantics": "codes"}, "only in RecBole's models that train"),
        ("EASE", {"item_semantics": "codes"}, "only in RecBole's models that train"),
        ("Pop", {"item_semantics": "codes"}, "only in RecBole's models that train"),
    ],
)
def test_settings_that_mean_nothing_are_refused(model, changes, message, tiny):
    given = [f"--{key}={value}" for key, value in changes.items()]
    place = {"data_path": str(tiny), "model": model, "dataset": "tiny"}
    texts = {"text_fields": "title", "text_encoder": "tfidf"} if "codes" in changes else {}
    with pytest.raises(InputError, match=re.escape(message)):
        Config(arguments=given, config_dict={**place, **texts})
