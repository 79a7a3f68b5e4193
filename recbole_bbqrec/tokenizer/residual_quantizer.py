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
N_ITERATIONS = 20
"""Rounds of k-means at most; it has mostly settled by then."""
COMMITMENT = 0.25
"""Weight of the commitment term against the codebook term, that of VQ-VAE (arXiv 1711.00937)."""
USAGE_DECAY = 0.98
"""A code's usage is remembered for about 1 / (1 - 0.98) = 50 batches."""
DEAD_BELOW = 0.1
"""Share of an even usage below which a code is dead."""


class Quantized(NamedTuple):
    """What quantisation returns: vectors [B, D] with gradients, codes [B, L], and a scalar loss."""

    vectors: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor


class ResidualQuantizer(nn.Module):
    """C sets of L codebooks [C * L, K, D], used one after the other; chain c of an item uses set c modulo C.

    `usage` [C * L, K] is a moving average of how often a code is chosen; 1 is an even share.
    """

    usage: torch.Tensor

    def __init__(self, levels: int, size: int, dim: int, sets: int = 1) -> None:
        super().__init__()
        self.levels, self.sets = levels, sets
        self.codebooks = nn.Parameter(torch.randn(sets * levels, size, dim) / dim**0.5)
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

        Only `known` rows [B] count in the loss; all where that is missing.
        """
        weight = torch.ones(len(x), device=x.device) if known is None else known.to(x.dtype)
        weight = weight / weight.sum().clamp(min=1)
        residual, total = x, torch.zeros_like(x)
        loss = x.new_zeros(())
        codes = []
        for codebook in self.codebooks[self.books(chain)]:
            code = squared_distances(residual.detach(), codebook.detach()).argmin(dim=1)
            chosen = functional.embedding(code, codebook)
            loss = loss + weight @ (residual.detach() - chosen).square().sum(-1)
            loss = loss + COMMITMENT * (weight @ (residual - chosen.detach()).square().sum(-1))
            residual = residual - chosen.detach()
            total = total + chosen
            codes.append(code)
        return Quantized(total + (x - x.detach()), torch.stack(codes, dim=1), loss)

    def lookup(self, codes: torch.Tensor, chain: int = 0) -> torch.Tensor:
        """Return the vectors [B, D] that codes [B, L] stand for; a row with -1 is zero."""
        books = self.codebooks[self.books(chain)]
        parts = [book[code.clamp(min=0)] for book, code in zip(books, codes.T, strict=True)]
        return torch.stack(parts).sum(0).masked_fill((codes < 0).any(dim=1, keepdim=True), 0.0)

    @torch.no_grad()
    def start(self, points: torch.Tensor, known: torch.Tensor, generator: torch.Generator) -> None:
        """Set every codebook to the k-means centres of what the levels before it leave of its chains' points.

        Of the `points` [G, n, D] only `known` rows [G, n] count.
        """
        for chain, rows in self._by_set(points, known):
            if len(rows) > N_START_POINTS:
                rows = rows[torch.randperm(len(rows), generator=generator)[:N_START_POINTS].to(rows.device)]
            for place, left in self._residuals(rows, chain) if len(rows) else ():
                self.codebooks[place] = kmeans(left, self.codebooks.shape[1], generator)

    @torch.no_grad()
    def observe(self, codes: torch.Tensor) -> None:
        """Count codes [G, B, L] towards the usage; rows with -1 do not count."""
        size = self.codebooks.shape[1]
        for chain, rows in enumerate(codes.reshape(self.sets, -1, self.levels)):
            has = (rows >= 0).all(1, keepdim=True).to(self.usage.dtype).expand(-1, self.levels)
            counts = torch.zeros(self.levels, size, device=codes.device)
            counts.scatter_add_(1, rows.clamp(min=0).T, has.T)  # of whole numbers, so that their order does not matter
            n_rows, books = has[:, 0].sum(), self.books(chain)
            moved = self.usage[books].lerp(counts * (size / n_rows.clamp(min=1)), 1 - USAGE_DECAY)
            self.usage[books] = torch.where(n_rows > 0, moved, self.usage[books])

    @torch.no_grad()
    def restart_dead(
        self,
        points: torch.Tensor,
        known: torch.Tensor,
        generator: torch.Generator,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Move dead codes onto rows drawn from `points`; they count as evenly used at first. Shapes as in `start`.

        What `optimizer` has kept of their gradients belongs to the codes they were before, and is reset.
        """
        moments = [value for value in optimizer.state[self.codebooks].values() if value.shape == self.codebooks.shape]
        for chain, rows in self._by_set(points, known):
            for place, left in self._residuals(rows, chain):
                dead = torch.nonzero(self.usage[place] < DEAD_BELOW).flatten()[: len(left)]
                if len(dead):
                    drawn = torch.randperm(len(left), generator=generator)[: len(dead)]
                    self.codebooks[place, dead] = left[drawn.to(left.device)]
                    self.usage[place, dead] = 1.0
                    for moment in moments:
                        moment[place, dead] = 0.0

    def _by_set(self, rows: torch.Tensor, known: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield each set and the known rows of the chains that share it, from rows [G, B, ...] and `known` [G, B]."""
        grouped, has = (part.reshape(self.sets, -1, *part.shape[2:]) for part in (rows, known))
        yield from enumerate(part[kept] for part, kept in zip(grouped, has, strict=True))

    def _residuals(self, points: torch.Tensor, chain: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield `(place of the codebook, what is left for it [n, D])`; the codebook may be changed before the next."""
        places = self.books(chain)
        for place in range(places.start, places.stop):
            yield place, points
            codebook = self.codebooks[place]
            points = points - codebook[squared_distances(points, codebook).argmin(dim=1)]


def squared_distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances [n, K], less each point's own squared norm, which changes no comparison."""
    return torch.addmm(centres.square().sum(-1), points, centres.T, alpha=-2)


@torch.no_grad()
def kmeans(points: torch.Tensor, n_centres: int, generator: torch.Generator) -> torch.Tensor:
    """Lloyd's algorithm from a k-means++ start; returns centres [n_centres, D].

    A cluster that runs empty moves to the point farthest from its centre. Where there are fewer different points than
    centres, centres repeat.
    """
    centres = _spread(points, n_centres, generator)
    for _ in range(N_ITERATIONS):
        nearest, labels = squared_distances(points, centres).min(dim=1)
        counts = torch.bincount(labels, minlength=n_centres)
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        updated = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), centres)
        empty = torch.nonzero(counts == 0).flatten()
        if len(empty):
            far = torch.argsort(nearest + points.square().sum(-1), descending=True, stable=True)[: len(empty)]
            updated[empty[: len(far)]] = points[far]
        if torch.equal(updated, centres):
            break
        centres = updated
    return centres


def _spread(points: torch.Tensor, n_centres: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++ seeding (Arthur and Vassilvitskii 2007): the next centre in proportion to the squared distance."""
    draws = torch.rand(n_centres, generator=generator, dtype=torch.float64).to(points.device)
    chosen = [int(draws[0] * len(points))]
    nearest = (points - points[chosen[0]]).square().sum(-1).double()
    for draw in draws[1:]:
        cumulative = nearest.cumsum(0)
        index = int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True).clamp(max=len(points) - 1))
        chosen.append(index)
        nearest = torch.minimum(nearest, (points - points[index]).square().sum(-1).double())
    return points[torch.tensor(chosen, device=points.device)].clone()
