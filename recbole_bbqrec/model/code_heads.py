"""Parallel code heads: every code of the next item's ID predicted on its own, from one hidden state.

Shapes: n hidden states, N items (row 0 = padding), P positions of an ID, K codes per position, H hidden width.
"""

import torch
from torch import nn
from torch.nn import functional

from .catalogue import SemanticIds


class CodeHeads(nn.Module):
    """log p(item | state) as the sum over the positions of log p(symbol | state), see `SemanticIds.symbols`."""

    symbols: torch.Tensor

    def __init__(self, ids: SemanticIds, hidden_size: int) -> None:
        super().__init__()
        self.n_positions = ids.codes.shape[1]
        self.heads = nn.Linear(hidden_size, self.n_positions * (ids.codebook_size + 1))
        self.register_buffer("symbols", ids.symbols, persistent=False)  # the IDs have a file of their own

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of every symbol [n, P, K + 1]."""
        return self.heads(hidden).unflatten(-1, (self.n_positions, -1))

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean over targets [n] of the cross-entropy of their codes, summed over the positions; `hidden` [n, H]."""
        log_p = self._logits(hidden).log_softmax(dim=-1)
        return -log_p.flatten(1).gather(1, self.symbols[targets]).sum(1).mean()

    def states(self, hidden: torch.Tensor) -> torch.Tensor:
        """Query side [n, H + 2] of the scores: `states(hidden) @ rows(items).T` is log p [n, m].

        A logit of an ID is linear in the state, and what turns the logits of all positions into log p is one number per
        state: the heads are a dense score whose item vectors are sums over the codes.
        """
        totals = self._logits(hidden).logsumexp(dim=-1).sum(-1, keepdim=True)
        return torch.cat([hidden, torch.ones_like(totals), -totals], dim=-1)

    def rows(self, items: torch.Tensor) -> torch.Tensor:
        """Item side [m, H + 2] of the scores, for items [m]."""
        weights = torch.cat([self.heads.weight, self.heads.bias.unsqueeze(1)], dim=1)
        summed = functional.embedding_bag(self.symbols[items], weights, mode="sum")
        return torch.cat([summed, torch.ones_like(summed[:, :1])], dim=1)
