from itertools import product

import pytest
import torch

from recbole_bbqrec.model import generator
from recbole_bbqrec.model.attention import LayerSettings
from recbole_bbqrec.model.catalogue import SemanticIds
from recbole_bbqrec.model.generator import CodeDecoder

WIDTH, LENGTH = 16, 6


def ids_of(n_positions, size, n_items, seed=0, missing=True):
    """Different IDs [n_items + 1, n_positions] below a padding row, some codes missing."""
    values = range(-1 if missing else 0, size)
    every = torch.tensor(list(product(values, repeat=n_positions)))
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:n_items]
    return torch.cat([torch.full((1, n_positions), -1), every[chosen]])


def make(codes=None, size=4, n_layers=1, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    codes = ids_of(3, size, 30) if codes is None else codes
    ids = SemanticIds(codes, torch.zeros(0), torch.zeros(0), [], size)
    decoder = CodeDecoder(ids, n_layers, LayerSettings(WIDTH, 32, 2, dropout, dropout))
    # Large weights: with the usual small ones all items are about equally likely and much would pass unseen.
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return decoder.eval()


def loss_of(decoder, memory, mask, items):
    """Loss of one target per history."""
    return decoder.loss(memory, mask.unsqueeze(1), items.unsqueeze(1))


def histories(n_rows=5, length=LENGTH, seed=1):
    """States [B, T, H] and which of them are real; rows of different length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.arange(n_rows) % length + 1
    return torch.randn(n_rows, length, WIDTH, generator=generator), torch.arange(length) < lengths.unsqueeze(1)


SHAPES = pytest.mark.parametrize(("n_positions", "n_layers"), [(1, 1), (3, 1), (3, 2), (4, 2)])


# Scoring


@SHAPES
def test_likelihoods_are_a_distribution_over_the_items(n_positions, n_layers):
    decoder = make(ids_of(n_positions, 20 if n_positions == 1 else 4, 18), 20 if n_positions == 1 else 4, n_layers)
    scores = decoder.score(*histories())
    assert (scores[:, 0] == -torch.inf).all() and torch.isfinite(scores[:, 1:]).all()
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(5))
    assert scores[:, 1:].std(1).min() > 0.1 and scores[:, 1:].std(0).max() > 0.1, "items and histories differ"


@SHAPES
def test_where_every_string_is_an_item_the_loss_is_the_negative_log_likelihood(n_positions, n_layers):
    """Teacher forcing over whole IDs against the walk through the trie with kept keys and values."""
    decoder = make(ids_of(n_positions, 2, 3**n_positions), 2, n_layers)
    memory, mask = histories()
    scores = decoder.score(memory, mask)
    for item in range(1, 3**n_positions + 1):
        items = torch.full((5,), item)
        torch.testing.assert_close(loss_of(decoder, memory, mask, items), -scores[:, item].mean(), rtol=1e-4, atol=1e-4)


def test_the_loss_bounds_the_negative_log_likelihood():
    decoder = make()
    memory, mask = histories()
    scores = decoder.score(memory, mask)
    for item in range(1, 31):
        loss = torch.stack(
            [loss_of(decoder, memory[row : row + 1], mask[row : row + 1], torch.tensor([item])) for row in range(5)]
        )
        assert (loss > -scores[:, item]).all()


@SHAPES
def test_a_beam_as_wide_as_the_catalogue_agrees_with_the_exact_likelihood(n_positions, n_layers):
    size = 20 if n_positions == 1 else 4
    decoder = make(ids_of(n_positions, size, 18), size, n_layers)
    exact, found = decoder.score(*histories()), decoder.score(*histories(), beam_size=18)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.argsort(1, descending=True), exact.argsort(1, descending=True))


def test_a_narrow_beam_finds_items_with_their_exact_scores():
    decoder = make(n_layers=2)
    exact, found = decoder.score(*histories()), decoder.score(*histories(), beam_size=4)
    inside = found > -torch.inf
    assert (inside.sum(1) == 4).all()
    torch.testing.assert_close(found[inside], exact[inside], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("entries", [1, 3000, 2**22])
def test_chunks_of_histories_change_nothing(monkeypatch, entries):
    decoder, (memory, mask) = make(), histories(9)
    excluded = torch.tensor([0, 3, 3, 8, 8]), torch.tensor([5, 1, 30, 2, 7])
    exact = torch.cat([decoder.score(memory[row : row + 1], mask[row : row + 1]) for row in range(9)])
    expected = exact.index_put(excluded, torch.tensor(-torch.inf))
    monkeypatch.setattr(generator, "ENTRIES", entries)
    torch.testing.assert_close(decoder.score(memory, mask), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder.score(memory, mask, 60, excluded), expected, rtol=1e-4, atol=1e-4)


def test_excluded_items_make_room_for_the_next_best():
    decoder = make(ids_of(1, 20, 18), 20)
    memory, mask = histories()
    ranking = decoder.score(memory, mask).argsort(1, descending=True)
    best = ranking[:, :3]
    excluded = torch.arange(5).repeat_interleave(3), best.flatten()
    found = decoder.score(memory, mask, 3, excluded)
    assert torch.equal(found.argsort(1, descending=True)[:, :3], ranking[:, 3:6])
    assert (found.gather(1, best) == -torch.inf).all()


@pytest.mark.parametrize("n_layers", [1, 2])
def test_padding_and_neighbours_change_nothing(n_layers):
    decoder, (memory, mask) = make(n_layers=n_layers), histories()
    wider = torch.cat([memory, torch.full((5, 3, WIDTH), 1e3)], dim=1).masked_fill(
        ~torch.nn.functional.pad(mask, (0, 3)).unsqueeze(-1), 1e3
    )
    padded = wider, torch.nn.functional.pad(mask, (0, 3))
    order, items = torch.tensor([3, 0, 4, 1, 2]), torch.arange(1, 6)
    for score in (decoder.score, lambda *rows: decoder.score(*rows, beam_size=7)):
        expected = score(memory, mask)
        torch.testing.assert_close(score(*padded), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(score(memory[order], mask[order]), expected[order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        loss_of(decoder, *padded, items), loss_of(decoder, memory, mask, items), rtol=1e-4, atol=1e-4
    )


def test_no_history_gives_no_row():
    memory, mask = torch.zeros(0, 4, WIDTH), torch.zeros(0, 4, dtype=torch.bool)
    assert make().score(memory, mask).shape == make().score(memory, mask, 5).shape == (0, 31)


# Training


@pytest.mark.parametrize("n_layers", [1, 2])
def test_sequence_loss_is_the_loss_of_every_prefix(n_layers):
    decoder, (states, _) = make(n_layers=n_layers), histories(3)
    targets = torch.tensor([[4, 8, 0, 0, 0, 0], [1, 2, 3, 4, 5, 30], [0, 0, 7, 9, 0, 0]])  # the third: a later window
    expected = []
    for row, column in targets.nonzero().tolist():
        memory = states[row : row + 1, : column + 1]
        expected.append(
            loss_of(decoder, memory, torch.ones(1, column + 1, dtype=torch.bool), targets[row, column].view(1))
        )
    torch.testing.assert_close(
        decoder.sequence_loss(states, targets), torch.stack(expected).mean(), rtol=1e-4, atol=1e-4
    )


def test_no_target_learns_from_states_behind_it():
    decoder, (states, _) = make(n_layers=2), histories(2)
    targets = torch.tensor([[0, 0, 5, 0, 0, 0], [0, 6, 0, 0, 0, 0]])
    states.requires_grad_()
    decoder.sequence_loss(states, targets).backward()
    used = states.grad.abs().sum(-1) > 0
    assert used.tolist() == [[True, True, True, False, False, False], [True, True, False, False, False, False]]


@SHAPES
def test_every_parameter_and_the_encoder_get_gradients(n_positions, n_layers):
    size = 20 if n_positions == 1 else 4
    decoder, (memory, mask) = make(ids_of(n_positions, size, 18), size, n_layers).train(), histories(18)
    memory.requires_grad_()
    loss_of(decoder, memory, mask, torch.arange(1, 19)).backward()
    silent = [name for name, value in decoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []
    assert torch.equal(memory.grad.abs().sum(-1) > 0, mask)


def test_training_finds_the_next_item():
    """The last state says which item follows, by a fixed random vector each; IDs are learned from that alone."""
    decoder = make(dropout=0.1).train()
    for module in decoder.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding, torch.nn.LayerNorm)):
            module.reset_parameters()
    signs = torch.randn(31, WIDTH, generator=torch.Generator().manual_seed(3))
    items = torch.arange(1, 31)
    memory = torch.stack([torch.zeros(30, WIDTH), signs[items]], dim=1)
    mask = torch.ones(30, 2, dtype=torch.bool)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = loss_of(decoder, memory, mask, items)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    decoder.eval()
    assert (decoder.score(memory, mask).argmax(1) == items).float().mean() > 0.9
    assert (decoder.score(memory, mask, 5).argmax(1) == items).float().mean() > 0.9


# The catalogue


def test_scoring_keeps_no_graph():
    decoder, (memory, mask) = make(), histories()
    memory.requires_grad_()
    assert not decoder.score(memory, mask).requires_grad
    assert not decoder.score(memory, mask, 5).requires_grad


def test_new_items_are_found_and_other_branches_stay_as_they_are():
    codes = torch.tensor([[-1, -1], [0, 0], [0, 1], [1, 0], [1, 2], [2, -1]])
    decoder = make(codes)
    before = decoder.score(*histories())
    grown = make(torch.cat([codes, torch.tensor([[1, 3], [1, -1]])]))
    grown.load_state_dict(decoder.state_dict())  # the weights know codes, not items
    after = grown.score(*histories())
    assert after.shape == (5, 8)
    torch.testing.assert_close(after.exp().sum(1), torch.ones(5))
    others = [1, 2, 5]
    torch.testing.assert_close(after[:, others], before[:, others])
    # Items under one prefix share its probability with those that join them.
    torch.testing.assert_close(after[:, [3, 4, 6, 7]].logsumexp(1), before[:, [3, 4]].logsumexp(1))
    torch.testing.assert_close(grown.score(*histories(), beam_size=9), after, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_one_catalogue_serves_the_same_model_again():
    decoder, other = make(seed=0), make(seed=7)
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other.score(*histories()), decoder.score(*histories()))
