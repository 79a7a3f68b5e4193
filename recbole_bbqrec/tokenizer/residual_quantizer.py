"""Residual vector quantisation: codebook l holds what levels 0 .. l - 1 left over (SoundStream, arXiv 2107.03312).

Shapes: B vectors, D their width, L levels, K codes per level, C sets of L codebooks.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

N_START_POINTS = 20_000
"""Points the k-means start works on; more change the centres little and cost seconds."""

UPDATES = ("gradient", "ema")
SINKHORN_ITERATIONS, SINKHORN_TEMPERATURE = 5, 0.05
USAGE_DECAY = 0.98
"""A code's usage is remembered for about 1 / (1 - 0.98) = 50 batches."""


class Quantized(NamedTuple):
    """What quantisation returns: vectors [B, D] with gradients, codes [B, L], and a scalar loss."""

    vectors: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor


class ResidualQuantizer(nn.Module):
    """L codebooks, used one after the other; whoever quantises with the same `chain` shares them.

    Parameters
    ----------
    levels, size, dim : L, K and D.
    beta : weight of the commitment term against the codebook term.
    sinkhorn : spread the points of a training batch evenly over the codes of the last level.
    sets : C. One set serves every chain; otherwise chain c has set c for itself.
    update : how codebooks learn: `gradient`; or `ema`, each code the moving average of the points that chose it
        (VQ-VAE-2, arXiv 1906.00446), where no gradient reaches a codebook and the loss is commitment alone.

    Attributes
    ----------
    codebooks : [C * L, K, D], set after set.
    usage : [C * L, K] moving average of how often a code is chosen; 1 is an even share.
    """

    usage: torch.Tensor

    def __init__(
        self,
        levels: int,
        size: int,
        dim: int,
        beta: float = 0.25,
        sinkhorn: bool = False,
        sets: int = 1,
        update: str = "gradient",
    ) -> None:
        super().__init__()
        self.levels, self.sets = levels, sets
        self.beta = beta
        self.sinkhorn = sinkhorn
        self.by_gradient = update == "gradient"
        books = torch.randn(sets * levels, size, dim) / dim**0.5
        self.codebooks = nn.Parameter(books, requires_grad=self.by_gradient)
        self.register_buffer("usage", torch.ones(sets * levels, size))

    def books(self, chain: int = 0) -> slice:
        """Places of the L codebooks of a chain among `codebooks`."""
        first = chain % self.sets * self.levels
        return slice(first, first + self.levels)

    def quantize(self, x: torch.Tensor, known: torch.Tensor | None = None, chain: int = 0) -> Quantized:
        """Replace each row of `x` [B, D] by the sum of the nearest code of every level.

        The vectors equal that sum, and their gradient goes two ways: unchanged to `x`, as straight-through estimation
        does, and to the chosen codes. Plain straight-through (`x + (sum - x).detach()`) would keep every loss but the
        codebook term below from the codebooks, and with it the behaviour gradient they are meant to learn from.

        Parameters
        ----------
        known : [B] rows that count in the loss; all where missing.
        chain : whose codebooks.
        """
        weight = torch.ones(len(x), device=x.device) if known is None else known.to(x.dtype)
        weight = weight / weight.sum().clamp(min=1)
        residual, total = x, torch.zeros_like(x)
        loss = x.new_zeros(())
        codes = []
        for level, codebook in enumerate(self.codebooks[self.books(chain)]):
            code = self._assign(residual.detach(), codebook.detach(), last=level == self.levels - 1)
            chosen = functional.embedding(code, codebook)
            if self.by_gradient:
                loss = loss + weight @ (residual.detach() - chosen).square().sum(-1)
            loss = loss + self.beta * (weight @ (residual - chosen.detach()).square().sum(-1))
            residual = residual - chosen.detach()
            total = total + chosen
            codes.append(code)
        return Quantized(total + (x - x.detach()), torch.stack(codes, dim=1), loss)

    def lookup(self, codes: torch.Tensor, chain: int = 0) -> torch.Tensor:
        """Return the vectors [B, D] that codes [B, L] stand for; a row with -1 is zero."""
        books = self.codebooks[self.books(chain)]
        parts = [book[code.clamp(min=0)] for book, code in zip(books, codes.T, strict=True)]
        return torch.stack(parts).sum(0).masked_fill((codes < 0).any(dim=1, keepdim=True), 0.0)

    def _assign(self, residual: torch.Tensor, codebook: torch.Tensor, last: bool) -> torch.Tensor:
        distances = squared_distances(residual, codebook)
        if self.sinkhorn and self.training and last:
            return balanced_assignment(distances)
        return distances.argmin(dim=1)

    def _residuals(self, points: torch.Tensor, chain: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield `(place of the codebook, what is left for it [n, D])`; the codebook may be changed before the next."""
        places = self.books(chain)
        for place in range(places.start, places.stop):
            yield place, points
            codebook = self.codebooks[place]
            points = points - codebook[self._assign(points, codebook, last=place == places.stop - 1)]

    @torch.no_grad()
    def start(self, points: torch.Tensor, generator: torch.Generator, chain: int = 0) -> None:
        """Set every codebook to the k-means centres of what the levels before it leave of `points` [n, D]."""
        if not len(points):
            return
        if len(points) > N_START_POINTS:
            points = points[torch.randperm(len(points), generator=generator)[:N_START_POINTS].to(points.device)]
        for place, left in self._residuals(points, chain):
            self.codebooks[place] = kmeans(left, self.codebooks.shape[1], generator)
        self.usage[self.books(chain)] = 1.0

    @torch.no_grad()
    def observe(self, codes: torch.Tensor, points: torch.Tensor, chain: int = 0) -> None:
        """Count codes [B, L] of `points` [B, D] towards the usage, and let averaged codebooks follow them.

        Rows with -1 do not count.
        """
        size, has = self.codebooks.shape[1], (codes >= 0).all(dim=1)
        codes, points = codes[has], points[has]
        if not len(codes):
            return
        places = self.books(chain)
        counts = torch.stack([torch.bincount(code, minlength=size) for code in codes.T])
        share = counts * (size / len(codes))
        self.usage[places] = self.usage[places].lerp(share, 1 - USAGE_DECAY)
        if not self.by_gradient:
            self._follow(codes, points, counts, places.start)

    def _follow(self, codes: torch.Tensor, points: torch.Tensor, counts: torch.Tensor, first: int) -> None:
        """Move every code towards the mean of its points, as far as they weigh in its usage.

        With e the code, n its usage before the batch and c its share in it, `(decay n e + (1 - decay) c mean) / (decay
        n + (1 - decay) c)` is VQ-VAE-2's ratio of two moving averages; the denominator is the usage by now.
        """
        residual = points
        for level, code in enumerate(codes.T):
            place, count = first + level, counts[level].clamp(min=1).unsqueeze(1)
            before = self.codebooks[place].clone()
            mean = torch.zeros_like(before).index_add_(0, code, residual) / count
            share = counts[level] * (counts.shape[1] / len(codes))
            step = (1 - USAGE_DECAY) * share / self.usage[place].clamp(min=1e-12)
            self.codebooks[place] = before + step.unsqueeze(1) * (mean - before)
            residual = residual - before[code]

    @torch.no_grad()
    def restart_dead(
        self, points: torch.Tensor, generator: torch.Generator, threshold: float = 0.1, chain: int = 0
    ) -> int:
        """Move codes used less than `threshold` of an even share onto points drawn from `points` [n, D].

        Returns
        -------
        Number of codes restarted; they count as evenly used until they prove otherwise.
        """
        restarted = 0
        for place, left in self._residuals(points, chain):
            dead = torch.nonzero(self.usage[place] < threshold).flatten()[: len(left)]
            if len(dead):
                drawn = torch.randperm(len(left), generator=generator)[: len(dead)]
                self.codebooks[place, dead] = left[drawn.to(left.device)]
                self.usage[place, dead] = 1.0
                restarted += len(dead)
        return restarted


class ChainNetwork(nn.Module):
    """What turns items into G chains of codes, as the item tokenizers need it.

    Attributes
    ----------
    quantizer : quantiser of all chains.
    """

    quantizer: ResidualQuantizer

    @property
    def chains(self) -> list[str]:
        """Names of the G chains."""
        raise NotImplementedError

    def chains_known(self, known: torch.Tensor) -> torch.Tensor:
        """Which chains [G, B] an item has, from the modalities it has [M, B]."""
        raise NotImplementedError


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
