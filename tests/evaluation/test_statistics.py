import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.statistics import (
    FLIPS,
    PairedValues,
    bootstrap_users,
    draw_seeds,
    holm,
    interval,
    per_user,
    sign_flip_test,
)


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
    found = [sign_flip_test(differences, seed=seed) for seed in range(5)]
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


def test_the_sign_flip_test_holds_its_level():
    generator = np.random.default_rng(3)
    p_values = [sign_flip_test(generator.normal(0, 1, 40), flips=400, seed=at) for at in range(500)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.09


@given(st.integers(0, 1000), st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_the_sign_flip_test_is_symmetric_and_ignores_order_of_no_effect(seed, n):
    differences = np.random.default_rng(seed).integers(-3, 4, n) / 3
    p_value = sign_flip_test(differences, flips=200)
    assert p_value == sign_flip_test(differences, flips=200) and 0 < p_value <= 1
    assert p_value == sign_flip_test(-differences, flips=200)
    assert p_value == sign_flip_test(np.r_[differences, np.zeros(7)], flips=200)


def test_chunks_do_not_change_the_test(monkeypatch):
    from recbole_bbqrec.evaluation import statistics

    differences = np.random.default_rng(0).normal(0.05, 1, 300)
    whole = sign_flip_test(differences, flips=1000)
    monkeypatch.setattr(statistics, "_CHUNK", 5000)
    assert sign_flip_test(differences, flips=1000) == whole


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values):
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected = np.zeros(len(p_values), bool)
        for step, at in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[at] * (len(p_values) - step) > level:
                break
            rejected[at] = True
        np.testing.assert_array_equal(adjusted <= level, rejected)


def test_values_are_averaged_per_user():
    users, means = per_user(np.array([7, 3, 7, 7]), np.array([1.0, 0.5, 0.0, 0.5]))
    assert users.tolist() == [3, 7] and means.tolist() == [0.5, 0.5]


def test_bootstrap_of_users_has_the_known_spread():
    values = np.random.default_rng(0).normal(2, 3, (500, 2))
    means = bootstrap_users(values, resamples=4000)
    np.testing.assert_allclose(means.mean(0), values.mean(0), atol=0.02)
    np.testing.assert_allclose(means.std(0), values.std(0) / np.sqrt(500), rtol=0.05)
    low, high = interval(means[:, 0])
    centre, width = values[:, 0].mean(), 1.96 * values[:, 0].std() / np.sqrt(500)
    assert low == pytest.approx(centre - width, abs=0.02) and high == pytest.approx(centre + width, abs=0.02)


def test_bootstrap_keeps_columns_paired_and_depends_on_its_seed_alone():
    values = np.random.default_rng(0).normal(0, 1, (50, 1))
    means = bootstrap_users(np.c_[values, values + 1], resamples=100, seed=4)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0)
    np.testing.assert_array_equal(means, bootstrap_users(np.c_[values, values + 1], resamples=100, seed=4))
    assert not np.array_equal(means, bootstrap_users(np.c_[values, values + 1], resamples=100, seed=5))


def test_seed_weights():
    weights = draw_seeds(3, resamples=3000)
    np.testing.assert_allclose(weights.sum(1), 1.0)
    np.testing.assert_allclose(weights.mean(0), 1 / 3, atol=0.02)
    assert set(np.round(weights.ravel() * 3).astype(int)) == {0, 1, 2, 3}
    assert (draw_seeds(1) == 1).all()


def paired(effect=0.1, seeds=(1, 2, 3), n=300):
    """Row `b` is row `a` plus an effect that is the same for every user, and seed noise."""
    users, strength = np.arange(n)[::-1], np.random.default_rng(0).random(n)
    a = {seed: (users, strength + 0.01 * seed) for seed in (1, 2, 3)}
    b = {seed: (users, strength + 0.01 * seed + effect) for seed in seeds}
    return PairedValues({"a": a, "b": b}, resamples=500), strength.mean() + 0.02


def test_paired_rows():
    values, mean = paired()
    assert values.rows == {"a", "b"}
    assert values.mean("a") == pytest.approx(mean) and values.mean("b") == pytest.approx(mean + 0.1)
    low, high = values.interval("a")
    assert low < mean < high and high - low == pytest.approx(4 * 0.29 / np.sqrt(300), rel=0.2)
    change, (low, high) = values.change("b", "a")
    assert low < change < high and change == pytest.approx(100 * 0.1 / mean)
    assert high - low < 3, "the effect is the same for all users: pairing keeps their spread out of the interval"
    assert values.p_value("b", "a") == 1 / (1 + FLIPS)


def test_rows_are_compared_on_the_seeds_both_have():
    values, _ = paired(effect=0.0, seeds=(3, 4))
    assert values.common_seeds("b", "a") == [3] and values.seeds("b") == [3, 4]
    assert values.change("b", "a") == (0.0, (0.0, 0.0)) and values.p_value("b", "a") == 1.0
    apart, _ = paired(seeds=(8, 9))
    assert apart.change("b", "a") is None and apart.p_value("b", "a") is None


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
    with pytest.raises(InputError, match=r"x, seed 2: found 6 users, expected the 5 of the other runs"):
        PairedValues(runs)
