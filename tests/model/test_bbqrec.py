from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import epoch_losses, settings
from recbole.data.interaction import Interaction

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import WindowDataLoader, split_loaders
from recbole_bbqrec.errors import InputError


@pytest.fixture(scope="module")
def data(tiny):
    config = Config(config_dict=settings(tiny))
    dataset = registry.get_dataset("BBQRec")(config)
    return config, split_loaders(config, dataset)


def make(data, seed=0, **changes):
    """A BBQRec on the tiny data set with other settings, and its training batches."""
    config, (train, valid, _) = data
    before = dict(config.final_config_dict)
    config.final_config_dict.update(changes)
    try:
        torch.manual_seed(seed)
        model = registry.get_model("BBQRec")(config, train._dataset)
        batches = list(WindowDataLoader(config, train._dataset, train._dataset.train_sequences))
    finally:
        config.final_config_dict.clear()
        config.final_config_dict.update(before)
    return model, batches, valid


PLAIN = {"scoring": "dense", "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "id_dropout_prob": 0.0}


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
def test_with_zero_bias_it_is_the_plain_transformer_to_the_last_bit(data, mode):
    with_bias, batches, _ = make(data, similarity_attention=mode)
    plain, _, _ = make(data, similarity_attention="off")
    names = set(plain.state_dict())
    assert set(with_bias.state_dict()) - names == {"similarity.weight", "similarity.edges"}
    assert all(torch.equal(value, with_bias.state_dict()[name]) for name, value in plain.state_dict().items())
    with_bias.eval(), plain.eval()
    histories = batches[0]["item_id_list"]
    assert torch.equal(with_bias.score(histories), plain.score(histories))


def test_a_bias_changes_scores_and_learns(data):
    model, batches, _ = make(data, similarity_attention="additive", **PLAIN)
    before = model.eval().score(batches[0]["item_id_list"])
    model.train().calculate_loss(batches[0]).backward()
    assert model.similarity.weight.grad.abs().sum() > 0
    with torch.no_grad():
        model.similarity.weight.normal_()
    assert not torch.allclose(before, model.eval().score(batches[0]["item_id_list"]))


@pytest.mark.parametrize(
    "changes", [{"n_negatives": 0}, {"score_function": "dot"}, {"use_item_id": False}, {"id_dim": 4}]
)
def test_other_losses_learn_with_every_parameter_too(data, changes):
    model, batches, _ = make(data, **PLAIN, **changes)
    sum(model.calculate_loss(batch) for batch in batches).backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []
    losses = epoch_losses(model, batches, epochs=5, learning_rate=3e-3)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("scoring", ["codes", "dense", "joint"])
def test_items_of_equal_learned_codes_are_told_apart_by_their_identity_codes(data, scoring):
    train = data[1][0]
    same = torch.zeros_like(train._dataset.catalogue.semantic_ids.codes)
    same[0] = -1
    known = train._dataset.catalogue
    apart = {}
    for n_codes in (0, 4):
        try:
            train._dataset.catalogue = replace(known, semantic_ids=replace(known.semantic_ids, codes=same))
            forms = {"use_item_id": False, "use_features": False, "scoring": scoring, "n_identity_codes": n_codes}
            model, batches, _ = make(data, **{**PLAIN, **forms})
        finally:
            train._dataset.catalogue = known
        scores = model.eval().score(batches[0]["item_id_list"])[:, 1:]
        apart[n_codes] = (scores - scores[:, :1]).abs().max().item()
    assert apart[0] < 1e-4 < apart[4]


def test_ids_are_decoded_without_identity_codes(data):
    model, _, _ = make(data, scoring="generate", n_identity_codes=4)
    assert model.decoder.trie.depth == data[1][0]._dataset.catalogue.semantic_ids.codes.shape[1]


def test_full_loss_is_the_cross_entropy_over_all_items(data):
    model, batches, _ = make(data, n_negatives=0, **PLAIN)
    model.eval()
    items, targets = batches[0]["item_id_list"], batches[0]["target_list"]
    expected = []
    for row, column in torch.nonzero(targets).tolist():
        scores = model.score(items[row : row + 1, : column + 1])[0]
        expected.append(torch.logsumexp(scores[1:], 0) - scores[targets[row, column]])
    torch.testing.assert_close(model.calculate_loss(batches[0]), torch.stack(expected).mean())


def test_sampled_loss_is_the_full_one_where_all_items_are_drawn(data):
    full, batches, _ = make(data, n_negatives=0, **PLAIN)
    full.eval()
    for n_negatives in (full.n_items - 1, 4000):  # the target among them; no item counts twice
        sampled, _, _ = make(data, n_negatives=n_negatives, **PLAIN)
        torch.testing.assert_close(sampled.eval().calculate_loss(batches[0]), full.calculate_loss(batches[0]))


@pytest.mark.parametrize("n_negatives", [5, 20])
def test_sampled_loss_is_as_large_for_few_negatives_as_for_many(data, n_negatives):
    """So the weight of the codes beside it means the same, however many negatives are drawn."""
    full, batches, _ = make(data, n_negatives=0, temperature=1.0, **PLAIN)
    sampled, _, _ = make(data, n_negatives=n_negatives, temperature=1.0, **PLAIN)
    full.eval(), sampled.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([sampled.calculate_loss(batches[0]) for _ in range(200)]).mean()
        # What is left is the concavity of the logarithm.
        assert drawn.item() == pytest.approx(full.calculate_loss(batches[0]).item(), rel=0.02)


def test_gradients_are_the_same_each_time_on_two_threads(data):
    model, batches, _ = make(data, **PLAIN)
    batch = {name: batches[0][name].repeat(100, 1) for name in ("item_id_list", "target_list")}
    batch["target_place"] = batch["target_list"].flatten().nonzero().squeeze(1)
    gradients = []
    torch.set_num_threads(2)
    try:
        for _ in range(3):
            model.zero_grad()
            torch.manual_seed(0)
            model.calculate_loss(batch).backward()
            gradients.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_without_codes_and_features_it_is_a_plain_sequence_model(data):
    off = {"use_code_embedding": False, "use_features": False, "similarity_attention": "off", "scoring": "dense"}
    model, batches, _ = make(data, **off)
    assert not any("code" in name or "project" in name or "similarity" in name for name in model.state_dict())
    assert torch.isfinite(model.calculate_loss(batches[0]))


def test_recboles_interactions_are_enough(data):
    model, _, _ = make(data)
    history = torch.zeros(1, 50, dtype=torch.long)
    history[0, :2] = torch.tensor([3, 4])
    rows = Interaction({"item_id_list": history, "item_length": torch.tensor([2]), "item_id": torch.tensor([7])})
    assert torch.isfinite(model.eval().predict(rows)).all()


SCORINGS = ("dense", "codes", "joint", "generate")


@pytest.mark.parametrize("scoring", SCORINGS)
def test_every_scoring_learns_with_every_parameter_and_ranks_all_items(data, scoring):
    model, batches, _ = make(data, **{**PLAIN, "scoring": scoring, "beam_size": 0})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        for batch in batches:
            optimizer.zero_grad()
            loss = model.train().calculate_loss(batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-len(batches) :]) < np.mean(losses[: len(batches)])
    # An item that lacks no modality leaves its stand-in alone, and no item is behind the last position.
    idle = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    assert not {name for name in idle if "missing" not in name}
    scores = model.eval().score(batches[0]["item_id_list"])
    assert scores.shape == (len(batches[0]["item_id_list"]), model.n_items) and torch.isfinite(scores[:, 1:]).all()


def test_joint_is_the_dense_score_and_the_weighed_codes(data):
    joint, batches, _ = make(data, **{**PLAIN, "scoring": "joint", "code_weight": 0.3})
    dense, _, _ = make(data, **{**PLAIN, "scoring": "dense"})
    histories = batches[0]["item_id_list"]
    shared = {name: value for name, value in joint.state_dict().items() if not name.startswith("code_heads")}
    dense.load_state_dict(shared)
    joint.eval(), dense.eval()
    lengths = (histories != 0).sum(1)
    hidden = joint(histories)[torch.arange(len(histories)), lengths - 1]
    codes = joint.code_heads.states(hidden) @ joint.code_heads.rows(torch.arange(joint.n_items)).T
    torch.testing.assert_close(joint.score(histories), dense.score(histories) + 0.3 * codes)


@pytest.mark.parametrize("scoring", ["dense", "codes", "joint", "generate"])
def test_what_histories_share_is_a_value_that_changes_no_score(data, scoring):
    model, batches, _ = make(data, scoring=scoring)
    model.eval()
    histories, some = batches[0]["item_id_list"], torch.tensor([3, 1, 7])
    expected, state = model.score(histories), dict(vars(model))
    shared = model.shared()
    assert torch.equal(model.score(histories, shared=shared), expected)
    torch.testing.assert_close(model.score(histories, some, shared=shared), expected[:, some])
    assert vars(model) == state, "nothing of it stays in the model"
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value))
    assert not torch.allclose(model.score(histories), expected)


def test_however_it_is_scored_the_encoder_starts_from_the_same_weights(data):
    models = {scoring: make(data, scoring=scoring)[0].state_dict() for scoring in SCORINGS}
    for name, value in models["dense"].items():
        assert all(torch.equal(value, weights[name]) for weights in models.values()), name


def test_a_beam_finds_what_exact_scoring_ranks_first_and_leaves_out_the_excluded(data):
    exact, batches, _ = make(data, scoring="generate", beam_size=0)
    beam, _, _ = make(data, scoring="generate", beam_size=exact.n_items)
    exact.eval(), beam.eval()
    histories = batches[0]["item_id_list"]
    assert beam.is_beam_search and not exact.is_beam_search
    torch.testing.assert_close(beam.score(histories)[:, 1:], exact.score(histories)[:, 1:])
    rows = torch.arange(len(histories))
    excluded = rows, histories[:, 0]
    assert beam.score(histories, excluded=excluded)[excluded].isneginf().all()
    few, _, _ = make(data, scoring="generate", beam_size=3)
    assert (few.eval().score(histories)[:, 1:].isfinite().sum(1) <= 3).all()


@pytest.mark.parametrize("scoring", ["codes", "generate"])
def test_scoring_by_codes_needs_codes(data, scoring):
    dataset = data[1][0]._dataset
    before, dataset.catalogue = dataset.catalogue, replace(dataset.catalogue, semantic_ids=None)
    try:
        with pytest.raises(InputError, match=f"scoring: found {scoring}, but there are no codes"):
            make(data, scoring=scoring, similarity_attention="off")
    finally:
        dataset.catalogue = before
