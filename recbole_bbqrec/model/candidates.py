"""Candidate similarity: what the last items of a history say about each candidate (an extension of ours).

The similarity that re-weights attention, on the output side: how near a candidate is to each of the last items, by
behaviour and by content, discretised, adds a learned weight to its score. An item lists its nearest neighbours by each
signal; all others share one bucket, whose weight is zero.

The weights are fitted when the encoder is done and frozen, on validation: a training target is part of its own counts,
and the encoder remembers it besides. A hash of its items puts every history into one of two halves. A history that the
weights were fitted on is scored with the weights that the other half gave, whoever asks for it, so no validation figure
rests on its own target. Every other history gets the mean of the two. A test history may be equal to a fitted one, of
another user as a rule: it is scored as that one is, with weights that have not seen the target of either.

Shapes: B histories, T items of the longest, N items (row 0 = padding), S signals, J last items of a history, F weights.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, diags_array, vstack
from torch import nn

from ..tokenizer.behavior_bind import FUSED_SIGNAL, ID_SIGNAL

BOUND = (ID_SIGNAL, FUSED_SIGNAL)  # signals of an item tokenizer that compare items by behaviour
COUNT_EDGES = (1.5, 2.5, 4.5, 8.5, 16.5, 32.5)  # transition counts on a log scale: 1, 2, 3-4, 5-8, 9-16, 17-32, more
N_BINS = 16  # buckets of the neighbours' similarity, as many as attention has
WINDOW = 3  # items at most this far apart in a training sequence count as met together
ROUNDING = 1e-5  # cosines are multiples of it
ROWS = 1024  # items whose similarities to all others are held at once, never all pairs
HALVES = 2  # parts of the histories that judge each other's weights
FACTOR = -7046029254386353131  # odd, so that no power of it loses bits modulo 2 ** 64; the golden ratio's bits


class Signal(nn.Module):
    """One signal: item `i` lists `items[offsets[i] : offsets[i + 1]]` (int32), each in its bucket (int16)."""

    offsets: torch.Tensor
    items: torch.Tensor
    buckets: torch.Tensor

    def __init__(self, offsets: torch.Tensor, items: torch.Tensor, buckets: torch.Tensor) -> None:
        super().__init__()
        for name, value in (("offsets", offsets), ("items", items), ("buckets", buckets)):
            self.register_buffer(name, value)

    @property
    def n_buckets(self) -> int:
        """Number of buckets up to the last one that is met."""
        return int(self.buckets.max()) + 1 if len(self.buckets) else 0

    def listed(self, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the list of each item [n] begins and how long it is; items beyond those known have none."""
        last = len(self.offsets) - 1
        begin = self.offsets[item.clamp(max=last)]
        return begin, self.offsets[(item + 1).clamp(max=last)] - begin


class CandidateSimilarity(nn.Module):
    """Adds learned bucket weights to the scores of candidates that are near the last items of a history.

    Weight number 0 belongs to candidates that stand in the history; then comes, for each signal, one for every
    position from the end and bucket. Nothing is a parameter: all of it is fitted when training is done.

    Parameters
    ----------
    signals : name -> signal.
    n_last : number J of last items that are looked at.
    item_hashes : [N + 1] see `hashes_of`.

    Attributes
    ----------
    weights : [3, 1 + F] a scale of the encoder's scores and the F weights, for each half of the histories those that
        the other half gave, then their mean.
    fitted : hashes of the histories that gave the weights, ascending.
    """

    weights: torch.Tensor
    starts: torch.Tensor
    item_hashes: torch.Tensor
    fitted: torch.Tensor

    def __init__(self, signals: Mapping[str, Signal], n_last: int, item_hashes: torch.Tensor) -> None:
        super().__init__()
        self.signals = nn.ModuleDict({name: signals[name] for name in sorted(signals)})
        # One row for each signal and position from the end: how many buckets, and the number of the first weight.
        sizes = np.repeat([each.n_buckets for each in self._signals()], n_last)
        starts = 1 + np.cumsum(sizes) - sizes
        self.register_buffer("starts", torch.from_numpy(starts).long().view(-1, n_last))  # [S, J]
        self.register_buffer("weights", torch.eye(1, 2 + int(sizes.sum())).repeat(HALVES + 1, 1))  # scale 1, the rest 0
        self.register_buffer("item_hashes", item_hashes)
        self.register_buffer("fitted", torch.zeros(0, dtype=torch.long))

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> "CandidateSimilarity":
        """Return one of the size of a `state_dict`, ready to load it."""
        names = {key.split(".")[1] for key in state if key.startswith("signals.")}
        parts = ("offsets", "items", "buckets")
        signals = {name: Signal(*(state[f"signals.{name}.{part}"].clone() for part in parts)) for name in names}
        made = cls(signals, state["starts"].shape[1], state["item_hashes"].clone())
        made.fitted = state["fitted"].clone()
        return made

    @property
    def n_weights(self) -> int:
        """Number F of weights."""
        return self.weights.shape[1] - 1

    def _signals(self) -> Iterator[Signal]:
        return (signal for signal in self.signals.values() if isinstance(signal, Signal))

    @torch.no_grad()
    def take_over(self, fitted: "CandidateSimilarity") -> None:
        """Take over the weights fitted for the same signals over other lists of neighbours: the mean of the halves.

        Buckets are places in the order of similarities, so their numbers correspond; one that `fitted` lacks gets the
        weight of its last one. No history counts as fitted on.
        """
        mean, weights = fitted.weights[HALVES], torch.zeros_like(self.weights[0])
        weights[:2] = mean[:2]  # scale, and seen items
        there = dict(zip(fitted.signals, zip(fitted._signals(), fitted.starts, strict=True), strict=True))
        for name, signal, begin in zip(self.signals, self._signals(), self.starts, strict=True):
            known, known_begin = there[name]
            if known.n_buckets:
                bucket = torch.arange(signal.n_buckets, device=begin.device)
                same = bucket.clamp(max=known.n_buckets - 1)
                weights[1 + begin[:, None] + bucket] = mean[1 + known_begin[:, None] + same]
        self.weights, self.fitted = weights.repeat(HALVES + 1, 1), self.fitted[:0]

    def hashes(self, histories: torch.Tensor) -> torch.Tensor:
        """64-bit hashes [B] of histories [B, T]: of their items' tokens in order, however wide the padding is."""
        known = self.item_hashes[histories.clamp(max=len(self.item_hashes) - 1)]
        powers = torch.full_like(known[:1], FACTOR).cumprod(1)
        return (known * powers).sum(1)  # modulo 2 ** 64

    def halves(self, histories: torch.Tensor) -> torch.Tensor:
        """Row [B] of `weights` that scores each history: its half where it has been fitted on, else the mean."""
        hashes = self.hashes(histories)
        is_fitted = torch.searchsorted(self.fitted, hashes, right=True) > torch.searchsorted(self.fitted, hashes)
        return torch.where(is_fitted, half_of(hashes), HALVES)

    def entries(self, histories: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row and item of scores, and the number of a weight to add to each, all [n], for histories [B, T]."""
        row, column = torch.nonzero(histories, as_tuple=True)
        rows, items, numbers = [row], [histories[row, column]], [torch.zeros_like(row)]
        lengths = (histories != 0).sum(1)
        for signal, starts in zip(self._signals(), self.starts, strict=True):
            for back, start in enumerate(starts):
                row = torch.nonzero(lengths > back).flatten()
                begin, count = signal.listed(histories[row, lengths[row] - 1 - back])
                index = torch.repeat_interleave(torch.arange(len(row), device=row.device), count)
                within = torch.arange(len(index), device=row.device) - (count.cumsum(0) - count)[index]
                place = begin[index] + within
                rows.append(row[index])
                items.append(signal.items[place])
                numbers.append(start + signal.buckets[place].long())
        return torch.cat(rows), torch.cat(items), torch.cat(numbers)

    def forward(self, scores: torch.Tensor, histories: torch.Tensor) -> torch.Tensor:
        """Return the encoder's scores [B, N], scaled, with the weights of the candidates added."""
        half, (rows, items, numbers) = self.halves(histories), self.entries(histories)
        weights = self.weights.to(scores.dtype)
        scores = (scores * weights[half, :1]).contiguous()
        added = weights[half[rows], 1 + numbers]
        return scores.view(-1).index_add_(0, rows * scores.shape[1] + items, added).view_as(scores)


def hashes_of(tokens: Sequence[str]) -> torch.Tensor:
    """64-bit hashes [N + 1] of item tokens by item id: 0 for padding, and one for all items that come later."""
    digests = (hashlib.blake2b(token.encode(), digest_size=8).digest() for token in [*tokens[1:], ""])
    return torch.tensor([0, *(int.from_bytes(digest, "little", signed=True) for digest in digests)])


def half_of(hashes: torch.Tensor) -> torch.Tensor:
    """Half [B] of the histories, 0 or 1, by their hashes."""
    return (hashes >= 0).long()


def build_candidates(config: Any, dataset: Any) -> CandidateSimilarity | None:
    """Return the candidate similarity that the settings ask for, its weights not fitted yet; none where it is off.

    `candidate_similarity` names `behavior`, modalities, and `seen` for the weight of candidates that stand in the
    history, which every signal brings along. Of the data set, `catalogue` and `train_sequences` are read.
    """
    wanted: list[str] = config["candidate_similarity"]
    if not wanted or config["scoring"] == "generate":
        return None
    size, catalogue, tokens = config["n_candidate_neighbours"], dataset.catalogue, dataset.catalogue.tokens
    # Equally near items are told apart by their order: that of their tokens, which no held-out interaction decides.
    order = np.array([0, *sorted(range(1, len(tokens)), key=lambda item: tokens[item])])  # [N] item ids
    place = np.argsort(order)
    offsets, items = dataset.train_sequences.offsets, place[dataset.train_sequences.items]
    lists: dict[str, tuple[csr_array, np.ndarray]] = {}
    # By content, candidates are compared as they are: what quantising loses is what tells near items apart.
    compared = {name: signal for name, signal in catalogue.content.items() if name in wanted}
    if "behavior" in wanted:
        given = offsets, items, len(tokens), size
        lists["transition"] = transitions(*given), np.asarray(COUNT_EDGES)
        # A training pair is among its own counts: edges come from what is listed alone.
        for name, listed in (("cooccurrence", cooccurrence), ("walk", walk)):
            lists[name] = (found := listed(*given)), _edges(found)
        compared |= {name: signal for name, signal in catalogue.quantised.items() if name in BOUND}
    pairs = pairs_apart(offsets, items, 1)
    for name, (rows, present) in compared.items():
        found = nearest(rows[order], present[order], size)
        lists[name] = found, _edges(found, pairs)
    signals = {name: _signal(found, edges, order, place) for name, (found, edges) in lists.items()}
    if not signals and "seen" not in wanted:
        return None
    return CandidateSimilarity(signals, config["n_candidate_last"], hashes_of(tokens))


def _edges(lists: csr_array, pairs: np.ndarray | None = None) -> np.ndarray:
    """Bucket edges, at most `N_BINS` - 1: quantiles of what is listed, the upper tail of all pairs of items.

    Where training pairs [2, n] can be looked up without having made the lists themselves, every second edge is a
    quantile of the listed ones among them, which is where next items are.
    """
    if not lists.nnz:
        return np.zeros(0)
    share = N_BINS if pairs is None else N_BINS // 2
    edges = np.quantile(lists.data, np.arange(1, share) / share)
    if pairs is not None:
        n_items, rest = lists.shape[0], N_BINS - share + 1
        keys = np.repeat(np.arange(n_items), np.diff(lists.indptr)) * n_items + lists.indices
        wanted = pairs[0] * n_items + pairs[1]
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        met = lists.data[place[keys[place] == wanted]]
        if len(met):
            edges = np.r_[edges, np.quantile(met, np.arange(1, rest) / rest)]
    # A quantile often is one of the values, which are rounded: the edge is put between it and the one below.
    return np.unique(edges - ROUNDING / 2)


def _signal(lists: csr_array, edges: np.ndarray, order: np.ndarray, place: np.ndarray) -> Signal:
    """Discretise lists of neighbours and number their items by id: item `order[i]` stands at place `i` in the lists."""
    buckets = np.searchsorted(edges, lists.data, side="right").astype(np.int16)
    by_id = csr_array((buckets, lists.indices, lists.indptr), shape=lists.shape)[place]
    offsets, items = torch.from_numpy(by_id.indptr).long(), torch.from_numpy(order[by_id.indices]).int()
    return Signal(offsets, items, torch.from_numpy(by_id.data))


# Lists of neighbours: rows of a sparse matrix [N, N] of similarities (float32), ascending by item, without its own


def transitions(offsets: np.ndarray, items: np.ndarray, n_items: int, size: int) -> csr_array:
    """List the `size` items that most often directly followed an item in the training sequences, and how often."""
    return _largest(pair_counts(offsets, items, n_items, 1), size)


def cooccurrence(offsets: np.ndarray, items: np.ndarray, n_items: int, size: int) -> csr_array:
    """List the `size` items met most within `WINDOW` steps of an item, before or after it: their counts as a cosine.

    The cosine of two items' counts is the count of both over the root of the product of their totals: what many met
    together with everything is near to nothing.
    """
    counts = _met_together(offsets, items, n_items)
    scale = diags_array(1.0 / np.sqrt(np.asarray(counts.sum(axis=1)).ravel() + 1.0))
    return _largest(csr_array(scale @ counts @ scale), size)


def walk(offsets: np.ndarray, items: np.ndarray, n_items: int, size: int) -> csr_array:
    """List the `size` items a random walk of two steps over co-occurrences reaches most often beyond their popularity.

    Most next items have never been met together with the history (92 % on Amazon Sports): the second step finds them.
    """
    counts = _met_together(offsets, items, n_items)
    total = np.asarray(counts.sum(axis=1)).ravel() + 1.0
    step = diags_array(1.0 / total) @ counts
    beyond = diags_array(1.0 / np.sqrt(total))
    blocks = []
    for begin in range(0, n_items, ROWS):  # two steps reach a good part of the catalogue: a block of rows at a time
        blocks.append(_largest(csr_array(step[begin : begin + ROWS] @ step @ beyond), size, begin))
    return csr_array(vstack(blocks, format="csr"))


@torch.no_grad()
def nearest(vectors: torch.Tensor, present: torch.Tensor, size: int) -> csr_array:
    """List the `size` items of largest cosine to an item, rounded to `ROUNDING`; of equal ones, the first.

    Quantised vectors have few different cosines: without rounding, the last bit would tell equal ones apart. Of the
    unit vectors [N, C], those not `present` [N] are listed with none, and none with them.
    """
    known = torch.nonzero(present).flatten()
    rows = vectors[known].float()
    n_items, size = len(vectors), min(size, len(known) - 1)
    if size < 1:
        return csr_array((n_items, n_items), dtype=np.float32)
    # Less than a step in all: it orders equal cosines and changes no other order.
    later = torch.arange(len(rows), dtype=torch.float64, device=rows.device) / (2 * len(rows))
    blocks = []
    for begin in range(0, len(rows), ROWS):
        steps = (rows[begin : begin + ROWS] @ rows.T).double().div_(ROUNDING).round_()
        steps[torch.arange(len(steps)), torch.arange(begin, begin + len(steps))] = -torch.inf
        blocks.append((steps - later).topk(size, dim=1))
    values, places = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    values = ((values + later[places]).round() * ROUNDING).float()
    items, order = torch.sort(known[places], dim=1)
    offsets = torch.cat([torch.zeros_like(known[:1]), torch.where(present, size, 0).cumsum(0)])
    parts = (values.gather(1, order).flatten(), items.flatten(), offsets)
    return csr_array(tuple(part.cpu().numpy() for part in parts), shape=(n_items, n_items))


def pair_counts(offsets: np.ndarray, items: np.ndarray, n_items: int, window: int) -> csr_array:
    """How often one item comes at most `window` steps before another [N, N]; an item with itself does not count."""
    pairs = [pairs_apart(offsets, items, distance) for distance in range(1, window + 1)]
    left, right = np.concatenate(pairs, axis=1)
    kept = left != right
    ones = np.ones(kept.sum(), np.float64)
    return csr_array(coo_array((ones, (left[kept], right[kept])), shape=(n_items, n_items)))


def pairs_apart(offsets: np.ndarray, items: np.ndarray, distance: int) -> np.ndarray:
    """Pairs [2, n] of items that stand `distance` apart in one sequence."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    together = user[distance:] == user[:-distance]
    return np.stack([items[:-distance][together], items[distance:][together]])


def _met_together(offsets: np.ndarray, items: np.ndarray, n_items: int) -> csr_array:
    counts = pair_counts(offsets, items, n_items, WINDOW)
    return csr_array(counts + counts.T)


def _largest(block: csr_array, size: int, first: int = 0) -> csr_array:
    """Keep the `size` largest entries of each row, without its own item; ties by item id. Row 0 is item `first`."""
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    keep = block.indices != first + row
    row, item, value = row[keep], block.indices[keep], block.data[keep]
    # What is below the last place of its row goes first: sorting all of it would be most of the work.
    least = np.full(block.shape[0], -np.inf)
    ends = np.cumsum(np.bincount(row, minlength=block.shape[0]))
    for place, (begin, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
        if end - begin > size:
            least[place] = np.partition(value[begin:end], end - begin - size)[end - begin - size]
    keep = value >= least[row]
    row, item, value = row[keep], item[keep], value[keep]
    order = np.lexsort((item, -value, row))
    row, item, value = row[order], item[order], value[order]
    within = np.arange(len(row)) - np.searchsorted(row, row)
    kept = within < size
    lists = csr_array((value[kept].astype(np.float32), (row[kept], item[kept])), shape=block.shape)
    lists.sort_indices()
    return lists
