"""What each objective moves, and that nothing stays unmoved."""

import pytest
import torch
from torch import nn

from recbole_bbqrec.tokenizer.batches import Windows
from recbole_bbqrec.tokenizer.behavior_bind import BehaviorBind
from recbole_bbqrec.tokenizer.encoding import Catalogue
from recbole_bbqrec.tokenizer.inputs import flat_sequences
from recbole_bbqrec.tokenizer.losses import Club
from recbole_bbqrec.tokenizer.residual_quantizer import ResidualQuantizer
from recbole_bbqrec.tokenizer.training import GRADIENT_NORM, Schedule, Trainer

OBJECTIVES = ("commitment", "sequence_contrast", "cross_contrast", "reconstruction", "club")

# Parts of the network each objective must move; it may move no other.
MOVES = {
    "commitment": {"quantizer", "behavior", "item_table"},
    "sequence_contrast": {"quantizer", "behavior", "item_table", "sequence"},
    "cross_contrast": {"quantizer", "behavior", "item_table"},
    "reconstruction": {"quantizer", "behavior", "specific", "decoders"},
    "club": {"behavior", "specific"},
}


def make_trainer(world, mode="concat", **weights) -> Trainer:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(levels=2, size=8, dim=8)
    widths = {name: matrix.shape[1] for name, matrix in world.features.items()}
    network = BehaviorBind(widths, world.n_items, quantizer, mode, max_length=20, hidden=16)
    clubs = nn.ModuleList(Club(8, 8) for _ in widths)
    known = torch.stack(list(world.present.values()))
    catalogue = Catalogue(list(world.features.values()), known)
    schedule = Schedule(10, 0, 64, 1e-3, 0.07, {**dict.fromkeys(OBJECTIVES, 1.0), **weights}, False)
    windows = Windows(*flat_sequences(world.sequences, world.n_items), 20)
    trainer = Trainer(network, clubs, catalogue, windows, schedule, torch.Generator().manual_seed(0))
    trainer.start_codebooks()
    for club in clubs:  # an estimator that has learned nothing may sit at the clamp
        nn.init.normal_(club.mean.weight, std=0.5)
    return trainer


def parts_moved(network: nn.Module) -> set[str]:
    moved = set()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-12:
            moved.add(name.split(".")[0])
    return moved


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_moves_its_parts_and_only_them(world, objective):
    trainer = make_trainer(world)
    with torch.no_grad():  # CLUB has something to say only where the two embeddings tell of each other
        x = trainer.catalogue.features[0]
        for club, specific, behavior in trainer.losses(next(trainer.batches()))[2]:
            fit_exactly(club, specific, behavior)
    assert len(x)
    trainer.losses(next(trainer.batches()))[0][objective].backward()
    assert parts_moved(trainer.network) == MOVES[objective]


def fit_exactly(club: Club, x: torch.Tensor, y: torch.Tensor) -> None:
    with torch.enable_grad():
        optimizer = torch.optim.Adam(club.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            club.fit_loss(x, y).backward()
            optimizer.step()


def test_every_parameter_receives_a_gradient(world):
    trainer = make_trainer(world)
    batch = next(trainer.batches())
    batch = batch._replace(drawn=torch.arange(world.n_items))
    sum(trainer.losses(batch)[0].values()).backward()
    silent = [
        name
        for name, parameter in trainer.network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_weight_of_zero_switches_an_objective_off(world, objective):
    batch = next(make_trainer(world).batches())
    without, by_hand, full = make_trainer(world, **{objective: 0.0}), make_trainer(world), make_trainer(world)
    for trainer in (without, by_hand, full):
        for club, specific, behavior in trainer.losses(batch)[2]:
            fit_exactly(club, specific, behavior)
        trainer.network.train()
        torch.manual_seed(1)  # the same dropout
        if trainer is by_hand:
            losses = trainer.losses(batch)[0]
            trainer.optimizer.zero_grad(set_to_none=True)
            sum(value for name, value in losses.items() if name != objective).backward()
            nn.utils.clip_grad_norm_(trainer.network.parameters(), GRADIENT_NORM)
        else:
            trainer.step(batch, 0)
    gradients = [
        {name: value.grad for name, value in trainer.network.named_parameters() if value.grad is not None}
        for trainer in (without, by_hand, full)
    ]
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, msg=name)
    assert any(not torch.equal(gradients[0][name], value) for name, value in gradients[2].items())


def test_the_behaviour_gradient_reaches_the_codebook_vectors(world):
    trainer = make_trainer(world, mode="chained")
    losses, bound, _ = trainer.losses(next(trainer.batches()))
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
    torch.testing.assert_close(lengths, network.with_id(known).float())


def test_fused_signals_are_the_mean_of_those_an_item_has(world):
    network = make_trainer(world, mode="fused").network
    known = torch.stack(list(world.present.values()))
    signals = network.signals(list(world.features.values()), known, network.item_table)
    bound = network.bind(signals, known)
    assert bound.codes.shape == (1, 60, 2) and (bound.codes >= 0).all()
    torch.testing.assert_close(bound.inputs[0, 0], (signals[0, 0] + signals[2, 0]) / 2)  # item 0 has no image


@pytest.mark.parametrize("mode", ["chained", "concat", "fused"])
def test_permuting_items_permutes_codes(world, mode):
    network = make_trainer(world, mode=mode).network.eval()
    order = torch.randperm(world.n_items, generator=torch.Generator().manual_seed(1))
    known = torch.stack(list(world.present.values()))
    plain = network.bind(network.signals(list(world.features.values()), known, network.item_table), known)
    moved = [matrix[order] for matrix in world.features.values()]
    other = network.bind(network.signals(moved, known[:, order], network.item_table[order]), known[:, order])
    assert torch.equal(other.codes, plain.codes[:, order])


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
    codes = trainer.losses(next(trainer.batches()))[1].codes[..., 0]
    assert len(torch.unique(codes[codes >= 0])) >= 6
