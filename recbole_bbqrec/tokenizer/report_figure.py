"""The report card as one figure."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import storage

OURS, OTHER, LINE = "#1f6f8b", "#c9cdd2", "#b3432b"


def draw(card: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draw a report card to the PNG file `path` in one atomic step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3).flat
    for panel, part in zip(panels, (_codes, _collisions, _neighbors, _shares, _club, _losses), strict=True):
        part(panel, card)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{card['tokenizer']} tokenizer: {card['items']} items, {card['codes'][-1]['level']} levels of "
        f"{card['codebook_size']} codes, {card['cost']['seconds']:.0f} s"
    )
    with storage.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _codes(panel: Any, card: Mapping[str, Any]) -> None:
    rows, size = card["codes"], card["codebook_size"]
    shares = {
        "utilisation": [row["utilisation"] for row in rows],
        "perplexity / K": [row["perplexity"] / size for row in rows],
    }
    names = [f"{row['signal']} {row['level']}" for row in rows]
    _bars(panel, names, shares, "codes in use before resolving, by position")
    panel.set_ylim(0, 1.2)


def _collisions(panel: Any, card: Mapping[str, Any]) -> None:
    sides = {card["tokenizer"]: card, "RQ-VAE": card["rqvae"]}
    found = {name: side["collisions"] for name, side in sides.items() if "skipped" not in side}
    counts = {name: [of["before"]["sharing"], of["moved"]] for name, of in found.items()}
    _bars(panel, ["items sharing an ID", "items moved"], counts, "collisions before resolving (none after)", "{:.0f}")


def _neighbors(panel: Any, card: Mapping[str, Any]) -> None:
    near = card["neighbors"]
    behavior, features = near["cooccurrence"], near["features"]
    spaces = list(behavior["overlap"])
    shares = {
        "co-occurrence": [behavior["overlap"][space] for space in spaces],
        "raw features": [features["overlap"].get(space) for space in spaces],
    }
    _bars(panel, spaces, shares, f"overlap@{near['k']} of nearest items (line: chance)")
    if any(height for heights in shares.values() for height in heights):  # few items may have no neighbour in common
        panel.set_yscale("log")  # chance is the yardstick
    panel.axhline(behavior["chance"] or features["chance"] or 0.0, color=LINE, linewidth=1)


def _shares(panel: Any, card: Mapping[str, Any]) -> None:
    names = {"r2": "probe R2", "reconstruction": "reconstruction"}
    _stages(panel, card, names, "z_B predicted from z_S; error of rebuilt features")


def _club(panel: Any, card: Mapping[str, Any]) -> None:
    _stages(panel, card, {"club": "CLUB"}, "CLUB bound on I(z_S; z_B), nats", "{:.1f}")


def _stages(panel: Any, card: Mapping[str, Any], names: Mapping[str, str], title: str, label: str = "{:.2g}") -> None:
    parts = card["disentanglement"]
    if "skipped" in parts:
        _empty(panel, title, parts["skipped"])
        return
    places = [(modality, name) for modality in parts for name in names]
    values = {
        f"{stage} training": [parts[modality][stage].get(name) for modality, name in places]
        for stage in ("before", "after")
    }
    _bars(panel, [f"{modality}\n{names[name]}" for modality, name in places], values, title, label)


def _losses(panel: Any, card: Mapping[str, Any]) -> None:
    if not card["losses"]:
        _empty(panel, "losses", f"the {card['tokenizer']} tokenizer has none")
        return
    for name, values in card["losses"].items():
        share = np.arange(1, len(values) + 1) / len(values)
        panel.plot(share, values, label=name.replace("_", " "), linewidth=1.2)
    panel.set_title("losses over training", fontsize=10)
    panel.set_yscale("symlog", linthresh=0.01)
    panel.set_xlabel("share of training")
    panel.legend(fontsize=8, frameon=False)


def _bars(
    panel: Any, names: Sequence[str], values: Mapping[str, Sequence[float | None]], title: str, label: str = "{:.2g}"
) -> None:
    """Groups of bars, one colour per series; a value that is missing has no bar."""
    width = 0.8 / len(values)
    for index, (series, heights) in enumerate(values.items()):
        place = np.arange(len(names)) + (index - (len(values) - 1) / 2) * width
        bars = panel.bar(place, np.array(heights, dtype=float), width, label=series, color=(OURS, OTHER)[index % 2])
        panel.bar_label(bars, fmt=label, fontsize=7)
    panel.set_xticks(range(len(names)), names, fontsize=8)
    panel.set_title(title, fontsize=10)
    panel.legend(fontsize=8, frameon=False)


def _empty(panel: Any, title: str, reason: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.text(0.5, 0.5, reason, ha="center", va="center", wrap=True, fontsize=9, transform=panel.transAxes)
    panel.set_axis_off()
