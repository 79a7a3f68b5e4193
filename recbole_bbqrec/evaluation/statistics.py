"""Whether a difference is one: per-user values, paired sign-flip tests, Holm, bootstrap over users and seeds.

Shapes: U users, C columns (a row of the table × seed × metric), S seeds, n resamples.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InputError

FLIPS = 10_000
"""Sign flips of a permutation test; the smallest p-value it can give is 1 / (1 + FLIPS)."""

RESAMPLES = 1_000
"""Bootstrap resamples behind an interval."""

_CHUNK = 1 << 22  # entries of one block of random numbers: 32 MiB as float64


def per_user(users: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the values [R] of a user's rows: the users [U], ascending, and their means [U]."""
    unique, place = np.unique(users, return_inverse=True)
    return unique, np.bincount(place, values) / np.bincount(place)


def sign_flip_test(differences: np.ndarray, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided paired permutation test of a mean difference of zero.

    Under the null hypothesis each user's difference is as likely to have the other sign. The statistic is the absolute
    mean; a flip that reaches the observed one counts, and so does the observed assignment itself, which keeps the test
    exact for any number of flips: p = (1 + count) / (1 + flips).

    Parameters
    ----------
    differences : [U] differences per user, already averaged over seeds.
    seed : of the flips; the same differences and seed give the same p-value.
    """
    moving = differences[differences != 0]  # the sign of a zero changes nothing
    total = float(moving.sum())
    # Differences of recall are few distinct fractions, so flips often tie with the observed sum: rounding must not
    # decide whether they reach it.
    reached = abs(total) - 1e-9 * float(np.abs(moving).sum())
    # Signs are drawn eight users to a byte; each of its 256 values picks their sum, minus once for those it flips.
    # Their number is padded to fours, which random bytes come in, so that blocks do not change what is drawn.
    eight = np.zeros((-(-len(moving) // 32) * 4, 8))
    eight.flat[: len(moving)] = moving
    signs = 1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1)  # [256, 8]
    sums_of = eight @ signs.T  # [U / 8, 256]
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(1, len(eight)))
    count = 0
    for start in range(0, flips, step):
        drawn = generator.integers(0, 256, (min(step, flips - start), len(eight)), dtype=np.uint8)
        sums = sums_of[np.arange(len(eight)), drawn].sum(axis=1)
        count += int(np.count_nonzero(np.abs(sums) >= reached))
    return (1 + count) / (1 + flips)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values [m] of one family of tests by Holm's step-down method, in their order."""
    values = np.asarray(p_values, float)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted


def bootstrap_users(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means [n, C] of the columns of `values` [U, C] over users drawn with replacement.

    All columns see the same draws, so that differences between them stay paired.
    """
    n_users = len(values)
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(1, n_users))
    means = []
    for start in range(0, resamples, step):
        drawn = generator.integers(0, n_users, (min(step, resamples - start), n_users), dtype=np.int32)
        counts = np.stack([np.bincount(row, minlength=n_users) for row in drawn])
        means.append(counts.astype(np.float64) @ values / n_users)
    return np.concatenate(means)


def draw_seeds(n_seeds: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Weights [n, S] of seeds drawn with replacement; each row sums to one. They depend on the arguments alone."""
    drawn = np.random.default_rng([seed, n_seeds]).integers(0, n_seeds, (resamples, n_seeds))
    return np.stack([np.count_nonzero(drawn == index, axis=1) for index in range(n_seeds)], axis=1) / n_seeds


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap samples [n]."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class PairedValues:
    """One metric of several rows of a table, by row and seed, over the same users.

    Parameters
    ----------
    values : row -> seed -> (users [R], values [R]).
    resamples, seed : of the bootstrap.

    Raises
    ------
    InputError : two runs were judged on different users.
    """

    def __init__(
        self,
        values: Mapping[str, Mapping[int, tuple[np.ndarray, np.ndarray]]],
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        columns: list[np.ndarray] = []
        self._place: dict[tuple[str, int], int] = {}
        first: np.ndarray | None = None
        for row, by_seed in values.items():
            for run_seed, (users, of_rows) in sorted(by_seed.items()):
                unique, means = per_user(users, of_rows)
                first = unique if first is None else first
                if not np.array_equal(unique, first):
                    raise InputError(
                        f"{row}, seed {run_seed}: found {len(unique)} users, expected the {len(first)} of the other "
                        "runs; settings that change the data cannot be compared user by user"
                    )
                self._place[row, run_seed] = len(columns)
                columns.append(means)
        self._values = np.stack(columns, axis=1)  # [U, C]
        self._resamples, self._seed = resamples, seed

    @functools.cached_property
    def _means(self) -> np.ndarray:
        return bootstrap_users(self._values, self._resamples, self._seed)  # [n, C]

    @property
    def rows(self) -> set[str]:
        """Names of the rows."""
        return {row for row, _ in self._place}

    def seeds(self, row: str) -> list[int]:
        """Seeds the row was run with, ascending."""
        return sorted(seed for name, seed in self._place if name == row)

    def mean(self, row: str) -> float:
        """Mean of the row over its seeds and users."""
        return float(self._per_user(row, self.seeds(row)).mean())

    def interval(self, row: str) -> tuple[float, float]:
        """95 % interval of `mean`."""
        return interval(self._resampled(row, self.seeds(row)))

    def change(self, row: str, reference: str) -> tuple[float, tuple[float, float]] | None:
        """Relative difference of two rows in %, with its interval, over their common seeds; none without any.

        None also where the reference is zero, so that there is nothing to be relative to.
        """
        seeds = self.common_seeds(row, reference)
        if not seeds or not (base := self._per_user(reference, seeds).mean()):
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = 100 * (self._resampled(row, seeds) / self._resampled(reference, seeds) - 1)
        return float(100 * (self._per_user(row, seeds).mean() / base - 1)), interval(samples[np.isfinite(samples)])

    def p_value(self, row: str, reference: str, flips: int = FLIPS) -> float | None:
        """Sign-flip test of two rows over their common seeds, averaged per user first; none without any."""
        seeds = self.common_seeds(row, reference)
        if not seeds:
            return None
        return sign_flip_test(self._per_user(row, seeds) - self._per_user(reference, seeds), flips, self._seed)

    def difference(self, row: str, reference: str) -> tuple[float, tuple[float, float]]:
        """Difference of two rows' means with its interval, each over all of its own seeds."""
        samples = self._resampled(row, self.seeds(row)) - self._resampled(reference, self.seeds(reference))
        return self.mean(row) - self.mean(reference), interval(samples)

    def p_of_difference(self, row: str, reference: str, flips: int = FLIPS) -> float:
        """Sign-flip test of `difference`: a user's values are averaged over each row's own seeds first."""
        differences = self._per_user(row, self.seeds(row)) - self._per_user(reference, self.seeds(reference))
        return sign_flip_test(differences, flips, self._seed)

    def common_seeds(self, row: str, reference: str) -> list[int]:
        """Seeds that both rows were run with."""
        return sorted(set(self.seeds(row)) & set(self.seeds(reference)))

    def _columns(self, row: str, seeds: Sequence[int]) -> list[int]:
        return [self._place[row, seed] for seed in seeds]

    def _per_user(self, row: str, seeds: Sequence[int]) -> np.ndarray:
        return self._values[:, self._columns(row, seeds)].mean(axis=1)

    def _resampled(self, row: str, seeds: Sequence[int]) -> np.ndarray:
        weights = draw_seeds(len(seeds), self._resamples, self._seed)
        return (self._means[:, self._columns(row, seeds)] * weights).sum(axis=1)
