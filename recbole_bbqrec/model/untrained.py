"""Baselines that count and learn nothing: popularity, and paths in the graph of transitions.

Differences from the paper (arXiv 2605.07125, an untrained graph of a few hops with a text cosine): it was not at hand,
this follows what is told of it. The form of the decays, what unreached items get, the grid and how it is searched are
ours; the cosine is summed over all modalities that the items have, not over texts alone.

`untrained_trainer` chooses the settings: coordinate search over a small grid by NDCG@10, masked, on validation.

Shapes: B histories, T items of the longest, N items (row 0 = padding), U different last items, E edges, F width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from ..errors import InputError
from .catalogue import Catalogue
from .neighbours import pair_counts
from .protocol import Pairs, Ranker

Point = Mapping[str, float]
"""One value for every key of a grid."""


class Pop(SequentialRecommender, Ranker):
    """Ranks every item by how often it occurs in the training sequences, for everybody alike.

    Attributes
    ----------
    grid : setting -> values among which validation chooses, the first where the search begins; here there is none.
    chosen : the values in use.
    """

    input_type = InputType.POINTWISE
    counts: torch.Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.register_buffer("counts", torch.zeros(self.n_items, dtype=torch.long))
        self.grid: dict[str, list[float]] = {}

    @property
    def chosen(self) -> dict[str, float]:
        """Setting -> value in use."""
        return {}

    def choose(self, point: Point) -> None:
        """Use the values of `point` from now on."""

    def count(self, offsets: np.ndarray, items: np.ndarray) -> None:
        """Count training sequences, sequence `u` being `items[offsets[u] : offsets[u + 1]]`."""
        self.counts = torch.from_numpy(np.bincount(items, minlength=self.n_items)).to(self.counts)

    def scores_at(self, histories: torch.Tensor, points: Sequence[Point]) -> Iterator[torch.Tensor]:
        """Yield the scores [B, N] of histories [B, T] (0 pads on the right) with the values of each point."""
        for _ in points:
            yield self.counts.float().repeat(len(histories), 1)

    def score(
        self, histories: torch.Tensor, candidates: torch.Tensor | None = None, excluded: Pairs | None = None
    ) -> torch.Tensor:
        """Score items [m], all N where none are given, as the next one after histories [B, T]."""
        scores = next(self.scores_at(histories, [self.chosen]))
        return scores if candidates is None else scores[:, candidates]

    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B, N] of all items, as RecBole asks for them."""
        return self.score(interaction[self.ITEM_SEQ])

    def predict(self, interaction: Any) -> torch.Tensor:
        """Scores [B] of one item per history, as RecBole asks for them."""
        return self.score(interaction[self.ITEM_SEQ]).gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


HOPS, LAST, HOP_DECAY, POSITION_DECAY, COSINE = GRID = (
    *("graph_hops", "graph_last_items", "graph_hop_decay", "graph_position_decay", "graph_cosine_weight"),
)
"""Keys of the settings of `TransitionGraph`, in the order in which they are searched."""


class TransitionGraph(Pop):
    """Ranks items by the paths that lead to them from the last items, in the graph of consecutive training pairs.

    The score of item `j` sums over the last items `i` (`b` = 0 is the very last) and over hops `h`

        position_decay^b * (hop_decay^(h-1) * log(1 + paths of h edges from i to j) + cosine_weight * cos(i, j)),

    an edge counting as often as its pair occurs. No path leads further than `graph_hops` from the end of the history, a
    step back counting as a hop; one hop is always taken. What no path reaches ranks below everything reached, by
    popularity.

    Parameters
    ----------
    config : reads `graph_hops`, `graph_last_items`, `graph_hop_decay`, `graph_position_decay`, `graph_cosine_weight`,
        each a list of values among which validation chooses; a list of one value fixes it.
    dataset : its `catalogue`; without features there is no cosine.
    """

    offsets: torch.Tensor
    items: torch.Tensor
    times: torch.Tensor
    values: torch.Tensor
    features: torch.Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.grid = {key: _checked(key, config[key]) for key in GRID}
        self.n_modalities = len(dataset.catalogue.modalities)
        if not self.n_modalities:
            self.grid[COSINE] = [0.0]
        # Which item follows which, and how often: edges of item `i` at `offsets[i] : offsets[i + 1]`.
        self.register_buffer("offsets", torch.zeros(self.n_items + 1, dtype=torch.int32))
        self.register_buffer("items", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("times", torch.zeros(0))
        self.register_buffer("values", torch.tensor([self.grid[key][0] for key in GRID], dtype=torch.float64))
        self.register_buffer("features", _unit_rows(dataset.catalogue), persistent=False)

    @property
    def chosen(self) -> dict[str, float]:
        """Setting -> value in use."""
        found = dict(zip(GRID, self.values.tolist(), strict=True))
        return {key: int(value) if key in (HOPS, LAST) else value for key, value in found.items()}

    def choose(self, point: Point) -> None:
        """Use the values of `point` from now on."""
        values = [point[key] for key in GRID]
        self.values = torch.tensor(values, dtype=torch.float64, device=self.values.device)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take in the counts, however many edges they have."""
        for name in ("items", "times"):
            if name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[name], device=self.counts.device))
        return super().load_state_dict(state_dict, strict, assign)

    def count(self, offsets: np.ndarray, items: np.ndarray) -> None:
        """Count items and consecutive pairs of training sequences; an item after itself makes no edge."""
        super().count(offsets, items)
        pairs = pair_counts(offsets, items, self.n_items, 1)
        self.offsets = torch.from_numpy(pairs.indptr).to(self.offsets)
        self.items = torch.from_numpy(pairs.indices).to(self.items)
        self.times = torch.from_numpy(pairs.data).to(self.times)

    @torch.no_grad()
    def scores_at(self, histories: torch.Tensor, points: Sequence[Point]) -> Iterator[torch.Tensor]:
        """Yield the scores [B, N] of histories [B, T] (0 pads on the right) with the values of each point."""
        lengths = (histories != 0).sum(1).cpu().numpy()
        n_last, n_hops = (int(max(point[key] for point in points)) for key in (LAST, HOPS))
        row, back = np.nonzero(np.arange(n_last) < lengths[:, None])
        start = Starts(row, back, histories.cpu().numpy()[row, lengths[row] - 1 - back], len(histories))
        paths = [self._paths(start, hop, n_hops) for hop in range(1, n_hops + 1)]
        cosines: dict[tuple[float, float], torch.Tensor] = {}
        for point in points:
            scores = torch.zeros(len(histories), self.n_items)
            for hop, (items, rows) in enumerate(paths[: int(point[HOPS])], start=1):
                pull = start.pull(items, point, hop) * np.float32(point[HOP_DECAY] ** (hop - 1))
                scores += torch.from_numpy((pull @ rows).toarray())
            reached = scores > 0
            if point[COSINE] > 0:
                key = point[LAST], point[POSITION_DECAY]
                if key not in cosines:
                    query = start.pull(np.arange(self.n_items), point, 1) @ self.features.cpu().numpy()
                    cosines[key] = torch.from_numpy(query) @ self.features.cpu().T
                scores.add_(cosines[key], alpha=point[COSINE])
            # A cosine can pull what is reached down by `lowest`: whole numbers, which are exact, go on from there.
            lowest = math.ceil(point[COSINE] * point[LAST] * self.n_modalities)
            counts = self.counts.cpu()
            yield torch.where(reached, scores, (counts - counts.max() - 1 - lowest).float()).to(histories.device)

    def _paths(self, start: "Starts", hop: int, n_hops: int) -> tuple[np.ndarray, scipy.sparse.csr_array]:
        """Items that paths of `hop` edges may start from, and log numbers of those paths [U, N]."""
        items = np.unique(start.item[start.near_enough(hop, n_hops)])
        edges = (part.cpu().numpy() for part in (self.times, self.items, self.offsets))
        graph = scipy.sparse.csr_array(tuple(edges), shape=(self.n_items, self.n_items))
        paths = graph[items]
        for _ in range(1, hop):
            paths = paths @ graph
        return items, scipy.sparse.csr_array(paths.log1p())


class Starts(NamedTuple):
    """Last items of B histories, where paths start.

    Attributes
    ----------
    row, back, item : [n] history, steps back from its end, item id.
    n_rows : number B.
    """

    row: np.ndarray
    back: np.ndarray
    item: np.ndarray
    n_rows: int

    def near_enough(self, hop: int, n_hops: int) -> np.ndarray:
        """Whether [n] paths of `hop` edges may start here: a step back counts as an edge, but for the first edge."""
        return (self.back + hop <= n_hops) | (hop == 1)

    def pull(self, items: np.ndarray, point: Point, hop: int) -> scipy.sparse.csr_array:
        """Weights [B, U] of the items [U], ascending, as starts of paths of `hop` edges."""
        kept = self.near_enough(hop, int(point[HOPS])) & (self.back < point[LAST])
        weight = (point[POSITION_DECAY] ** self.back[kept]).astype(np.float32)
        place = self.row[kept], np.searchsorted(items, self.item[kept])
        return scipy.sparse.csr_array((weight, place), shape=(self.n_rows, len(items)))


def _unit_rows(catalogue: Catalogue) -> torch.Tensor:
    """Rows [N, F] whose products are cosines, summed over the modalities that both items have."""
    rows = [rows * present.unsqueeze(1) for rows, present in catalogue.content.values()]
    return torch.cat(rows, dim=1) if rows else torch.zeros(len(catalogue.tokens), 0)


def _checked(key: str, values: Any) -> list[float]:
    """Return the values of a setting, or raise `InputError`."""
    allowed = {HOPS: (1, 2, 3), LAST: range(1, 51)}.get(key)
    for value in values or [None]:
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        if allowed is not None and number not in allowed:
            raise InputError(f"{key}: found {value!r}, expected whole numbers from {allowed[0]} to {allowed[-1]}")
        if key == COSINE and not 0 <= number < math.inf:
            raise InputError(f"{key}: found {value!r}, expected numbers of at least 0")
        if key in (HOP_DECAY, POSITION_DECAY) and not 0 < number <= 1:
            raise InputError(f"{key}: found {value!r}, expected numbers above 0 and at most 1")
    return list(values)
