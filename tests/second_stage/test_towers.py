"""Two towers learn from features alone what follows what, and depend on nothing that tells held-out interactions."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from recbole_bbqrec.second_stage.towers import Towers, fit_towers

N_KINDS, N_EACH, WIDTH = 12, 20, 16
N_ITEMS = 1 + 2 * N_KINDS * N_EACH + 1  # padding first, an item without features last
KNOWN = N_EACH // 2  # of each kind, the items that training knows


def first(kind, number):
    return 1 + (2 * kind) * N_EACH + number


def second(kind, number):
    return 1 + (2 * kind + 1) * N_EACH + number


@pytest.fixture(scope="module")
def content() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Items around a direction of their kind; what comes first of a kind and what comes second have nothing in common.

    The last item has no feature; every fifth has only a text; two have the same features.
    """
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2 * N_KINDS, WIDTH, generator=generator).repeat_interleave(N_EACH, 0)
    found = {}
    for name in ("text", "image"):
        rows = centres + 0.3 * torch.randn(centres.shape, generator=generator)
        rows[1] = rows[0]  # two items of the same features
        rows = functional.normalize(functional.pad(rows, (0, 0, 1, 1)), dim=-1)
        present = rows.any(1)
        if name == "image":
            present[5::5] = False
        found[name] = rows * present.unsqueeze(1), present
    return found


@pytest.fixture(scope="module")
def sequences() -> tuple[np.ndarray, np.ndarray]:
    """One of the first and then one of the second of a kind, of the items that training knows."""
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, N_KINDS, 400)
    numbers = generator.integers(0, KNOWN, (2, 400))
    items = np.stack([first(kinds, numbers[0]), second(kinds, numbers[1])], axis=1).ravel()
    return np.arange(0, len(items) + 1, 2), items


@pytest.fixture(scope="module")
def towers(content, sequences) -> Towers:
    found = fit_towers(content, *sequences, seed=1)
    assert found is not None
    return found


def following(scores: torch.Tensor, start, target) -> float:
    """Share of items new to training whose best new items of another group are those planted."""
    right = []
    for kind in range(N_KINDS):
        for number in range(KNOWN, N_EACH):
            row = scores[start(kind, number)].clone()
            own = start(kind, 0)
            row[own : own + N_EACH] = -torch.inf  # what is like the item itself
            best = row.topk(5).indices
            right.append(((best - target(kind, 0)) // N_EACH == 0).float().mean())
    return float(torch.stack(right).mean())


def test_a_direction_is_learned_for_items_that_training_never_met(towers, content) -> None:
    scores = towers.queries(content) @ towers.documents(content).T
    cosine = content["text"][0] @ content["text"][0].T
    assert following(scores, first, second) > 0.9
    assert following(cosine, first, second) < 0.2
    assert following(scores, second, first) < 0.2  # the other way was never seen


def test_rows_have_unit_length_and_items_without_features_are_zero(towers, content) -> None:
    for rows in (towers.queries(content), towers.documents(content)):
        norms = rows.norm(dim=1)
        assert norms[[0, -1]].tolist() == [0.0, 0.0]
        torch.testing.assert_close(norms[1:-1], torch.ones(N_ITEMS - 2))
        assert not rows.requires_grad


def test_a_seed_gives_the_same_numbers_and_another_one_others(towers, content, sequences) -> None:
    again = fit_towers(content, *sequences, seed=1)
    other = fit_towers(content, *sequences, seed=2)
    assert again is not None and other is not None
    assert torch.equal(again.query, towers.query)
    assert not torch.equal(other.query, towers.query)


def test_global_random_numbers_are_left_alone(content, sequences) -> None:
    before = torch.get_rng_state()
    offsets, items = sequences
    fit_towers(content, offsets[:100], items[: offsets[99]], seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_of_items_change_nothing(towers, content, sequences) -> None:
    generator = np.random.default_rng(3)
    new = np.r_[0, 1 + generator.permutation(N_ITEMS - 1)]  # item -> its new number
    old = torch.from_numpy(np.argsort(new))
    renamed = {name: (rows[old], present[old]) for name, (rows, present) in content.items()}
    again = fit_towers(renamed, sequences[0], new[sequences[1]], seed=1)
    for name in ("query", "document"):
        assert torch.equal(getattr(again, name), getattr(towers, name))


def test_state_round_trip(towers, content) -> None:
    again = Towers({name: rows.shape[1] for name, (rows, _) in content.items()})
    again.load_state_dict(towers.state_dict())
    assert torch.equal(again.queries(content), towers.queries(content))
    assert torch.equal(again.documents(content), towers.documents(content))


@pytest.mark.parametrize(
    ("offsets", "items"),
    [([0], []), ([0, 1, 2], [1, 2]), ([0, 3], [4, 4, 4]), ([0, 2], [1, N_ITEMS - 1])],
    ids=["no sequence", "nothing follows", "only itself", "nothing with features"],
)
def test_nothing_to_learn_from(content, offsets, items) -> None:
    assert fit_towers(content, np.array(offsets), np.array(items, np.int64), seed=0) is None


def test_no_modality(sequences) -> None:
    assert fit_towers({}, *sequences, seed=0) is None
