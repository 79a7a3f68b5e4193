import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import statistics
from recbole_bbqrec.evaluation.statistics import (
    FLIPS,
    PairedValues,
    bootstrap_users,
    draw_seeds,
    estimate,
    holm,
    sign_flip_test,
)


@pytest.fixture
def few_flips(monkeypatch):
    monkeypatch.setattr(statistics, "FLIPS", 400)


def all_assignments(differences):
    """Share of all sign assignments whose mean is at least as far from zero: the p-value without any sampling."""
    signs = np.array(list(itertools.product((-1, 1), repeat=len(differences))))
    sums = np.abs(signs @ differences)
    return np.mean(sums >= abs(differences.sum()) - 1e-9)


@pytest.mark.parametrize(
    "differences",
    [
        [1.0, 2.0, -0.5, 3.0, 0.25, 1.5, 2.5, 0.1],
        [1 / 3, 1 / 3, -1 / 3, 2 / 3, 1.0, 1 / 3, 0.0, 0.0, 0.0, 1 / 3],
        [0.1] * 3 + [-0.1] * 3,
        [0.7, 0.1, 0.2, -0.3, 0.3, 0.4, 0.9, 0.8, 0.2, -0.1, 0.5, 0.6],
    ],
    ids=["distinct", "thirds with ties", "balanced", "more than a byte"],
)
def test_sign_flips_agree_with_all_assignments(differences):
    differences = np.array(differences)
    exact = all_assignments(differences)
    deviation = np.sqrt(exact * (1 - exact) / FLIPS)
    generator = np.random.default_rng(0)  # in another order the same flips meet other users
    found = [sign_flip_test(generator.permutation(differences)) for _ in range(5)]
    assert np.mean(found) == pytest.approx(exact, abs=1e-4 + 3 * deviation / np.sqrt(5))
    assert all(abs(one - exact) < 1e-3 + 4.5 * deviation for one in found)


def test_sign_flips_agree_with_scipy():
    differences = np.random.default_rng(0).normal(0.2, 1, 60)
    reference = stats.permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=FLIPS,
        alternative="two-sided",
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    assert sign_flip_test(differences) == pytest.approx(reference.pvalue, abs=0.012)


def test_extremes_of_the_sign_flip_test():
    assert sign_flip_test(np.zeros(50)) == 1.0
    assert sign_flip_test(np.ones(100)) == 1 / (1 + FLIPS), "never zero: the observed assignment counts"
    assert sign_flip_test(np.array([0.3])) == 1.0


def test_the_sign_flip_test_holds_its_level(few_flips):
    generator = np.random.default_rng(3)
    p_values = [sign_flip_test(generator.normal(0, 1, 40)) for _ in range(500)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.09


@given(st.integers(0, 1000), st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_the_sign_flip_test_is_symmetric_and_ignores_order_of_no_effect(seed, n):
    differences = np.random.default_rng(seed).integers(-3, 4, n) / 3
    p_value = sign_flip_test(differences)
    assert p_value == sign_flip_test(differences) and 0 < p_value <= 1
    assert p_value == sign_flip_test(-differences)
    assert p_value == sign_flip_test(np.r_[differences, np.zeros(7)])


def test_chunks_do_not_change_the_test(monkeypatch):
    differences = np.random.default_rng(0).normal(0.05, 1, 300)
    whole = sign_flip_test(differences)
    monkeypatch.setattr(statistics, "_CHUNK", 5000)
    assert sign_flip_test(differences) == whole


def adjusted(p_values):
    entries = [{"p": p_value} for p_value in p_values]
    holm([*entries, {"p": None}, {}])
    return [entry["p_holm"] for entry in entries]


def test_holm_by_hand():
    np.testing.assert_allclose(adjusted([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(adjusted([0.5, 0.9]), [1.0, 1.0])
    assert adjusted([]) == []


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


def test_values_are_averaged_per_user():
    values = PairedValues({"a": {1: (np.array([7, 3, 7, 7]), np.array([1.0, 0.25, 0.0, 0.5]))}})
    assert values.n_users == 2 and values.mean("a") == (0.5 + 0.25) / 2


def test_bootstrap_of_users_has_the_known_spread():
    values = np.random.default_rng(0).normal(2, 3, (500, 2))
    means = bootstrap_users(values)
    np.testing.assert_allclose(means.mean(0), values.mean(0), atol=0.02)
    np.testing.assert_allclose(means.std(0), values.std(0) / np.sqrt(500), rtol=0.1)
    found = estimate(values[:, 0].mean(), means[:, 0])
    low, high = found["low"], found["high"]
    assert found["mean"] == values[:, 0].mean()
    centre, width = values[:, 0].mean(), 1.96 * values[:, 0].std() / np.sqrt(500)
    assert low == pytest.approx(centre - width, abs=0.03) and high == pytest.approx(centre + width, abs=0.03)


def test_bootstrap_keeps_columns_paired_and_is_repeatable():
    values = np.random.default_rng(0).normal(0, 1, (50, 1))
    means = bootstrap_users(np.c_[values, values + 1])
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0)
    np.testing.assert_array_equal(means, bootstrap_users(np.c_[values, values + 1]))
    assert means[:, 0].std() > 0


def test_seed_weights():
    weights = draw_seeds(3)
    np.testing.assert_allclose(weights.sum(1), 1.0)
    np.testing.assert_allclose(weights.mean(0), 1 / 3, atol=0.03)
    assert set(np.round(weights.ravel() * 3).astype(int)) == {0, 1, 2, 3}
    assert (draw_seeds(1) == 1).all()


def paired(effect=0.1, seeds=(1, 2, 3), n=300):
    """Row `b` is row `a` plus an effect that is the same for every user, and seed noise."""
    users, strength = np.arange(n)[::-1], np.random.default_rng(0).random(n)
    a = {seed: (users, strength + 0.01 * seed) for seed in (1, 2, 3)}
    b = {seed: (users, strength + 0.01 * seed + effect) for seed in seeds}
    return PairedValues({"a": a, "b": b}), strength.mean() + 0.02


def test_paired_rows():
    values, mean = paired()
    assert values.seeds == {"a": [1, 2, 3], "b": [1, 2, 3]} and values.n_users == 300
    assert values.mean("a") == pytest.approx(mean) and values.mean("b") == pytest.approx(mean + 0.1)
    found = values.estimate("a")
    low, high = found["low"], found["high"]
    assert (
        found["mean"] == values.mean("a")
        and low < mean < high
        and high - low == pytest.approx(4 * 0.29 / np.sqrt(300), rel=0.2)
    )
    change, low, high = values.change("b", "a").values()
    assert low < change < high and change == pytest.approx(100 * 0.1 / mean)
    assert high - low < 3, "the effect is the same for all users: pairing keeps their spread out of the interval"
    assert values.p_value("b", "a") == 1 / (1 + FLIPS)


def test_rows_are_compared_on_the_seeds_both_have():
    values, _ = paired(effect=0.0, seeds=(3, 4))
    assert values.common_seeds("b", "a") == [3] and values.seeds["b"] == [3, 4]
    assert values.change("b", "a") == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert values.p_value("b", "a", [3]) == 1.0 > values.p_value("b", "a"), "or else on all seeds of each"
    apart, _ = paired(seeds=(8, 9))
    assert apart.change("b", "a") is None and apart.common_seeds("b", "a") == []


def test_seeds_are_averaged_before_the_test_not_pooled():
    users, signs = np.arange(10), np.array([1.0] * 5 + [-1.0] * 5)
    full = {seed: (users, np.zeros(10)) for seed in (1, 2)}
    other = {1: (users, signs), 2: (users, -signs)}
    assert PairedValues({"full": full, "x": other}).p_value("x", "full") == 1.0


def test_a_reference_of_zero_gives_no_relative_change():
    users = np.arange(5)
    values = PairedValues({"full": {1: (users, np.zeros(5))}, "x": {1: (users, np.ones(5))}})
    assert values.change("x", "full") is None and values.p_value("x", "full") < 0.2


def test_other_users_are_an_error():
    runs = {"full": {1: (np.arange(5), np.ones(5))}, "x": {2: (np.arange(6), np.ones(6))}}
    with pytest.raises(InputError, match=r"x, seed 2: found 6 users, expected the 5 of full, seed 1; .* --models"):
        PairedValues(runs)
