"""What the similarity of items is taken from: unit vectors of every item in several signals, and training pairs.

Shapes: N items (row 0 = padding), S signals, C width of a signal's vectors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from .catalogue import Catalogue, Vectors

N_PAIRS = 200_000
"""Most training pairs that are drawn."""


class SignalVectors(nn.Module):
    """Vectors of all items in S signals, at least one, and which item has which signal.

    Parameters
    ----------
    signals : name -> unit vectors [N, C] and presence [N]; widths may differ.

    Attributes
    ----------
    signals : names of the signals.
    present : [S, N].
    """

    present: torch.Tensor

    def __init__(self, signals: Mapping[str, Vectors]) -> None:
        super().__init__()
        self.signals = list(signals)
        # The item tokenizer and the features have files of their own; a checkpoint holds what training learned.
        self.register_buffer("present", torch.stack([signal.present for signal in signals.values()]), persistent=False)
        for index, signal in enumerate(signals.values()):
            self.register_buffer(f"vectors_{index}", signal.rows, persistent=False)

    @property
    def vectors(self) -> list[torch.Tensor]:
        """One [N, C] matrix of unit vectors per signal."""
        return [self.get_buffer(f"vectors_{index}") for index in range(len(self.signals))]

    def in_catalogue(self, item_seq: torch.Tensor) -> torch.Tensor:
        """Item ids with those beyond the catalogue, such as BERT4Rec's mask token, turned into padding."""
        return torch.where(item_seq < self.present.shape[1], item_seq, 0)


def signal_vectors(config: Any, catalogue: Catalogue) -> SignalVectors | None:
    """Pick what attention compares: quantised vectors of the semantic IDs, or with `codes: none` the raw features.

    Returns
    -------
    The signals that `similarity_signals` names, all where it is empty (~); `None` where there is nothing to compare.

    Raises
    ------
    InputError : `similarity_signals` names a signal that there is not.
    """
    raw, wanted = config["codes"] == "none", config["similarity_signals"]
    if (catalogue.features if raw else catalogue.semantic_ids) is None:
        return None
    signals = catalogue.content if raw else catalogue.quantised
    unknown = [name for name in wanted or () if name not in signals]
    if unknown:
        raise InputError(
            f"similarity_signals: found {unknown[0]!r}, expected some of {', '.join(signals) or 'none'}; leave the key "
            "out to compare all of them"
        )
    chosen = {name: signal for name, signal in signals.items() if wanted is None or name in wanted}
    return SignalVectors(chosen) if chosen else None


def sample_pairs(
    offsets: np.ndarray, items: np.ndarray, max_distance: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pairs of items that stand at most `max_distance` apart in one training sequence.

    Returns
    -------
    Two tensors [n] of item ids, n at most `N_PAIRS`; the same for the same sequences and seed.
    """
    lengths = np.diff(offsets)
    position = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    earlier = np.minimum(position, max_distance)  # how many partners each item has before it
    usable = np.flatnonzero(earlier)
    if not len(usable):
        empty = torch.zeros(0, dtype=torch.long)
        return empty, empty
    generator = np.random.default_rng(seed)
    chosen = generator.choice(usable, size=min(N_PAIRS, int(earlier.sum())), p=earlier[usable] / earlier.sum())
    partner = chosen - 1 - (generator.random(len(chosen)) * earlier[chosen]).astype(np.int64)
    return torch.from_numpy(items[partner]), torch.from_numpy(items[chosen])
