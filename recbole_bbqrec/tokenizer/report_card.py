"""The report card of an item tokenizer.

It tells whether codes are used, unique, independent of what they should leave out, and near each other where items are.

Shapes as in `base`.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch.nn import functional

from .. import storage
from . import measures
from .base import ByModality, Flat, ItemTokenizer, flat_sequences
from .features import BATCH_SIZE, RQVAETokenizer
from .fit import BehaviorBindTokenizer
from .losses import reconstruction
from .memory import PeakMemory
from .report_figure import compared, draw

K_NEIGHBORS, WINDOW = 10, 3
MAX_ASKED = 2000
"""Items whose neighbours are looked up: the mean over them is good to about one point."""
RQVAE_PASSES, RQVAE_MIN_STEPS = 50, 300
"""Training of the RQ-VAE beside it: passes over the items, and at least so many batches."""
NOT_ASKED = "not asked for"
SEED = 0
"""Seed of the samples and of the probes: fixed, so that cards of different seeds are read on one scale."""
PART_COLUMNS = {
    "club": "CLUB (nats)",
    "r2": "probe R2",
    "variance": "variance of z_S",
    "dimensions": "dimensions of z_S",
    "reconstruction": "reconstruction error",
}

Given = tuple[ByModality, ByModality, Flat]
"""What a tokenizer was fitted on: features, presence, and sequences as `(offsets, items)`."""

# Thresholds of the warnings.
MIN_UTILISATION = 0.5
"""Half the codes never chosen: the codebook is larger than what it tells apart, or it has collapsed."""
MIN_PERPLEXITY = 0.1
"""Of the codes there could be: fewer than a tenth carry the load. k-means on skewed data stays at about a third."""
MAX_MOVED = 0.1
"""Share of items whose ID does not stand for their own vectors; beyond a tenth the codes are too coarse."""
MAX_R2 = 0.5
"""Half of what the behaviour part varies by stands in the specific part too: hardly disentangled."""
MIN_DIMENSIONS = 2.0
"""A specific part on a line or a point is independent because it says nothing."""
MAX_RECONSTRUCTION = 0.95
"""Features are standardised: 1 is the error of the mean item."""


def report_card(
    fitted: ItemTokenizer,
    features: ByModality,
    present: ByModality,
    sequences: Sequence[np.ndarray] | Flat,
    compare: bool = False,
) -> dict[str, Any]:
    """Measure a fitted tokenizer on what it was fitted on; nothing of it changes.

    Parameters
    ----------
    fitted : any item tokenizer.
    features, present, sequences : what `fit` was given.
    compare : also fit an RQ-VAE, see `with_rqvae`; it takes about as long as the tokenizer did.

    Returns
    -------
    The card as plain data: `behaviour` (see `ItemTokenizer.behaviour`), `codes`, `collisions`, `quantisation_error`,
    `disentanglement`, `agreement`, `neighbors`, `losses`, `cost`, `rqvae` and `warnings`; docs/semantic-ids.md says how
    to read it. A part that does not apply holds the reason under `skipped`.
    """
    started, memory = time.perf_counter(), PeakMemory()
    given = features, present, flat_sequences(sequences, len(fitted.codes_))
    card = {
        "tokenizer": fitted.name,
        "behaviour": fitted.behaviour,
        "parameters": fitted.get_params(),
        "items": len(fitted.codes_),
        "codebook_size": fitted.codebooks_.shape[1],
        **_measured(fitted, given),
        "disentanglement": _disentanglement(fitted, features, present),
        "losses": fitted.losses_,
        "rqvae": {"skipped": NOT_ASKED},
    }
    card["warnings"] = list(warnings_of(card))
    card["cost"] |= {"card_seconds": time.perf_counter() - started, "card_peak_memory_mib": memory.growth_mib}
    return with_rqvae(card, fitted, *given) if compare else card


def with_rqvae(
    card: Mapping[str, Any],
    fitted: ItemTokenizer,
    features: ByModality,
    present: ByModality,
    sequences: Sequence[np.ndarray] | Flat,
) -> dict[str, Any]:
    """Return a tokenizer's card with what an RQ-VAE of as many codes an item and codes a codebook comes to.

    It is fitted on the same features and measured the same way; arguments as in `report_card`.
    """
    card = {**card, "rqvae": _rqvae(fitted, (features, present, flat_sequences(sequences, len(fitted.codes_))))}
    return {**card, "warnings": list(warnings_of(card))}


def write_report_card(card: Mapping[str, Any], path_stem: str | os.PathLike) -> tuple[Path, Path]:
    """Write `<path_stem>.json` and `<path_stem>.png`; returns both paths."""
    data, figure = (Path(f"{os.fspath(path_stem)}.{kind}") for kind in ("json", "png"))
    draw(card, figure)
    storage.write_json(data, card)  # last: where it stands, the card is complete
    return data, figure


def report_card_table(card: Mapping[str, Any]) -> str:
    """Return the card's main figures as Markdown tables, and its warnings."""
    codes = [
        [row["signal"], row["level"], f"{row['utilisation']:.3f}", f"{row['perplexity']:.1f}"] for row in card["codes"]
    ]
    before = ("sharing", "distinct", "largest")
    ids = [
        [name, *map(of["before"].get, before), of["moved"], of["after"]["sharing"]]
        for name, of in compared(card).items()
    ]
    tables = [
        _table(codes, "signal", "level", "utilisation", "perplexity"),
        _table(ids, "IDs", "sharing before", "distinct before", "largest", "moved", "after"),
    ]
    if "skipped" not in card["disentanglement"]:
        rows = [
            [modality, stage, *(_number(values.get(name)) for name in PART_COLUMNS)]
            for modality, stages in card["disentanglement"].items()
            for stage, values in stages.items()
        ]
        tables.append(_table(rows, "modality", "training", *PART_COLUMNS.values()))
    near = [card["neighbors"]["cooccurrence"], card["neighbors"]["features"]]
    rows = [[space, *(_number(of["overlap"].get(space)) for of in near)] for space in near[0]["overlap"]]
    rows.append(["chance", *(_number(of["chance"]) for of in near)])
    k = card["neighbors"]["k"]
    tables.append(_table(rows, "space", f"overlap@{k} with co-occurrence", f"overlap@{k} with features"))
    rows = [[signal, f"{value['share']:.3f}", f"{value['chance']:.3f}"] for signal, value in card["agreement"].items()]
    neighbours = "neighbours in sequences" if card.get("behaviour", "order") == "order" else "two items of a user"
    tables.append(_table(rows, "signal", f"first code shared by {neighbours}", "chance"))
    title = f"{card['tokenizer']} tokenizer: {card['items']} items, {card['codebook_size']} codes a codebook"
    cost, grown = f"fit: {card['cost']['seconds']:.1f} s", card["cost"]["peak_memory_mib"]
    cost += f", memory grew by {grown:.0f} MiB" if grown is not None else ""
    return "\n".join(["\n\n".join([title, *tables, cost]), *(f"warning: {text}" for text in card["warnings"])])


def _table(rows: list[list[Any]], *names: str) -> str:
    return tabulate(rows, names, tablefmt="github", disable_numparse=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _measured(fitted: ItemTokenizer, given: Given) -> dict[str, Any]:
    """What is asked of every tokenizer alike."""
    levels, codes = fitted.levels, fitted.codes_
    in_use = zip(codes.T, fitted.utilisation_, fitted.perplexity_, strict=True)
    after = measures.collisions(codes)
    first_codes = zip(fitted.signals_, codes[:, ::levels].T, strict=True)
    return {
        "codes": [
            {"signal": fitted.signals_[position // levels], "level": position % levels + 1}
            | {"items": int((column >= 0).sum()), "utilisation": used, "perplexity": even}
            for position, (column, used, even) in enumerate(in_use)
        ],
        "collisions": {"before": fitted.collisions_before_, "moved": fitted.n_moved_, "after": after},
        "quantisation_error": dict(zip(fitted.signals_, fitted.quantisation_error_, strict=True)),
        "agreement": {signal: measures.first_code_agreement(column, *given[2]) for signal, column in first_codes},
        "neighbors": _neighbors(fitted, *given),
        "cost": {"seconds": fitted.seconds_, "peak_memory_mib": fitted.peak_memory_mib_},
    }


def _neighbors(fitted: ItemTokenizer, features: ByModality, present: ByModality, sequences: Flat) -> dict[str, Any]:
    """Nearest items by quantised vectors, against those by behaviour and by raw features."""
    n_items, k = len(fitted.codes_), K_NEIGHBORS
    asked = torch.randperm(n_items, generator=torch.Generator().manual_seed(SEED))[:MAX_ASKED]
    spaces = {"all signals": (fitted.vectors_.sum(0), fitted.present_.any(0))}
    if len(fitted.signals_) > 1:
        spaces |= dict(zip(fitted.signals_, zip(fitted.vectors_, fitted.present_, strict=True), strict=True))
    found = {name: measures.nearest(rows, has, asked, k, SEED) for name, (rows, has) in spaces.items()}
    by_behavior = measures.cooccurring(*sequences, n_items, asked, k, WINDOW, SEED)
    by_features = measures.nearest(*_raw(features, present, n_items), asked, k, SEED)
    # Raw features stand beside the codes as what the codes were made of.
    with_raw = {**found, "raw features": by_features} if features else found
    chance = min(k / max(n_items - 1, 1), 1.0)
    card: dict[str, Any] = {"k": k, "window": WINDOW}
    for name, reference, others in (("cooccurrence", by_behavior, with_raw), ("features", by_features, found)):
        n_asked = int((reference >= 0).any(1).sum())
        shares = {space: measures.overlap(reference, items) for space, items in others.items()}
        card[name] = {"items": n_asked, "overlap": shares, "chance": chance if n_asked else None}
    return card


def _raw(features: ByModality, present: ByModality, n_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw features side by side [N, F], each modality centred and of unit length, and who has any [N]."""
    parts, known = [torch.zeros(n_items, 1)], torch.zeros(n_items, dtype=torch.bool)
    for name, matrix in features.items():
        has = present[name].bool()
        centred = (matrix.float() - matrix[has].float().mean(0)).masked_fill(~has.unsqueeze(1), 0.0)
        parts.append(functional.normalize(centred, dim=-1))
        known = known | has
    return torch.cat(parts, dim=1), known


def _disentanglement(fitted: ItemTokenizer, features: ByModality, present: ByModality) -> dict[str, Any]:
    """Specific and behaviour part of each modality, in the initial and in the trained network."""
    if not isinstance(fitted, BehaviorBindTokenizer):
        return {"skipped": f"the {fitted.name} tokenizer has no specific and behaviour parts"}
    if not features:
        return {"skipped": "no modality: the ID signal has no specific part"}
    catalogue = fitted.standardise(features, present, len(fitted.codes_))
    measured: dict[str, Any] = {modality: {} for modality in features}
    for stage, network in (("before", fitted.initial_network()), ("after", fitted.network_)):
        signals = network.all_signals(catalogue)
        for index, (modality, x) in enumerate(zip(fitted.statistics_, catalogue.features, strict=True)):
            has = catalogue.known[index]
            specific, _, decoded = network.split(index, x, signals[index])
            measured[modality][stage] = {
                **measures.independence(specific[has], signals[index][has], SEED),
                **measures.spread(specific[has]),
                "reconstruction": float(reconstruction(decoded, x, has)),
            }
    return measured


def _rqvae(fitted: ItemTokenizer, given: Given) -> dict[str, Any]:
    if fitted.name == RQVAETokenizer.name:
        return {"skipped": "this is one"}
    if not given[0]:
        return {"skipped": "no modality: an RQ-VAE has nothing to encode"}
    n_items, levels = fitted.codes_.shape
    size, steps = fitted.codebooks_.shape[1], max(RQVAE_PASSES * n_items // BATCH_SIZE, RQVAE_MIN_STEPS)
    rqvae = RQVAETokenizer(
        levels=levels, codebook_size=size, steps=steps, seed=fitted.seed, device=fitted.device, progress=fitted.progress
    )
    rqvae.fit(*given, n_items)
    return _measured(rqvae, given)


def warnings_of(card: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line per finding of a report card; see the thresholds above."""
    for row in card["codes"]:
        possible = max(min(card["codebook_size"], row["items"]), 1)
        used, even = row["utilisation"] * card["codebook_size"] / possible, row["perplexity"] / possible
        if row["items"] and (used < MIN_UTILISATION or even < MIN_PERPLEXITY):
            yield (
                f"{row['signal']}, level {row['level']}: the codebook has collapsed, {used:.0%} of {possible} codes in "
                f"use, perplexity {row['perplexity']:.1f}"
            )
    moved, rqvae = card["collisions"]["moved"], card["rqvae"]
    if moved > MAX_MOVED * card["items"]:
        more = "raise sid_codebook_size or sid_levels"
        yield f"{moved} of {card['items']} items had the ID of another and were given one near it; {more}"
    if "skipped" not in rqvae and moved > rqvae["collisions"]["moved"]:
        yield f"{moved} items were moved to a free ID, more than the {rqvae['collisions']['moved']} of an RQ-VAE"
    parts = card["disentanglement"]
    for modality, stages in parts.items() if "skipped" not in parts else ():
        before, after = stages["before"], stages["after"]
        if after.get("r2", 0.0) > MAX_R2:
            yield f"{modality}: the specific part still predicts {after['r2']:.0%} of the behaviour part's variance"
        if after.get("club", 0.0) > before.get("club", 0.0):
            yield f"{modality}: training raised the CLUB bound, {before['club']:.2f} to {after['club']:.2f} nats"
        if after["dimensions"] < MIN_DIMENSIONS:
            yield (
                f"{modality}: the specific part has collapsed to {after['dimensions']:.1f} dimensions; that it is "
                "independent means nothing"
            )
        if after["reconstruction"] > MAX_RECONSTRUCTION:
            yield f"{modality}: reconstruction error {after['reconstruction']:.2f}, no better than the mean item"
    for signal, found in card["agreement"].items():
        if found["share"] <= found["chance"] and found["chance"] > 0:
            yield (
                f"{signal}: consecutive items share its first code no more often than chance, {found['share']:.3f} "
                f"against {found['chance']:.3f}"
            )
    near = card["neighbors"]["cooccurrence"]["overlap"]
    ours, raw = near["all signals"], near.get("raw features")
    if ours is not None and raw is not None and ours < raw:
        yield f"raw features are nearer to behaviour than the codes: overlap {raw:.3f} against {ours:.3f}"
