"""Parallel code heads: every code of the next item's ID predicted on its own, from one hidden state.

Shapes: n hidden states, N items (row 0 = padding), P positions of an ID, K codes per position, H hidden width. The
symbols of a position are its K codes and "no code", for items that lack the signal.
"""

import torch
from torch import nn
from torch.nn import functional


class CodeHeads(nn.Module):
    """log p(item | state) as the sum over the positions of log p(code | state).

    Parameters
    ----------
    codes : [N, P] code of every item at every position; -1 where there is none.
    codebook_size : number K of codes.
    hidden_size : width H of the states.
    """

    symbols: torch.Tensor

    def __init__(self, codes: torch.Tensor, codebook_size: int, hidden_size: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.n_positions = codes.shape[1]
        self.heads = nn.Linear(hidden_size, self.n_positions * (codebook_size + 1))
        self.register_buffer("symbols", self._symbols(codes), persistent=False)

    def _symbols(self, codes: torch.Tensor) -> torch.Tensor:
        """Number codes [n, P] over all positions; "no code" comes last at each."""
        position = torch.arange(codes.shape[1], device=codes.device) * (self.codebook_size + 1)
        return position + torch.where(codes >= 0, codes, self.codebook_size)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of every symbol [n, P, K + 1]."""
        return self.heads(hidden).unflatten(-1, (self.n_positions, -1))

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean over targets [n] of the cross-entropy of their codes, summed over the positions; `hidden` [n, H]."""
        log_p = self._logits(hidden).log_softmax(dim=-1)
        return -log_p.flatten(1).gather(1, self.symbols[targets]).sum(1).mean()

    def score(self, hidden: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """log p [n, m] of items [m] after states [n, H]."""
        return self.states(hidden) @ self.rows(items).T

    def states(self, hidden: torch.Tensor) -> torch.Tensor:
        """What `rows` are multiplied with, [n, H + 2], from states [n, H].

        A logit of an ID is linear in the state, and what turns the logits of all positions into log p is one number per
        state: the heads are a dense score whose item vectors are sums over the codes.
        """
        totals = self._logits(hidden).logsumexp(dim=-1).sum(-1, keepdim=True)
        return torch.cat([hidden, torch.ones_like(totals), -totals], dim=-1)

    def rows(self, items: torch.Tensor) -> torch.Tensor:
        """Rows [m, H + 2] of items [m] whose products with `states` are log p."""
        weights = torch.cat([self.heads.weight, self.heads.bias.unsqueeze(1)], dim=1)
        summed = functional.embedding_bag(self.symbols[items], weights, mode="sum")
        return torch.cat([summed, torch.ones_like(summed[:, :1])], dim=1)

    def append(self, codes: torch.Tensor) -> None:
        """Add items with the IDs `codes` [n, P]."""
        self.symbols = torch.cat([self.symbols, self._symbols(codes.to(self.symbols))])
