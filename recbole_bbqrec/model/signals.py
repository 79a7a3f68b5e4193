"""What the similarity of items is taken from: unit vectors of every item in several signals, and training pairs.

Shapes: N items (row 0 = padding), S signals, C width of a signal's vectors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..errors import InputError
from ..tokenizer.fit import Encoded

N_PAIRS = 200_000
"""Most training pairs that are drawn."""


class SignalVectors(nn.Module):
    """Unit vectors of all items in every signal, and which item has which signal.

    Parameters
    ----------
    signals : names of the signals there are.
    matrices : one [N, C] matrix per signal; widths may differ.
    present : [signals, N] whether an item has the signal; padding has none.
    chosen : places of the S signals to compare; none = all.
    raw : raw features instead of quantised vectors. Their mean over the items that have them is taken off first: the
        words that all texts share would make everything alike.
    """

    present: torch.Tensor

    def __init__(
        self,
        signals: Sequence[str],
        matrices: Sequence[torch.Tensor],
        present: torch.Tensor,
        chosen: Sequence[int] | None = None,
        raw: bool = False,
    ) -> None:
        super().__init__()
        self.places = list(range(len(signals)) if chosen is None else chosen)
        self.signals = [signals[place] for place in self.places]
        self.raw = raw
        # The item tokenizer and the features have files of their own; a checkpoint holds what training learned.
        self.register_buffer("present", present[self.places], persistent=False)
        for index, place in enumerate(self.places):
            matrix = matrices[place]
            mean = mean_row(matrix[present[place]]) if raw else matrix.new_zeros(matrix.shape[1])
            self.register_buffer(f"mean_{index}", mean, persistent=False)
            self.register_buffer(f"vectors_{index}", functional.normalize(matrix - mean, dim=-1), persistent=False)

    @property
    def vectors(self) -> list[torch.Tensor]:
        """One [N, C] matrix of unit vectors per signal."""
        return [self.get_buffer(f"vectors_{index}") for index in range(len(self.signals))]

    def in_catalogue(self, item_seq: torch.Tensor) -> torch.Tensor:
        """Item ids with those beyond the catalogue, such as BERT4Rec's mask token, turned into padding."""
        return torch.where(item_seq < self.present.shape[1], item_seq, 0)

    @torch.no_grad()
    def append(
        self,
        n_new: int,
        encoded: Encoded | None = None,
        features: Mapping[str, torch.Tensor] | None = None,
        present: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Add `n_new` items; they lack every signal that nothing is given for.

        Parameters
        ----------
        encoded : their IDs, where quantised vectors are compared.
        features, present : modality -> [n_new, C] and [n_new], where raw features are compared.
        """
        added = []
        for index, (place, name, old) in enumerate(zip(self.places, self.signals, self.vectors, strict=True)):
            if self.raw:
                matrix, known = (features or {}).get(name), (present or {}).get(name)
            else:
                matrix, known = (encoded.vectors[place], encoded.present[place]) if encoded else (None, None)
            if matrix is None:
                new, known = old.new_zeros(n_new, old.shape[1]), torch.zeros(n_new, dtype=torch.bool)
            else:
                new = functional.normalize(matrix.to(old) - self.get_buffer(f"mean_{index}"), dim=-1)
            setattr(self, f"vectors_{index}", torch.cat([old, new]))
            added.append((torch.ones(n_new, dtype=torch.bool) if known is None else known).to(self.present))
        self.present = torch.cat([self.present, torch.stack(added)], dim=1)


def mean_row(rows: torch.Tensor) -> torch.Tensor:
    """Mean of the rows, to the last bit the same in whatever order they stand; zero where there are none."""
    return rows.sort(dim=0).values.double().sum(0).div(max(len(rows), 1)).to(rows.dtype)


def signal_vectors(config: Any, dataset: Any) -> SignalVectors | None:
    """Pick what attention compares: quantised vectors of the semantic IDs, or with `codes: none` the raw features.

    Returns
    -------
    The signals that `similarity_signals` names, all where it is empty (~); `None` where there is nothing to compare.

    Raises
    ------
    InputError : `similarity_signals` names a signal that there is not.
    """
    raw = config["codes"] == "none"
    source = dataset.item_features if raw else dataset.semantic_ids
    if source is None:
        return None
    names: list[str] = source.modalities if raw else source.signals
    wanted = names if config["similarity_signals"] is None else config["similarity_signals"]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise InputError(
            f"similarity_signals: found {unknown[0]!r}, expected some of {', '.join(names) or 'none'}; leave the key "
            "out to compare all of them"
        )
    chosen = [place for place, name in enumerate(names) if name in wanted]
    if not chosen:
        return None
    if raw:
        matrices, present = list(source.matrices.values()), torch.stack(list(source.present.values()))
        return SignalVectors(names, matrices, present, chosen, raw=True)
    return SignalVectors(names, list(source.vectors), source.present, chosen)


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
