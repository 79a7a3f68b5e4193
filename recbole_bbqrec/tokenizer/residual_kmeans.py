"""Residual k-means: the plainest semantic IDs, codes of what the codes before them left over of the features."""

from typing import ClassVar

import torch

from .feature_tokenizer import FeatureNetwork, FeatureTokenizer
from .residual_quantizer import ResidualQuantizer


class ResidualKMeansTokenizer(FeatureTokenizer):
    """k-means of the standardised features, then of what it left over, and so on; no network, no behaviour.

    Codebook vectors are as wide as the features. What `fit` learns is listed at `ItemTokenizer`; sequences are not
    looked at, and there are no losses.

    Parameters
    ----------
    levels, codebook_size : codes of an ID, and codes per codebook; the latter shrinks where there are fewer items.
    seed : source of every random draw.
    device, progress : where to compute; there is no bar.
    """

    name: ClassVar[str] = "kmeans"

    def __init__(
        self, levels: int = 4, codebook_size: int = 256, seed: int = 0, device: str = "cpu", progress: bool = True
    ) -> None:
        self.levels = levels
        self.codebook_size = codebook_size
        self.seed = seed
        self.device = device
        self.progress = progress

    def _build(self, n_items: int, size: int) -> FeatureNetwork:
        return FeatureNetwork(ResidualQuantizer(self.levels, size, self._width()))

    def _train_on(self, x: torch.Tensor, generator: torch.Generator) -> dict[str, list[float]]:
        self._network.eval().quantizer.start(x, generator)
        return {}
