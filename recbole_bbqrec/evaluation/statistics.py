"""Whether a difference is real: a mixed model of users and seeds behind intervals and p-values, and Holm's correction.

A value of row r, seed s and user u is the row's mean, plus what this user has in the row, plus what this training has,
plus a remainder. Users are the same in all rows; a row's trainings are drawn anew. The variance of a weighted sum of
rows' means then has two parts: that of users, with many degrees of freedom, and that of trainings, in which each row
has one fewer than it has seeds (those of several rows are joined as Satterthwaite does, Biometrics Bulletin 2, 1946).
Of two such parts the distribution is that of Behrens and Fisher (Annals of Eugenics 6, 1935). It keeps its level in
the far tail too, which Holm's correction looks at; one Student's t for both parts together does not.

Shapes: U users, S seeds of a row.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from ..errors import InputError

Estimate = dict[str, float]
"""A figure with its 95 % interval: `mean`, `low` and `high`."""


def holm(hypotheses: Iterable[list[dict[str, Any]]]) -> None:
    """Add `p_holm` to the entries of each hypothesis: Holm's step-down correction, all of them being one family.

    Entries of one hypothesis are one test, with the `p` of the first of them; without a `p` they are no test.
    """
    tested = sorted((cells for cells in hypotheses if cells[0]["p"] is not None), key=lambda cells: cells[0]["p"])
    adjusted = 0.0
    for at, cells in enumerate(tested):
        adjusted = min(1.0, max(adjusted, cells[0]["p"] * (len(tested) - at)))
        for entry in cells:
            entry |= {"p": cells[0]["p"], "p_holm": adjusted}


class _Spread(NamedTuple):
    """How much trainings differ: mean square of the seeds' means, and of what is left of a value beside them."""

    seeds: float
    rest: float
    freedom: int


def _spread(values: np.ndarray) -> _Spread:
    """Spread of one row's values [U, S], of two seeds or more."""
    n_users, n_seeds = values.shape
    means = values.mean(axis=0)
    rest = values - values.mean(axis=1, keepdims=True) - (means - means.mean())
    freedom = n_seeds - 1
    return _Spread(float(means.var(ddof=1)), float((rest**2).sum()) / (freedom * (n_users - 1)), freedom)


class _Error(NamedTuple):
    """Variance of an estimate in two independent parts, each with its degrees of freedom."""

    users: float
    users_freedom: float
    seeds: float
    seeds_freedom: float

    def p_value(self, difference: float) -> float:
        """Two-sided p of an estimate that is this far from what it should be."""
        return self._p_values()(difference)

    def reach(self) -> float:
        """Half the width of the 95 % interval: the difference whose p is .05."""
        most = (self.users + self.seeds) ** 0.5 * special.stdtrit(min(self.users_freedom, self.seeds_freedom), 0.975)
        p_value = self._p_values()
        return optimize.brentq(lambda reach: p_value(reach) - 0.05, 0, 2 * most) if most else 0.0

    def _p_values(self) -> Callable[[float], float]:
        """Return what `p_value` computes, as a function of the difference."""
        if not self.users + self.seeds:
            return lambda difference: float(not difference)
        # Student's t, averaged over what the seeds' part may truly be: its estimate divided by chi-square over its
        # degrees of freedom. For a smooth function, sums over an even grid of logarithms are all but exact; the grid is
        # as wide as the degrees of freedom need, as few of them mean a long tail to the left.
        width = 8 * (2 / self.seeds_freedom) ** 0.5
        logarithms = np.linspace(-width - 80 / self.seeds_freedom, width, 320)  # of chi-square over its freedom
        log_density = self.seeds_freedom / 2 * (logarithms - np.exp(logarithms))
        density = np.exp(log_density - log_density.max())
        variance = self.users + self.seeds / np.exp(logarithms)
        freedom = self.users_freedom * (variance / max(self.users, 1e-9 * self.seeds)) ** 2
        weights, deviation = 2 * density / density.sum(), np.sqrt(variance)
        return lambda difference: float(weights @ special.stdtr(freedom, -abs(difference) / deviation))


class PairedValues:
    """One metric of several rows of a table over the same users, from row -> seed -> (users [R], values [R]).

    A mean is over all values, as in RecBole. Users are independent, values of one user are not: where some users have
    more values than others, a user's distance from the mean counts by the number of those values, as in a ratio of sums
    (Cochran, Sampling Techniques, 3rd edition, section 2.11). An `InputError` where the users of two runs differ or
    have other numbers of values, or there is only one.

    `trainings` is row -> what identifies its trainings, none where nothing in it is random; rows with the same value
    share their trainings, seed by seed. A row that it lacks has trainings of its own. A row of one seed borrows the
    pooled spread of the trainings of rows that have several; without any, nothing is counted for seeds.
    """

    def __init__(
        self,
        values: Mapping[str, Mapping[int, tuple[np.ndarray, np.ndarray]]],
        trainings: Mapping[str, Hashable | None] | None = None,
    ) -> None:
        self._trainings = {row: (row,) for row in values} | dict(trainings or {})
        first: list[np.ndarray] = []  # users, and how many values each has
        at = ""
        self._values = {}
        for row, by_seed in values.items():
            means = []
            for seed, (of_rows, found) in sorted(by_seed.items()):
                users, place, counts = np.unique(of_rows, return_inverse=True, return_counts=True)
                if not first:
                    first, at = [users, counts], f"{row}, seed {seed}"
                if not all(map(np.array_equal, (users, counts), first)):
                    raise InputError(
                        f"{row}, seed {seed}: found {len(users)} users in {counts.sum()} rows, expected the "
                        f"{len(first[0])} in {first[1].sum()} of {at}; settings that change the data cannot be "
                        "compared user by user: leave a row out with --models, or choose with --keys"
                    )
                of_users = np.bincount(place, found) / counts
                if (counts != counts[0]).any():
                    of_users = found.mean() + counts / counts.mean() * (of_users - found.mean())
                means.append(of_users)
            self._values[row] = np.stack(means, axis=1)  # [U, S]
        self._per_user = {row: of_row.mean(axis=1) for row, of_row in self._values.items()}  # [U]
        self.n_users, self.n_values = len(first[0]), int(first[1].sum())
        if self.n_users < 2:
            raise InputError(f"{at}: found 1 user, expected at least 2; judge a data set with more users")

    @functools.cached_property
    def _known(self) -> dict[Hashable, _Spread]:
        """Trainings of several seeds -> their spread, which is the mean over the rows that share them."""
        found: dict[Hashable, list[_Spread]] = {}
        for row, values in self._values.items():
            if self._trainings[row] is not None and values.shape[1] > 1:
                found.setdefault(self._trainings[row], []).append(_spread(values))
        return {
            training: _Spread(
                float(np.mean([spread.seeds for spread in spreads])),
                float(np.mean([spread.rest for spread in spreads])),
                spreads[0].freedom,
            )
            for training, spreads in found.items()
        }

    def mean(self, row: str) -> float:
        """Mean of the row over its seeds and values."""
        return float(self._values[row].mean())

    def estimate(self, row: str) -> Estimate:
        """`mean` with its interval, which ends at 0 where no value is below it."""
        found = self._interval({row: 1.0}, self.mean(row))
        return {**found, "low": max(found["low"], 0.0)} if (self._values[row] >= 0).all() else found

    def difference(self, row: str, reference: str) -> Estimate:
        """Difference of two rows' means, each over all of its own seeds."""
        return self._interval({row: 1.0, reference: -1.0}, self.mean(row) - self.mean(reference))

    def change(self, row: str, reference: str) -> Estimate | None:
        """Relative difference of two rows' means in %, by the delta method; none where the reference is zero."""
        base = self.mean(reference)
        if not base:
            return None
        ratio = self.mean(row) / base
        return self._interval({row: 100 / base, reference: -100 * ratio / base}, 100 * (ratio - 1))

    def p_value(self, row: str, reference: str) -> float:
        """Two-sided p of equal means: how often methods that are equally good would differ by at least as much."""
        return self._error({row: 1.0, reference: -1.0}).p_value(self.mean(row) - self.mean(reference))

    def _interval(self, weights: Mapping[str, float], mean: float) -> Estimate:
        reach = self._error(weights).reach()
        return {"mean": mean, "low": mean - reach, "high": mean + reach}

    def _error(self, weights: Mapping[str, float]) -> _Error:
        """Error of the weighted sum of rows' means."""
        by_training: dict[Hashable | None, list[str]] = {}
        for row in weights:
            by_training.setdefault(self._trainings[row], []).append(row)
        users = float(np.sum([weight * self._per_user[row] for row, weight in weights.items()], axis=0).var(ddof=1))
        # Parts of the variance by the trainings whose mean square they are a multiple of.
        parts, pool = dict.fromkeys(self._known, 0.0), sum(spread.freedom for spread in self._known.values())
        for training, rows in by_training.items():
            if training in self._known:
                # Trainings that rows share are one draw: what they do to the sum of these rows is what counts.
                found = _spread(np.sum([weights[row] * self._values[row] for row in rows], axis=0))
                n_seeds = found.freedom + 1
                users -= found.rest / n_seeds
                parts[training] += found.seeds / n_seeds
            elif training is not None:
                for known, spread in self._known.items():
                    share = sum(weights[row] ** 2 for row in rows) * spread.freedom / pool
                    users -= share * spread.rest
                    parts[known] += share * spread.seeds
        # The mean square of the seeds' means holds the remainder's part already.
        users, seeds = max(0.0, users) / self.n_users, sum(parts.values())
        squares = sum(part**2 / self._known[training].freedom for training, part in parts.items())
        return _Error(users, self.n_users - 1, seeds, seeds**2 / squares if squares else 1.0)
