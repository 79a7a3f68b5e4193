"""Two towers on the features of items: what is likely to follow an item, by content and in one direction.

A cosine of features says that a candidate is like the last item. What follows is often unlike it in one way: the refill
after the pen, the case after the guitar. The query tower of an item meets the document tower of the item that directly
followed it in training (InfoNCE, arXiv 1807.03748). No row of an item is learned, so items that nobody had in training
are served as all others are.

Negatives are drawn uniformly from the catalogue, and nothing divides by how often a candidate is met. Negatives out of
the batch, or a logQ correction (Yi et al. 2019), favour items that are rare in training. Where every item was kept for
having five interactions, one that has few in training has the others held out: being rare would tell the answers.

Shapes: N items (row 0 = padding), F width of all features side by side, M modalities, D width of a tower, n pairs.
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ..model.counts import pairs_apart

WIDTH = 256
"""Of a tower, at most; with 128, recall@100 on Beauty fell from .180 to .173."""
TEMPERATURE = 0.1
"""With .05, recall@100 on Beauty fell from .175 to .170."""
BATCH, NEGATIVES = 512, 512
EPOCHS, LEAST_STEPS, MOST_STEPS = 4, 200, 8000
"""Epochs are fixed: nothing held out says when to stop. The limits are for sets of few pairs, and of over a million."""
LEARNING_RATE = 5e-3

Content = Mapping[str, tuple[Tensor, Tensor]]
"""Per modality unit rows [N, F_m] of the items and whether they have it [N], such as `Catalogue.content`."""


class Towers(nn.Module):
    """A linear map for each side, over the features of all modalities side by side and flags of those that are there.

    With a hidden layer besides, recall@100 on Beauty fell from .182 to .168.

    Parameters
    ----------
    widths : name of each modality -> width of its features.
    """

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.widths = dict(widths)
        total = sum(widths.values())
        shape = min(total, WIDTH), total + len(widths)
        self.query, self.document = (nn.Parameter(torch.zeros(shape)) for _ in range(2))

    def queries(self, content: Content) -> Tensor:
        """Unit rows [N, D] of the items in the role of the last one; zero for items without any feature."""
        return self._rows(self.query, content)

    def documents(self, content: Content) -> Tensor:
        """Unit rows [N, D] of the items in the role of the one that follows; zero for items without any feature."""
        return self._rows(self.document, content)

    @torch.no_grad()
    def _rows(self, side: Tensor, content: Content) -> Tensor:
        inputs, present = self.inputs(content)
        return _side(side, inputs) * present.unsqueeze(1)

    def inputs(self, content: Content) -> tuple[Tensor, Tensor]:
        """Features and flags side by side [N, F + M], and whether an item has any [N]."""
        present = torch.stack([content[name][1] for name in self.widths], dim=1)
        rows = [content[name][0].float() * content[name][1].unsqueeze(1) for name in self.widths]
        return torch.cat([*rows, present.float()], dim=1), present.any(1)

    @torch.no_grad()
    def start(self, inputs: Tensor) -> None:
        """Start both sides at the leading directions of the `inputs` [N, F + M]: near the plain cosine of features."""
        features = inputs[:, : sum(self.widths.values())].double()
        directions = torch.linalg.eigh(features.T @ features).eigenvectors.flip(1)
        for side in (self.query, self.document):
            side[:, : features.shape[1]] = directions[:, : len(side)].T


def _side(side: Tensor, inputs: Tensor) -> Tensor:
    return functional.normalize(inputs @ side.T, dim=-1)


def fit_towers(
    content: Content, offsets: np.ndarray, items: np.ndarray, seed: int, progress: bool = False
) -> Towers | None:
    """Train towers on pairs of items that directly follow one another in the training sequences.

    Nothing depends on the numbers of the items: pairs come in the order of the sequences, negatives are drawn from the
    items in the order of their features. Items of the same features are one, and no negatives of each other.

    Parameters
    ----------
    content : features of the items.
    offsets, items : sequence `u` of training is `items[offsets[u] : offsets[u + 1]]`; users in canonical order.
    seed : of the batches and negatives; the same seed gives the same numbers.
    progress : whether to show a bar.

    Returns
    -------
    The towers, in evaluation mode; none where no two different items with features follow one another.
    """
    if not content:
        return None
    towers = Towers({name: rows.shape[1] for name, (rows, _) in content.items()})
    inputs, present = towers.inputs(content)
    pairs = torch.from_numpy(pairs_apart(offsets, items, 1))
    pairs = pairs[:, (pairs[0] != pairs[1]) & present[pairs].all(0)]
    if not pairs.shape[1]:
        return None
    kinds, kind = torch.unique(inputs, dim=0, return_inverse=True)  # sorted: the items' numbers are gone
    pairs, catalogue = kind[pairs], kind[present].sort().values
    towers.start(kinds[catalogue])
    optimizer = torch.optim.AdamW(towers.parameters(), lr=LEARNING_RATE)
    n_steps = min(max(EPOCHS * -(-pairs.shape[1] // BATCH), LEAST_STEPS), MOST_STEPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda index: 1.0 - index / n_steps)
    batches = itertools.islice(_batches(pairs, catalogue, seed), n_steps)
    for query, document, drawn in tqdm(batches, "Towers", n_steps, disable=not progress, leave=False, ncols=100):
        known = torch.cat([document, drawn])
        loss = _loss(_side(towers.query, kinds[query]), _side(towers.document, kinds[known]), known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return towers.eval()


def _batches(pairs: Tensor, catalogue: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the two sides of all pairs [2, n] again and again, `BATCH` at a time, with some of the catalogue."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for part in torch.randperm(pairs.shape[1], generator=generator).split(BATCH):
            drawn = torch.randint(len(catalogue), (NEGATIVES,), generator=generator)
            yield pairs[0, part], pairs[1, part], catalogue[drawn]


def _loss(queries: Tensor, documents: Tensor, kinds: Tensor) -> Tensor:
    """InfoNCE of queries [B, D] with the first B documents, the others [B + C, D] being negatives of all queries.

    Of the documents' `kinds` [B + C], a target that is drawn again is no negative of its own query.
    """
    targets, drawn = kinds[: len(queries)], kinds[len(queries) :]
    own = (queries * documents[: len(queries)]).sum(1, keepdim=True)
    others = queries @ documents[len(queries) :].T / TEMPERATURE
    others = others.masked_fill(targets.unsqueeze(1) == drawn, -torch.inf)
    return functional.cross_entropy(torch.cat([own / TEMPERATURE, others], dim=1), torch.zeros_like(targets))
