import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.statistics import PairedValues, holm

TRIALS, USERS = 2000, 600
GAINS = 1 / np.log2(1 + np.arange(1, 11))  # of NDCG@10 by rank
HIT = 0.1  # share of users with a hit, in every row

# seeds of each row, how much its trainings differ (relative to its mean), whether its users differ from those of others
# and whether seeds agree about single users
REGIMES = {
    "seeds alone, 3": ({"a": 3, "b": 3}, {"a": 0.4, "b": 0.4}, False, False),
    "seeds alone, 5": ({"a": 5, "b": 5}, {"a": 0.4, "b": 0.4}, False, False),
    "users alone, 3": ({"a": 3, "b": 3}, {}, True, True),
    "both, 3": ({"a": 3, "b": 3}, {"a": 0.3, "b": 0.3}, True, False),
    "both, 5": ({"a": 5, "b": 5}, {"a": 0.3, "b": 0.3}, True, False),
    "unequal seeds, 3": ({"a": 3, "b": 3}, {"a": 0.5, "b": 0.05}, True, False),
    "unequal seeds, 5": ({"a": 5, "b": 5}, {"a": 0.5, "b": 0.05}, True, False),
    "1 against 3, four rows to borrow from": (
        {"a": 1, **dict.fromkeys("bcde", 3)},
        dict.fromkeys("abcde", 0.3),
        True,
        False,
    ),
    "1 against 3, which it borrows from": ({"a": 1, "b": 3}, {"a": 0.3, "b": 0.3}, True, False),
    "1 against 1, two rows to borrow from": (
        {"a": 1, "b": 1, "c": 3, "d": 3},
        dict.fromkeys("abcd", 0.3),
        True,
        False,
    ),
    "1 untrained against 3": ({"a": 1, "b": 3}, {"b": 0.3}, True, False),
}


def draw(generator, seeds, noise, own_users, agree):
    """Values [U, S] by row, most of them zero, of rows that are equally good over users and seeds."""
    common, found = generator.beta(0.6, 0.6 * (1 - HIT) / HIT, USERS), {}
    for row, n_seeds in seeds.items():
        likely = np.where(generator.random(USERS) < 0.5, generator.permutation(common), common) if own_users else common
        training = 1 + noise.get(row, 0.0) * generator.normal(size=n_seeds)
        chance = generator.random((USERS, 1 if agree else n_seeds))
        gains = generator.choice(GAINS, chance.shape)
        found[row] = np.where(chance < likely[:, None] * training, gains, 0.0)
    return found


def rows_of(values, **more):
    users = np.arange(len(next(iter(values.values()))))
    return PairedValues(
        {row: {seed: (users, of[:, seed]) for seed in range(of.shape[1])} for row, of in values.items()}, **more
    )


def rates(name):
    """How often p is below .05 and .01 between equals, and how often intervals hold the truth: of change and mean."""
    seeds, *how = REGIMES[name]
    untrained = {row: None for row in seeds if not how[0].get(row) and how[0]}
    generator, found = np.random.default_rng(0), []
    for _ in range(TRIALS):
        values = rows_of(draw(generator, seeds, *how), trainings=untrained)
        change, mean = values.change("a", "b"), values.estimate("a")
        found.append(
            [
                values.p_value("a", "b"),
                change["low"] <= 0 <= change["high"],
                mean["low"] <= HIT * GAINS.mean() <= mean["high"],
            ]
        )
    p_values, *covers = np.array(found).T
    return [np.mean(p_values < 0.05), np.mean(p_values < 0.01), *(np.mean(cover) for cover in covers)]


@pytest.mark.parametrize("name", REGIMES)
def test_p_and_intervals_say_what_they_mean(name):
    fifth, hundredth, change, mean = rates(name)
    assert fifth <= 0.06 and hundredth <= 0.014, "1 - fifth is how often the interval of the difference holds zero"
    assert change >= 0.93 and mean >= 0.93


def adjusted(p_values):
    entries = [{"p": p_value} for p_value in p_values]
    holm([*([entry] for entry in entries), [{"p": None}]])
    return [entry["p_holm"] for entry in entries]


def test_holm_by_hand():
    np.testing.assert_allclose(adjusted([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(adjusted([0.5, 0.9]), [1.0, 1.0])
    assert adjusted([]) == []


def test_cells_of_one_hypothesis_are_one_test():
    twice = [{"p": 0.02, "of": "a"}, {"p": 0.02, "of": "its twin"}]
    holm([twice, [{"p": 0.03}]])
    assert [entry["p_holm"] for entry in twice] == [0.04, 0.04], "two tests, not three"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values):
    found = np.array(adjusted(p_values))
    for level in (0.01, 0.05, 0.2):
        rejected = np.zeros(len(p_values), bool)
        for step, at in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[at] * (len(p_values) - step) > level:
                break
            rejected[at] = True
        np.testing.assert_array_equal(found <= level, rejected)


