"""The report card of an item tokenizer: whether its codes are used, unique, independent of what they should leave out,
and near each other where items are.

Shapes as in `base`.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from .. import storage
from . import diagnostics, neighbors
from .base import ItemTokenizer
from .behavior_bind import BehaviorBind
from .encoding import Catalogue, all_signals, bind_all
from .fit import BehaviorBindTokenizer
from .independence import independence, spread
from .inputs import flat_sequences
from .losses import reconstruction
from .report_figure import draw
from .report_warnings import warnings_of
from .rqvae import RQVAETokenizer

K_NEIGHBORS, WINDOW = 10, 3
MAX_ASKED = 2000
"""Items whose neighbours are looked up: the mean over them is good to about one point."""
RQVAE_PASSES, RQVAE_MIN_STEPS = 50, 300
"""Training of the RQ-VAE beside it: passes over the items, and at least so many batches."""
SEED = 0
"""Seed of the samples and of the judges: fixed, so that cards of different seeds are read on one scale."""


def report_card(
    fitted: ItemTokenizer,
    features: Mapping[str, torch.Tensor],
    present: Mapping[str, torch.Tensor],
    sequences: Sequence[np.ndarray] | tuple[np.ndarray, np.ndarray],
    compare: bool = True,
) -> dict[str, Any]:
    """Judge a fitted tokenizer on what it was fitted on; nothing of it changes.

    Parameters
    ----------
    fitted : any item tokenizer.
    features, present, sequences : what `fit` was given.
    compare : also fit an RQ-VAE with as many codes an item and codes a codebook, and measure it the same way.

    Returns
    -------
    The card as plain data: `codes`, `collisions`, `quantisation_error`, `disentanglement`, `agreement`, `neighbors`,
    `losses`, `cost`, `rqvae` and `warnings`; docs/semantic-ids.md says how to read it. A part that does not apply holds
    the reason under `skipped`.
    """
    started = time.perf_counter()
    flat = flat_sequences(sequences, len(fitted.codes_))
    card = {
        "tokenizer": fitted.name,
        "parameters": fitted.get_params(),
        "items": len(fitted.codes_),
        "codebook_size": fitted.codebooks_.shape[1],
        **_measures(fitted, features, present, flat),
        "disentanglement": _disentanglement(fitted, features, present),
        "losses": fitted.losses_,
        "rqvae": _rqvae(fitted, features, present, flat, compare),
    }
    card["warnings"] = warnings_of(card)
    card["cost"]["card_seconds"] = time.perf_counter() - started
    return card


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
    title = f"{card['tokenizer']} tokenizer: {card['items']} items, {card['codebook_size']} codes a codebook"
    lines = [title, "", _table(codes, "signal", "level", "utilisation", "perplexity")]
    lines += ["", _table(_unique_rows(card), "IDs", "sharing before", "distinct before", "largest", "moved", "after")]
    parts = card["disentanglement"]
    if "skipped" not in parts:
        rows = [
            [modality, stage, *(_number(values[stage].get(name)) for name in PART_COLUMNS)]
            for modality, values in parts.items()
            for stage in ("before", "after")
        ]
        lines += ["", _table(rows, "modality", "training", *PART_COLUMNS.values())]
    near = card["neighbors"]
    spaces = list(dict.fromkeys([*near["cooccurrence"]["overlap"], *near["features"]["overlap"]]))
    rows = [
        [space, *(_number(near[of]["overlap"].get(space)) for of in ("cooccurrence", "features"))] for space in spaces
    ]
    rows.append(["chance", *(_number(near[of]["chance"]) for of in ("cooccurrence", "features"))])
    k = near["k"]
    lines += ["", _table(rows, "space", f"overlap@{k} with co-occurrence", f"overlap@{k} with features")]
    rows = [[signal, f"{value['share']:.3f}", f"{value['chance']:.3f}"] for signal, value in card["agreement"].items()]
    lines += ["", _table(rows, "signal", "first code shared by neighbours in sequences", "chance")]
    cost = card["cost"]
    lines += ["", f"fit: {cost['seconds']:.1f} s, memory grew by {cost['peak_memory_mib']:.0f} MiB"]
    return "\n".join(lines + [f"warning: {text}" for text in card["warnings"]])


PART_COLUMNS = {
    "club": "CLUB (nats)",
    "r2": "probe R2",
    "variance": "variance of z_S",
    "dimensions": "dimensions of z_S",
    "reconstruction": "reconstruction error",
}


def _unique_rows(card: Mapping[str, Any]) -> list[list[Any]]:
    rows = []
    for name, part in ((card["tokenizer"], card), ("RQ-VAE", card["rqvae"])):
        if "skipped" not in part:
            before, after = part["collisions"]["before"], part["collisions"]["after"]
            counts = [before[key] for key in ("sharing", "distinct", "largest")]
            rows.append([name, *counts, part["collisions"]["moved"], after["sharing"]])
    return rows


def _table(rows: list[list[Any]], *names: str) -> str:
    return tabulate(rows, names, tablefmt="github", disable_numparse=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _measures(
    fitted: ItemTokenizer,
    features: Mapping[str, torch.Tensor],
    present: Mapping[str, torch.Tensor],
    sequences: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """What is asked of every tokenizer alike."""
    levels = fitted.levels
    agreement = {}
    for index, signal in enumerate(fitted.signals_):
        share, chance = diagnostics.first_code_agreement(fitted.codes_[:, index * levels], *sequences)
        agreement[signal] = {"share": share, "chance": chance}
    return {
        "codes": [
            {
                "signal": fitted.signals_[position // levels],
                "level": position % levels + 1,
                "items": int((fitted.codes_[:, position] >= 0).sum()),
                "utilisation": fitted.utilisation_[position],
                "perplexity": fitted.perplexity_[position],
            }
            for position in range(fitted.codes_.shape[1])
        ],
        "collisions": {
            "before": fitted.collisions_before_,
            "moved": fitted.n_moved_,
            "after": diagnostics.collisions(fitted.codes_),
        },
        "quantisation_error": dict(zip(fitted.signals_, fitted.quantisation_error_, strict=True)),
        "agreement": agreement,
        "neighbors": _neighbors(fitted, features, present, sequences),
        "cost": {"seconds": fitted.seconds_, "peak_memory_mib": fitted.peak_memory_mib_},
    }


def _neighbors(
    fitted: ItemTokenizer,
    features: Mapping[str, torch.Tensor],
    present: Mapping[str, torch.Tensor],
    sequences: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Nearest items by quantised vectors, against those by behaviour and by raw features."""
    n_items, k = len(fitted.codes_), K_NEIGHBORS
    asked = torch.randperm(n_items, generator=torch.Generator().manual_seed(SEED))[:MAX_ASKED]
    spaces = {"all signals": (fitted.vectors_.sum(0), fitted.present_.any(0))}
    if len(fitted.signals_) > 1:
        spaces |= dict(zip(fitted.signals_, zip(fitted.vectors_, fitted.present_, strict=True), strict=True))
    found = {name: neighbors.nearest(rows, has, asked, k, SEED) for name, (rows, has) in spaces.items()}
    by_features = neighbors.nearest(*_raw(features, present, n_items), asked, k, SEED)
    references = {
        "cooccurrence": neighbors.cooccurring(*sequences, n_items, asked, k, WINDOW, SEED),
        "features": by_features,
    }
    chance = min(k / max(n_items - 1, 1), 1.0)
    card: dict[str, Any] = {"k": k, "window": WINDOW}
    for name, reference in references.items():
        # Raw features stand beside the codes as what the codes were made of.
        candidates = {**found, "raw features": by_features} if name == "cooccurrence" and features else found
        shares = {space: neighbors.overlap(reference, items) for space, items in candidates.items()}
        n_asked = int((reference >= 0).any(1).sum())
        card[name] = {"items": n_asked, "overlap": shares, "chance": chance if n_asked else None}
    return card


def _raw(
    features: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor], n_items: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw features side by side [N, F], each modality centred and of unit length, and who has any [N]."""
    parts, known = [torch.zeros(n_items, 1)], torch.zeros(n_items, dtype=torch.bool)
    for name, matrix in features.items():
        has = present[name].bool()
        centred = (matrix.float() - matrix[has].float().mean(0)).masked_fill(~has.unsqueeze(1), 0.0)
        parts.append(torch.nn.functional.normalize(centred, dim=-1))
        known = known | has
    return torch.cat(parts, dim=1), known


def _disentanglement(
    fitted: ItemTokenizer, features: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Specific and behaviour part of each modality, in the initial and in the trained network."""
    if not isinstance(fitted, BehaviorBindTokenizer):
        return {"skipped": f"the {fitted.name} tokenizer has no specific and behaviour parts"}
    if not features:
        return {"skipped": "no modality: the ID signal has no specific part"}
    catalogue = fitted.standardise(features, present, len(fitted.codes_))
    stages = {"before": fitted.initial_network(), "after": fitted.network}
    judged = {stage: _judge(network, catalogue) for stage, network in stages.items()}
    return {modality: {stage: judged[stage][modality] for stage in stages} for modality in features}


@torch.no_grad()
def _judge(network: BehaviorBind, catalogue: Catalogue) -> dict[str, dict[str, float | None]]:
    signals = all_signals(network, catalogue)
    vectors = bind_all(network, signals, catalogue.known).vectors
    judged = {}
    for index, (modality, x) in enumerate(zip(network.modalities, catalogue.features, strict=True)):
        has, specific = catalogue.known[index], network.specific[index](x)
        with torch.enable_grad():
            found = independence(specific[has], signals[index][has], SEED)
        rebuilt = network.decode(index, specific, vectors)
        error = float(reconstruction(rebuilt, x, has))
        judged[modality] = {**(found or {}), **spread(specific[has]), "reconstruction": error}
    return judged


def _rqvae(
    fitted: ItemTokenizer,
    features: Mapping[str, torch.Tensor],
    present: Mapping[str, torch.Tensor],
    sequences: tuple[np.ndarray, np.ndarray],
    compare: bool,
) -> dict[str, Any]:
    reasons = {
        "not asked for": not compare,
        "this is one": isinstance(fitted, RQVAETokenizer),
        "no modality: an RQ-VAE has nothing to encode": not features,
    }
    for reason, applies in reasons.items():
        if applies:
            return {"skipped": reason}
    n_items, batch_size = len(fitted.codes_), 512
    rqvae = RQVAETokenizer(
        levels=fitted.codes_.shape[1],
        codebook_size=fitted.codebooks_.shape[1],
        steps=max(RQVAE_PASSES * n_items // batch_size, RQVAE_MIN_STEPS),
        batch_size=batch_size,
        seed=fitted.seed,
        device=fitted.device,
        progress=fitted.progress,
    )
    rqvae.fit(features, present, sequences, n_items)
    return _measures(rqvae, features, present, sequences)
