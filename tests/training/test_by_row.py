"""Tables updated by row: as plain AdamW and its average, resumed to the last bit, chosen for large catalogues alone."""

import copy

import pytest
import torch
from conftest import settings
from torch import nn

from recbole_bbqrec import quick_start
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model import batch_items, bbqrec
from recbole_bbqrec.training.averaging import AveragedAdamW

N_ROWS, RATES = 40, {"lr": 0.01, "weight_decay": 0.01}


class Pair(nn.Module):
    """A table and a weight that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.shared = nn.Embedding(N_ROWS, 4, padding_idx=0), nn.Linear(4, 1)

    def forward(self, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (self.shared(self.table(rows)).squeeze(1) - targets).square().mean()


def model_and_optimizer(by_row: bool) -> tuple[Pair, AveragedAdamW]:
    torch.manual_seed(0)
    model = Pair()
    return model, AveragedAdamW(model.parameters(), [model.table] if by_row else [], **RATES)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Six rows, low ones often and high ones seldom, and the last ones never."""
    generator = torch.Generator().manual_seed(step)
    chances = torch.arange(1, N_ROWS - 2).float() ** -1.5
    rows = torch.multinomial(chances, 6, generator=generator) + 1
    return rows.sort().values, torch.randn(6, generator=generator) + rows / 10


def train(model: Pair, optimizer: AveragedAdamW, steps: range) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = model(*batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("falls", [False, True])
def test_rows_that_are_seldom_read_stand_where_plain_adamw_has_moved_them(falls) -> None:
    """Also where the rate falls to 0: what a row has missed was at the rates of then."""
    found = {}
    for by_row in (False, True):
        model, optimizer = model_and_optimizer(by_row)
        losses = []
        for step in range(400):
            for group in optimizer.param_groups:
                group["lr"] = RATES["lr"] * (1 - step / 400 if falls else 1)
            losses += train(model, optimizer, range(step, step + 1))
        with optimizer.averaged():
            averages = model.table.weight.detach().clone()
        model.table(torch.arange(N_ROWS))  # brings what is read up to date
        state = optimizer.state[model.table.weight]
        moments = [state[name].clone() for name in ("exp_avg", "exp_avg_sq")]
        found[by_row] = [torch.tensor(losses), model.table.weight.detach().clone(), averages, *moments]
    start = model_and_optimizer(False)[0].table.weight.detach()
    moved = (found[False][1] - start).abs().max()
    assert moved > (0.3 if falls else 0.5)  # what follows is of another order than that
    for plain, mine, tolerance in zip(*found.values(), (0.02, 0.01, 0.01, 0.005, 0.005), strict=True):
        torch.testing.assert_close(mine, plain, rtol=0.02, atol=tolerance)


def test_without_what_happens_between_reads_the_rows_would_stand_elsewhere(monkeypatch) -> None:
    """The tolerance above is not what makes it pass."""
    plain, optimizer = model_and_optimizer(False)
    train(plain, optimizer, range(400))
    monkeypatch.setattr("recbole_bbqrec.training.averaging.caught_up", lambda rows, *_: rows)
    mine, optimizer = model_and_optimizer(True)
    train(mine, optimizer, range(400))
    assert (mine.table.weight - plain.table.weight).abs().max() > 0.05


def test_saved_and_loaded_state_goes_on_to_the_same_numbers() -> None:
    model, optimizer = model_and_optimizer(True)
    train(model, optimizer, range(50))
    again, other = model_and_optimizer(True)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with optimizer.averaged():
        pass  # an evaluation changes nothing
    assert train(model, optimizer, range(50, 90)) == train(again, other, range(50, 90))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))
    with optimizer.averaged(), other.averaged():
        assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


def test_padding_stays_zero_and_gradients_hold_the_rows_that_were_read() -> None:
    model, optimizer = model_and_optimizer(True)
    (model.table(torch.tensor([0, 3, 0, 7])) * torch.tensor([[0.0], [1.0], [0.0], [1.0]])).sum().backward()
    gradient = model.table.weight.grad
    assert gradient is not None and gradient.is_sparse and gradient._values().shape == (4, 4)
    optimizer.step()
    assert not model.table.weight[0].any()
    with optimizer.averaged():
        assert not model.table.weight[0].any()


@pytest.fixture
def large(monkeypatch):
    """Let the tiny catalogue count as large."""
    for module in (batch_items, bbqrec):
        monkeypatch.setattr(module, "LARGE", 5)


@pytest.mark.parametrize("changes", [{}, {"scoring": "codes"}, {"scoring": "generate", "second_stage": "off"}])
def test_a_large_catalogue_trains_by_row_to_about_the_same(tiny, tmp_path, large, monkeypatch, changes) -> None:
    given = settings(tiny, epochs=3, n_negatives=4, second_stage="off") | changes
    by_row = quick_start.train(quick_start.Config(config_dict={**given, "checkpoint_dir": str(tmp_path / "large")}))
    model = by_row.trainer.model
    assert model.item_table.id_embedding.sparse and model.large_table is model.item_table.id_embedding
    monkeypatch.setattr(bbqrec, "LARGE", 10**9)  # the same negatives, updates of all rows
    dense = quick_start.train(quick_start.Config(config_dict={**given, "checkpoint_dir": str(tmp_path / "small")}))
    assert not dense.trainer.model.item_table.id_embedding.sparse
    losses = [list(run.trainer.train_loss_dict.values()) for run in (by_row, dense)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_where_all_items_are_scored_or_gradients_clipped_all_rows_are_updated(tiny, tmp_path, large) -> None:
    for changes in ({"n_negatives": 0}, {"clip_grad_norm": {"max_norm": 5}}, {"average_weights": False}):
        given = settings(tiny, epochs=1, checkpoint_dir=str(tmp_path), second_stage="off") | changes
        trained = quick_start.train(quick_start.Config(config_dict=given))
        assert not trained.trainer.model.item_table.id_embedding.sparse, changes


def test_a_killed_run_by_row_goes_on_to_the_same_weights(tiny, tmp_path, large) -> None:
    class Killed(Exception):
        pass

    def kill(trainer) -> None:
        if trainer.state.epochs_done == 2:
            raise Killed

    results = []
    for name, watch in (("whole", None), ("killed", kill)):
        given = settings(tiny, epochs=4, checkpoint_dir=str(tmp_path / name), n_negatives=4, second_stage="off")
        if watch:
            with pytest.raises(Killed):
                quick_start.train(quick_start.Config(config_dict=given), after_epoch=watch)
        results.append(quick_start.train(quick_start.Config(config_dict=given)).trainer.model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("n_items", [8, 1_000_004])
def test_negatives_are_different_items_and_none_is_preferred(n_items, monkeypatch) -> None:
    monkeypatch.setattr(batch_items, "LARGE", 5)
    torch.manual_seed(0)
    drawn = torch.stack([batch_items.draw_negatives(n_items, 4, torch.device("cpu")) for _ in range(3000)])
    assert drawn.min() >= 1 and drawn.max() < n_items
    assert all(len(set(row.tolist())) == 4 for row in drawn)
    share = drawn.flatten().bincount()[1:8].float() / drawn.numel() if n_items == 8 else drawn.float().mean() / n_items
    expected = torch.full((7,), 1 / 7) if n_items == 8 else torch.tensor(0.5)
    torch.testing.assert_close(share, expected, rtol=0.06, atol=0.0)


def test_what_a_gpu_finds_without_waiting_is_what_unique_finds() -> None:
    items = torch.tensor([5, 0, 3, 5, 9, 3, 0])
    found, place = batch_items.different(items)
    padded, its_place = batch_items._different_of_fixed_size(items)
    assert torch.equal(padded[: len(found)], found) and not padded[len(found) :].any()
    assert torch.equal(padded[its_place], items) and torch.equal(found[place], items)


def test_rates_that_training_cannot_bear_end_it(tiny, tmp_path) -> None:
    given = settings(tiny, epochs=1, checkpoint_dir=str(tmp_path), learning_rate=1e30, second_stage="off")
    with pytest.raises(InputError, match="the training loss is not finite"):
        quick_start.train(quick_start.Config(config_dict={**given, "epochs": 3}))
