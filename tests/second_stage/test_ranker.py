"""Candidates and the scores that trees give them."""

import numpy as np
import pytest
import torch
from second_stage import plain
from torch.nn.functional import pad

from recbole_bbqrec.evaluation.ranking import rank_targets, tie_order
from recbole_bbqrec.model.catalogue import ItemFeatures
from recbole_bbqrec.model.protocol import FirstStage
from recbole_bbqrec.second_stage import ranker
from recbole_bbqrec.second_stage.boosted import restore_boosted
from recbole_bbqrec.second_stage.ranker import FOLDS, recent_first

N_ITEMS = 300


class ByHand(torch.nn.Module):
    """In the place of trees: some sum of the features, so that every one of them moves the result."""

    def __init__(self, number: int, constant: bool = False) -> None:
        super().__init__()
        self.number, self.constant = number, constant

    def forward(self, features: np.ndarray) -> np.ndarray:
        if self.constant:
            return np.full(len(features), -3.0)
        weights = np.random.default_rng(self.number).normal(size=features.shape[1]) / 30
        return np.round(np.tanh(features) @ weights, 3) - self.number


@pytest.fixture(scope="module")
def data():
    return plain.dataset(N_ITEMS, 400)


@pytest.fixture(scope="module")
def built(data):
    return plain.built(data)


@pytest.fixture
def stage(built):
    built.trees = torch.nn.ModuleList(ByHand(number) for number in range(FOLDS + 1))
    built.folds.fitted = built.folds.fitted[:0]
    return built


def scores_of(rows, n_items=N_ITEMS, seed=5):
    return torch.randn(rows, n_items, generator=torch.Generator().manual_seed(seed))


def candidates(batch, row):
    return [item for item in batch.items[row].tolist() if item]


def test_the_last_item_comes_first():
    histories = torch.tensor([[3, 4, 5, 0, 0], [7, 0, 0, 0, 0], [1, 2, 2, 1, 0]])
    assert recent_first(histories).tolist() == [[5, 4, 3, 0], [7, 0, 0, 0], [1, 2, 2, 1]]


def test_candidates_are_the_best_of_the_model_those_of_counts_and_the_history(stage):
    histories, scores = plain.histories_of(N_ITEMS, 12), scores_of(12)
    batch, lists = (
        stage.batch(scores, histories),
        {name: plain.listed(stage.signals[name]) for name in ("step", "walk")},
    )
    n_counted = 0
    for row, history in enumerate(histories.tolist()):
        history = [item for item in history if item]
        free = sorted(set(range(1, N_ITEMS)) - set(history), key=lambda item: -float(scores[row, item]))
        counted = {
            item: sum(
                lists[name].get((met, item), 0.0) * 0.7**back
                for name in lists
                for back, met in enumerate(history[::-1])
            )
            for item in free[120:]
        }
        by_counts = sorted((item for item in counted if counted[item]), key=lambda item: -counted[item])[:60]
        found = candidates(batch, row)
        assert found[:120] == free[:120] and len(found) == len(set(found))
        at = 120 + len(by_counts)
        got = [counted[item] for item in found[120:at]]
        np.testing.assert_allclose(got, [counted[item] for item in by_counts], rtol=1e-4)
        assert found[at:] == list(dict.fromkeys(history[::-1]))
        slots = batch.slots[row].tolist()
        assert [item for item in range(N_ITEMS) if slots[item] >= 0] == sorted(found)
        assert all(batch.items[row, slots[item]] == item for item in found)
        n_counted += len(by_counts)
    assert n_counted > 12 * 30


def test_scores_order_candidates_by_log_odds_and_all_others_behind_them_by_the_model(stage):
    histories, scores = plain.histories_of(N_ITEMS, 12), scores_of(12)
    first = FirstStage(scores)
    got, batch = stage(first, histories), stage.batch(scores, histories)
    features = stage.features_of(first, batch).numpy()
    assert got[:, 1:].isfinite().all()
    n_ties = 0
    for row in range(12):
        found = candidates(batch, row)
        odds = dict(zip(found, stage.trees[FOLDS](features[row])[(batch.items[row] > 0).numpy()], strict=True))
        others = sorted(set(range(1, N_ITEMS)) - set(found), key=lambda item: -float(scores[row, item]))
        n_ties += len(found) - len(set(odds.values()))
        ranked = sorted(range(1, N_ITEMS), key=lambda item: -float(got[row, item]))
        np.testing.assert_allclose(
            [odds[item] for item in ranked[: len(found)]], sorted(odds.values())[::-1], atol=3e-3
        )
        assert ranked[len(found) :] == others
    assert n_ties > 20
    stage.trees[FOLDS] = ByHand(0, constant=True)
    got = stage(first, histories)
    for row in range(12):
        assert sorted(range(1, N_ITEMS), key=lambda item: -float(got[row, item]))[
            : len(candidates(batch, row))
        ] == candidates(batch, row)


def test_one_history_alone_gets_the_numbers_that_it_gets_in_a_batch(stage):
    histories, scores = plain.histories_of(N_ITEMS, 12), scores_of(12)
    together = stage(FirstStage(scores), histories)
    wide = stage(FirstStage(scores), pad(histories, (0, 30)))
    features = stage.features_of(FirstStage(scores), stage.batch(scores, histories))
    for row, history in enumerate(histories):
        one, first = history[history > 0].unsqueeze(0), FirstStage(scores[row : row + 1])
        batch = stage.batch(first.scores, one)
        items = stage.batch(scores, histories).items[row]
        assert batch.items[batch.items > 0].tolist() == items[items > 0].tolist()
        torch.testing.assert_close(
            stage.features_of(first, batch)[batch.items > 0], features[row][items > 0], rtol=1e-5, atol=1e-6
        )
        for other in (wide[row], stage(first, one)[0]):
            torch.testing.assert_close(
                other[1:], together[row, 1:], rtol=0, atol=2.1e-3
            )  # what is rounded to .001 may tip


@pytest.mark.parametrize("n_items", [4, 9, 121])
def test_catalogues_smaller_than_the_number_of_candidates(n_items):
    stage = plain.built(plain.dataset(n_items, 50))
    stage.trees = torch.nn.ModuleList(ByHand(number) for number in range(FOLDS + 1))
    histories = torch.tensor([[1, 0, 0], [3, 2, 1], [2, 2, 0]])
    scores = scores_of(3, n_items).index_fill(1, torch.tensor([0]), 50.0)  # of padding, more than of any item
    batch, got = stage.batch(scores, histories), stage(FirstStage(scores), histories)
    assert got[:, 1:].isfinite().all()
    assert [sorted(candidates(batch, row)) for row in range(3)] == [[*range(1, n_items)]] * 3
    margin = stage.features_of(FirstStage(scores), batch)[..., 1]
    assert n_items == 4 or all(margin[row, 0] == 0 for row in range(3))


def test_new_items_are_candidates_and_change_nothing_for_the_others(data, stage):
    new = ItemFeatures(["new1", "new2"], {"text": torch.ones(2, 6)}, {"text": torch.ones(2, dtype=torch.bool)})
    state = {name: value for name, value in stage.state_dict().items() if not name.startswith("trees.")}
    grown = restore_boosted(state, data.catalogue.grown(new))
    grown.trees = stage.trees
    scores = scores_of(2, N_ITEMS + 2)
    scores[:, N_ITEMS] = 40.0
    histories = torch.tensor([[5, N_ITEMS + 1, 0], [7, 9, 11]])
    got, batch = grown(FirstStage(scores), histories), grown.batch(scores, histories)
    assert got[:, 1:].isfinite().all() and batch.items[:, 0].tolist() == [N_ITEMS] * 2
    scores[:, N_ITEMS:] = -40.0
    before = stage(FirstStage(scores[1:, :N_ITEMS]), histories[1:])
    after = grown(FirstStage(scores[1:]), histories[1:])
    assert torch.equal(before, after[:, :N_ITEMS])


def test_a_fitted_history_is_ranked_by_the_trees_of_its_fold_and_all_others_by_those_of_all(stage):
    histories, scores = plain.histories_of(N_ITEMS, 60, longest=5).unique(dim=0), scores_of(60)
    first = FirstStage(scores[: len(histories)])
    hashes = stage.folds.hashes(histories)
    stage.folds.fitted = hashes[::2].unique()
    folds = stage.folds(histories)
    assert set(folds[::2].tolist()) == {*range(FOLDS)} and set(folds[1::2].tolist()) == {FOLDS}
    got, batch = stage(first, histories), stage.batch(first.scores, histories)
    features = stage.features_of(first, batch).numpy()
    for row, fold in enumerate(folds.tolist()):
        known = (batch.items[row] > 0).numpy()
        wanted = stage.trees[fold](features[row][known]) - ranker.TIE * np.flatnonzero(known)
        np.testing.assert_allclose(got[row, batch.items[row][known]], wanted, atol=1e-6)


def test_numbers_of_items_change_nothing_not_even_among_equal_scores(data, stage):
    new = torch.cat(
        [torch.zeros(1, dtype=torch.long), 1 + torch.randperm(N_ITEMS - 1, generator=torch.Generator().manual_seed(2))]
    )
    other = plain.built(plain.renumbered(data, new))
    other.trees = stage.trees
    histories, scores = plain.histories_of(N_ITEMS, 12), scores_of(12).round(decimals=1)  # many are equal
    there = FirstStage(scores[:, new.argsort()])
    batch, again = stage.batch(scores, histories), other.batch(there.scores, new[histories])
    assert torch.equal(new[batch.items], again.items)
    assert torch.equal(stage(FirstStage(scores), histories), other(there, new[histories])[:, new])


def test_what_was_fitted_elsewhere_serves_every_history(stage, data):
    stage.folds.fitted = stage.folds.hashes(plain.histories_of(N_ITEMS, 3)).unique()
    taken = plain.built(data)
    taken.take_over(stage)
    assert [trees.number for trees in taken.trees] == [FOLDS] * (FOLDS + 1)
    assert taken.folds(plain.histories_of(N_ITEMS, 3)).tolist() == [FOLDS] * 3


def test_without_behaviour_the_model_alone_brings_candidates(data):
    stage = plain.built(data, "text")
    histories, scores = plain.histories_of(N_ITEMS, 5), scores_of(5)
    for row, history in enumerate(histories.tolist()):
        assert len(candidates(stage.batch(scores, histories), row)) == 120 + len(set(history) - {0})


def test_a_target_has_its_rank_without_asking_trees_where_it_is_no_candidate(stage, monkeypatch):
    histories, scores = plain.histories_of(N_ITEMS, 60), scores_of(60)
    targets = torch.randint(1, N_ITEMS, (60,), generator=torch.Generator().manual_seed(2))
    row, column = torch.nonzero(histories, as_tuple=True)
    seen = row[keep := histories[row, column] != targets[row]], histories[row, column][keep]
    first, order = FirstStage(scores), tie_order(N_ITEMS, 0)
    whole = rank_targets(stage(first, histories), targets, seen, order)
    has = (stage.batch(scores, histories).items == targets.unsqueeze(1)).any(1)
    assert 5 < int(has.sum()) < 55
    asked, features_of = [], stage.features_of
    monkeypatch.setattr(stage, "features_of", lambda *of: asked.append(len(of[0].scores)) or features_of(*of))
    found = rank_targets(stage(first, histories, targets), targets, seen, order)
    assert asked == [int(has.sum())]
    for name, ranks in whole.items():
        assert torch.equal(found[name], ranks)
