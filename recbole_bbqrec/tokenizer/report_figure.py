"""The report card as one figure."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .. import storage

OURS, OTHER, LINE = "#1f6f8b", "#c9cdd2", "#b3432b"
Bars = Mapping[str, Mapping[str, float | None]]
"""Series -> name of a bar -> its height; one that is missing is not drawn."""


def compared(card: Mapping[str, Any]) -> dict[str, Any]:
    """Collisions of the tokenizer, and of the RQ-VAE beside it where there is one, by name."""
    sides = {card["tokenizer"]: card, "RQ-VAE": card["rqvae"]}
    return {name: side["collisions"] for name, side in sides.items() if "skipped" not in side}


def draw(card: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draw a report card to the PNG file `path` in one atomic step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    *panels, last = figure.subplots(2, 3).flat
    for panel, (title, bars, form) in zip(panels, _bars(card), strict=True):
        _draw_bars(panel, bars, form)
        panel.set_title(title, fontsize=10)
    near, overlaps = card["neighbors"], panels[2]
    if any(height for of in ("cooccurrence", "features") for height in near[of]["overlap"].values()):
        overlaps.set_yscale("log")  # chance is the yardstick
    overlaps.axhline(near["cooccurrence"]["chance"] or near["features"]["chance"] or 0.0, color=LINE, linewidth=1)
    panels[0].set_ylim(0, 1.2)
    _draw_losses(last, card)
    for panel in (*panels, last):
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{card['tokenizer']} tokenizer: {card['items']} items, {card['codes'][-1]['level']} levels of "
        f"{card['codebook_size']} codes, {card['cost']['seconds']:.0f} s"
    )
    with storage.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _bars(card: Mapping[str, Any]) -> Iterator[tuple[str, Bars | str, str]]:
    """Yield title, bars (or why there are none) and form of the numbers of each panel with bars."""
    used, even = {}, {}
    for row in card["codes"]:
        used[f"{row['signal']} {row['level']}"] = row["utilisation"]
        even[f"{row['signal']} {row['level']}"] = row["perplexity"] / card["codebook_size"]
    yield "codes in use before resolving, by position", {"utilisation": used, "perplexity / K": even}, "{:.2g}"
    counts = {
        name: {"items sharing an ID": of["before"]["sharing"], "items moved": of["moved"]}
        for name, of in compared(card).items()
    }
    yield "collisions before resolving (none after)", counts, "{:.0f}"
    near = card["neighbors"]
    overlaps = {"co-occurrence": near["cooccurrence"]["overlap"], "raw features": near["features"]["overlap"]}
    yield f"overlap@{near['k']} of nearest items (line: chance)", overlaps, "{:.2g}"
    parts = _stages(card, r2="probe R2", reconstruction="reconstruction")
    yield "z_B predicted from z_S; error of rebuilt features", parts, "{:.2g}"
    yield "CLUB bound on I(z_S; z_B), nats", _stages(card, club="CLUB"), "{:.1f}"


def _stages(card: Mapping[str, Any], **names: str) -> Bars | str:
    parts = card["disentanglement"]
    return parts.get("skipped") or {
        f"{stage} training": {
            f"{modality}\n{shown}": stages[stage].get(name)
            for modality, stages in parts.items()
            for name, shown in names.items()
        }
        for stage in ("before", "after")
    }


def _draw_bars(panel: Any, bars: Bars | str, form: str) -> None:
    """Groups of bars, one colour per series."""
    if isinstance(bars, str):
        _draw_reason(panel, bars)
        return
    names, width = list(next(iter(bars.values()))), 0.8 / len(bars)
    for index, (series, heights) in enumerate(bars.items()):
        place = np.arange(len(names)) + (index - (len(bars) - 1) / 2) * width
        height = np.array([heights.get(name) for name in names], dtype=float)
        drawn = panel.bar(place, height, width, label=series, color=(OURS, OTHER)[index % 2])
        panel.bar_label(drawn, fmt=form, fontsize=7)
    panel.set_xticks(range(len(names)), names, fontsize=8)
    panel.legend(fontsize=8, frameon=False)


def _draw_losses(panel: Any, card: Mapping[str, Any]) -> None:
    panel.set_title("losses over training" if card["losses"] else "losses", fontsize=10)
    if not card["losses"]:
        _draw_reason(panel, f"the {card['tokenizer']} tokenizer has none")
        return
    for name, values in card["losses"].items():
        share = np.arange(1, len(values) + 1) / len(values)
        panel.plot(share, values, label=name.replace("_", " "), linewidth=1.2)
    panel.set_yscale("symlog", linthresh=0.01)
    panel.set_xlabel("share of training")
    panel.legend(fontsize=8, frameon=False)


def _draw_reason(panel: Any, reason: str) -> None:
    panel.text(0.5, 0.5, reason, ha="center", va="center", wrap=True, fontsize=9, transform=panel.transAxes)
    panel.set_axis_off()
