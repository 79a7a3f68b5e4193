"""Items that training does not know: which they are, and how they join the catalogue as new items do in use.

They are drawn from the tokens of all items, the same for all seeds and models, so that all of these are judged on the
same items, as they are on the same targets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import schema
from ..errors import InputError
from ..model.catalogue import Catalogue, ItemFeatures
from ..tokenizer.registry import load as load_tokenizer

DRAW = 0
"""Seed of the draw; a smaller share takes some of the items that a larger one does."""


def cold_tokens(tokens: Sequence[str], share: float) -> set[str]:
    """Return a share of the item tokens, at least one unless the share is 0; their order does not matter."""
    found = np.random.default_rng(DRAW).permutation(sorted(tokens))
    n_cold = max(round(share * len(found)), 1) if share else 0
    if n_cold and n_cold >= len(found):
        raise InputError(f"cold_items: found {share}, which leaves none of {len(found)} items to train on; lower it")
    return set(found[:n_cold].tolist())


def apart(catalogue: Catalogue, n_cold: int) -> tuple[Catalogue, ItemFeatures]:
    """Take the last `n_cold` items out of a catalogue; returns the others, and the features of those."""
    known, cold = catalogue.tokens[:-n_cold], catalogue.tokens[-n_cold:]
    features = catalogue.features or ItemFeatures(catalogue.tokens)
    return Catalogue(known, features.reindex(known)), features.reindex(cold)


def with_cold_items(config: Any, known: Catalogue, cold: ItemFeatures, tokenizer: Path | None) -> Catalogue:
    """Return the training catalogue grown by the cold items, whose IDs come from `encode` of the `tokenizer` in a file.

    For a model that decodes IDs, each item gets an ID of its own.
    """
    encoded = None
    if tokenizer is not None:
        unique = schema.decodes(config.final_config_dict)
        encoded = load_tokenizer(tokenizer).encode(cold.matrices, cold.present, unique=unique)
    return known.grown(cold, encoded)


def is_cold(dataset: Any) -> np.ndarray | None:
    """Tell which targets [R] of a data set's rows training does not know; none where it knows all items.

    An `InputError` where one of the two kinds has no target.
    """
    if (n_trained := dataset.catalogue.n_trained) is None:
        return None
    found = dataset.inter_feat[dataset.iid_field].numpy() >= n_trained
    if found.all() or not found.any():
        kind = "warm" if found.all() else "cold"
        raise InputError(f"cold_items: found no {kind} item among {len(found)} targets to judge; change the share")
    return found


def check_cold_items(config: Any) -> None:
    """Raise an `InputError` where a run would hold out items and could not rank them, or not judge that."""
    share, run = config["cold_items"], config.final_config_dict
    if not share:
        return
    found, instead = f"found {share}", "drop cold_items"
    if not schema.ranks_new_items(run):
        why = f"with {run['model']}, which ranks the items that it was trained with; a cold one has features alone"
        instead = "take BBQRec, SASRecPlusFT, UniSRec, TIGER or ContentNeighbors, or drop it"
    elif not schema.encoders(run):
        why, instead = "without features, all that is known of a cold item", "set text_encoder or image_encoder"
    elif run.get("codes") in ("random", "shuffled") and schema.has_codes(run):
        why = f"with codes={run['codes']}; a cold item has the codes that the tokenizer gives it"
        instead = "set codes to learned or none"
    elif schema.second_stage(run) != "off":
        why = f"with second_stage={run['second_stage']}, which is fitted on validation, cold targets included"
        instead = "add --second_stage=off"
    elif run["train_on"] == "all":
        why, instead = "with train_on=all, which leaves nothing to judge cold items on", "drop one of the two"
    elif run["benchmark_filename"]:
        why = "with benchmark_filename; which items files that are split already hold out is theirs to say"
    else:
        return
    raise InputError(f"cold_items: {found} {why}; {instead}")
