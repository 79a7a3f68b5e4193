"""Tokenizers that see features alone: one signal, every modality in it, and no behaviour.

Shapes: B items, L levels, D code width, F width of all modalities side by side.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from ..errors import InputError
from .base import ItemTokenizer
from .behavior_bind import Bound
from .encoding import BATCH, Catalogue
from .inputs import check_counts
from .residual_quantizer import ChainNetwork, ResidualQuantizer

FEATURES_SIGNAL = "features"


class FeatureNetwork(ChainNetwork):
    """One chain of codes, of the features as they are.

    Parameters
    ----------
    quantizer : quantiser of the embedded features.
    """

    def __init__(self, quantizer: ResidualQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    @property
    def chains(self) -> list[str]:
        """Name of the one chain."""
        return [FEATURES_SIGNAL]

    def chains_known(self, known: torch.Tensor) -> torch.Tensor:
        """Whether an item has any modality [1, B], from those it has [M, B]."""
        return known.any(0, keepdim=True)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """What is quantised [B, D], from the features [B, F]."""
        return x


class FeatureTokenizer(ItemTokenizer):
    """Semantic IDs of the features alone; see `RQVAETokenizer` and `ResidualKMeansTokenizer`.

    The modalities stand side by side, standardised; one that an item lacks stands there as the mean. An item that lacks
    them all has no signal.
    """

    counts: ClassVar[tuple[str, ...]] = ("levels", "codebook_size")
    _network: FeatureNetwork

    def _check(self, features: Mapping[str, torch.Tensor]) -> None:
        check_counts(self.get_params(), *self.counts)
        if not features:
            raise InputError(f"{self.name} tokenizer: found no modality, expected at least one; set an encoder")

    def _width(self) -> int:
        return sum(value.shape[1] for value in self.statistics_.values())

    def _train(
        self, catalogue: Catalogue, sequences: tuple[np.ndarray, np.ndarray], generator: torch.Generator
    ) -> dict[str, list[float]]:
        return self._train_on(torch.cat(catalogue.features, dim=1), generator)

    @abstractmethod
    def _train_on(self, x: torch.Tensor, generator: torch.Generator) -> dict[str, list[float]]:
        """Train the network on the features [N, F] of all items."""

    @torch.no_grad()
    def _bind_known(self, catalogue: Catalogue) -> Bound:
        known = self._network.chains_known(catalogue.known)
        embedded = [self._network.embed(part) for part in torch.cat(catalogue.features, dim=1).split(BATCH)]
        inputs = torch.cat(embedded) * known[0].unsqueeze(1)
        quantized = [self._network.quantizer.quantize(part) for part in inputs.split(BATCH)]
        vectors, codes, losses = zip(*quantized, strict=True)
        masked = torch.cat(vectors) * known[0].unsqueeze(1)
        return Bound(inputs.unsqueeze(0), masked.unsqueeze(0), torch.cat(codes).unsqueeze(0), losses[-1])

    def _bind_new(self, catalogue: Catalogue) -> Bound:
        return self._bind_known(catalogue)
