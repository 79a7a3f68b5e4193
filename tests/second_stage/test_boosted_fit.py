"""Cross-fitting: no judged history has been fitted on, and what is chance is left out."""

from typing import Any

import numpy as np
import pytest
import torch
from second_stage import plain

from recbole_bbqrec.model.protocol import FirstStage
from recbole_bbqrec.second_stage import boosted_fit
from recbole_bbqrec.second_stage.boosted_fit import Examples, collect, fit_boosted, fit_trees
from recbole_bbqrec.second_stage.features import Feature
from recbole_bbqrec.second_stage.hashing import fold_of
from recbole_bbqrec.second_stage.ranker import FOLDS, BoostedRanker

N_ITEMS, N_USERS, LENGTH = 200, 500, 4


def ring(n: int, seed: int = 0) -> torch.Tensor:
    """Walks [n, LENGTH + 1] along a ring of the items, in steps of one, two or three."""
    generator = np.random.default_rng(seed)
    steps = np.c_[generator.integers(0, N_ITEMS - 1, n), generator.integers(1, 4, (n, LENGTH))].cumsum(1)
    return torch.from_numpy(1 + steps % (N_ITEMS - 1))


class Hashed:
    """A model whose scores know nothing, but are those of the items' tokens and the history's last item."""

    def __init__(self, stage: BoostedRanker) -> None:
        self.hashes = stage.folds.item_hashes[:-1]

    def __call__(self, histories: torch.Tensor) -> FirstStage:
        last = histories.gather(1, (histories != 0).sum(1, keepdim=True) - 1)
        mixed = (self.hashes[last] * 31 + self.hashes) * -7046029254386353131
        return FirstStage((mixed >> 40).float() / 2**22)


class Fitted:
    """A stage fitted to validation rows, and what it said."""

    def __init__(self, data: Any, histories: torch.Tensor, targets: torch.Tensor, seed: int = 0) -> None:
        self.stage = plain.built(data, "behavior")
        self.first = Hashed(self.stage)
        self.words, self.is_better = fit_boosted(self.stage, self.first, histories, targets, seed)

    def scores(self, histories: torch.Tensor) -> torch.Tensor:
        return self.stage(self.first(histories), histories)

    def ndcg(self, histories: torch.Tensor, targets: torch.Tensor) -> float:
        scores = self.scores(histories).scatter(1, histories, -torch.inf)
        ranks = 1 + (scores[:, 1:] > scores.gather(1, targets.unsqueeze(1))).sum(1)
        return float(((ranks <= 10) / (1 + ranks).log2()).mean())

    def judged(self) -> tuple[float, float]:
        before, _, after = self.words.partition("fitted on ")[2].split(":")[0].partition(" -> ")
        return float(before), float(after)


@pytest.fixture(scope="module")
def data():
    walks = ring(N_USERS)
    return plain.dataset(N_ITEMS, sequences=walks[:, : LENGTH - 1].tolist())


@pytest.fixture(scope="module")
def rows():
    """Histories with different items only, and what follows."""
    walks = ring(N_USERS)
    return walks[:, :LENGTH], walks[:, LENGTH]


@pytest.fixture(scope="module")
def fitted(data, rows):
    return Fitted(data, *rows)


def test_what_there_is_to_learn_is_learned_and_holds_for_new_histories(fitted):
    before, after = fitted.judged()
    assert fitted.is_better and before < 0.06 and after > 0.25
    walks = ring(400, seed=9)
    assert fitted.ndcg(walks[:, :LENGTH], walks[:, LENGTH]) == pytest.approx(after, abs=0.05)


def test_the_figure_of_the_log_is_that_of_the_ranker(fitted, rows):
    assert fitted.ndcg(*rows) == pytest.approx(fitted.judged()[1], abs=2e-4)


def test_where_there_is_nothing_to_learn_it_is_left_out(data, rows):
    histories, targets = rows
    shuffled = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    fresh = (histories != shuffled.unsqueeze(1)).all(1)  # that a target has not been seen would be something
    histories, shuffled = histories[fresh], shuffled[fresh]
    found = Fitted(data, histories, shuffled)
    before, after = found.judged()
    assert not found.is_better and found.words.endswith(": left out") and not len(found.stage.trees)
    assert abs(after - before) < 0.02
    examples = collect(found.stage, found.first, histories, shuffled)
    of_all = fit_trees(examples, np.ones(len(examples.fold), bool), found.stage.features, 400, 0)
    by_all = examples.values(of_all(examples.features)).sum() / len(histories)
    assert by_all > 1.5 * max(before, after), "trees that have seen the targets would show a gain"


def test_a_history_is_not_ranked_by_its_own_target(data, rows, fitted):
    histories, targets = rows
    folds = fold_of(fitted.stage.folds.hashes(histories), FOLDS)
    others = targets.clone()
    of = folds == 2
    others[of] = targets[of].flip(0)  # what those of one fold want changes
    changed = Fitted(data, histories, others)
    n_trees = [int(each.words.split(" features, ")[1].split()[0]) for each in (fitted, changed)]
    same = [trees.first(min(n_trees)).content for trees in fitted.stage.trees]
    other = [trees.first(min(n_trees)).content for trees in changed.stage.trees]
    assert [torch.equal(*pair) for pair in zip(same, other, strict=True)] == [fold == 2 for fold in range(FOLDS + 1)]
    assert fitted.stage.folds(histories).equal(folds)
    if n_trees[0] == n_trees[1]:
        assert torch.equal(fitted.scores(histories[of]), changed.scores(histories[of]))


def test_histories_of_test_and_of_new_users_get_the_trees_of_all(fitted, rows):
    histories, targets = rows
    assert set(fitted.stage.folds(torch.cat([histories, targets.unsqueeze(1)], 1)).tolist()) == {FOLDS}
    assert set(fitted.stage.folds(histories).tolist()) == {*range(FOLDS)}


def test_equal_histories_of_two_users_are_in_one_fold(data, rows):
    histories, targets = rows
    examples = collect(stage := plain.built(data, "behavior"), Hashed(stage), histories.repeat(2, 1), targets.repeat(2))
    alone = collect(stage, Hashed(stage), histories, targets)
    assert len(examples.fold) == 2 * len(alone.fold)
    assert np.array_equal(np.bincount(examples.fold), 2 * np.bincount(alone.fold))


def test_numbers_of_items_and_order_of_users_change_nothing(data, rows, fitted):
    generator = torch.Generator().manual_seed(4)
    new = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(N_ITEMS - 1, generator=generator)])
    histories, targets = rows
    # Equal histories with different targets, in the other order
    twice, wanted = torch.cat([histories, histories[:50]]), torch.cat([targets, targets[50:100]])
    order = torch.randperm(len(wanted), generator=generator)
    one = Fitted(data, twice, wanted)
    other = Fitted(plain.renumbered(data, new), new[twice[order]], new[wanted[order]])
    assert one.words == other.words and len(one.stage.trees) == FOLDS + 1
    for here, there in zip(one.stage.trees, other.stage.trees, strict=True):
        assert torch.equal(here.content, there.content)
    assert torch.equal(one.scores(histories), other.scores(new[histories])[:, new])


def test_a_seed_gives_the_same_bits(data, rows, fitted):
    state, again, other = (
        each.stage.state_dict() for each in (fitted, Fitted(data, *rows), Fitted(data, *rows, seed=1))
    )
    assert state.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in state.items())
    assert not torch.equal(state["trees.0.content"], other["trees.0.content"])


def test_of_many_histories_every_fold_gets_some(data, rows, monkeypatch):
    monkeypatch.setattr(boosted_fit, "MAX_HISTORIES", 100)
    found = Fitted(data, *rows)
    folds = found.stage.folds(rows[0])
    assert len(found.stage.folds.fitted) <= 100 <= (folds < FOLDS).sum() < 110  # a few histories are equal
    assert folds.bincount()[:FOLDS].min() >= 8


@pytest.mark.parametrize("n", [1, 2, 4])
def test_of_few_histories_nothing_is_learned(data, rows, n):
    found = Fitted(data, *(each[:n] for each in rows))
    assert not found.is_better and found.words.endswith("left out")


def test_the_model_is_asked_once_whatever_the_targets(data, rows):
    """Its last bits may depend on how many histories it is asked for at once."""
    stage = plain.built(data, "codes")
    known, asked = Hashed(stage), []

    def first(histories):
        asked.append(histories)
        return FirstStage(known(histories).scores, lambda items: histories[:, :1] + items / 1000)

    histories, targets = rows[0][:60], rows[1][:60]
    examples = collect(stage, first, histories, targets)
    assert [len(each) for each in asked] == [60] and 0 < len(examples.fold) < 60
    found = (1000 * examples.features[examples.is_target][:, -1]).round().astype(int).tolist()
    assert set(found) < set((1000 * histories[:, 0] + targets).tolist())


def test_ranks_leave_out_what_has_been_seen_and_give_ties_to_the_first():
    history, is_target = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 1, 1, 0, 0, 0], bool)
    is_seen = np.array([1, 0, 0, 0, 0, 0, 1], bool)
    blank = np.zeros(7, int)
    examples = Examples(np.zeros((7, 1)), history, blank, blank, is_target, is_seen, *np.zeros((2, 2), int))
    assert examples.ranks(np.array([9.0, 1, 1, 1, 1, 2, 3])).tolist() == [2, 2]
    assert examples.ranks(np.array([9.0, 1, 2, 0, 1, 2, 3])).tolist() == [1, 3]


def test_trees_learn_from_the_target_and_a_sample_of_each_history(monkeypatch):
    kept = []
    monkeypatch.setattr(boosted_fit, "SAMPLED", 2)
    monkeypatch.setattr(boosted_fit.Trees, "fit", lambda features, is_target, *_: kept.append((features, is_target)))
    history = np.repeat([0, 1, 2], [5, 2, 6])
    is_target = np.isin(np.arange(13), [3, 6, 7])
    blank, folds = np.zeros(13, int), np.array([0, 1, 0])
    only = [Feature("", "", "")]
    examples = Examples(np.arange(13.0).reshape(13, 1), history, blank, blank, is_target, ~is_target, folds, folds)
    for seed in range(20):
        fit_trees(examples, np.array([True, False, True]), only, 1, seed)
    drawn = set()
    for features, targets in kept:
        assert features[targets].ravel().tolist() == [3, 7] and len(features) == 6
        assert (np.diff(features.ravel()) > 0).all()
        drawn |= set(features.ravel().astype(int))
    assert drawn == {0, 1, 2, 3, 4, *range(7, 13)}


def test_the_best_number_of_trees_is_taken():
    history, blank = np.array([0, 0, 1, 1]), np.zeros(4, int)
    is_target = np.array([True, False, True, False])
    examples = Examples(np.zeros((4, 1)), history, blank, blank, is_target, blank > 0, *np.zeros((2, 2), int))
    odds = {20: np.array([0.0, 1, 1, 0]), 40: np.array([1.0, 0, 1, 0]), 80: np.array([1.0, 0, 0, 1])}
    number, values = boosted_fit.CrossFit([], odds).best(examples)
    assert number == 40 and values.tolist() == [1.0, 1.0]
