"""What a trained model says of labelled rows, and the metrics of it."""

from typing import Any

import numpy as np
import torch

from ..evaluation.labels import RARE, check_kinds, is_rare, label_metrics, of_labels


@torch.no_grad()
def predictions(model: Any, dataset: Any, batch_size: int, device: Any) -> np.ndarray:
    """Return what the model predicts for each row [R] of a data set: the probability of a positive one."""
    model.eval()
    rows = np.arange(len(dataset.inter_feat))
    parts = [rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size)]
    found = [model.predict(dataset[part].to(device)).float().cpu().view(-1) for part in parts]
    return torch.cat(found).numpy() if found else np.zeros(0, np.float32)


def check_rows(config: Any, judged: Any, split: str) -> None:
    """Raise an `InputError` where metrics of labels are asked for and all rows of a data set have one label."""
    if names := of_labels(config["metrics"]):
        check_kinds(names, judged.inter_feat[config["LABEL_FIELD"]].numpy(), split)


def judge_labels(config: Any, model: Any, judged: Any, train: Any, split: str) -> dict[str, dict[str, float]]:
    """Metrics of labels with the number of `rows` and `positives`, of all rows and of those of rare items.

    Rare items are left out where all of their rows have one label.
    """
    labels = judged.inter_feat[config["LABEL_FIELD"]].numpy()
    found = predictions(model, judged, config["train_batch_size"], config["device"])
    rare, groups = is_rare(train, judged), {}
    for group, rows in (("all", np.ones(len(labels), bool)), (RARE, rare)):
        own = labels[rows]
        if group == "all" or (len(own) and own.min() < own.max()):
            values = label_metrics(config["metrics"], found[rows], own, split)
            groups[group] = {"rows": len(own), "positives": int(own.sum()), **values}
    return groups
