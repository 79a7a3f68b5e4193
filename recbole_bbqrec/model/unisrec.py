"""UniSRec: item features through a mixture of whitening experts (Hou et al., KDD 2022), the form with item IDs.

Differences from the paper: docs/baselines.md.

Shapes: n items, F width of features, H hidden width, G experts.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from .bbqrec import BBQRec
from .cpu_speed import Dropout

NOISE = 1e-2  # least standard deviation of the noise on the gates
DROPOUT = 0.2  # of an expert's input, as in the code of the paper's authors


class UniSRec(BBQRec):
    """Item ID embedding plus adapted features, in BBQRec's encoder; settings: properties/model/UniSRec.yaml."""

    def __init__(self, config: Any, dataset: Any) -> None:
        if not dataset.catalogue.modalities:
            raise InputError(
                "UniSRec: found no item features, expected some; set text_fields and text_encoder, or the encoder of "
                "another modality, such as image_encoder"
            )
        super().__init__(config, dataset)

    def _projection(self, config: Any) -> Callable[[int, int], nn.Module]:
        return functools.partial(MixtureOfExperts, n_experts=config["n_experts"])


class MixtureOfExperts(nn.Module):
    """Mean of the experts' outputs, weighted by a softmax over the item's features; noisy in training.

    Each expert is a parametric whitening: a learned shift, then a linear map (section 3.1.1 of the paper).
    """

    def __init__(self, width: int, hidden_size: int, n_experts: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(n_experts, width))
        self.experts = nn.ModuleList(nn.Linear(width, hidden_size, bias=False) for _ in range(n_experts))
        self.gate = nn.Parameter(torch.zeros(width, n_experts))
        self.noise = nn.Parameter(torch.zeros(width, n_experts))
        self.dropout = Dropout(DROPOUT)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features [n, F] into [n, H]."""
        gates = features @ self.gate  # [n, G]
        if self.training:
            gates = gates + torch.randn_like(gates) * (functional.softplus(features @ self.noise) + NOISE)
        shares = functional.softmax(gates, dim=1).split(1, dim=1)  # G of [n, 1]
        parts = [
            share * expert(self.dropout(features - shift))
            for share, expert, shift in zip(shares, self.experts, self.shift, strict=True)
        ]
        return torch.stack(parts).sum(0)
