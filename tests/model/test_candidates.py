from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_bbqrec.data.sequences import Sequences
from recbole_bbqrec.model.candidates import HALVES, CandidateSimilarity, Signal, build_candidates
from recbole_bbqrec.model.catalogue import Catalogue, ItemFeatures, SemanticIds
from recbole_bbqrec.training import candidate_fit
from recbole_bbqrec.training.candidate_fit import fit_candidates

N_ITEMS = 30
SETTINGS = {
    "scoring": "joint",
    "candidate_similarity": ["behavior", "text"],
    "n_candidate_neighbours": 4,
    "n_candidate_last": 2,
}


def dataset(codes: bool = True) -> SimpleNamespace:
    """Items 1 .. 29 in a ring; users walk along it; texts know the ring too."""
    angle = torch.arange(N_ITEMS) * (2 * torch.pi / (N_ITEMS - 1))
    vectors = torch.stack([angle.cos(), angle.sin()], dim=1)
    present = torch.ones(N_ITEMS, dtype=torch.bool)
    present[0] = False
    walks = [[1 + (start + step) % (N_ITEMS - 1) for step in range(4)] for start in range(N_ITEMS - 1)]
    ids = SemanticIds(
        codes=torch.zeros(N_ITEMS, 2, dtype=torch.long),
        vectors=torch.stack([vectors, vectors.flip(0)]),
        present=torch.stack([present, present]),
        signals=["text", "id"],
        codebook_size=4,
    )
    return SimpleNamespace(
        train_sequences=Sequences(np.arange(N_ITEMS) * 4, np.concatenate(walks)),
        catalogue=Catalogue(
            [str(1000 - item) for item in range(N_ITEMS)],
            ItemFeatures([str(i) for i in range(N_ITEMS)], {"text": vectors + 3}, {"text": present}),
            ids if codes else None,
        ),
    )


@pytest.fixture
def candidates() -> CandidateSimilarity:
    built = build_candidates(SETTINGS, dataset())
    assert built is not None
    return built


def test_signals_follow_the_settings(candidates):
    assert list(candidates.signals) == ["transition", "cooccurrence", "walk", "text", "id"]
    only = build_candidates({**SETTINGS, "candidate_similarity": ["text"]}, dataset())
    assert only is not None and list(only.signals) == ["text"]
    without = build_candidates(SETTINGS, dataset(codes=False))
    assert without is not None and list(without.signals) == ["transition", "cooccurrence", "walk", "text"]
    assert build_candidates({**SETTINGS, "candidate_similarity": []}, dataset()) is None
    assert build_candidates({**SETTINGS, "scoring": "generate"}, dataset()) is None


def test_content_is_compared_by_raw_features_and_behaviour_by_the_quantised_id(candidates):
    other = dataset()
    ids = replace(other.catalogue.semantic_ids, vectors=torch.randn(2, N_ITEMS, 2))
    other.catalogue = replace(other.catalogue, semantic_ids=ids)
    changed = build_candidates(SETTINGS, other)
    assert changed is not None
    assert torch.equal(changed.signals["text"].items, candidates.signals["text"].items)
    assert not torch.equal(changed.signals["id"].items, candidates.signals["id"].items)


def test_unfitted_weights_change_nothing(candidates):
    scores, histories = torch.randn(2, N_ITEMS), torch.tensor([[3, 4, 0], [7, 0, 0]])
    assert torch.equal(candidates(scores.clone(), histories), scores)


def test_scores_against_a_computation_by_hand(candidates):
    candidates.weights = torch.randn(candidates.weights.shape, generator=torch.Generator().manual_seed(1))
    histories = torch.tensor([[3, 4, 9], [7, 0, 0], [5, 6, 0]])
    scores = torch.randn(3, N_ITEMS)
    got = candidates(scores.clone(), histories)
    row = candidates.weights[HALVES]
    wanted = scores * row[0]
    for user, history in enumerate([[3, 4, 9], [7], [5, 6]]):
        for item in history:
            wanted[user, item] += row[1]
        at = 1
        for signal in candidates.signals.values():
            for back in range(2):
                if back < len(history):
                    last = history[-1 - back]
                    for place in range(signal.offsets[last], signal.offsets[last + 1]):
                        wanted[user, signal.items[place]] += row[1 + at + int(signal.buckets[place])]
                at += signal.n_buckets
    torch.testing.assert_close(got, wanted)


def test_padding_and_other_rows_change_nothing(candidates):
    candidates.weights = torch.randn(candidates.weights.shape, generator=torch.Generator().manual_seed(1))
    scores = torch.randn(2, N_ITEMS)
    both = candidates(scores.clone(), torch.tensor([[3, 4, 0], [7, 8, 9]]))
    alone = candidates(scores[:1].clone(), torch.tensor([[3, 4, 0, 0, 0]]))
    assert torch.equal(both[:1], alone)


def test_save_and_load_round_trip(candidates, tmp_path):
    candidates.weights = torch.randn(candidates.weights.shape)
    candidates.save(tmp_path / "c.safetensors")
    again = CandidateSimilarity.load(tmp_path / "c.safetensors")
    scores, histories = torch.randn(2, N_ITEMS), torch.tensor([[3, 4], [7, 8]])
    assert torch.equal(candidates(scores.clone(), histories), again(scores.clone(), histories))


def test_new_items_are_scored_without_weights(candidates, tmp_path):
    candidates.weights = torch.randn(candidates.weights.shape)
    before = candidates(torch.zeros(1, N_ITEMS), torch.tensor([[3, 4]]))
    candidates.save(tmp_path / "c.safetensors")
    candidates = CandidateSimilarity.load(tmp_path / "c.safetensors", N_ITEMS + 2)
    after = candidates(torch.zeros(1, N_ITEMS + 2), torch.tensor([[3, 4]]))
    assert torch.equal(after[:, :N_ITEMS], before) and not after[:, N_ITEMS:].any()
    assert torch.isfinite(candidates(torch.zeros(1, N_ITEMS + 2), torch.tensor([[3, N_ITEMS]]))).all()


def walkers(n_users: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    random = np.random.default_rng(seed)
    start = random.integers(0, N_ITEMS - 1, n_users)
    walks = 1 + (start[:, None] + np.arange(4)) % (N_ITEMS - 1)
    return torch.from_numpy(walks[:, :3]), torch.from_numpy(walks[:, 3]), random.integers(0, 2, n_users)


def test_fitting_finds_what_the_encoder_does_not_know(candidates):
    histories, targets, halves = walkers(300, 0)
    noise = torch.randn(N_ITEMS, N_ITEMS, generator=torch.Generator().manual_seed(2))

    def score(rows: torch.Tensor) -> torch.Tensor:
        return noise[rows[:, -1]]

    fit_candidates(candidates, score, histories, targets, halves, seed=0)
    others, wanted, _ = walkers(100, 1)
    found = candidates(score(others), others)[:, 1:].argmax(1) + 1
    assert (found == wanted).float().mean() > 0.95
    assert (score(others)[:, 1:].argmax(1) + 1 == wanted).float().mean() < 0.3


def test_each_half_is_judged_with_what_the_other_gave(candidates):
    """Changing the targets of one half changes the other half's weights, never its own."""
    histories, targets, halves = walkers(200, 0)
    score = lambda rows: torch.zeros(len(rows), N_ITEMS)  # noqa: E731
    fit_candidates(candidates, score, histories, targets, halves, seed=0)
    before = candidates.weights
    changed = targets.clone()
    changed[torch.from_numpy(halves == 0)] = 1
    fit_candidates(candidates, score, histories, changed, halves, seed=0)
    assert torch.equal(candidates.weights[0], before[0])
    assert not torch.equal(candidates.weights[1], before[1])
    torch.testing.assert_close(candidates.weights[HALVES], candidates.weights[:HALVES].mean(0))


def test_fitting_reaches_the_optimum(candidates):
    """The optimum of a convex problem: the gradient by hand, over all items, is zero there."""
    histories, targets, halves = walkers(120, 3)
    torch.manual_seed(0)
    table = torch.randn(N_ITEMS, N_ITEMS)
    score = lambda rows: table[rows[:, -1]]  # noqa: E731
    fit_candidates(candidates, score, histories, targets, halves, seed=0)
    rows = torch.from_numpy(np.flatnonzero(halves == 1))
    weights = candidates.weights[0].double().requires_grad_()
    candidates.weights = weights.unsqueeze(0).expand(HALVES + 1, -1)
    logits = candidates(score(histories[rows]).double(), histories[rows])[:, 1:]
    loss = (
        torch.nn.functional.cross_entropy(logits, targets[rows] - 1, reduction="sum")
        + candidate_fit.RIDGE * weights[1:].square().sum()
    )
    (slope,) = torch.autograd.grad(loss, weights)
    assert slope.abs().max() < 0.05 * len(rows) ** 0.5


def test_a_signal_without_any_pair_is_no_obstacle():
    empty = Signal(torch.zeros(N_ITEMS + 1, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0), 1)
    candidates = CandidateSimilarity({"text": empty}, 2)
    histories, targets, halves = walkers(20, 0)
    fit_candidates(candidates, lambda rows: torch.zeros(len(rows), N_ITEMS), histories, targets, halves, seed=0)
    assert torch.isfinite(candidates.weights).all()


def test_signals_that_are_not_there_leave_nothing():
    without = dataset()
    without.catalogue = Catalogue(without.catalogue.tokens)
    assert build_candidates({**SETTINGS, "candidate_similarity": ["text"]}, without) is None


def test_equal_vectors_share_a_bucket_whatever_rounding_does():
    """Coarse codes: most cosines are equal, and edges fall on them."""
    random = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(6, 16, generator=random), dim=-1)
    coarse = dataset()
    kind = torch.arange(N_ITEMS) % 6
    scaled = vectors[kind].expand(2, -1, -1) * (0.1 + torch.rand(1, N_ITEMS, 1, generator=random))
    ids = replace(coarse.catalogue.semantic_ids, vectors=scaled)
    coarse.catalogue = replace(coarse.catalogue, semantic_ids=ids)
    built = build_candidates({**SETTINGS, "candidate_similarity": ["behavior"]}, coarse)
    assert built is not None
    signal = built.signals["id"]
    rows = np.repeat(np.arange(N_ITEMS), np.diff(signal.offsets.numpy()))
    pairs = {}
    for row, item, bucket in zip(rows, signal.items.tolist(), signal.buckets.tolist(), strict=True):
        pairs.setdefault((kind[row].item(), kind[item].item()), set()).add(bucket)
    assert all(len(buckets) == 1 for buckets in pairs.values())


def test_random_candidates_stand_for_those_without_a_weight(candidates, monkeypatch):
    """With few candidates per history looked at, the weights are near those of all of them."""
    histories, targets, halves = walkers(600, 3)
    torch.manual_seed(0)
    table = torch.randn(N_ITEMS, N_ITEMS)
    score = lambda rows: table[rows[:, -1]]  # noqa: E731
    fit_candidates(candidates, score, histories, targets, halves, seed=0)
    every = candidates.weights
    monkeypatch.setattr(candidate_fit, "BEST", 1)
    monkeypatch.setattr(candidate_fit, "SAMPLED", 6)
    fit_candidates(candidates, score, histories, targets, halves, seed=0)
    assert not torch.equal(candidates.weights, every)
    assert (candidates.weights - every).abs().max() < 0.25 * every.abs().max()


def test_users_of_one_half_alone_leave_that_half_as_it_is(candidates):
    histories, targets, _ = walkers(40, 0)
    before = candidates.weights[0].clone()
    score = lambda rows: torch.zeros(len(rows), N_ITEMS)  # noqa: E731
    fit_candidates(candidates, score, histories, targets, np.zeros(40, int), seed=0)
    assert torch.equal(candidates.weights[0], before) and not torch.equal(candidates.weights[1], before)
