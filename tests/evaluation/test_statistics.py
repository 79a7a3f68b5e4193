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
        training = 1 + noise.get(row, 0.0) * generator.normal(size=n_seeds).clip(-2.5, 2.5)
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
        assert change is not None
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


def test_the_mean_is_over_values_and_users_are_what_is_independent():
    users, found = np.array([7, 3, 7, 7, 5]), np.array([1.0, 0.25, 0.0, 0.5, 1.0])
    values = PairedValues({"a": {1: (users, found)}})
    mean = found.mean()
    assert values.n_users == 3 and values.mean("a") == pytest.approx(mean)
    sums = np.array([0.25 - mean, 1.0 - mean, 1.5 - 3 * mean])  # of each user, of his values' distances from the mean
    error = np.sqrt((sums**2).sum() * 3 / 2) / 5
    low, high = stats.t.interval(0.95, 2, mean, error)
    assert low < 0 and [values.estimate("a")[end] for end in ("low", "high")] == pytest.approx([0, high])


def test_every_value_twice_is_no_news():
    once = {row: {0: (np.arange(50), of[:, 0])} for row, of in grid().items()}
    twice = {row: {0: (np.tile(users, 2), np.tile(of, 2))} for row, by in once.items() for users, of in by.values()}
    assert PairedValues(twice).difference("a", "b") == PairedValues(once).difference("a", "b")


def grid(n_users=50, n_seeds=4, rows="ab"):
    generator = np.random.default_rng(0)
    return {row: generator.normal(1, 1, (n_users, 1)) + generator.normal(0, 1, (n_users, n_seeds)) for row in rows}


def test_without_seed_noise_it_is_students_paired_t():
    values = {row: of[:, :1] for row, of in grid().items()}
    reference = stats.ttest_rel(values["a"][:, 0], values["b"][:, 0])
    found = rows_of(values)
    assert found.p_value("a", "b") == pytest.approx(reference.pvalue) == found.p_value("b", "a")
    low, high = reference.confidence_interval()
    assert [found.difference("a", "b")[end] for end in ("low", "high")] == pytest.approx([low, high])


def test_without_user_noise_it_is_students_t_over_seeds():
    seeds = {"a": np.array([1.0, 1.2, 1.7, 0.8]), "b": np.array([0.3, 0.6, 0.9, 0.4])}
    found = rows_of({row: np.tile(of, (20, 1)) for row, of in seeds.items()})
    # Welch's test has the degrees of freedom of Satterthwaite too.
    assert found.p_value("a", "b") == pytest.approx(stats.ttest_ind(*seeds.values(), equal_var=False).pvalue, rel=1e-6)
    low, high = stats.t.interval(0.95, 3, seeds["a"].mean(), stats.sem(seeds["a"]))
    assert [found.estimate("a")[end] for end in ("low", "high")] == pytest.approx([low, high])


def test_both_parts_by_hand():
    """Users and seeds crossed: the variance of the mean is (users + seeds - remainder) mean squares over U S."""
    values = grid(rows="a")
    u, s = values["a"].shape
    of_user, of_seed, mean = values["a"].mean(1), values["a"].mean(0), values["a"].mean()
    rest = ((values["a"] - of_user[:, None] - of_seed + mean) ** 2).sum() / ((u - 1) * (s - 1))
    parts = (s * of_user.var(ddof=1) - rest) / (u * s), of_seed.var(ddof=1) / s
    drawn = np.random.default_rng(1)
    error = drawn.normal(size=1_000_000) * np.sqrt(parts[0] + parts[1] * (s - 1) / drawn.chisquare(s - 1, 1_000_000))
    found = rows_of(values).estimate("a")
    assert found["high"] - mean == mean - found["low"] == pytest.approx(np.quantile(np.abs(error), 0.95), rel=0.02)


def test_the_change_is_that_of_the_ratio():
    values = rows_of(grid())
    change, difference = values.change("a", "b"), values.difference("a", "b")
    assert change is not None
    assert change["mean"] == pytest.approx(100 * difference["mean"] / values.mean("b"))
    tenfold = rows_of({row: 10 * of for row, of in grid().items()}).change("a", "b")
    assert tenfold == pytest.approx(change), "it has no unit"
    assert rows_of({"a": np.ones((5, 1)), "b": np.zeros((5, 1))}).change("a", "b") is None


def test_shared_trainings_are_compared_seed_by_seed():
    noise = np.array([0.0, 1.0, 2.0, 3.0])
    values = {"a": grid()["a"] + noise, "b": grid()["a"] + noise + 0.1 * grid(rows="cd")["d"]}
    shared = rows_of(values, trainings={"a": "one", "b": "one"})
    assert shared.p_value("b", "a") < 1e-3 < 0.5 < rows_of(values).p_value("b", "a")
    assert shared.estimate("a") == rows_of(values).estimate("a")


def test_one_seed_borrows_and_what_is_not_random_does_not():
    values = grid() | {"c": grid(rows="abc")["c"][:, :1]}
    width = {}
    for name, rows in {"borrowed": values, "alone": {"c": values["c"]}}.items():
        found = rows_of(rows).estimate("c")
        width[name] = found["high"] - found["low"]
    untrained = rows_of(values, trainings={"c": None}).estimate("c")
    assert width["borrowed"] > width["alone"] == pytest.approx(untrained["high"] - untrained["low"])


def test_rows_that_share_trainings_are_borrowed_from_once():
    values = grid(n_seeds=2) | {"c": grid(rows="abc")["c"][:, :1]}
    once = rows_of({row: values[row] for row in "bc"}).estimate("c")
    twice = rows_of({**values, "a": values["b"]}, trainings={"a": "one", "b": "one"}).estimate("c")
    assert once == pytest.approx(twice), "two copies of a training know no more than one"


def test_extremes():
    same = {"a": np.ones((9, 3)), "b": np.ones((9, 3))}
    assert rows_of(same).p_value("a", "b") == 1.0
    assert rows_of(same).difference("a", "b") == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert rows_of({**same, "a": 2 * same["a"]}).p_value("a", "b") == 0.0


def test_other_users_and_a_single_one_are_errors():
    runs = {"full": {1: (np.arange(5), np.ones(5))}, "x": {2: (np.arange(6), np.ones(6))}}
    with pytest.raises(
        InputError, match=r"x, seed 2: found 6 users in 6 rows, expected the 5 in 5 of full, seed 1; .*--m"
    ):
        PairedValues(runs)
    other_rows = {"full": {1: (np.arange(5), np.ones(5))}, "x": {2: (np.array([0, 1, 2, 3, 4, 4]), np.ones(6))}}
    with pytest.raises(InputError, match=r"found 5 users in 6 rows, expected the 5 in 5 of full"):
        PairedValues(other_rows)
    with pytest.raises(InputError, match="full, seed 1: found 1 user, expected at least 2"):
        PairedValues({"full": {1: (np.zeros(3), np.ones(3))}})


def test_an_interval_of_a_metric_does_not_go_below_zero():
    users = np.arange(6)
    few = {seed: (users, np.full(6, float(seed))) for seed in range(2)}
    low = PairedValues({"a": few}).estimate("a")["low"]
    signed = {seed: (users, values - 0.5) for seed, (_, values) in few.items()}
    found = PairedValues({"a": signed}).estimate("a")
    assert low == 0.0 and found["low"] < -0.5 and found["low"] == pytest.approx(2 * found["mean"] - found["high"])
