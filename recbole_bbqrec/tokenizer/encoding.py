"""What a trained network says of whole catalogues: their signals and codes, and the ID signal of items it never saw.

Shapes as in `behavior_bind`.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from .behavior_bind import BehaviorBind, Bound

BATCH = 4096
RIDGE = 1.0
"""Penalty of `fit_id_map`; its inputs have unit length and there are as many rows as items."""


class Catalogue(NamedTuple):
    """Items: M standardised feature matrices [B, D_m], and which items have them [M, B]."""

    features: list[torch.Tensor]
    known: torch.Tensor

    def rows(self, rows: slice | torch.Tensor) -> "Catalogue":
        """Some of the items."""
        return Catalogue([matrix[rows] for matrix in self.features], self.known[:, rows])


@torch.no_grad()
def all_signals(network: BehaviorBind, catalogue: Catalogue) -> torch.Tensor:
    """Signals [S, N, D] of the items the network was made for."""
    batches = [slice(begin, begin + BATCH) for begin in range(0, catalogue.known.shape[1], BATCH)]
    return torch.cat([network.signals(*catalogue.rows(rows), network.id_rows(rows)) for rows in batches], dim=1)


@torch.no_grad()
def bind_all(network: BehaviorBind, signals: torch.Tensor, known: torch.Tensor) -> Bound:
    """`network.bind` in batches, and codes in the last chain for items without any signal.

    The loss is that of the last batch and means nothing.
    """
    batches = zip(signals.split(BATCH, dim=1), known.split(BATCH, dim=1), strict=True)
    *parts, losses = zip(*(network.bind(*batch) for batch in batches), strict=True)
    inputs, vectors, codes = (torch.cat(part, dim=1) for part in parts)
    bare = ~network.chains_known(known).any(0)
    codes[-1, bare] = network.quantizer.quantize(inputs[-1, bare], chain=len(codes) - 1).codes
    return Bound(inputs, vectors, codes, losses[-1])


@torch.no_grad()
def fit_id_map(signals: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Ridge regression [M * D + 1, D] from the behaviour signals of the modalities to the ID signal, [S, N, D]."""
    x, y = _regressors(signals[:-1], known).double(), signals[-1].double()
    penalty = torch.full((x.shape[1],), RIDGE, dtype=x.dtype, device=x.device)
    penalty[-1] = 1e-6  # the intercept stays free: it is the answer for items without any modality
    return torch.linalg.solve(x.T @ x + torch.diag(penalty), x.T @ y).float()


@torch.no_grad()
def new_signals(network: BehaviorBind, catalogue: Catalogue, id_map: torch.Tensor | None) -> torch.Tensor:
    """Signals [S, B, D] of items outside the network's table, the ID signal, if it is used, predicted by `id_map`."""
    if id_map is None:
        return network.signals(*catalogue, None)
    n_items = catalogue.known.shape[1]
    signals = network.signals(*catalogue, id_map.new_zeros(n_items, id_map.shape[1]))
    signals[-1] = functional.normalize(_regressors(signals[:-1], catalogue.known) @ id_map, dim=-1)
    return signals


def _regressors(modalities: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    ones = torch.ones(known.shape[1], 1, device=known.device)
    return torch.cat([*modalities, ones], dim=1)
