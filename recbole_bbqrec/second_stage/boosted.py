"""Which signals and features a second stage by trees has: by settings and data, and found again in a file.

Shapes: N items (row 0 = padding).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from ..model.catalogue import Catalogue, Vectors
from .features import HELD, ID_LOG_P, OF_MODEL, Feature
from .hashing import hashes_of
from .neighbours import by_item_id, token_order
from .ranker import BoostedRanker
from .signals import CodeTransitions, Cosines, PairList, Popularity, normalised, pair_lists
from .towers import Towers, fit_towers

BEHAVIOR, TOWERS, CODES, POPULARITY = "behavior", "towers", "codes", "popularity"
COSINE, QUANTISED, CODE_STEPS = "cosine_", "quantised_", "codes_"
"""Prefixes of signals' names: features of a modality, quantised vectors and codes of a signal of the semantic IDs."""
FORMS_OF = {
    **{"next_1": ("last", "second", "decayed"), "next_2": ("last", "second", "decayed")},
    **{"next_3": ("last", "third", "decayed"), TOWERS: ("last", "decayed")},
    **{COSINE: ("last", "decayed"), QUANTISED: ("last", "decayed", "most"), CODE_STEPS: ("last",)},
    **{"popularity": ("last",), "popularity_of_last": ("last",)},
}
"""Forms of the features of a signal, by its name or a prefix of it; all other lists of pairs have `LIST_FORMS`."""
LIST_FORMS = ("last", "decayed", "number")
OF_CANDIDATE = Feature(POPULARITY, HELD.signal, HELD.form)
"""Popularity as a feature like all others, where it is asked for."""


def build_boosted(config: Any, dataset: Any) -> BoostedRanker | None:
    """Return the second stage by trees that the settings ask for, not fitted yet; none where they name no signal.

    Of the data set, `catalogue` and `train_sequences` are read.
    """
    wanted, catalogue = list(config["candidate_similarity"] or ()), dataset.catalogue
    if not wanted:
        return None
    offsets, items, n_items = dataset.train_sequences.offsets, dataset.train_sequences.items, len(catalogue.tokens)
    counts = torch.from_numpy(np.bincount(items, minlength=n_items)).float()
    signals: dict[str, nn.Module] = {HELD.signal: Popularity(counts, of_last=False)}
    if BEHAVIOR in wanted or POPULARITY in wanted:
        order, place = token_order(catalogue.tokens)
        lists = pair_lists(offsets, place[items], n_items)
        together = lists["together"] if POPULARITY in wanted else None
        for name in [*lists] if BEHAVIOR in wanted else ():
            signals[name] = _pair_list(lists.pop(name), order, place)  # two forms of one at a time
        if together is not None:
            signals["popularity_of_last"] = Popularity(counts, of_last=True)
            signals["together_normalised"] = _pair_list(normalised(together), order, place)
    content = {name: vectors for name, vectors in catalogue.content.items() if name in wanted}
    towers = fit_towers(content, offsets, items, config["seed"], config["show_progress"]) if content else None
    if CODES in wanted and catalogue.semantic_ids is not None:
        size = catalogue.semantic_ids.codebook_size
        for name, codes in _codes_by_signal(catalogue).items():
            signals[CODE_STEPS + name] = CodeTransitions.count(codes, size, offsets, items)
    names = [*(COSINE + name for name in content), *([TOWERS] if towers is not None else [])]
    if CODES in wanted:
        names += [QUANTISED + name for name in catalogue.quantised]
    signals |= {name: _cosines(name, catalogue, towers) for name in names}
    features = [*OF_MODEL, *(feature for name in signals for feature in _features_of(name))]
    if POPULARITY not in wanted:
        features[features.index(OF_CANDIDATE)] = HELD
    if CODES in wanted and catalogue.semantic_ids is not None:
        features.append(ID_LOG_P)
    return BoostedRanker(signals, features, hashes_of(catalogue.tokens), towers)


def restore_boosted(state: Mapping[str, Tensor], catalogue: Catalogue) -> BoostedRanker:
    """Return the second stage of a `state_dict`, ready to load it, for the items of a catalogue."""
    about = json.loads(bytes(state["about"].cpu().numpy()))
    towers = Towers(about["towers"]) if about["towers"] else None
    parts = {name: _of_prefix(f"signals.{name}.", state) for name in about["signals"]}
    if towers is not None:
        towers.load_state_dict(_of_prefix("towers.", state))
    signals = {name: _signal(name, part, catalogue, towers) for name, part in parts.items()}
    features = [Feature(*feature) for feature in about["features"]]
    made = BoostedRanker(signals, features, state["folds.item_hashes"].clone(), towers)
    made.resize(state)
    return made


def _signal(name: str, state: Mapping[str, Tensor], catalogue: Catalogue, towers: Towers | None) -> nn.Module:
    """A signal as `build_boosted` has named it, from its state or from the catalogue."""
    if "offsets" in state:
        return PairList(**state)
    if "counts" in state:
        return Popularity(state["counts"], name.endswith("_of_last"))
    if name.startswith(CODE_STEPS):
        codes = _codes_by_signal(catalogue)[name.removeprefix(CODE_STEPS)]
        return CodeTransitions(codes, catalogue.semantic_ids.codebook_size, state)  # pyright: ignore[reportOptionalMemberAccess]
    return _cosines(name, catalogue, towers)


def _cosines(name: str, catalogue: Catalogue, towers: Towers | None) -> Cosines:
    if towers is not None and name == TOWERS:
        return Cosines(towers.queries(catalogue.content), towers.documents(catalogue.content))
    kind = QUANTISED if name.startswith(QUANTISED) else COSINE
    vectors: Vectors = {COSINE: catalogue.content, QUANTISED: catalogue.quantised}[kind][name.removeprefix(kind)]
    return Cosines.of(vectors)


def _features_of(name: str) -> Iterator[Feature]:
    """The features of a signal, in the group that the page of the second stage takes away as one."""
    groups = {COSINE: name.removeprefix(COSINE), QUANTISED: CODES, CODE_STEPS: CODES, TOWERS: TOWERS}
    groups |= {"popularity": POPULARITY, "together_normalised": POPULARITY}
    beginning = next((begin for begin in groups if name.startswith(begin)), None)
    forms = FORMS_OF.get(name) or FORMS_OF.get(beginning or "", LIST_FORMS)
    return (Feature(groups[beginning] if beginning else BEHAVIOR, name, form) for form in forms)


def _codes_by_signal(catalogue: Catalogue) -> dict[str, Tensor]:
    """Codes [N, L] of each signal; of IDs whose codes are not shared out evenly, of all together."""
    ids = catalogue.semantic_ids
    if ids is None:
        return {}
    if ids.codes.shape[1] % len(ids.signals):
        return {"id": ids.codes}
    parts = ids.codes.unflatten(1, (len(ids.signals), -1)).unbind(1)
    return dict(zip(ids.signals, parts, strict=True))


def _pair_list(counts: csr_array, order: np.ndarray, place: np.ndarray) -> PairList:
    offsets, items, values = by_item_id(counts, order, place)
    return PairList(offsets, items, values.float())


def _of_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value.clone() for name, value in state.items() if name.startswith(prefix)}
