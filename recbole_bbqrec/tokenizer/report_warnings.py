"""What on a report card calls for attention, and why."""

from collections.abc import Iterator, Mapping
from typing import Any

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


def warnings_of(card: Mapping[str, Any]) -> list[str]:
    """Return one line per finding of a report card; see the thresholds above."""
    return [*_codes(card), *_parts(card), *_behavior(card)]


def _codes(card: Mapping[str, Any]) -> Iterator[str]:
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
        yield f"{moved} of {card['items']} items share an ID before resolving and were moved; raise K or the levels"
    if "skipped" not in rqvae and moved > rqvae["collisions"]["moved"]:
        yield f"{moved} items were moved to a free ID, more than the {rqvae['collisions']['moved']} of an RQ-VAE"


def _parts(card: Mapping[str, Any]) -> Iterator[str]:
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


def _behavior(card: Mapping[str, Any]) -> Iterator[str]:
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
