"""Batches ready ahead: their order, what goes wrong in the thread, and that it ends."""

import threading
from collections.abc import Iterator

import pytest
import torch
from conftest import settings

from recbole_bbqrec import quick_start
from recbole_bbqrec.training.steps import AHEAD, ahead


def test_batches_come_in_order_and_not_more_than_a_few_before_their_turn() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(30):
            made.append(number)
            yield number

    for at, found in enumerate(ahead(numbers(), lambda number: 2 * number)):
        assert found == 2 * at
        assert len(made) <= at + AHEAD + 3
    assert len(made) == 30


def test_an_error_in_the_thread_is_raised_where_batches_are_taken() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise ValueError("third")
        return number

    taken = []
    with pytest.raises(ValueError, match="third"):
        for number in ahead(range(10), fail):
            taken.append(number)
    assert taken == [0, 1, 2]


def test_the_thread_ends_where_nobody_takes_any_more() -> None:
    before = threading.active_count()
    batches = ahead(range(100), lambda number: number)
    assert next(batches) == 0
    del batches  # which closes it
    assert threading.active_count() == before


def test_mixed_precision_trains_on_a_cpu_to_about_the_same_loss(tiny, tmp_path) -> None:
    losses = {}
    for amp in (False, True):
        given = settings(tiny, epochs=2, checkpoint_dir=str(tmp_path), enable_amp=amp, second_stage="off")
        trained = quick_start.train(quick_start.Config(config_dict=given))
        losses[amp] = list(trained.trainer.train_loss_dict.values())
        assert all(value.dtype == torch.float32 for value in trained.trainer.model.parameters())
    assert losses[True] != losses[False] and losses[True] == pytest.approx(losses[False], rel=0.02)
