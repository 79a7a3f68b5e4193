"""What each objective moves, and that nothing stays unmoved."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recbole_bbqrec.tokenizer import training
from recbole_bbqrec.tokenizer.base import flat_sequences
from recbole_bbqrec.tokenizer.batches import Windows, some
from recbole_bbqrec.tokenizer.behavior_bind import BehaviorBind, Catalogue, Whitening
from recbole_bbqrec.tokenizer.losses import Probe
from recbole_bbqrec.tokenizer.measures import independence
from recbole_bbqrec.tokenizer.residual_quantizer import ResidualQuantizer
from recbole_bbqrec.tokenizer.training import Trainer

OBJECTIVES = ("commitment", "sequence_contrast", "cross_contrast", "reconstruction", "independence")

# Parts of the network each objective must move; it may move no other.
MOVES = {
    "commitment": {"quantizer", "behavior", "item_table"},
    "sequence_contrast": {"quantizer", "behavior", "item_table", "sequence"},
    "cross_contrast": {"quantizer", "behavior", "item_table"},
    "reconstruction": {"specific", "explained", "decoders"},
    "independence": {"behavior", "specific"},
}


def make_trainer(world, mode="concat", use_id=True, shared=True, **weights) -> Trainer:
    torch.manual_seed(0)
    widths = {name: matrix.shape[1] for name, matrix in world.features.items()}
    sets = 1 if shared or mode == "fused" else len(widths) + use_id
    quantizer = ResidualQuantizer(levels=2, size=8, dim=8, sets=sets)
    network = BehaviorBind(widths, world.n_items if use_id else 0, quantizer, mode)
    catalogue = Catalogue(list(world.features.values()), torch.stack(list(world.present.values())))
    windows = Windows(*flat_sequences(world.sequences, world.n_items), 20)
    weights = {**dict.fromkeys(OBJECTIVES, 1.0), **weights}
    trainer = Trainer(network, catalogue, windows, weights, 10, 1e-3, torch.Generator().manual_seed(0))
    trainer.n_warmup = 0
    trainer.start_codebooks()
    return trainer


VARIANTS = {"default": {}, "own codebooks": {"shared": False}, "no ID": {"use_id": False}}


def gradients_of(trainer: Trainer) -> dict[str, torch.Tensor | None]:
    """Gradients by parameter; that of the item table [N, D] lies with the rows that a step reads."""
    found = {name: parameter.grad for name, parameter in trainer.network.named_parameters()}
    if trainer.table is not None and trainer.table.values.grad is not None:
        rows = torch.zeros_like(trainer.table.table)
        found["item_table"] = rows.index_copy(0, trainer.table.rows, trainer.table.values.grad)
    return found


def parts_of(trainer: Trainer) -> set[str]:
    """Parts of a network that training may move."""
    return {name.split(".")[0] for name, _ in trainer.network.named_parameters()}


def parts_moved(trainer: Trainer) -> set[str]:
    moved = set()
    for name, gradient in gradients_of(trainer).items():
        if gradient is not None and gradient.abs().max() > 1e-12:
            moved.add(name.split(".")[0])
    return moved


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["chained", "concat", "fused"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_moves_its_parts_and_only_them(world, objective, mode, variant):
    trainer = make_trainer(world, mode, **VARIANTS[variant])
    if objective == "independence":  # it has something to say only where the two embeddings tell of each other
        for modality, parts in trainer.losses(*next(trainer.batches()))[2].items():
            fit_exactly(trainer.probes[modality], *parts)
    trainer.losses(*next(trainer.batches()))[0][objective].backward()
    # Fused signals are one; there is nothing to contrast it with.
    expected = set() if (objective, mode) == ("cross_contrast", "fused") else MOVES[objective]
    assert parts_moved(trainer) == expected & parts_of(trainer)


def fit_exactly(probe: Probe, x: torch.Tensor, y: torch.Tensor) -> None:
    with torch.enable_grad():
        optimizer = torch.optim.Adam(probe.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            probe.fit_loss(x, y).backward()
            optimizer.step()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["chained", "concat", "fused"])
@pytest.mark.parametrize("modalities", ["text image", "image"])
def test_every_parameter_receives_a_gradient(world, mode, variant, modalities):
    names = modalities.split()
    world = world._replace(
        features={name: world.features[name] for name in names}, present={name: world.present[name] for name in names}
    )
    trainer = make_trainer(world, mode, **VARIANTS[variant])
    windows, valid, _ = next(trainer.batches())
    sum(trainer.losses(windows, valid, torch.arange(world.n_items))[0].values()).backward()
    silent = [name for name, found in gradients_of(trainer).items() if found is None or not found.any()]
    assert silent == []


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_weight_counts_where_its_objective_does_and_nowhere_else(world, objective, monkeypatch):
    """Gradients of a step with the weight at 0, at 1 and at 2 lie on one line, and differ in the objective's parts."""
    monkeypatch.setattr(training, "GRADIENT_NORM", float("inf"))
    batch, gradients = next(make_trainer(world).batches()), []
    for weight in (0.0, 1.0, 2.0):
        trainer = make_trainer(world, **{objective: weight})
        trainer.network.train()  # as in a step: the specific part is standardised over the batch
        for modality, parts in trainer.losses(*batch)[2].items():
            fit_exactly(trainer.probes[modality], *parts)
        torch.manual_seed(1)  # the same dropout
        trainer.step(batch, 1)
        gradients.append(gradients_of(trainer))
    off, on, twice = gradients
    moved = set()
    for name, value in on.items():
        before = torch.zeros_like(value) if off[name] is None else off[name]
        torch.testing.assert_close(twice[name] - value, value - before, atol=1e-5, rtol=1e-3)
        if (value - before).abs().max() > 1e-6:
            moved.add(name.split(".")[0])
    assert moved == MOVES[objective]


def test_the_behaviour_gradient_reaches_the_codebook_vectors(world):
    trainer = make_trainer(world, mode="chained")
    losses, bound, _ = trainer.losses(*next(trainer.batches()))
    losses["sequence_contrast"].backward()
    gradient = trainer.network.quantizer.codebooks.grad
    used = torch.zeros(2, 8, dtype=torch.bool)
    for level in range(2):
        used[level, bound.codes[..., level].flatten().clamp(min=0)] = True
    assert (gradient.abs().sum(-1) > 0).sum() > 0.8 * used.sum()
    assert (gradient[~used] == 0).all()


def test_in_a_chain_the_next_signal_quantises_what_the_previous_left_over(world):
    network = make_trainer(world, mode="chained").network.eval()
    features, known = list(world.features.values()), torch.stack(list(world.present.values()))
    signals = network.signals(features, known, network.item_table)
    bound = network.bind(signals, known)
    torch.testing.assert_close(bound.inputs[0], signals[0])
    left_text = bound.inputs[0] - bound.vectors[0]
    has = known[1].unsqueeze(1)
    torch.testing.assert_close(bound.inputs[1], (signals[1] + left_text) * has)
    left_image = torch.where(has, bound.inputs[1] - bound.vectors[1], left_text)
    torch.testing.assert_close(bound.inputs[2], signals[2] + left_image)


def test_signals_have_unit_length_and_missing_ones_are_zero(world):
    network = make_trainer(world).network
    known = torch.stack(list(world.present.values()))
    lengths = network.signals(list(world.features.values()), known, network.item_table).norm(dim=-1)
    torch.testing.assert_close(lengths, network.signals_known(known).float())


def test_the_specific_part_sees_only_what_behaviour_leaves_unexplained(world):
    """What is added to the features and explained at once is rebuilt, and says nothing to the specific part."""
    network = make_trainer(world).network.eval()
    x, behavior, shift = world.features["text"], torch.randn(world.n_items, 8), torch.randn(12)
    before = network.split(0, x, behavior)
    with torch.no_grad():
        network.explained[0][-1].bias += shift
    after = network.split(0, x + shift, behavior)
    torch.testing.assert_close(after.specific, before.specific)
    torch.testing.assert_close(after.decoded, before.decoded + shift)
    assert not torch.allclose(network.split(0, x, behavior).specific, before.specific)


def test_whitened_parts_have_unit_covariance_and_keep_to_it_after_training():
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(4000, 1, generator=generator) * torch.ones(1, 4)  # nearly all along one direction
    rows = 5 + 10 * line + torch.randn(4000, 4, generator=generator)
    whitening = Whitening(4)
    for batch in rows.split(100):
        torch.testing.assert_close(torch.cov(whitening(batch).T, correction=0), torch.eye(4), atol=5e-3, rtol=0)
    once, again = whitening.eval()(rows), whitening(rows)
    assert torch.equal(once, again)
    torch.testing.assert_close(torch.cov(once.T), torch.eye(4), atol=0.2, rtol=0)
    assert Whitening(4)(rows[:2]).isfinite().all()  # fewer items than dimensions


@pytest.mark.parametrize("knows_explained", [True, False])
def test_features_of_two_sources_come_apart(world, knows_explained):
    """Features mix behaviour and something else; trained to rebuild them, the specific part holds the something else.

    With an explanation that stays at zero it holds both.
    """
    torch.manual_seed(0)
    behavior = nn.functional.normalize(torch.randn(600, 8), dim=-1) * 8**0.5
    other = torch.randn(600, 4)
    x = torch.cat([behavior, other], dim=1) @ torch.linalg.qr(torch.randn(12, 12))[0]
    network = make_trainer(world).network
    if not knows_explained:
        nn.init.zeros_(network.explained[0][-1].weight).requires_grad_(False)
        nn.init.zeros_(network.explained[0][-1].bias).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        parts = network.split(0, x, behavior)
        ((parts.decoded - x).square().mean() + (parts.explained - x).square().mean()).backward()
        optimizer.step()
    specific = network.split(0, x, behavior).specific.detach()
    of_behavior, of_other = (independence(specific, part, seed=0)["r2"] for part in (behavior, other.repeat(1, 2)))
    assert of_other > 0.7
    assert of_behavior < 0.1 if knows_explained else of_behavior > 0.2


def test_fused_signals_are_the_mean_of_those_an_item_has(world):
    network = make_trainer(world, mode="fused").network
    known = torch.stack(list(world.present.values()))
    signals = network.signals(list(world.features.values()), known, network.item_table)
    bound = network.bind(signals, known)
    assert bound.codes.shape == (1, 60, 2) and (bound.codes >= 0).all()
    torch.testing.assert_close(bound.inputs[0, 0], (signals[0, 0] + signals[2, 0]) / 2)  # item 0 has no image


@pytest.mark.parametrize("use_id", [True, False])
@pytest.mark.parametrize("mode", ["chained", "concat", "fused"])
def test_permuting_items_with_their_table_rows_permutes_codes(world, mode, use_id):
    network = make_trainer(world, mode, use_id).network.eval()
    order = torch.randperm(world.n_items, generator=torch.Generator().manual_seed(1))
    known = torch.stack(list(world.present.values()))
    every = torch.arange(world.n_items)
    plain = network.bind(network.signals(list(world.features.values()), known, network.id_rows(every)), known)
    moved = [matrix[order] for matrix in world.features.values()]
    other = network.bind(network.signals(moved, known[:, order], network.id_rows(order)), known[:, order])
    assert torch.equal(other.codes, plain.codes[:, order])


@pytest.mark.parametrize("mode", ["chained", "concat", "fused"])
def test_permuting_items_leaves_every_objective_as_it_is(world, mode):
    """Numbers of items mean nothing to the objectives: only what is drawn by number depends on them."""
    order = torch.randperm(world.n_items, generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order)  # new number of each item
    trainer = make_trainer(world, mode)
    batch = next(trainer.batches())
    moved = make_trainer(
        world._replace(
            features={name: matrix[order] for name, matrix in world.features.items()},
            present={name: mask[order] for name, mask in world.present.items()},
        ),
        mode,
    )
    moved.network.load_state_dict(trainer.network.state_dict())
    with torch.no_grad():
        moved.network.item_table.copy_(trainer.network.item_table[order])
    for one in (trainer, moved):
        one.network.eval()
    windows, valid, drawn = batch
    expected, found = trainer.losses(*batch)[0], moved.losses(place[windows], valid, place[drawn])[0]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_the_sequence_encoder_does_not_see_the_future(world):
    encoder = make_trainer(world).network.sequence.eval()
    items = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(0))
    changed = items.clone()
    changed[:, 4:] += 1.0
    torch.testing.assert_close(encoder(items)[:, :4], encoder(changed)[:, :4])
    torch.testing.assert_close(encoder(items)[:, :4], encoder(items[:, :4]))


def test_dead_codes_come_back_during_training(world):
    trainer = make_trainer(world)
    quantizer = trainer.network.quantizer
    with torch.no_grad():
        quantizer.codebooks[0, :7] = 100.0
    quantizer.usage[0, :7] = 0.0
    trainer.step(next(trainer.batches()), 0)
    codes = trainer.losses(*next(trainer.batches()))[1].codes[..., 0]
    assert len(torch.unique(codes[codes >= 0])) >= 6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 9), st.integers(1, 40))
def test_every_item_but_the_first_of_a_sequence_is_a_target_once(lengths, length, batch_size):
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    windows = Windows(offsets, np.arange(offsets[-1]), length)
    pairs = []
    for items, valid in windows.epoch(batch_size, torch.Generator().manual_seed(0)):
        assert items.shape[1] == valid.shape[1] + 1 <= length + 1
        pairs += zip(items[:, :-1][valid].tolist(), items[:, 1:][valid].tolist(), strict=True)
    firsts = set(offsets[:-1].tolist())
    expected = [(place - 1, place) for place in range(offsets[-1]) if place not in firsts]
    assert sorted(pairs) == expected and windows.n_targets == len(expected)


def test_epochs_differ_and_repeat_with_the_seed():
    windows = Windows(np.arange(0, 101, 5), np.arange(100), 20)
    generator = torch.Generator().manual_seed(3)
    one, two = (torch.cat([i for i, _ in windows.epoch(16, generator)]) for _ in range(2))
    again = torch.cat([i for i, _ in windows.epoch(16, torch.Generator().manual_seed(3))])
    assert torch.equal(one, again) and not torch.equal(one, two)


def test_sets_are_drawn_anew_in_every_epoch_and_their_order_says_nothing():
    offsets, items = np.array([0, 4, 4, 9]), np.array([3, 1, 2, 1, 7, 5, 6, 8, 9])
    shuffled = np.array([1, 2, 1, 3, 9, 8, 7, 6, 5])
    one, other = (
        [
            [(rows.tolist(), valid.tolist()) for rows, valid in windows.epoch(3, generator)]
            for windows, generator in [(Windows(offsets, given, 20, in_order=False), torch.Generator().manual_seed(1))]
            for _ in range(2)
        ]
        for given in (items, shuffled)
    )
    assert one == other and one[0] != one[1]
    for epoch in one:
        shown = sorted(sorted({*row}) for rows, _ in epoch for row in rows)
        assert shown == [[1, 2, 3], [5, 6, 7, 8, 9]], "each item of a user once, no other user's"


@pytest.mark.parametrize("mode", ["chained", "concat", "fused"])
def test_items_that_quantise_to_the_same_codes_are_no_negatives_of_each_other(world, mode):
    """With one code in each codebook all items are one: there is nothing to contrast, in any signal."""
    present = {name: torch.ones_like(has) for name, has in world.present.items()}
    trainer = make_trainer(world._replace(present=present), mode)
    batch = next(trainer.batches())
    before = trainer.losses(*batch, quantised=False)[0]  # where items are told apart
    trainer.network.quantizer.codebooks.data = trainer.network.quantizer.codebooks.data[:, :1]
    after = trainer.losses(*batch)[0]
    assert before["sequence_contrast"] > 1
    assert after["sequence_contrast"].item() == pytest.approx(0, abs=1e-6)
    assert after["cross_contrast"].item() == pytest.approx(0, abs=1e-6)


def test_a_batch_draws_no_item_twice(world):
    for _, _, drawn in itertools.islice(make_trainer(world).batches(), 5):
        assert len(drawn.unique()) == len(drawn) == world.n_items


def test_random_items_come_more_rarely_in_long_trainings_and_weigh_as_much_more(world):
    windows = make_trainer(world).windows
    trainer = make_trainer(world)
    assert trainer.every == 1
    trainer.every = 3
    drawn = [len(drawn) for _, _, drawn in itertools.islice(trainer.batches(), 7)]
    assert drawn == [60, 0, 0, 60, 0, 0, 60]
    items, valid = next(windows.epoch(512, torch.Generator().manual_seed(0)))
    losses, _, pairs = trainer.losses(items, valid, torch.zeros(0, dtype=torch.long))
    assert losses.keys() == {"commitment", "sequence_contrast"} and not pairs


def test_items_have_one_label_where_they_have_one_vector():
    codes = torch.randint(3, (2, 400, 12), generator=torch.Generator().manual_seed(0))
    codes[:, ::3] = codes[:, :1]
    for chain, label in zip(codes, training.labels_of(codes), strict=True):
        alike = (chain.unsqueeze(0) == chain.unsqueeze(1)).all(-1)
        assert torch.equal(label.unsqueeze(0) == label.unsqueeze(1), alike)


def test_large_catalogues_are_drawn_from_without_repetition():
    drawn = some(10_000, 512, torch.Generator().manual_seed(0))
    assert len(drawn.unique()) == len(drawn) > 450 and drawn.max() < 10_000


def test_losses_are_averaged_over_the_steps_that_name_them():
    found = training.run_steps(
        lambda index: {"a": torch.tensor(1.0 * index)} | ({"b": torch.tensor(2.0)} if index == 3 else {}),
        400,
        "",
        False,
    )
    assert found["a"][:2] == [1.5, 5.5] and found["b"] == [2.0] * 100 and len(found["a"]) == 100


def test_on_its_device_a_training_makes_the_codes_that_the_cpu_makes_within_rounding(world, device):
    """A step there leaves what a step on the CPU leaves; later ones may choose other codes where two are as near."""
    trainers = [make_trainer(world), make_trainer(world)]
    other = trainers[1]
    network, known = other.network.to(device), other.catalogue.known.to(device)
    catalogue = Catalogue([matrix.to(device) for matrix in other.catalogue.features], known)
    trainers[1] = Trainer(network, catalogue, other.windows, other.weights, 10, 1e-3, torch.Generator().manual_seed(0))
    trainers[1].n_warmup = 0
    batch = next(make_trainer(world).batches())
    states = []
    for trainer in trainers:
        for module in trainer.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer.step(batch, 1)
        states.append(trainer.network.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name].cpu(), value, atol=2e-3, rtol=1e-2, msg=name)
