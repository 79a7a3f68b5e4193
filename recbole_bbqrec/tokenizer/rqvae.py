"""RQ-VAE semantic IDs, those of TIGER (Rajput et al. 2023, arXiv 2305.05065): an autoencoder that quantises residuals.

Shapes as in `feature_tokenizer`.
"""

import itertools
from typing import ClassVar

import torch
from torch import nn
from tqdm import tqdm

from .feature_tokenizer import FeatureNetwork, FeatureTokenizer
from .residual_quantizer import ResidualQuantizer
from .training import RESTART_EVERY, RESTART_UNTIL, learning_rate_factor

HIDDEN = (256, 128)


class RQVAE(FeatureNetwork):
    """Encoder, residual quantiser and decoder.

    Parameters
    ----------
    width : F.
    quantizer : quantiser of the encoder's output.
    """

    def __init__(self, width: int, quantizer: ResidualQuantizer) -> None:
        super().__init__(quantizer)
        dim = quantizer.codebooks.shape[-1]
        self.encoder = _mlp(width, *HIDDEN, dim)
        self.decoder = _mlp(dim, *reversed(HIDDEN), width)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Encode features [B, F] to [B, D]."""
        return self.encoder(x)

    def losses(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Both terms of TIGER's objective, sums over dimensions and means over items.

        Returns
        -------
        Losses by name, what was quantised [B, D], and its codes [B, L].
        """
        encoded = self.encoder(x)
        quantized = self.quantizer.quantize(encoded)
        # Plain straight-through: codes follow the encoder by the quantiser's own loss, as in TIGER.
        passed = encoded + (quantized.vectors - encoded).detach()
        rebuilt = (self.decoder(passed) - x).square().sum(-1).mean()
        return {"reconstruction": rebuilt, "commitment": quantized.loss}, encoded.detach(), quantized.codes


class RQVAETokenizer(FeatureTokenizer):
    """RQ-VAE over the standardised features of all modalities side by side; no behaviour.

    Without standardising, sentence vectors of unit length collapse it to one code; without restarting dead codes, most
    of them die. What `fit` learns is listed at `ItemTokenizer`; sequences are not looked at. TIGER appends a code to
    items that collide; here, as with every tokenizer, they move to the nearest free ID, and `n_moved_` counts them.

    Parameters
    ----------
    levels, codebook_size, code_dim : codes of an ID, codes per codebook, and width of their vectors.
    steps : batches of training.
    batch_size : items of a batch.
    learning_rate : of AdamW.
    seed : source of every random draw.
    device, progress : where to compute, and whether to show a bar.
    """

    name: ClassVar[str] = "rqvae"
    counts: ClassVar[tuple[str, ...]] = ("levels", "codebook_size", "code_dim", "steps", "batch_size")
    _network: RQVAE

    def __init__(
        self,
        levels: int = 4,
        codebook_size: int = 256,
        code_dim: int = 32,
        steps: int = 2000,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        seed: int = 0,
        device: str = "cpu",
        progress: bool = True,
    ) -> None:
        self.levels = levels
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.seed = seed
        self.device = device
        self.progress = progress

    def _build(self, n_items: int, size: int) -> RQVAE:
        return RQVAE(self._width(), ResidualQuantizer(self.levels, size, self.code_dim))

    def _train_on(self, x: torch.Tensor, generator: torch.Generator) -> dict[str, list[float]]:
        network, quantizer = self._network, self._network.quantizer
        with torch.no_grad():
            quantizer.start(network.embed(x), generator)
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, fused=True)
        every = max(self.steps // 100, 1)
        sums, history = {"reconstruction": 0.0, "commitment": 0.0}, {"reconstruction": [], "commitment": []}
        for step in tqdm(range(self.steps), desc="RQ-VAE", unit="step", disable=not self.progress, leave=False):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * learning_rate_factor(step / self.steps)
            drawn = torch.randint(len(x), (min(self.batch_size, len(x)),), generator=generator)
            losses, encoded, codes = network.losses(x[drawn.to(x.device)])
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            quantizer.observe(codes, encoded)
            if step % RESTART_EVERY == 0 and step < RESTART_UNTIL * self.steps:
                quantizer.restart_dead(encoded, generator)
            for name, value in losses.items():
                sums[name] += float(value.detach()) / every
            if (step + 1) % every == 0:
                for name in sums:
                    history[name].append(sums[name])
                sums = dict.fromkeys(sums, 0.0)
        return history


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, out in itertools.pairwise(widths):
        layers += [nn.Linear(width, out), nn.GELU()]
    return nn.Sequential(*layers[:-1])
