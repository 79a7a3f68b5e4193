"""Metrics of labelled rows: how well predictions tell positive rows from negative ones, without any ranking of items.

Shapes: R rows.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .. import schema
from ..errors import InputError

CLIP = 1e-15
"""Probabilities are kept this far from 0 and 1, as in RecBole: one that is certain and wrong would cost infinitely
much."""


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


def of_rankings(names: Iterable[str]) -> list[str]:
    """Return the names of metrics that are of rankings, not of labels."""
    return [name for name in names if name.lower() not in LABEL_METRICS]


def of_labels(names: Iterable[str]) -> list[str]:
    """Return the names of metrics, in lower case, that are of labels."""
    return [name.lower() for name in names if name.lower() in LABEL_METRICS]


def label_metrics(names: Iterable[str], predictions: np.ndarray, labels: np.ndarray, split: str) -> dict[str, float]:
    """Return the metrics among `names` that are of labels; an `InputError` where all rows have one label."""
    names = of_labels(names)
    check_kinds(names, labels, split)
    return {name: LABEL_METRICS[name](predictions, labels) for name in names}


def check_kinds(names: Iterable[str], labels: np.ndarray, split: str) -> None:
    """Raise an `InputError` where there are `names` of metrics of labels and all rows have one label."""
    if (names := of_labels(names)) and (len(labels) == 0 or labels.min() == labels.max()):
        kind = "no" if len(labels) == 0 else "only positive" if labels.min() > 0 else "only negative"
        raise InputError(
            f"metrics {', '.join(names)}: found {kind} rows in {split}, expected both kinds; change threshold or "
            "the split"
        )


RARE, FEW = "rare", 5
"""Group of rows whose item has fewer than this many training interactions."""


def is_rare(train: Any, judged: Any) -> np.ndarray:
    """Which rows [R] of the data set `judged` are of a rare item, by the rows of the data set `train`."""
    known, items = (part.inter_feat[part.iid_field].numpy() for part in (train, judged))
    return np.bincount(known, minlength=train.item_num)[items] < FEW


def check_labels(config: Any, kind: str) -> None:
    """Raise an `InputError` where labels are judged and there are none, or training would not go by them.

    `kind` is the model's, see `schema`.
    """
    is_context, labelled = kind == schema.CONTEXT, schema.is_labelled(config.final_config_dict)
    judges = "labeled" in config["eval_args"]["mode"].values()
    example = "--threshold=\"{'rating': 4}\" and the column rating in load_col"
    if judges and not (is_context and labelled):
        what = "eval_args: found mode labeled, expected a context-aware model, such as DeepFM, and labels"
        raise InputError(f"{what}: {example}")
    if is_context and labelled and config["train_neg_sample_args"]["distribution"] != "none":
        why = "beside labels, which RecBole would all make positive to draw negatives"
        raise InputError(
            f"train_neg_sample_args: found {config['train_neg_sample_args']['distribution']} {why}; drop one"
        )
