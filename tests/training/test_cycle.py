"""One cycle of the learning rate: its course, that training ends with it, and that it goes on where it stopped."""

import pytest
import torch
from conftest import settings

from recbole_bbqrec import quick_start
from recbole_bbqrec.training.sequence_trainer import SequenceTrainer
from recbole_bbqrec.training.steps import one_cycle


@pytest.mark.parametrize("n_steps", [1, 7, 100])
def test_the_rate_rises_over_a_tenth_and_falls_without_reaching_zero(n_steps) -> None:
    shares = [one_cycle(at, n_steps) for at in range(1, n_steps + 1)]
    top = shares.index(max(shares))
    assert max(shares) == 1.0 and min(shares) > 0 and top == max(n_steps // 10, 1) - 1
    assert shares[: top + 1] == sorted(shares[: top + 1]) and shares[top:] == sorted(shares[top:], reverse=True)


def test_training_ends_with_the_cycle_which_is_no_cap(tiny, tmp_path, monkeypatch) -> None:
    rates, plain = [], SequenceTrainer._take_steps

    def watched(self, *arguments):
        loss = plain(self, *arguments)
        rates.append(self.optimizer.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(SequenceTrainer, "_take_steps", watched)
    given = settings(tiny, checkpoint_dir=str(tmp_path), cycle_epochs=3, learning_rate=0.01, second_stage="off")
    record = quick_start.run(config_dict=given | {"epochs": 9})
    assert record["epochs"]["done"] == 3 and not record["epochs"]["hit_cap"]
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < rates[0] <= 0.01
    again = quick_start.run(config_dict=given | {"epochs": 9})  # finished: nothing is trained
    assert len(rates) == 3 and again["metrics"] == record["metrics"]


def test_a_cap_within_the_cycle_is_its_beginning(tiny, tmp_path) -> None:
    given = settings(tiny, cycle_epochs=4, second_stage="off")
    short = quick_start.run(config_dict=given | {"epochs": 2, "checkpoint_dir": str(tmp_path / "one")})
    assert short["epochs"]["hit_cap"]
    weights = []
    for name in ("one", "other"):  # the first goes on from the two epochs, the second is undisturbed
        config = quick_start.Config(config_dict=given | {"epochs": 9, "checkpoint_dir": str(tmp_path / name)})
        weights.append(quick_start.train(config).trainer.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
