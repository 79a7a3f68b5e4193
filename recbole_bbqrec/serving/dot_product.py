"""Models whose scores are dot products: a vector of the history with one of each item.

Such a model can be served by a nearest-neighbour index, and runs in other runtimes as an encoder of histories and a
table of item vectors.

Shapes: B histories, T items of the longest, N items (row 0 = padding), W width of the vectors.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..model.bbqrec import BBQRec
from ..model.protocol import NeedsDataError, RecBoleRanker

PROBES = 8
"""Histories on which a model of RecBole has to prove that its scores are dot products."""


class DotProduct(NamedTuple):
    """Scores [B, N] of histories [B, T] (0 pads on the right, none is empty) are `encoder(histories) @ items.T`."""

    encoder: nn.Module
    items: Tensor  # [N, W]


def dot_product(ranker: Any, what: str, shared: Any = None) -> DotProduct:
    """Return the scores of a ranker, without its second stage, as dot products; `shared` as in `Ranker.score`.

    Raises
    ------
    InputError : they are none; its line begins with `what`, which asked for them.
    """
    with torch.no_grad():
        if isinstance(ranker, RecBoleRanker):
            found = _of_recbole(ranker)
        elif isinstance(ranker, BBQRec) and ranker.decoder is None:
            rows, keys = ranker.shared() if shared is None else shared
            found = None if keys is None else DotProduct(_Ours(ranker, rows), keys)
        else:
            found = None
    if found is None:
        raise InputError(
            f"{what}: found a model whose scores are no products of a history's vector with item vectors; models that "
            "decode IDs, count or compare otherwise have no such vectors; BBQRec, SASRecPlus, UniSRec and SASRec have"
        )
    return found


class _Ours(nn.Module):
    def __init__(self, model: BBQRec, rows: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, histories: Tensor) -> Tensor:
        return self.model.query(histories, self.get_buffer("rows"))


class _RecBoles(nn.Module):
    """One of RecBole's models, which reads histories as it was trained: padded to `length` items."""

    def __init__(self, model: Any, length: int) -> None:
        super().__init__()
        self.model, self.length = model, length

    def forward(self, histories: Tensor) -> Tensor:
        padded = functional.pad(histories, (0, self.length - histories.shape[1]))
        return type(self.model).forward(self.model, padded, (histories != 0).sum(1))


def _of_recbole(ranker: RecBoleRanker) -> DotProduct | None:
    """Return the dot products that most RecBole models have, tried on a few histories; none where that fails."""
    model, table = ranker.model, getattr(ranker.model, "item_embedding", None)
    if not isinstance(table, nn.Embedding):
        return None
    encoder, items = _RecBoles(model, ranker.length), table.weight[: model.n_items].detach()
    generator = torch.Generator().manual_seed(0)
    histories = torch.randint(1, model.n_items, (PROBES, ranker.length), generator=generator)
    lengths = torch.randint(1, ranker.length + 1, (PROBES, 1), generator=generator)
    histories = histories.masked_fill(torch.arange(ranker.length) >= lengths, 0).to(items.device)
    try:
        expected, found = ranker.first_stage(histories).scores, encoder(histories)
    except (NeedsDataError, TypeError):  # its forward asks for more than the items of a history and their number
        return None
    same = found.shape == (PROBES, items.shape[1]) and torch.allclose(found @ items.T, expected, 1e-4, 1e-4)
    return DotProduct(encoder, items) if same else None
