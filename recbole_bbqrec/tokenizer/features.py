"""Tokenizers that see features alone: one signal, every modality in it, and no behaviour.

The modalities stand side by side, standardised; one that an item lacks stands there as the mean. An item that lacks
them all has no signal. Sequences are not looked at here; `aligned` adds an objective that does. What `fit` learns is
listed at `ItemTokenizer`.

Shapes: B items, L levels, D code width, F width of all modalities side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..errors import InputError
from .base import Flat, ItemTokenizer
from .behavior_bind import CHUNK, Bound, Catalogue, mlp
from .residual_quantizer import ResidualQuantizer
from .training import learning_rate_schedule, restart_due, run_steps

HIDDEN = (256, 128)
"""Hidden layers of the RQ-VAE's encoder, and of its decoder backwards."""
BATCH_SIZE = 512
"""Items of a batch of the RQ-VAE."""

Objective = Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
"""From items [B] of a batch and their quantised vectors [B, D] to weighted losses by name."""


class FeatureNetwork(nn.Module):
    """One chain of codes, of what `encoder` makes of features [B, F]; `decoder` leads back."""

    def __init__(self, quantizer: ResidualQuantizer, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.quantizer, self.encoder, self.decoder = quantizer, encoder, decoder
        self.chains = ["features"]

    def chains_known(self, known: torch.Tensor) -> torch.Tensor:
        """Whether an item has any modality [1, B], from those it has [M, B]."""
        return known.any(0, keepdim=True)


class FeatureTokenizer(ItemTokenizer):
    """What `RQVAETokenizer` and `ResidualKMeansTokenizer` share."""

    def _width(self) -> int:
        if not self.statistics_:
            raise InputError(f"{self.name} tokenizer: found no modality, expected at least one; set an encoder")
        return sum(value.shape[1] for value in self.statistics_.values())

    @torch.no_grad()
    def _train(self, catalogue: Catalogue, sequences: Flat, generator: torch.Generator) -> dict[str, list[float]]:
        embedded = self.network_.encoder(torch.cat(catalogue.features, dim=1)).unsqueeze(0)
        everyone = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        self.network_.quantizer.start(embedded, everyone, generator)
        return {}

    @torch.no_grad()
    def _bind(self, catalogue: Catalogue, new: bool) -> Bound:
        known, quantizer = self.network_.chains_known(catalogue.known), self.network_.quantizer
        embedded = map(self.network_.encoder, torch.cat(catalogue.features, dim=1).split(CHUNK))
        inputs = torch.cat(list(embedded)) * known[0].unsqueeze(1)
        vectors, codes, losses = zip(*map(quantizer.quantize, inputs.split(CHUNK)), strict=True)
        masked = torch.cat(vectors) * known[0].unsqueeze(1)
        return Bound(inputs[None], masked[None], torch.cat(codes)[None], losses[-1])


@dataclass(eq=False, kw_only=True)
class RQVAETokenizer(FeatureTokenizer):
    """Semantic IDs of TIGER (Rajput et al. 2023, arXiv 2305.05065): an autoencoder that quantises residuals.

    Without standardising, sentence vectors of unit length collapse to one code; without restarts of dead codes, most
    codes die. TIGER appends a code to items that collide. Here, as with every tokenizer, they move to the nearest free
    ID, and `n_moved_` counts them.

    Parameters
    ----------
    levels, codebook_size, code_dim : codes of an ID, codes per codebook, and width of their vectors.
    steps : batches of training.
    learning_rate : of AdamW.
    """

    name: ClassVar[str] = "rqvae"

    levels: int = 4
    code_dim: int = 32
    steps: int = 2000
    learning_rate: float = 1e-3

    def _build(self, n_items: int, size: int) -> FeatureNetwork:
        widths = (self._width(), *HIDDEN, self.code_dim)
        quantizer = ResidualQuantizer(self.levels, size, self.code_dim)
        return FeatureNetwork(quantizer, mlp(*widths), mlp(*reversed(widths)))

    def _train(self, catalogue: Catalogue, sequences: Flat, generator: torch.Generator) -> dict[str, list[float]]:
        super()._train(catalogue, sequences, generator)
        features, network = torch.cat(catalogue.features, dim=1), self.network_
        objective = self._objective(catalogue, sequences)
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, fused=True)
        schedule = learning_rate_schedule(optimizer, self.steps)

        def step(index: int) -> dict[str, torch.Tensor]:
            drawn = torch.randint(len(features), (min(BATCH_SIZE, len(features)),), generator=generator)
            x = features[drawn.to(features.device)]
            encoded = network.encoder(x)
            quantized = network.quantizer.quantize(encoded)
            # Plain straight-through: codes follow the encoder by the quantiser's own loss, as in TIGER.
            vectors = encoded + (quantized.vectors - encoded).detach()
            rebuilt = network.decoder(vectors)
            # Sums over dimensions and means over items.
            losses = {"reconstruction": (rebuilt - x).square().sum(-1).mean(), "commitment": quantized.loss}
            losses |= objective(drawn.to(features.device), vectors)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            schedule.step()
            network.quantizer.observe(quantized.codes.unsqueeze(0))
            if restart_due(index, self.steps):
                everyone = torch.ones(1, len(x), dtype=torch.bool)
                network.quantizer.restart_dead(encoded.detach().unsqueeze(0), everyone, generator, optimizer)
            return {name: value.detach() for name, value in losses.items()}

        return run_steps(step, self.steps, "RQ-VAE", self.progress)

    def _objective(self, catalogue: Catalogue, sequences: Flat) -> Objective:
        """What is asked of the quantised vectors beside reconstruction; here nothing."""
        return lambda items, vectors: {}


@dataclass(eq=False, kw_only=True)
class ResidualKMeansTokenizer(FeatureTokenizer):
    """Semantic IDs of residual k-means over standardised features, without a network or behaviour.

    Codebook vectors are as wide as the features, and there are no losses.

    Parameters
    ----------
    levels, codebook_size : codes of an ID, and codes per codebook; the latter is reduced if there are fewer items.

    Examples
    --------
    >>> import numpy as np, torch
    >>> texts, all_have_one = torch.randn(20, 8), torch.ones(20, dtype=torch.bool)
    >>> nothing = np.array([0]), np.array([], dtype=int)  # no histories are read
    >>> tokenizer = ResidualKMeansTokenizer(levels=2, codebook_size=8)
    >>> tokenizer.fit({"text": texts}, {"text": all_have_one}, nothing, n_items=20).codes_.shape
    torch.Size([20, 2])
    """

    name: ClassVar[str] = "kmeans"

    levels: int = 4

    def _build(self, n_items: int, size: int) -> FeatureNetwork:
        return FeatureNetwork(ResidualQuantizer(self.levels, size, self._width()), nn.Identity(), nn.Identity())
