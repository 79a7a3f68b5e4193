import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK, settings

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.catalogue import Catalogue
from recbole_bbqrec.model.padding import LENGTH_INDEPENDENT, group_by_length
from recbole_bbqrec.model.stock_attention import ENCODER_OWNERS, add_similarity
from recbole_bbqrec.training import checkpoint

MODES = ["additive", "multiplicative", "undiscretised"]
OTHERS = ["FDSA", "GCSAN", "GRU4Rec", "LightSANs", "SASRecCPR"]
READS_NO_ITEM = {"BERT4Rec"}  # its loss is at mask tokens: for them, the last layer adds the same to every score
# Every model in one mode, every mode on a causal and on a bidirectional model: how a bias enters is the same for all.
PAIRS = [*((name, "additive") for name in sorted(ENCODER_OWNERS)), ("BERT4Rec", "multiplicative")]
PAIRS += [("SASRec", "multiplicative"), ("SASRec", "undiscretised")]
SIMILARITY = {"similarity_signals": None, "similarity_shared_layers": False, "codes": "learned"}
QUICK_IDS = {key: value for key, value in QUICK.items() if key.startswith("sid_")}


@pytest.fixture(scope="module")
def load(tiny):
    """Settings, loaders and one batch of each kind for a model of RecBole, on the tiny data set with semantic IDs."""
    known = {}

    def load(name):
        if name not in known:
            columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]}
            changes = {"load_col": columns, "selected_features": ["brand"], "MAX_ITEM_LIST_LENGTH": 15}
            stock = {"attach_semantic_ids": True, "use_gpu": False, **QUICK_IDS, **changes}
            config = Config(config_dict=settings(tiny, name, **stock))
            config.final_config_dict.update(SIMILARITY, similarity_attention="off")
            train, valid, test = split_loaders(config, registry.get_dataset(name)(config))
            train.generator.manual_seed(7)
            known[name] = SimpleNamespace(
                config=config, train=train, valid=valid, batch=next(iter(train)), rows=next(iter(test))[0]
            )
        return known[name]

    return load


def make(data, mode, weights=None, dataset=None, **changes):
    """A model of RecBole with larger weights than at its start, and similarity weights drawn by the seed `weights`."""
    torch.manual_seed(5)
    model = registry.get_model(data.config["model"])(data.config, data.train._dataset)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    before = dict(data.config.final_config_dict)
    data.config.final_config_dict.update(similarity_attention=mode, **changes)
    try:
        add_similarity(model, data.config, dataset or data.train._dataset)
    finally:
        data.config.final_config_dict.clear()
        data.config.final_config_dict.update(before)
    if weights is not None:
        torch.nn.init.normal_(similarity_of(model).weight, generator=torch.Generator().manual_seed(weights))
    return model


def owner_of(model):
    place = ENCODER_OWNERS[type(model).__name__]
    return getattr(model, place) if place else model


def similarity_of(model):
    return owner_of(model).similarity


@torch.no_grad()
def scores(model, rows):
    return model.eval().full_sort_predict(rows)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(ENCODER_OWNERS))
def test_it_starts_as_the_stock_model_to_the_last_bit(name, mode, load):
    data = load(name)
    stock, model = make(data, "off"), make(data, mode)
    assert type(model) is type(stock) and similarity_of(model).mode == mode
    prefix = f"{ENCODER_OWNERS[name]}.similarity." if ENCODER_OWNERS[name] else "similarity."
    gained = {"weight"} if mode == "undiscretised" else {"weight", "edges"}
    assert set(model.state_dict()) - set(stock.state_dict()) == {prefix + entry for entry in gained}
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in stock.state_dict().items())
    if mode != "undiscretised":
        assert similarity_of(model).edges.any()
    assert torch.equal(scores(model, data.rows), scores(stock, data.rows))
    assert torch.equal(model.predict(data.rows), stock.predict(data.rows))
    assert torch.equal(model.train().calculate_loss(data.batch), stock.train().calculate_loss(data.batch))
    assert not torch.equal(scores(make(data, mode, weights=1), data.rows), scores(stock, data.rows))


@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_training_moves_the_similarity_weights(name, mode, load):
    data = load(name)
    stock, model = make(data, "off"), make(data, mode)
    weight = similarity_of(model).weight
    for one in (stock, model):
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            one.train().calculate_loss(data.batch).backward()
            optimizer.step()
    n_layers = len(owner_of(model).trm_encoder.layer)
    steepest = weight.grad.abs().flatten(0, -2).amax(0).view(n_layers, -1)  # [layers, heads]
    if name in READS_NO_ITEM and mode != "multiplicative":
        steepest = steepest[:-1]
    assert len(steepest) and (steepest > 1e-3 * steepest.max()).all(), "every layer and head learns"
    assert weight.any() and not torch.allclose(scores(model, data.rows), scores(stock, data.rows))


@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_length_groups_change_nothing(name, mode, load):
    assert name in LENGTH_INDEPENDENT
    data = load(name)
    model = make(data, mode, weights=1)
    grouped = group_by_length(make(data, mode, weights=1))
    shapes = []
    grouped_owner = owner_of(grouped)
    grouped_owner.trm_encoder.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[:2])))
    torch.testing.assert_close(scores(grouped, data.rows), scores(model, data.rows), rtol=1e-5, atol=1e-5)
    gradients = []
    for one in (model, grouped):
        one.train().calculate_loss(data.batch).backward()
        gradients.append(similarity_of(one).weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert len(set(shapes)) > 2, "the encoder saw groups of different width"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["CORE", "SASRec", "SASRecF"])
def test_the_future_never_leaks(name, mode, load):
    data = load(name)
    model = make(data, mode, weights=1).eval()
    with torch.no_grad():
        similarity_of(model).weight.mul_(3)  # a factor below -1 would turn the mask itself round
    states = []
    owner_of(model).trm_encoder.register_forward_hook(lambda _, args, output: states.append(output[-1]))
    history = data.rows["item_id_list"].clone()
    for changed in (1, 3, 6):
        rows = copy.deepcopy(data.rows)
        kept = history[:, changed] > 0
        rows.interaction["item_id_list"][kept, changed:] = history[kept, changed:].flip(0)
        rows.interaction["item_id_list"][kept, changed] = history[kept, changed] % (model.n_items - 1) + 1
        states.clear()
        scores(model, data.rows), scores(model, rows)
        before, after = (state[kept] for state in states)
        assert len(before) and torch.equal(before[:, :changed], after[:, :changed])
        assert not torch.equal(before[:, changed], after[:, changed])


@pytest.mark.parametrize("mode", MODES)
def test_attention_layers_by_hand(mode, load):
    data = load("SASRec")
    model = make(data, mode, weights=1).eval()
    attention = model.trm_encoder.layer[1].multi_head_attention
    seen = []
    attention.register_forward_hook(lambda _, args, output: seen.append((*args, output)))
    scores(model, data.rows)
    hidden, added, found = seen[0]
    bias = similarity_of(model)(data.rows["item_id_list"])[1]

    def heads(layer):
        return layer(hidden).unflatten(-1, (model.n_heads, -1)).transpose(1, 2)

    raw = heads(attention.query) @ heads(attention.key).transpose(-1, -2) / attention.attention_head_size**0.5
    raw = raw * (1 + bias) if mode == "multiplicative" else raw + bias
    attended = ((raw + added.mask).softmax(-1) @ heads(attention.value)).transpose(1, 2).flatten(-2)
    expected = attention.LayerNorm(attention.dense(attended) + hidden)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_bert4recs_mask_has_no_signal(load):
    data = load("BERT4Rec")
    model = make(data, "additive", weights=1)
    masked = data.batch[model.MASK_ITEM_SEQ]
    rows, columns = torch.nonzero(masked == model.mask_token, as_tuple=True)
    assert len(rows)
    missing = similarity_of(model).weight[:, -1].sum(0).view(model.n_layers, model.n_heads)
    for layer, bias in enumerate(similarity_of(model)(masked)):
        expected = missing[layer].view(1, -1, 1).expand(len(rows), -1, masked.size(1))
        torch.testing.assert_close(bias[rows, :, columns], expected)


@pytest.mark.parametrize("name", ["CORE", "SASRec"])
def test_copies_are_models_of_their_own(name, load):
    data = load(name)
    model = group_by_length(make(data, "multiplicative", weights=1))
    model.train().calculate_loss(data.batch).backward()
    twin = copy.deepcopy(model)  # straight after a batch: nothing of its graph may be left behind
    expected = scores(model, data.rows)
    assert torch.equal(scores(twin, data.rows), expected)
    with torch.no_grad():
        similarity_of(twin).weight.zero_()
    assert torch.equal(scores(model, data.rows), expected)
    assert torch.equal(scores(twin, data.rows), scores(group_by_length(make(data, "off")), data.rows))


@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_weights_come_back_from_their_file(name, mode, load, tmp_path):
    data = load(name)
    model = make(data, mode, weights=1)
    checkpoint.save_weights(tmp_path / "weights.safetensors", model, {})
    known = data.train._dataset
    bundle = SimpleNamespace(catalogue=replace(known.catalogue, features=None), train_sequences=None)
    fresh = make(data, mode, dataset=bundle)
    checkpoint.load_weights(tmp_path / "weights.safetensors", fresh)
    assert torch.equal(scores(fresh, data.rows), scores(model, data.rows))
    with pytest.raises(InputError, match="weights of other settings"):
        checkpoint.load_weights(tmp_path / "weights.safetensors", make(data, "off"))


def test_the_protocols_trainer_trains_and_restores_it(load, tmp_path, monkeypatch):
    data = load("SASRec")
    model = make(data, "additive")
    monkeypatch.setitem(data.config.final_config_dict, "checkpoint_dir", str(tmp_path))
    trainer = registry.get_trainer(data.config)(data.config, model)
    trainer.fit(data.train, data.valid)
    trained = {key: value.clone() for key, value in model.state_dict().items()}
    assert trained["similarity.weight"].any()
    with torch.no_grad():
        model.similarity.weight.zero_()
    trainer.load_best()
    assert trainer.state.best_epoch in (0, 1) and model.similarity.weight.any()


def test_raw_features_take_the_place_of_codes(load):
    data = load("SASRec")
    model = make(data, "additive", weights=1, codes="none", similarity_signals=["text"])
    assert similarity_of(model).signals == ["text"]
    assert similarity_of(model).vectors[0].shape == data.train._dataset.catalogue.features.matrices["text"].shape
    assert torch.isfinite(scores(model, data.rows)).all()


def test_off_leaves_the_model_alone(load):
    model = make(load("SASRec"), "off")
    assert not hasattr(model, "similarity") and "get_attention_mask" not in vars(model)


def test_it_draws_no_random_number(load):
    data = load("SASRec")
    make(data, "off")
    expected = torch.rand(3)
    make(data, "additive")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused_with_the_list_of_those_that_can(name):
    model = registry.get_model(name).__new__(registry.get_model(name))
    torch.nn.Module.__init__(model)
    with pytest.raises(InputError, match=rf"{name} has no transformer .* BBQRec, BERT4Rec, CORE, SASRec, SASRecF,"):
        add_similarity(model, {"similarity_attention": "additive"}, None)


def test_core_without_its_transformer_is_refused(load):
    data = load("CORE")
    model = make(data, "off")
    del model.net
    model.net = model.ave_net  # dnn_type: ave
    with pytest.raises(InputError, match="CORE has no transformer"):
        add_similarity(model, {"similarity_attention": "additive"}, data.train._dataset)


@pytest.mark.parametrize(("codes", "key"), [("learned", "attach_semantic_ids=True"), ("none", "text_encoder=tfidf")])
def test_nothing_to_compare_is_an_error(codes, key, load):
    data = load("SASRec")
    empty = SimpleNamespace(catalogue=Catalogue([]), train_sequences=None)
    with pytest.raises(InputError, match=f"no signal to compare items by; add --{key}"):
        make(data, "additive", dataset=empty, codes=codes)
