"""Decoding of semantic IDs inside the trie of the catalogue: beam search, and the exact likelihood of every item.

Shapes: N items (row 0 = padding), P positions of an ID, K codes per position, S = K + 1 symbols (the codes, then "no
code"), B histories, W prefixes of each, C most children of one of them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from .catalogue import SemanticIds

Pairs = tuple[Tensor, Tensor]  # (row, item) pairs, two tensors [n]


class Trie(nn.Module):
    """The semantic IDs of all items as a prefix tree; every path from the root to depth P is one item.

    A missing code is a symbol of its own, so that IDs of items that lack a signal have the same depth as others.

    Nodes are numbered breadth first, siblings by symbol: 0 is the root, the children of a node have consecutive
    numbers, and the leaves, which come last, are the items in the order of their IDs. So the items below a node are a
    range of leaves, and flat arrays hold everything.

    Raises
    ------
    InputError : two items with one ID.
    """

    tokens: Tensor  # [n_nodes] what a node adds to its prefix: one more than its symbol; 0 at the root
    first_children: Tensor  # [n_nodes + 1] first node below each; those of node `i` end where those of `i + 1` begin
    leaf_ranges: Tensor  # [n_nodes, 2] first leaf below a node, and the one after the last
    leaf_items: Tensor  # [N - 1] item id of each leaf
    item_leaves: Tensor  # [N] leaf of each item; -1 for padding
    item_symbols: Tensor  # [N, P] see `SemanticIds.symbols`
    widest: int  # most prefixes of one length that leave more than one item open

    def __init__(self, ids: SemanticIds) -> None:
        super().__init__()
        item_symbols, self.n_symbols = ids.symbols.cpu().numpy(), ids.codebook_size + 1
        self.depth = item_symbols.shape[1]
        leaf_items = 1 + np.lexsort(item_symbols[1:, ::-1].T)  # item ids in the order of their IDs
        item_leaves = np.full(len(item_symbols), -1)
        item_leaves[leaf_items] = np.arange(len(leaf_items))
        symbols, n_leaves = item_symbols[leaf_items], len(leaf_items)
        new = np.ones(symbols.shape, bool)  # where a prefix of each length differs from that of the leaf before
        new[1:] = np.logical_or.accumulate(symbols[1:] != symbols[:-1], axis=1)
        twice = np.flatnonzero(~new[:, -1])
        if len(twice):
            raise InputError(
                f"semantic IDs: {len(twice)} items share the ID of another one, for instance items"
                f" {leaf_items[twice[0] - 1]} and {leaf_items[twice[0]]}; decoding needs an ID of its own for every"
                " item; raise sid_levels or sid_codebook_size, or use another scoring than generate"
            )
        position, first = np.nonzero(new.T)  # the nodes below the root, breadth first, by their first leaves
        tokens = np.r_[0, 1 + symbols[first, position]]
        depth, first = np.r_[0, position + 1], np.r_[0, first]
        place = depth * n_leaves + first  # ascending; the first child of a node has the same first leaf, one deeper
        end = np.where(np.diff(depth, append=self.depth + 1) > 0, n_leaves, np.roll(first, -1))
        tables = {
            "tokens": tokens,
            "first_children": np.searchsorted(place, np.r_[place, place[-1] + 1] + n_leaves),
            "leaf_ranges": np.stack([first, end], axis=1),
            "leaf_items": leaf_items,
            "item_leaves": item_leaves,
            "item_symbols": item_symbols,
        }
        # The IDs have files of their own; a checkpoint holds what training learned.
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(table).to(ids.codes.device), persistent=False)
        self.widest = max(1, int(np.bincount(depth[end - first > 1], minlength=1).max()))

    def continuations(self, nodes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What may follow the prefixes `nodes` [B, W], none of them a leaf; `logits` [B, W, S] say how likely it is.

        Returned are the children [B, W, C], those of a prefix with fewer filled up with its last; which of them are no
        filling; and the log-probability of each among its siblings, minus infinity for filling. `nodes` may be one row
        that stands for all of `logits`.
        """
        first = self.first_children[nodes].unsqueeze(-1)
        count = self.first_children[nodes + 1].unsqueeze(-1) - first
        place = torch.arange(int(count.max()) if count.numel() else 1, device=nodes.device)
        children, real = first + torch.minimum(place, count - 1), place < count
        symbols = ((self.tokens[children] - 1) % self.n_symbols).expand(len(logits), -1, -1)
        return children, real, logits.gather(-1, symbols).masked_fill(~real, -torch.inf).log_softmax(dim=-1)


Advance = Callable[[Any, Tensor, Tensor], tuple[Tensor, Any]]
"""A decoder that takes prefixes one position further: `logits, state = advance(state, parents, tokens)`.

`state` is what the call before returned about prefixes one position shorter, none at the start; `parents` [B, W] says
which of those each prefix continues, `tokens` [B, W] the token it adds, 0 at the start; in both, one row stands for all
histories. `logits` [B, W, S] are those of the symbols that may come next.
"""


def exact_likelihood(trie: Trie, advance: Advance, candidates: Tensor | None = None) -> Tensor:
    """Log-probability [B, N] of every item, or of the items `candidates` [m]; minus infinity for all else and padding.

    The trie is walked level by level. A prefix is decoded once, however many items share it, and not at all where only
    one item is left below it, which is certain there, or no candidate.
    """
    leaves = None if candidates is None else trie.item_leaves[candidates].sort().values
    nodes = parents = trie.tokens.new_zeros(1, 1)
    total, state, found = torch.zeros(1, 1, device=nodes.device), None, []
    while nodes.numel():
        logits, state = advance(state, parents, trie.tokens[nodes])  # [B, W, S]
        below, real, step = trie.continuations(nodes, logits)
        if leaves is not None:
            real = real & (torch.searchsorted(leaves, trie.leaf_ranges[below]).diff(dim=-1).squeeze(-1) > 0)
        total = (total.unsqueeze(-1) + step)[:, real[0]]  # [B, all continuations]
        below, parents = below[real], real[0].nonzero()[:, 0]
        first, end = trie.leaf_ranges[below].unbind(-1)
        single = end - first == 1
        found.append((trie.leaf_items[first[single]], total[:, single]))
        nodes, parents, total = below[~single].unsqueeze(0), parents[~single].unsqueeze(0), total[:, ~single]
    scores = total.new_full((len(total), len(trie.item_leaves)), -torch.inf)
    for items, values in found:
        scores[:, items] = values
    return scores


def beam_search(trie: Trie, advance: Advance, n_rows: int, beam_size: int, excluded: Pairs | None = None) -> Tensor:
    """Log-probability [B, N] of the items that a beam search finds, with B = `n_rows`.

    The search never leaves the trie. A prefix all of whose items are excluded for a row takes no place in its beam; the
    probabilities of the others stay what they are. Padding, excluded items and what is beyond the beam get minus
    infinity.
    """
    parents = nodes = trie.tokens.new_zeros(n_rows, 1)
    scores, state = torch.zeros(n_rows, 1, device=nodes.device), None
    # Excluded leaves as ascending numbers `row * n_leaves + leaf`, each once; padding does not count.
    rows, taken = torch.arange(n_rows, device=nodes.device).view(-1, 1, 1) * len(trie.leaf_items), nodes.new_zeros(0)
    if excluded is not None:
        leaves = trie.item_leaves[excluded[1]]
        taken = torch.unique((excluded[0] * len(trie.leaf_items) + leaves)[leaves >= 0])
    for _ in range(trie.depth):
        logits, state = advance(state, parents, trie.tokens[nodes])  # [B, W, S]
        below, _, step = trie.continuations(nodes, logits)  # [B, W, C]
        # Items below a node are a range of leaves: counting them among the few excluded ones needs two binary searches
        # and no table of histories by nodes.
        first, end = trie.leaf_ranges[below].unbind(-1)
        exhausted = torch.searchsorted(taken, rows + end) - torch.searchsorted(taken, rows + first) == end - first
        total = (scores.unsqueeze(-1) + step).masked_fill(exhausted, -torch.inf).flatten(1)
        scores, best = total.topk(min(beam_size, total.shape[1]))
        parents, nodes = best // below.shape[-1], below.flatten(1).gather(1, best)
    found = scores.new_full((n_rows, len(trie.item_leaves)), -torch.inf)
    items = trie.leaf_items[trie.leaf_ranges[nodes, 0]]
    # Places of the beam that nothing filled hold some item at minus infinity, which may stand there properly as well.
    return found.scatter(1, items.masked_fill(scores == -torch.inf, 0), scores)
