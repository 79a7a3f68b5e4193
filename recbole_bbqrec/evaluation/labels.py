"""Metrics of labelled rows: how well predictions tell positive rows from negative ones, without any ranking of items.

Shapes: R rows.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import InputError

CLIP = 1e-15
"""Probabilities are kept this far from 0 and 1, as in RecBole: one that is certain and wrong would cost without end."""


def auc(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of the pairs of a positive and a negative row in which the positive one is predicted higher; ties half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, predictions))


def log_loss(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative logarithm of the probability that a row's own label was given."""
    given = np.clip(predictions.astype(np.float64), CLIP, 1 - CLIP)
    return float(-np.log(np.where(labels > 0, given, 1 - given)).mean())


LABEL_METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {"auc": auc, "logloss": log_loss}
"""RecBole's metrics of values, by its names in lower case: of predictions [R] and labels [R], 0 or 1."""

SMALLER_IS_BETTER = ("logloss",)


def of_rankings(names: Iterable[str]) -> list[str]:
    """Return the names of metrics that are of rankings, not of labels."""
    return [name for name in names if name.lower() not in LABEL_METRICS]


def label_metrics(names: Iterable[str], predictions: np.ndarray, labels: np.ndarray, split: str) -> dict[str, float]:
    """Return the metrics among `names` that are of labels; an `InputError` where all rows have one label."""
    names = [name.lower() for name in names if name.lower() in LABEL_METRICS]
    if names and (len(labels) == 0 or labels.min() == labels.max()):
        kind = "no" if len(labels) == 0 else "only positive" if labels.min() > 0 else "only negative"
        raise InputError(
            f"metrics {', '.join(names)}: found {kind} rows in {split}, expected both kinds; change threshold or "
            "the split"
        )
    return {name: LABEL_METRICS[name](predictions, labels) for name in names}


RARE, FEW = "rare", 5
"""Group of rows whose item has fewer than this many training interactions."""


def is_rare(train: Any, judged: Any) -> np.ndarray:
    """Which rows [R] of the data set `judged` are of a rare item, by the rows of the data set `train`."""
    known, items = (part.inter_feat[part.iid_field].numpy() for part in (train, judged))
    return np.bincount(known, minlength=train.item_num)[items] < FEW
