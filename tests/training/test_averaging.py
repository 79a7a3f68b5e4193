"""Averages of the weights: their values, that training does not notice them, and what is judged and kept."""

import copy
from typing import Any

import pytest
import torch
from conftest import settings
from safetensors.torch import load_file

from recbole_bbqrec import quick_start
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.training.averaging import ETA, AveragedAdamW

PLAIN: Any = {"lr": 0.1, "weight_decay": 0.01}


def walk(optimizer_class, steps: int, parameters: list[torch.Tensor]) -> tuple[torch.optim.Optimizer, list]:
    """Take steps down a bowl; return the optimizer and where the first parameter stood after each."""
    optimizer, places = optimizer_class(parameters, **PLAIN), []
    for _ in range(steps):
        optimizer.zero_grad()
        sum(((parameter - 3) ** 2).sum() for parameter in parameters).backward()
        optimizer.step()
        places.append(parameters[0].detach().clone())
    return optimizer, places


def parameters() -> list[torch.Tensor]:
    return [torch.nn.Parameter(torch.tensor([0.0, 9.0])), torch.nn.Parameter(torch.tensor(1.0))]


def test_averages_are_those_of_the_formula_and_training_does_not_notice() -> None:
    mine, plain = parameters(), parameters()
    optimizer, places = walk(AveragedAdamW, 30, mine)
    walk(torch.optim.AdamW, 30, plain)
    expected = torch.zeros(2)
    for step, place in enumerate(places, 1):
        expected += (place - expected) * (ETA + 1) / (step + ETA)
    torch.testing.assert_close(optimizer.state[mine[0]]["average"], expected)
    assert all(torch.equal(one, other) for one, other in zip(mine, plain, strict=True))


def test_averages_stand_in_within_the_block_alone() -> None:
    mine = parameters()
    optimizer, places = walk(AveragedAdamW, 5, mine)
    average = optimizer.state[mine[0]]["average"].clone()
    with pytest.raises(RuntimeError, match="within"), optimizer.averaged():
        assert torch.equal(mine[0], average) and not torch.equal(average, places[-1])
        raise RuntimeError("within")
    assert torch.equal(mine[0], places[-1]) and torch.equal(optimizer.state[mine[0]]["average"], average)


def test_saved_and_loaded_state_goes_on_to_the_same_averages() -> None:
    mine = parameters()
    optimizer, _ = walk(AveragedAdamW, 7, mine)
    state, other = copy.deepcopy(optimizer.state_dict()), [parameter.detach().clone() for parameter in mine]
    again = AveragedAdamW([torch.nn.Parameter(value) for value in other], **PLAIN)
    again.load_state_dict(state)
    for going in (optimizer, again):
        for group in going.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        going.step()
    found = [[state["average"] for state in going.state.values()] for going in (optimizer, again)]
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_before_the_first_step_there_is_nothing_to_swap() -> None:
    mine = parameters()
    with AveragedAdamW(mine, **PLAIN).averaged():
        assert mine[0].tolist() == [0.0, 9.0]


def test_a_run_keeps_the_averages_and_goes_on_from_the_weights(tiny, tmp_path) -> None:
    given = settings(tiny, checkpoint_dir=str(tmp_path), epochs=3, candidate_similarity=[])
    kept = {}
    for average in (True, False):
        folder = quick_start.run(config_dict={**given, "average_weights": average})["run_dir"]
        kept[average] = [load_file(f"{folder}/{name}.safetensors") for name in ("weights", "last")]
    (averaged, last), (plain, plain_last) = kept[True], kept[False]
    names = [name for name in last if name.startswith("model.")]
    averages = [value for name, value in last.items() if name.endswith(".average")]
    assert names and all(torch.equal(last[name], plain_last[name]) for name in names), "training itself is the same"
    assert all(torch.equal(plain[name], plain_last[name]) for name in names)
    changed = [name for name in names if not torch.equal(averaged[name], last[name])]
    assert len(changed) == len(averages)
    assert all(any(torch.equal(averaged[name], value) for value in averages) for name in changed)


def test_other_optimizers_keep_no_averages_and_say_so(tiny, tmp_path) -> None:
    given = settings(tiny, checkpoint_dir=str(tmp_path), epochs=1, learner="adam")
    with pytest.raises(InputError, match="average_weights: needs learner adamw, found adam; set it to False"):
        quick_start.run(config_dict=given)
    quick_start.run(config_dict={**given, "average_weights": False})
