"""A small set of random sequences, and every feature of the second stage once more, pair by pair in plain Python.

Nothing here is fast, and nothing is shared with the package but the numbers that it names.
"""

import math
from collections import Counter, defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from recbole_bbqrec.data.sequences import Sequences
from recbole_bbqrec.model.catalogue import Catalogue, ItemFeatures, SemanticIds
from recbole_bbqrec.model.protocol import FirstStage
from recbole_bbqrec.second_stage.boosted import build_boosted
from recbole_bbqrec.second_stage.ranker import BoostedRanker
from recbole_bbqrec.second_stage.signals import Batch, PairList

SIGNALS = ["behavior", "text", "image", "codes"]


def settings(*signals: str, seed: int = 0) -> dict[str, Any]:
    return {"candidate_similarity": list(signals or SIGNALS), "seed": seed, "show_progress": False}


def dataset(n_items: int = 30, n_users: int = 60, seed: int = 0, sequences: list[list[int]] | None = None) -> Any:
    """Random sequences that leave out the last two items, texts and images that some items lack, and codes."""
    generator = np.random.default_rng(seed)
    if sequences is None:
        sequences = [generator.integers(1, n_items - 2, generator.integers(1, 12)).tolist() for _ in range(n_users)]
    tokens = ["[PAD]", *(f"t{number:05d}" for number in generator.permutation(n_items - 1))]
    matrices = {name: torch.from_numpy(generator.normal(size=(n_items, 6))).float() for name in ("text", "image")}
    present = {name: torch.from_numpy(np.arange(n_items) % lacks > 0) for name, lacks in (("text", 7), ("image", 5))}
    for name, has in present.items():
        matrices[name][~has] = 0.0
    codes = torch.from_numpy(generator.integers(0, 3, (n_items, 4)))
    vectors = torch.from_numpy(generator.normal(size=(2, n_items, 5))).float()
    known = torch.ones(2, n_items, dtype=torch.bool)
    bare = min(9, n_items - 1)
    known[:, 0] = known[0, bare] = False
    codes[0], codes[bare, :2] = -1, -1
    ids = SemanticIds(codes, vectors * known.unsqueeze(2), known, ["text", "id"], 3)
    catalogue = Catalogue(tokens, ItemFeatures(tokens, matrices, present), ids)
    offsets = np.r_[0, np.cumsum([len(items) for items in sequences])]
    return SimpleNamespace(
        train_sequences=Sequences(offsets, np.array([item for items in sequences for item in items], np.int64)),
        catalogue=catalogue,
    )


def renumbered(data: Any, new: torch.Tensor) -> Any:
    """The same data set, where item `i` has number `new[i]`."""
    catalogue, old = data.catalogue, new.argsort()
    tokens = [catalogue.tokens[item] for item in old.tolist()]
    features = catalogue.features.reindex(tokens)
    ids = catalogue.semantic_ids
    if ids is not None:
        ids = replace(ids, codes=ids.codes[old], vectors=ids.vectors[:, old], present=ids.present[:, old])
    sequences = data.train_sequences
    return SimpleNamespace(
        train_sequences=Sequences(sequences.offsets, new.numpy()[sequences.items]),
        catalogue=Catalogue(tokens, features, ids),
    )


def built(data: Any, *signals: str) -> BoostedRanker:
    stage = build_boosted(settings(*signals), data)
    assert stage is not None
    return stage


def histories_of(n_items: int, n: int, longest: int = 14, seed: int = 1) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    found = torch.zeros(n, longest, dtype=torch.long)
    for row in range(n):
        length = int(generator.integers(1, longest + 1))
        found[row, :length] = torch.from_numpy(generator.integers(1, n_items, length))
    return found


def lists_of(data: Any) -> dict[str, dict[tuple[int, int], float]]:
    """What each item says of each other, by the name of the list; without limits on the length of lists."""
    found: dict[str, Any] = {
        name: defaultdict(float) for name in ("next_1", "next_2", "next_3", "together", "later", "beside")
    }
    for items in data.train_sequences:
        for at, left in enumerate(items.tolist()):
            for distance, right in enumerate(items[at + 1 : at + 8].tolist(), 1):
                if left == right:
                    continue
                for pair in ((left, right), (right, left)):
                    found["together"][pair] += 1 / (1 + distance)
                if distance <= 3:
                    found[f"next_{distance}"][left, right] += 1
                    found["later"][left, right] += 1 / distance
                    found["beside"][left, right] += 1
                    found["beside"][right, left] += 1
    for name, counts, walk in (("step", "later", "walk"), ("side_step", "beside", "side_walk")):
        totals: Counter = Counter()
        for (left, _), count in found[counts].items():
            totals[left] += count
        found[name] = {pair: count / totals[pair[0]] for pair, count in found[counts].items()}
        found[walk] = defaultdict(float)
        for (left, middle), one in found[name].items():
            for (begins, right), two in found[name].items():
                if begins == middle and right != left:
                    found[walk][left, right] += one * two
    totals = Counter()
    for (left, _), count in found["together"].items():
        totals[left] += count
    found["together_normalised"] = {
        (left, right): count / math.sqrt(max(totals[left], 1) * max(totals[right], 1))
        for (left, right), count in found["together"].items()
    }
    return found


def unit_rows(data: Any, name: str) -> torch.Tensor:
    features = data.catalogue.features
    matrix, present = features.matrices[name].double(), features.present[name]
    return functional.normalize(matrix - matrix[present].mean(0), dim=1) * present.unsqueeze(1)


def code_step(data: Any, levels: int, positions: slice, last: int, candidate: int) -> float:
    """log(N P) of two items by the codes at some positions."""
    codes = [tuple(row) for row in data.catalogue.semantic_ids.codes[:, positions].tolist()]
    n_items = len(codes) - 1
    estimate = 1 / n_items
    for level in range(1, levels + 1):
        if level > 1 and len({code[:level] for code in codes[1:]}) > len(codes) / 2:
            break
        of, to = codes[last][:level], codes[candidate][:level]
        total = met = 0.0
        for items in data.train_sequences:
            for at, left in enumerate(items.tolist()):
                for distance, right in enumerate(items[at + 1 : at + 4].tolist(), 1):
                    if codes[left][:level] == of:
                        total += 1 / distance
                        met += (codes[right][:level] == to) / distance
        size = sum(code[:level] == to for code in codes[1:])
        estimate = (met / size + 20 * estimate) / (total + 20)
    return math.log(n_items * estimate)


class Plain:
    """Says what each item of a history says of a candidate, and makes the features of it."""

    def __init__(self, data: Any, stage: BoostedRanker) -> None:
        self.data, self.lists, towers = data, lists_of(data), stage.towers
        self.counts = Counter(data.train_sequences.items.tolist())
        self.rows = {f"cosine_{name}": (unit_rows(data, name),) * 2 for name in ("text", "image")}
        ids = data.catalogue.semantic_ids
        for name, vectors in zip(ids.signals, ids.vectors, strict=True):
            self.rows[f"quantised_{name}"] = (functional.normalize(vectors.double(), dim=1),) * 2
        if towers is not None:
            raw = torch.cat([unit_rows(data, name) for name in towers.widths], 1)
            flags = torch.stack([data.catalogue.features.present[name] for name in towers.widths], 1)
            inputs = torch.cat([raw, flags.double()], 1)
            self.rows["towers"] = tuple(
                functional.normalize(inputs @ side.double().T, dim=1) * flags.any(1, keepdim=True)
                for side in (towers.query, towers.document)
            )
        self.positions = {"codes_text": slice(0, 2), "codes_id": slice(2, 4)}

    def said(self, signal: str, recent: list[int], candidate: int) -> list[float]:
        """By each item of a history, the last one first."""
        if signal in self.rows:
            asked, offered = self.rows[signal]
            return [float(asked[item] @ offered[candidate]) for item in recent[:10]]
        if signal in self.positions:
            return [code_step(self.data, 2, self.positions[signal], recent[0], candidate)]
        if signal.startswith("popularity"):
            of = recent[0] if signal.endswith("_of_last") else candidate
            return [math.log(1 + self.counts[of])]
        return [self.lists[signal].get((item, candidate), 0.0) for item in recent]

    @staticmethod
    def form(name: str, said: list[float]) -> float:
        places = {"last": 0, "second": 1, "third": 2}
        if name in places:
            return said[places[name]] if places[name] < len(said) else 0.0
        if name == "decayed":
            return sum(value * 0.7**back for back, value in enumerate(said))
        if name == "most":
            return max((value for value in said if value), default=0.0)
        assert name == "number", f"form {name} has no definition here"
        return sum(value != 0 for value in said)

    @staticmethod
    def of_model(name: str, first: FirstStage, row: int, history: list[int], place: int, candidate: int) -> float:
        scores = first.scores[row].tolist()
        order = sorted(set(range(1, len(scores))) - set(history), key=lambda item: -scores[item])[:120]
        if name == "score":
            return scores[candidate]
        if name == "margin":
            return scores[candidate] - scores[order[0]]
        if name == "rank":
            return order.index(candidate) if candidate in order else min(120, len(scores) - 1)
        if name == "length":
            return len(history)
        assert name == "seen", f"feature {name} of the model has no definition here"
        backwards = history[::-1]
        return 1 / (1 + backwards.index(candidate)) if candidate in backwards else 0.0

    def features(self, stage: BoostedRanker, first: FirstStage, batch: Batch) -> torch.Tensor:
        """[B, C, F], zero where there is no candidate."""
        found = torch.zeros(*batch.items.shape, len(stage.features), dtype=torch.float64)
        log_p = first.id_log_p(batch.items) if first.id_log_p else None
        for row, items in enumerate(batch.items.tolist()):
            recent = [item for item in batch.recent[row].tolist() if item]
            for place, candidate in enumerate(items):
                for at, (group, signal, form, *_) in enumerate(stage.features if candidate else ()):
                    if signal == "id_log_p":
                        found[row, place, at] = log_p[row, place] if log_p is not None else 0.0
                    elif group == "model":
                        found[row, place, at] = self.of_model(signal, first, row, recent[::-1], place, candidate)
                    else:
                        found[row, place, at] = self.form(form, self.said(signal, recent, candidate))
        return found


def listed(signal: PairList) -> dict[tuple[int, int], float]:
    """The pairs of a list."""
    counts = signal.offsets.diff()
    left = torch.repeat_interleave(torch.arange(len(counts)), counts).tolist()
    return dict(zip(zip(left, signal.items.tolist(), strict=True), signal.values.tolist(), strict=True))
