"""The record of a run: its results, as plain data."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import distributed
from .config import Config
from .evaluation import report
from .evaluation.candidates import sampling_of
from .evaluation.groups import groups_of
from .evaluation.metrics import of_lists
from .evaluation.ranking import Ranks
from .second_stage import socket
from .settings import plain_settings
from .tokenizer.memory import PeakMemory


def record_of(config: Config, trained: Any, ranks: Mapping[str, Ranks], memory: PeakMemory) -> dict[str, Any]:
    """Return the record of a run, see `quick_start.execute`; `ranks` are by split."""
    trainer, model = trained.trainer, trained.trainer.model
    done, best = trainer.state.epochs_done, trainer.state.best_epoch
    data, everybody = trained.dataset, trained.loaders[1]._dataset
    drawn = {
        split: int(everybody.positive().inter_feat[everybody.uid_field].unique().numel())
        for split, rank in ranks.items()
        if config["valid_users"] and split == "valid" and rank.rows is not None
    }
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "metrics": {split: rank.metrics(config["metrics"], config["topk"]) for split, rank in ranks.items()},
        **_how_judged(config, trained, ranks),
        "users": {split: len(np.unique(rank.users)) for split, rank in ranks.items()},
        "rows": {split: len(rank.users) for split, rank in ranks.items()},
        **({"drawn_from": drawn} if drawn else {}),
        "epochs": {"best": best + 1, "done": done, "hit_cap": trainer.hit_cap},
        "chosen": trainer.state.chosen,
        "second_stage": socket.form_of(model.second_stage),
        "seconds": {**trained.dataset.seconds, **trainer.timings()},
        "peak_memory_mib": memory.mib,
        "peak_memory_is_bound": not memory.is_own,
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        **({"behaviour": "order" if data.is_ordered else "sets"} if data.tokenizer_file else {}),
        "run_dir": str(trainer.folder.path),
        **({"processes": distributed.world()} if distributed.world() > 1 else {}),
        "settings": plain_settings(config),
        "versions": report.versions(),
    }


def _how_judged(config: Config, trained: Any, ranks: Mapping[str, Ranks]) -> dict[str, Any]:
    """What a record says of how it was judged: groups of targets, what they are ranked among, what the long tail is."""
    asked, found = (config["metrics"], config["topk"]), {}
    if config["cold_items"] or config["group_metrics"]:
        train, *judged = (loader._dataset for loader in trained.loaders)
        found |= {"grouped_by": dict.fromkeys(ranks, config["group_metrics"] or []), "groups": {}}
        for split, dataset in zip(("valid", "test"), judged, strict=True):
            if split in ranks:
                parts = groups_of(ranks[split], dataset, train, config["group_metrics"] or ())
                of_parts = {name: {"rows": len(of.users), "metrics": of.metrics(*asked)} for name, of in parts.items()}
                found["groups"][split] = of_parts
    sampled = {split: sampling_of(config.final_config_dict, split) for split in ranks}
    if sampled := {split: sampling.words for split, sampling in sampled.items() if sampling}:
        found["ranked_among"] = sampled
    if "tailpercentage" in of_lists(config["metrics"]):
        found["tail_ratio"] = dict.fromkeys(ranks, config["tail_ratio"])
    return found | ({"per_user": True} if any(rank.per_user for rank in ranks.values()) else {})
