"""Baselines that learn no weights: popularity, similarity of features, and paths in the graph of transitions.

Differences of `TransitionGraph` from the paper (arXiv 2605.07125, an untrained graph of a few hops with a text cosine):
it is written from descriptions of it, not from its text. The form of the decays, what unreached items get, the grid and
how it is searched are ours; the cosine is summed over all modalities that the items have, not over texts alone.

`untrained_trainer` chooses the settings: coordinate search over a small grid by NDCG@10, masked, on validation.

Shapes: B histories, T items of the longest, N items (row 0 = padding), n last items of all histories, U different ones
among them, F width of features.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from .catalogue import Catalogue
from .counts import pair_counts
from .decoding import Pairs
from .protocol import FirstStage, Products, RankingModel

Point = Mapping[str, float]  # one value for every key of a grid


class Untrained(RankingModel):
    """A model that learns no weights: it counts, and validation chooses a few settings.

    Each key of `KEYS` is a list of values among which validation chooses; one value fixes it.
    """

    KEYS: ClassVar[tuple[str, ...]] = ()
    values: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.grid: dict[str, list[float]] = {key: list(config[key]) for key in self.KEYS}
        first = torch.tensor([values[0] for values in self.grid.values()], dtype=torch.float64)
        self.register_buffer("values", first)

    @property
    def chosen(self) -> dict[str, float]:
        """Setting -> value in use."""
        found = zip(self.KEYS, self.values.tolist(), strict=True)
        return {key: int(value) if key in WHOLE else value for key, value in found}

    def choose(self, point: Point) -> None:
        """Use the values of `point` from now on."""
        self.values = self.values.new_tensor([point[key] for key in self.KEYS])

    def count(self, offsets: np.ndarray, items: np.ndarray) -> None:
        """Take in training sequences: the one of user `u` is `items[offsets[u] : offsets[u + 1]]`."""

    def scores_at(self, histories: Tensor, points: Sequence[Point]) -> Iterator[Tensor]:
        """Scores [B, N] of all items after histories [B, T], for one point after the other."""
        raise NotImplementedError

    def first_stage(
        self, histories: Tensor, candidates: Tensor | None = None, excluded: Pairs | None = None, shared: Any = None
    ) -> FirstStage:
        """As `RankingModel.first_stage`, with the chosen values."""
        return FirstStage(next(self.scores_at(histories, [self.chosen])))


class Pop(Untrained):
    """Ranks every item by how often it occurs in the training sequences, for everybody alike."""

    counts: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.register_buffer("counts", torch.zeros(self.n_items, dtype=torch.long))

    def count(self, offsets: np.ndarray, items: np.ndarray) -> None:
        """As `Untrained.count`."""
        self.counts = torch.from_numpy(np.bincount(items, minlength=self.n_items)).to(self.counts)

    def scores_at(self, histories: Tensor, points: Sequence[Point]) -> Iterator[Tensor]:
        """As `Untrained.scores_at`."""
        for _ in points:
            yield self.counts.float().repeat(len(histories), 1)

    def first_products(self, histories: Tensor, shared: Any = None) -> Products | None:
        """As `RankingModel.first_products`: everybody asks with a one, and an item's key is its count."""
        return Products(self.values.new_ones(len(histories), 1).float(), self.counts.float().unsqueeze(1))


CONTENT_LAST, CONTENT_DECAY = "content_last_items", "content_position_decay"


class ContentNeighbors(Untrained):
    """Ranks items by the similarity of their features to those of the last items; it knows nothing of behaviour.

    The score of item `j` sums `position_decay^b * cos(i, j)` over the last items `i` (`b` = 0 is the very last) and
    the modalities that both items have. An item is scored the same whether it was there in training or not.

    Parameters
    ----------
    config : reads the keys of `KEYS`.
    dataset : its `catalogue`, with features.
    """

    KEYS = (CONTENT_LAST, CONTENT_DECAY)
    features: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if not dataset.catalogue.modalities:
            raise InputError(
                "ContentNeighbors: found no item features, expected some; set text_fields and text_encoder, or the "
                "encoder of another modality, such as image_encoder"
            )
        self.register_buffer("features", side_by_side(dataset.catalogue), persistent=False)

    @torch.no_grad()
    def scores_at(self, histories: Tensor, points: Sequence[Point]) -> Iterator[Tensor]:
        """As `Untrained.scores_at`."""
        return (query @ self.features.T for query in self._queries(histories, points))

    def first_products(self, histories: Tensor, shared: Any = None) -> Products | None:
        """As `RankingModel.first_products`."""
        return Products(next(self._queries(histories, [self.chosen])), self.features)

    def _queries(self, histories: Tensor, points: Sequence[Point]) -> Iterator[Tensor]:
        """For each point vectors [B, F] of the last items of histories, whose products with features are scores."""
        lengths = (histories != 0).sum(1, keepdim=True)
        back = lengths - 1 - torch.arange(histories.shape[1], device=histories.device)  # [B, T] steps from the end
        rows = functional.embedding(histories, self.features)  # [B, T, F]
        for point in points:
            kept = (back >= 0) & (back < point[CONTENT_LAST])
            weights = point[CONTENT_DECAY] ** back.clamp(min=0) * kept
            yield (weights.unsqueeze(1) @ rows).squeeze(1)


def side_by_side(catalogue: Catalogue) -> Tensor:
    """Rows [N, F] whose products are cosines by features, summed over the modalities that both items have."""
    rows = [rows * present.unsqueeze(1) for rows, present in catalogue.content.values()]
    return torch.cat(rows or [torch.zeros(len(catalogue.tokens), 0)], dim=1)


GRID = HOPS, LAST, HOP_DECAY, POSITION_DECAY, COSINE = (
    *("graph_hops", "graph_last_items", "graph_hop_decay", "graph_position_decay", "graph_cosine_weight"),
)
"""Settings of `TransitionGraph` in the order in which they are searched."""
WHOLE = (HOPS, LAST, CONTENT_LAST)
"""Settings that are whole numbers."""


class TransitionGraph(Pop):
    """Ranks items by the paths that lead to them from the last items, in the graph of consecutive training pairs.

    The score of item `j` sums over the last items `i` (`b` = 0 is the very last)

        position_decay^b * (sum over hops h of hop_decay^(h-1) * log(1 + paths of h edges from i to j)
                            + cosine_weight * cos(i, j)),

    an edge counting as often as its pair occurs. No path leads further than `graph_hops` from the end of the history, a
    step back counting as a hop; one hop is always taken. What no path reaches ranks below everything reached, by
    popularity.

    Parameters
    ----------
    config : reads the keys of `GRID`, each a list of values among which validation chooses; one value fixes it.
    dataset : its `catalogue`; without features there is no cosine.
    """

    offsets: Tensor
    items: Tensor
    times: Tensor
    features: Tensor
    KEYS = GRID

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.n_modalities = len(dataset.catalogue.modalities)
        if not self.n_modalities:
            self.grid[COSINE], self.values[GRID.index(COSINE)] = [0.0], 0.0
        # Which item follows which, and how often: edges of item `i` at `offsets[i] : offsets[i + 1]`.
        self.register_buffer("offsets", torch.zeros(self.n_items + 1, dtype=torch.int32))
        self.register_buffer("items", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("times", torch.zeros(0))
        self.register_buffer("features", side_by_side(dataset.catalogue), persistent=False)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take in the counts, however many edges they have."""
        for name in {"items", "times"} & state_dict.keys():
            setattr(self, name, torch.empty_like(state_dict[name], device=self.counts.device))
        return super().load_state_dict(state_dict, strict, assign)

    def count(self, offsets: np.ndarray, items: np.ndarray) -> None:
        """Count items and consecutive pairs of training sequences; an item after itself makes no edge."""
        super().count(offsets, items)
        pairs = pair_counts(offsets, items, self.n_items, 1)
        self.offsets = torch.from_numpy(pairs.indptr).to(self.offsets)
        self.items = torch.from_numpy(pairs.indices).to(self.items)
        self.times = torch.from_numpy(pairs.data).to(self.times)

    def first_products(self, histories: Tensor, shared: Any = None) -> Products | None:
        """As `RankingModel.first_products`: there are none."""
        return None

    @torch.no_grad()
    def scores_at(self, histories: Tensor, points: Sequence[Point]) -> Iterator[Tensor]:
        """As `Untrained.scores_at`; what points share is computed once."""
        lengths = (histories != 0).sum(1).cpu().numpy()
        most_last, most_hops = (int(max(point[key] for point in points)) for key in (LAST, HOPS))
        row, back = np.nonzero(np.arange(most_last) < lengths[:, None])  # [n] history, steps back from its end
        item = histories.cpu().numpy()[row, lengths[row] - 1 - back]  # [n]

        def weights(starts: np.ndarray, point: Point, hop: int) -> scipy.sparse.csr_array:
            """Weights [B, U] of the items `starts` [U], ascending, as starts of paths of `hop` edges."""
            kept = _near_enough(back, hop, point[HOPS]) & (back < point[LAST])
            decay = (point[POSITION_DECAY] ** back[kept]).astype(np.float32)
            place = row[kept], np.searchsorted(starts, item[kept])
            return scipy.sparse.csr_array((decay, place), shape=(len(histories), len(starts)))

        graph = scipy.sparse.csr_array(
            tuple(part.cpu().numpy() for part in (self.times, self.items, self.offsets)), shape=(self.n_items,) * 2
        )
        paths = []  # by hop: items [U], and the log of 1 + the number of paths of `hop` edges from them, [U, N]
        for hop in range(1, most_hops + 1):
            starts = np.unique(item[_near_enough(back, hop, most_hops)])
            rows = graph[starts]
            for _ in range(1, hop):
                rows = rows @ graph
            paths.append((starts, scipy.sparse.csr_array(rows.log1p())))
        counts, features = self.counts.cpu(), self.features.cpu()
        cosines: dict[tuple[float, float], Tensor] = {}
        for point in points:
            scores = torch.zeros(len(histories), self.n_items)
            for hop, (starts, rows) in enumerate(paths[: int(point[HOPS])], start=1):
                pull = weights(starts, point, hop) * np.float32(point[HOP_DECAY] ** (hop - 1))
                scores += torch.from_numpy((pull @ rows).toarray())
            reached = scores > 0
            if point[COSINE] > 0:
                key = point[LAST], point[POSITION_DECAY]
                if key not in cosines:
                    query = weights(np.arange(self.n_items), point, 1) @ features.numpy()  # [B, F]
                    cosines[key] = torch.from_numpy(query) @ features.T
                scores.add_(cosines[key], alpha=point[COSINE])
            # A cosine can pull what is reached down by `lowest`: whole numbers, which are exact, go on from there.
            lowest = math.ceil(point[COSINE] * point[LAST] * self.n_modalities)
            yield torch.where(reached, scores, (counts - counts.max() - 1 - lowest).float()).to(histories.device)


def _near_enough(back: np.ndarray, hop: int, n_hops: float) -> np.ndarray:
    """Whether paths of `hop` edges may start `back` steps from the end: a step counts as an edge, but for the first."""
    return (back + hop <= n_hops) | (hop == 1)
