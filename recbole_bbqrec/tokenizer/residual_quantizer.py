"""Residual vector quantisation: codebook l holds what levels 0 .. l - 1 left over (SoundStream, arXiv 2107.03312).

Shapes: B vectors, D their width, L levels, K codes per level.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

N_START_POINTS = 20_000
"""Points the k-means start works on; more change the centres little and cost seconds."""

SINKHORN_ITERATIONS, SINKHORN_TEMPERATURE = 5, 0.05
USAGE_DECAY = 0.98
"""A code's usage is remembered for about 1 / (1 - 0.98) = 50 batches."""


class Quantized(NamedTuple):
    """What quantisation returns: vectors [B, D] with gradients, codes [B, L], and a scalar loss."""

    vectors: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor


class ResidualQuantizer(nn.Module):
    """L codebooks, used one after the other; whoever calls `quantize` shares them.

    Parameters
    ----------
    levels, size, dim : L, K and D.
    beta : weight of the commitment term against the codebook term.
    sinkhorn : spread the points of a training batch evenly over the codes of the last level.

    Attributes
    ----------
    codebooks : [L, K, D], learned by gradient.
    usage : [L, K] moving average of how often a code is chosen; 1 is an even share.
    """

    usage: torch.Tensor

    def __init__(self, levels: int, size: int, dim: int, beta: float = 0.25, sinkhorn: bool = False) -> None:
        super().__init__()
        self.beta = beta
        self.sinkhorn = sinkhorn
        self.codebooks = nn.Parameter(torch.randn(levels, size, dim) / dim**0.5)
        self.register_buffer("usage", torch.ones(levels, size))

    def quantize(self, x: torch.Tensor, known: torch.Tensor | None = None) -> Quantized:
        """Replace each row of `x` [B, D] by the sum of the nearest code of every level.

        The vectors equal that sum, and their gradient goes two ways: unchanged to `x`, as straight-through estimation
        does, and to the chosen codes. Plain straight-through (`x + (sum - x).detach()`) would keep every loss but the
        codebook term below from the codebooks, and with it the behaviour gradient they are meant to learn from.

        Parameters
        ----------
        known : [B] rows that count in the loss; all where missing.
        """
        weight = torch.ones(len(x), device=x.device) if known is None else known.to(x.dtype)
        weight = weight / weight.sum().clamp(min=1)
        residual, total = x, torch.zeros_like(x)
        loss = x.new_zeros(())
        codes = []
        for level, codebook in enumerate(self.codebooks):
            code = self._assign(residual.detach(), level)
            chosen = functional.embedding(code, codebook)
            loss = loss + weight @ (residual.detach() - chosen).square().sum(-1)
            loss = loss + self.beta * (weight @ (residual - chosen.detach()).square().sum(-1))
            residual = residual - chosen.detach()
            total = total + chosen
            codes.append(code)
        return Quantized(total + (x - x.detach()), torch.stack(codes, dim=1), loss)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the vectors [B, D] that codes [B, L] stand for; a row with -1 is zero."""
        parts = [book[code.clamp(min=0)] for book, code in zip(self.codebooks, codes.T, strict=True)]
        return torch.stack(parts).sum(0).masked_fill((codes < 0).any(dim=1, keepdim=True), 0.0)

    def _assign(self, residual: torch.Tensor, level: int) -> torch.Tensor:
        distances = squared_distances(residual, self.codebooks[level].detach())
        if self.sinkhorn and self.training and level == len(self.codebooks) - 1:
            return balanced_assignment(distances)
        return distances.argmin(dim=1)

    @torch.no_grad()
    def start(self, points: torch.Tensor, generator: torch.Generator) -> None:
        """Set every codebook to the k-means centres of what the levels before it leave of `points` [n, D]."""
        if len(points) > N_START_POINTS:
            points = points[torch.randperm(len(points), generator=generator)[:N_START_POINTS].to(points.device)]
        for level in range(len(self.codebooks)):
            self.codebooks[level] = kmeans(points, self.codebooks.shape[1], generator)
            points = points - self.codebooks[level][self._assign(points, level)]
        self.usage.fill_(1.0)

    @torch.no_grad()
    def observe(self, codes: torch.Tensor) -> None:
        """Count codes [B, L] towards the usage; rows with -1 do not count."""
        size = self.codebooks.shape[1]
        codes = codes[(codes >= 0).all(dim=1)]
        if not len(codes):
            return
        counts = torch.stack([torch.bincount(code, minlength=size) for code in codes.T])
        self.usage.lerp_(counts * (size / len(codes)), 1 - USAGE_DECAY)

    @torch.no_grad()
    def restart_dead(self, points: torch.Tensor, generator: torch.Generator, threshold: float = 0.1) -> int:
        """Move codes used less than `threshold` of an even share onto points drawn from `points` [n, D].

        Returns
        -------
        Number of codes restarted; they count as evenly used until they prove otherwise.
        """
        restarted = 0
        for level, codebook in enumerate(self.codebooks):
            dead = torch.nonzero(self.usage[level] < threshold).flatten()[: len(points)]
            if len(dead):
                drawn = torch.randperm(len(points), generator=generator)[: len(dead)]
                codebook[dead] = points[drawn.to(points.device)]
                self.usage[level, dead] = 1.0
                restarted += len(dead)
            points = points - codebook[self._assign(points, level)]
        return restarted


def squared_distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances [n, K], less each point's own squared norm, which changes no comparison."""
    return torch.addmm(centres.square().sum(-1), points, centres.T, alpha=-2)


def balanced_assignment(distances: torch.Tensor) -> torch.Tensor:
    """Assign rows [n, K] to columns so that columns are used evenly: Sinkhorn's iteration (SwAV, arXiv 2006.09882)."""
    # In double precision and from the smallest distance on: the exponentials span many magnitudes.
    scores = distances.double()
    scores = scores - scores.amin(dim=1, keepdim=True)
    scores = -scores / (scores.mean().clamp(min=1e-12) * SINKHORN_TEMPERATURE)
    for _ in range(SINKHORN_ITERATIONS):
        scores = scores - scores.logsumexp(dim=0, keepdim=True)
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    return scores.argmax(dim=1)


@torch.no_grad()
def kmeans(points: torch.Tensor, n_centres: int, generator: torch.Generator, iterations: int = 20) -> torch.Tensor:
    """Lloyd's algorithm from a k-means++ start; returns centres [n_centres, D].

    A cluster that runs empty moves to the point farthest from its centre. Where there are fewer different points than
    centres, centres repeat.
    """
    centres = _spread(points, n_centres, generator)
    for _ in range(iterations):
        distances = squared_distances(points, centres)
        nearest, labels = distances.min(dim=1)
        counts = torch.bincount(labels, minlength=n_centres)
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        updated = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), centres)
        empty = torch.nonzero(counts == 0).flatten()
        if len(empty):
            error = nearest + points.square().sum(-1)
            far = torch.argsort(error, descending=True, stable=True)[: len(empty)]
            updated[empty[: len(far)]] = points[far]
        if torch.equal(updated, centres):
            break
        centres = updated
    return centres


def _spread(points: torch.Tensor, n_centres: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): the next centre in proportion to the squared distance."""
    draws = torch.rand(n_centres, generator=generator, dtype=torch.float64).to(points.device)
    first = int(draws[0] * len(points))
    chosen = [first]
    nearest = (points - points[first]).square().sum(-1).double()
    for draw in draws[1:]:
        cumulative = nearest.cumsum(0)
        index = int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True).clamp(max=len(points) - 1))
        chosen.append(index)
        nearest = torch.minimum(nearest, (points - points[index]).square().sum(-1).double())
    return points[torch.tensor(chosen, device=points.device)].clone()
