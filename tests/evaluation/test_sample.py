import numpy as np
import pytest

from recbole_bbqrec.evaluation.sample import sampled_rows


def test_rows_are_different_sorted_and_those_of_the_seed() -> None:
    rows = sampled_rows(1000, 100, 7)
    assert len(rows) == 100 and (np.diff(rows) > 0).all() and rows.min() >= 0 and rows.max() < 1000
    assert np.array_equal(rows, sampled_rows(1000, 100, 7)) and not np.array_equal(rows, sampled_rows(1000, 100, 8))


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    assert set(sampled_rows(1000, 50, 7)) < set(sampled_rows(1000, 100, 7))


@pytest.mark.parametrize("n_wanted", [0, 10, 11])
def test_all_rows_where_none_are_to_be_left_out(n_wanted) -> None:
    assert sampled_rows(10, n_wanted, 7).tolist() == list(range(10))
