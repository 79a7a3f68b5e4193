"""Whether a difference is one: per-user values, paired sign-flip tests, bootstrap over users and seeds.

Shapes: U users, C columns (a row of a table × seed), S seeds, n resamples.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError

FLIPS = 10_000
"""Sign flips of a permutation test; the smallest p-value it can give is 1 / (1 + FLIPS)."""

RESAMPLES = 1_000
"""Bootstrap resamples behind an interval."""

_CHUNK = 1 << 22  # entries of one block of random numbers: 32 MiB as float64

Estimate = dict[str, float]
"""A figure with its 95 % interval: `mean`, `low` and `high`."""


def sign_flip_test(differences: np.ndarray) -> float:
    """Two-sided paired permutation test of a mean difference of zero; equal differences give an equal p-value.

    Under the null hypothesis each user's difference [U] is as likely to have the other sign. The statistic is the
    absolute mean; a flip that reaches the observed one counts, and so does the observed assignment itself, which keeps
    the test exact for any number of flips: p = (1 + count) / (1 + FLIPS).
    """
    moving = differences[differences != 0]  # the sign of a zero changes nothing
    # Differences of recall are few distinct fractions, so flips often tie with the observed sum: rounding must not
    # decide whether they reach it.
    reached = abs(float(moving.sum())) - 1e-9 * float(np.abs(moving).sum())
    # Signs are drawn eight users to a byte; each of its 256 values picks their sum, minus once for those it flips.
    # Their number is padded to fours, which random bytes come in, so that blocks do not change what is drawn.
    eight = np.zeros((-(-len(moving) // 32) * 4, 8))
    eight.flat[: len(moving)] = moving
    sums_of = eight @ (1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1)).T  # [U / 8, 256]
    generator, count = np.random.default_rng(0), 0
    for size in _blocks(FLIPS, len(eight)):
        drawn = generator.integers(0, 256, (size, len(eight)), dtype=np.uint8)
        count += int(np.count_nonzero(np.abs(sums_of[np.arange(len(eight)), drawn].sum(axis=1)) >= reached))
    return (1 + count) / (1 + FLIPS)


def _blocks(total: int, width: int) -> list[int]:
    """Sizes of the blocks in which `total` rows of `width` random numbers are drawn."""
    size = max(1, _CHUNK // max(1, width))
    return [min(size, total - start) for start in range(0, total, size)]


def holm(entries: Iterable[dict[str, Any]]) -> None:
    """Add `p_holm` to those that have a `p`: Holm's step-down correction, all of them being one family of tests."""
    tested = sorted((entry for entry in entries if entry.get("p") is not None), key=lambda entry: entry["p"])
    adjusted = 0.0
    for at, entry in enumerate(tested):
        adjusted = entry["p_holm"] = min(1.0, max(adjusted, entry["p"] * (len(tested) - at)))


def bootstrap_users(values: np.ndarray) -> np.ndarray:
    """Means [n, C] of the columns of `values` [U, C] over users drawn with replacement, the same for all columns."""
    n_users, generator, means = len(values), np.random.default_rng(0), []
    for size in _blocks(RESAMPLES, n_users):
        drawn = generator.integers(0, n_users, (size, n_users), dtype=np.int32)
        counts = np.stack([np.bincount(row, minlength=n_users) for row in drawn])
        means.append(counts.astype(np.float64) @ values / n_users)
    return np.concatenate(means)


def draw_seeds(n_seeds: int) -> np.ndarray:
    """Weights [n, S] of seeds drawn with replacement; each row sums to one. They depend on the number alone."""
    drawn = np.random.default_rng([0, n_seeds]).integers(0, n_seeds, (RESAMPLES, n_seeds))
    return np.stack([np.count_nonzero(drawn == index, axis=1) for index in range(n_seeds)], axis=1) / n_seeds


def estimate(mean: float, samples: np.ndarray) -> Estimate:
    """Join a mean and the 95 % percentile interval of its bootstrap samples [n]."""
    low, high = np.quantile(samples, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


class PairedValues:
    """One metric of several rows of a table over the same users, from row -> seed -> (users [R], values [R]).

    Values are averaged per user first. An `InputError` where the users of two runs differ.
    """

    def __init__(self, values: Mapping[str, Mapping[int, tuple[np.ndarray, np.ndarray]]]) -> None:
        self.seeds = {row: sorted(by_seed) for row, by_seed in values.items()}
        runs = [(row, seed) for row, seeds in self.seeds.items() for seed in seeds]
        first, means = np.unique(values[runs[0][0]][runs[0][1]][0]), []
        for row, seed in runs:
            users, place = np.unique(values[row][seed][0], return_inverse=True)
            means.append(np.bincount(place, values[row][seed][1]) / np.bincount(place))  # of each user
            if not np.array_equal(users, first):
                raise InputError(
                    f"{row}, seed {seed}: found {len(users)} users, expected the {len(first)} of {runs[0][0]}, seed "
                    f"{runs[0][1]}; settings that change the data cannot be compared user by user: leave a row out "
                    "with --models, or choose with --keys"
                )
        self.n_users = len(first)
        self._column = {run: at for at, run in enumerate(runs)}
        self._values = np.stack(means, axis=1)  # [U, C]

    @functools.cached_property
    def _means(self) -> np.ndarray:
        return bootstrap_users(self._values)  # [n, C]

    def mean(self, row: str) -> float:
        """Mean of the row over its seeds and users."""
        return float(self._per_user(row).mean())

    def estimate(self, row: str) -> Estimate:
        """`mean` with its interval."""
        return estimate(self.mean(row), self._resampled(row))

    def difference(self, row: str, reference: str) -> Estimate:
        """Difference of two rows' means, each over all of its own seeds."""
        return estimate(self.mean(row) - self.mean(reference), self._resampled(row) - self._resampled(reference))

    def change(self, row: str, reference: str) -> Estimate | None:
        """Relative difference of two rows in %, over their common seeds; none without any, or where it is to zero."""
        seeds = self.common_seeds(row, reference)
        if not seeds or not (base := self._per_user(reference, seeds).mean()):
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = 100 * (self._resampled(row, seeds) / self._resampled(reference, seeds) - 1)
        return estimate(100 * (self._per_user(row, seeds).mean() / base - 1), samples[np.isfinite(samples)])

    def p_value(self, row: str, reference: str, seeds: Sequence[int] | None = None) -> float:
        """Sign-flip test of two rows, averaged per user first: over these seeds, or over all of each row's own."""
        return sign_flip_test(self._per_user(row, seeds) - self._per_user(reference, seeds))

    def common_seeds(self, row: str, reference: str) -> list[int]:
        """Seeds that both rows were run with; none where there is no such reference."""
        return [seed for seed in self.seeds[row] if seed in self.seeds.get(reference, ())]

    def _per_user(self, row: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        return self._values[:, self._columns(row, seeds)].mean(axis=1)  # [U]

    def _resampled(self, row: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        columns = self._columns(row, seeds)
        return (self._means[:, columns] * draw_seeds(len(columns))).sum(axis=1)  # [n]

    def _columns(self, row: str, seeds: Sequence[int] | None) -> list[int]:
        return [self._column[row, seed] for seed in (self.seeds[row] if seeds is None else seeds)]
