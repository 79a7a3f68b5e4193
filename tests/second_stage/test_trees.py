import hashlib

import numpy as np
import pytest
import torch

from recbole_bbqrec.second_stage.features import Feature
from recbole_bbqrec.second_stage.trees import DIGEST, Trees


@pytest.fixture(scope="module")
def examples():
    """The third feature says nothing; more of the first is better up to a point, more of the second always worse."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(6000, 3)).astype(np.float32)
    odds = np.where(features[:, 0] < 0.5, 3 * features[:, 0], 1.5 - features[:, 0]) - 2 * features[:, 1]
    return features, generator.random(6000) < 1 / (1 + np.exp(-odds))


def fitted(examples, directions=(0, 0, 0), n_trees=30, seed=0):
    features = [Feature("", "", "", direction) for direction in directions]
    return Trees.fit(*examples, features, n_trees, seed)


def along(trees, feature):
    """Log-odds where one feature rises and the others stay."""
    rows = np.zeros((200, 3), np.float32)
    rows[:, feature] = np.linspace(-3, 3, 200)
    return trees(rows)


def test_they_learn_and_go_only_where_they_may(examples):
    free, bound = fitted(examples), fitted(examples, (1, -1, 0))
    for trees in (free, bound):
        odds = trees(examples[0])
        assert odds[examples[1]].mean() - odds[~examples[1]].mean() > 1.5
    assert np.diff(along(free, 0)).min() < -0.05 < 0 <= np.diff(along(bound, 0)).min()
    assert np.diff(along(bound, 1)).max() <= 0 and np.ptp(along(bound, 1)) > 1
    assert np.diff(along(fitted(examples, (-1, 1, 0)), 1)).min() >= 0


def test_a_seed_gives_the_same_bits_on_any_number_of_threads(examples):
    one = fitted(examples)
    assert torch.equal(fitted(examples).content, one.content)
    assert not torch.equal(fitted(examples, seed=1).content, one.content)
    torch.set_num_threads(2)
    try:
        two = fitted(examples)
        assert torch.equal(two.content, one.content) and np.array_equal(two(examples[0]), one(examples[0]))
    finally:
        torch.set_num_threads(1)


def test_the_first_trees_are_those_of_a_shorter_fit(examples):
    trees = fitted(examples)
    shorter = fitted(examples, n_trees=12)(examples[0])
    np.testing.assert_allclose(trees.first(12)(examples[0]), shorter, atol=1e-12)
    staged = dict(trees.staged(examples[0], (12, 30)))
    np.testing.assert_allclose(staged[12], shorter, atol=1e-12)
    np.testing.assert_allclose(staged[30], trees(examples[0]), atol=1e-12)
    assert np.abs(staged[30] - staged[12]).max() > 0.1


def test_shares_of_features_sum_to_the_log_odds(examples):
    trees = fitted(examples)
    shares, odds = trees.contributions(examples[0][:50]), trees(examples[0][:50])
    assert shares.shape == (50, 3)
    np.testing.assert_allclose(np.ptp(odds - shares.sum(1)), 0, atol=1e-9)
    assert np.abs(shares[:, 1]).mean() > 5 * np.abs(shares[:, 2]).mean()


def test_they_are_text_behind_its_hash_and_travel_as_a_tensor(examples):
    trees = fitted(examples)
    content = bytes(trees.content.numpy())
    assert hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST] and content[DIGEST:].startswith(b"tree\n")
    again = Trees(trees.state_dict()["content"].clone())
    assert np.array_equal(again(examples[0]), trees(examples[0]))


def test_of_too_few_examples_nothing_is_learned(examples):
    assert len(np.unique(fitted((examples[0][:150], examples[1][:150]))(examples[0]))) == 1
