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

Pairs = tuple[Tensor, Tensor]
"""(row, item) pairs, two tensors [n]."""


class Trie(nn.Module):
    """The semantic IDs of all items as a prefix tree; every path from the root to depth P is one item.

    A missing code (-1) is a symbol of its own, so that IDs of items that lack a signal have the same depth as others.

    Nodes are numbered breadth first, siblings by symbol: 0 is the root, the children of a node have consecutive
    numbers, and the leaves, which come last, are the items in the order of their IDs. So the items below a node are a
    range of leaves, and flat arrays hold everything.

    Parameters
    ----------
    codes : [N, P] ID of each item; row 0 is padding and no item. -1 = the item lacks this code.
    codebook_size : number K of codes per position.

    Raises
    ------
    InputError : no items, codes outside the codebook, or two items with one ID.
    """

    symbols: Tensor  # [n_nodes] what a node adds to its prefix; 0 at the root
    tokens: Tensor  # [n_nodes] the same numbered over all positions, `1 + position * S + symbol`; 0 at the root
    first_children: Tensor  # [n_nodes + 1] first node below each; those of node `i` end where those of `i + 1` begin
    leaf_ranges: Tensor  # [n_nodes, 2] first leaf below a node, and the one after the last
    leaf_items: Tensor  # [N - 1] item id of each leaf
    item_leaves: Tensor  # [N] leaf of each item; -1 for padding
    item_symbols: Tensor  # [N, P] symbols of each item; "no code" in row 0
    widest: int  # most prefixes of one length that leave more than one item open

    def __init__(self, codes: Tensor, codebook_size: int) -> None:
        super().__init__()
        _check(codes, codebook_size)
        self.depth, self.n_symbols = codes.shape[1], codebook_size + 1
        item_symbols = torch.where(codes < 0, codebook_size, codes).long().cpu().numpy()
        item_symbols[0] = codebook_size  # whatever stands in the row of padding
        leaf_items = 1 + np.lexsort(item_symbols[1:, ::-1].T)  # item ids in the order of their IDs
        item_leaves = np.full(len(codes), -1)
        item_leaves[leaf_items] = np.arange(len(leaf_items))
        ids, n_leaves = item_symbols[leaf_items], len(leaf_items)
        new = np.ones(ids.shape, bool)  # where a prefix of each length differs from that of the leaf before
        new[1:] = np.logical_or.accumulate(ids[1:] != ids[:-1], axis=1)
        _check_unique(new[:, -1], leaf_items)
        position, first = np.nonzero(new.T)  # the nodes below the root, breadth first, by their first leaves
        depth, first = np.r_[0, position + 1], np.r_[0, first]
        place = depth * n_leaves + first  # ascending; the first child of a node has the same first leaf, one deeper
        end = np.where(np.diff(depth, append=self.depth + 1) > 0, n_leaves, np.roll(first, -1))
        symbols = np.r_[0, ids[first[1:], position]]
        tables = {
            "symbols": symbols,
            "tokens": np.r_[0, 1 + position * self.n_symbols + symbols[1:]],
            "first_children": np.searchsorted(place, np.r_[place, place[-1] + 1] + n_leaves),
            "leaf_ranges": np.stack([first, end], axis=1),
            "leaf_items": leaf_items,
            "item_leaves": item_leaves,
            "item_symbols": item_symbols,
        }
        # The IDs have files of their own; a checkpoint holds what training learned.
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)).to(codes.device), persistent=False)
        self._first_leaf = len(place) - n_leaves
        self.widest = max(1, int(np.bincount(depth[end - first > 1], minlength=1).max()))

    @property
    def n_items(self) -> int:
        """Number N of rows, padding included."""
        return len(self.item_symbols)

    def next_nodes(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what may follow the prefixes `nodes` [...], none of them a leaf.

        Returns
        -------
        children : [..., C] nodes; those of a prefix with fewer children are filled up with its last.
        real : [..., C] which of them are not filling.
        """
        first = self.first_children[nodes].unsqueeze(-1)
        count = self.first_children[nodes + 1].unsqueeze(-1) - first
        place = torch.arange(int(count.max()) if count.numel() else 1, device=nodes.device)
        return first + torch.minimum(place, count - 1), place < count

    def item(self, nodes: Tensor) -> Tensor:
        """Return the item ids [...] at leaves `nodes` [...]."""
        return self.leaf_items[nodes - self._first_leaf]


def _check(codes: Tensor, codebook_size: int) -> None:
    if codes.ndim != 2 or codes.dtype.is_floating_point or codes.shape[0] < 2 or codes.shape[1] < 1:
        raise InputError(
            f"semantic IDs: found {codes.dtype} codes of shape {list(codes.shape)}; expected integers [N, P], row 0 for"
            " padding and a row for every item; fit the item tokenizer to the catalogue first"
        )
    if (codes[1:] < -1).any() or (codes[1:] >= codebook_size).any():
        raise InputError(
            f"semantic IDs: found codes from {int(codes[1:].min())} to {int(codes[1:].max())}; expected -1 (none) to"
            f" {codebook_size - 1}; hand over the codebook size the item tokenizer was fitted with"
        )


def _check_unique(new: np.ndarray, items: np.ndarray) -> None:
    """Refuse IDs that are not `new`: [N - 1] whether they differ from those of the item before, in their order."""
    if not new.all():
        second = int(np.flatnonzero(~new)[0])
        raise InputError(
            f"semantic IDs: {np.count_nonzero(~new)} items share the ID of another one, for instance items"
            f" {items[second - 1]} and {items[second]}; decoding needs an ID of its own for every item; raise"
            " sid_levels or sid_codebook_size, or use another scoring than generate"
        )


Advance = Callable[[Any, Tensor, Tensor], tuple[Tensor, Any]]
"""A decoder that takes prefixes one position further: `logits, state = advance(state, parents, tokens)`.

`state` is what the call before returned about prefixes one position shorter, none at the start; `parents` [B, W] says
which of those each prefix continues, `tokens` [B, W] the token it adds, 0 at the start; in both, one row stands for all
histories. `logits` [B, W, S] are those of the symbols that may come next.
"""


def exact_likelihood(trie: Trie, advance: Advance) -> Tensor:
    """Log-probability [B, N] of every item; minus infinity for padding.

    The trie is walked level by level. A prefix is decoded once, however many items share it, and not at all where only
    one item is left below it: in the trie that item is certain.
    """
    nodes = parents = trie.symbols.new_zeros(1, 1)
    total, state, found = torch.zeros(1, 1, device=nodes.device), None, []
    while nodes.numel():
        logits, state = advance(state, parents, trie.tokens[nodes])  # [B, W, S]
        below, real, step = _continuations(trie, nodes, logits)
        total = (total.unsqueeze(-1) + step)[:, real[0]]  # [B, all continuations]
        below, parents = below[real], real[0].nonzero()[:, 0]
        first, end = trie.leaf_ranges[below].unbind(-1)
        single = end - first == 1
        found.append((trie.leaf_items[first[single]], total[:, single]))
        nodes, parents, total = below[~single].unsqueeze(0), parents[~single].unsqueeze(0), total[:, ~single]
    scores = total.new_full((len(total), trie.n_items), -torch.inf)
    for items, values in found:
        scores[:, items] = values
    return scores


def beam_search(trie: Trie, advance: Advance, n_rows: int, beam_size: int, excluded: Pairs | None = None) -> Tensor:
    """Log-probability of the items that a beam search finds.

    The search never leaves the trie. A prefix all of whose items are excluded for a row takes no place in its beam.

    Parameters
    ----------
    n_rows : number B of histories.
    beam_size : prefixes kept per history and position.
    excluded : (row, item) pairs that may not come out. The probabilities of the others stay what they are.

    Returns
    -------
    [B, N]; minus infinity for padding, for excluded items and for what is beyond the beam.
    """
    parents = nodes = trie.symbols.new_zeros(n_rows, 1)
    scores, state = torch.zeros(n_rows, 1, device=nodes.device), None
    taken = _excluded_leaves(trie, excluded)
    for _ in range(trie.depth):
        logits, state = advance(state, parents, trie.tokens[nodes])  # [B, W, S]
        below, _, step = _continuations(trie, nodes, logits)  # [B, W, C]
        total = (scores.unsqueeze(-1) + step).masked_fill(_exhausted(trie, taken, below), -torch.inf).flatten(1)
        scores, best = total.topk(min(beam_size, total.shape[1]))
        parents, nodes = best // below.shape[-1], below.flatten(1).gather(1, best)
    found = scores.new_full((n_rows, trie.n_items), -torch.inf)
    # Places of the beam that nothing filled hold some item at minus infinity, which may stand there properly as well.
    return found.scatter(1, trie.item(nodes).masked_fill(scores == -torch.inf, 0), scores)


def _continuations(trie: Trie, nodes: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `next_nodes` of `nodes` [B, W], and the log-probability [B, W, C] of each among its siblings.

    It is minus infinity for filling.
    """
    below, real = trie.next_nodes(nodes)
    symbols = trie.symbols[below].expand(len(logits), -1, -1)
    return below, real, logits.gather(-1, symbols).masked_fill(~real, -torch.inf).log_softmax(dim=-1)


def _excluded_leaves(trie: Trie, excluded: Pairs | None) -> Tensor:
    """Excluded leaves as ascending numbers `row * n_leaves + leaf`, each once; padding does not count."""
    if excluded is None:
        return trie.symbols.new_zeros(0)
    rows, items = excluded
    leaves = trie.item_leaves[items]
    return torch.unique((rows * len(trie.leaf_items) + leaves)[leaves >= 0])


def _exhausted(trie: Trie, taken: Tensor, nodes: Tensor) -> Tensor:
    """Whether all items below `nodes` [B, W, C] are excluded for their row.

    Items below a node are a range of leaves: counting them among the few excluded ones needs two binary searches and
    no table of histories by nodes.
    """
    if not len(taken):
        return torch.zeros_like(nodes, dtype=torch.bool)
    row = torch.arange(len(nodes), device=nodes.device).view(-1, 1, 1) * len(trie.leaf_items)
    first, end = trie.leaf_ranges[nodes].unbind(-1)
    return torch.searchsorted(taken, row + end) - torch.searchsorted(taken, row + first) == end - first
