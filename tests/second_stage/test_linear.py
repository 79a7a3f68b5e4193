from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from recbole_bbqrec.data.sequences import Sequences
from recbole_bbqrec.model.catalogue import Catalogue, ItemFeatures, SemanticIds
from recbole_bbqrec.model.protocol import FirstStage
from recbole_bbqrec.second_stage import linear_fit
from recbole_bbqrec.second_stage.hashing import fold_of, hashes_of
from recbole_bbqrec.second_stage.linear import HALVES, CandidateSimilarity, Signal, build_linear
from recbole_bbqrec.second_stage.linear_fit import fit_linear

N_ITEMS = 30
SETTINGS = {
    "scoring": "joint",
    "candidate_similarity": ["behavior", "text", "codes"],
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


def scored(candidates: CandidateSimilarity, scores: torch.Tensor, histories: torch.Tensor) -> torch.Tensor:
    return candidates(FirstStage(scores), histories)


def fitted_to(
    candidates: CandidateSimilarity,
    score: Callable[[torch.Tensor], torch.Tensor],
    histories: torch.Tensor,
    targets: torch.Tensor,
    seed: int = 0,
) -> list[float]:
    return fit_linear(candidates, lambda rows: FirstStage(score(rows)), histories, targets, seed)


@pytest.fixture
def candidates() -> CandidateSimilarity:
    built = build_linear(SETTINGS, dataset())
    assert built is not None
    return built


def test_signals_follow_the_settings(candidates):
    assert set(candidates.signals) == {"transition", "cooccurrence", "walk", "text", "id"}
    only = build_linear({**SETTINGS, "candidate_similarity": ["text"]}, dataset())
    assert only is not None and list(only.signals) == ["text"]
    alone = [build_linear({**SETTINGS, "candidate_similarity": [name]}, dataset()) for name in ("behavior", "codes")]
    assert [sorted(built.signals) for built in alone] == [["cooccurrence", "transition", "walk"], ["id"]]
    without = build_linear(SETTINGS, dataset(codes=False))
    assert without is not None and set(without.signals) == {"transition", "cooccurrence", "walk", "text"}
    assert build_linear({**SETTINGS, "candidate_similarity": []}, dataset()) is None


def test_content_is_compared_by_raw_features_and_behaviour_by_the_quantised_id(candidates):
    other = dataset()
    ids = replace(other.catalogue.semantic_ids, vectors=torch.randn(2, N_ITEMS, 2))
    other.catalogue = replace(other.catalogue, semantic_ids=ids)
    changed = build_linear(SETTINGS, other)
    assert changed is not None
    assert torch.equal(changed.signals["text"].items, candidates.signals["text"].items)
    assert not torch.equal(changed.signals["id"].items, candidates.signals["id"].items)


def test_unfitted_weights_change_nothing(candidates):
    scores, histories = torch.randn(2, N_ITEMS), torch.tensor([[3, 4, 0], [7, 0, 0]])
    assert torch.equal(scored(candidates, scores.clone(), histories), scores)


def test_scores_against_a_computation_by_hand(candidates):
    candidates.weights = torch.randn(candidates.weights.shape, generator=torch.Generator().manual_seed(1))
    histories = torch.tensor([[3, 4, 9], [7, 0, 0], [5, 6, 0]])
    scores = torch.randn(3, N_ITEMS)
    got = scored(candidates, scores.clone(), histories)
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
                at += int(signal.buckets.max()) + 1
    torch.testing.assert_close(got, wanted)


def test_padding_and_other_rows_change_nothing(candidates):
    candidates.weights = torch.randn(candidates.weights.shape, generator=torch.Generator().manual_seed(1))
    scores = torch.randn(2, N_ITEMS)
    both = scored(candidates, scores.clone(), torch.tensor([[3, 4, 0], [7, 8, 9]]))
    alone = scored(candidates, scores[:1].clone(), torch.tensor([[3, 4, 0, 0, 0]]))
    assert torch.equal(both[:1], alone)


def test_it_is_a_module_without_parameters_whose_state_says_all(candidates):
    random = torch.Generator().manual_seed(1)
    candidates.weights = torch.randn(candidates.weights.shape, generator=random)
    scores, histories = torch.randn(2, N_ITEMS, generator=random), torch.tensor([[3, 4], [7, 8]])
    candidates.halves.fitted = candidates.halves.hashes(histories[:1])
    state = candidates.state_dict()
    again = CandidateSimilarity.from_state(state)
    again.load_state_dict(state)
    assert torch.equal(scored(candidates, scores.clone(), histories), scored(again, scores.clone(), histories))
    again.weights.zero_()  # it shares no memory with the state it came from
    assert candidates.weights.any() and not list(candidates.parameters())
    assert again.to(torch.float64).weights.dtype == torch.float64 and again.halves.fitted.dtype == torch.int64
    assert scored(again, scores.clone(), histories).dtype == torch.float32
    assert all(part.device.type == "meta" for part in again.to("meta").state_dict().values())


def test_new_items_are_scored_without_weights(candidates):
    candidates.weights = torch.randn(candidates.weights.shape)
    before = scored(candidates, torch.zeros(1, N_ITEMS), torch.tensor([[3, 4]]))
    after = scored(candidates, torch.zeros(1, N_ITEMS + 2), torch.tensor([[3, 4]]))
    assert torch.equal(after[:, :N_ITEMS], before) and not after[:, N_ITEMS:].any()
    newest = scored(candidates, torch.zeros(1, N_ITEMS + 2), torch.tensor([[3, N_ITEMS + 1]]))
    without = scored(candidates, torch.zeros(1, N_ITEMS + 2), torch.tensor([[3, N_ITEMS]]))
    assert torch.isfinite(newest).all() and torch.equal(newest[:, :N_ITEMS], without[:, :N_ITEMS])


def test_a_fitted_history_is_scored_by_its_half_and_every_other_one_by_the_mean(candidates):
    histories, targets = walkers(200, 0)
    fitted_to(candidates, lambda rows: torch.zeros(len(rows), N_ITEMS), histories, targets, seed=0)
    fitted, others = histories.unique(dim=0), torch.tensor([[1, 5, 9, 0], [3, N_ITEMS, 2, 0], [2, 4, 0, 0]])
    halves = fold_of(candidates.halves.hashes(fitted), HALVES)
    assert torch.equal(candidates.halves(torch.nn.functional.pad(fitted, (0, 9))), halves) and halves.sum() > 0
    assert candidates.halves(others).tolist() == [HALVES] * 3
    scores = scored(candidates, torch.zeros(len(fitted), N_ITEMS), fitted)
    for half in range(HALVES):
        candidates.halves.fitted, kept = candidates.halves.fitted[:0], candidates.halves.fitted
        mean, candidates.weights[HALVES] = candidates.weights[HALVES].clone(), candidates.weights[half]
        by_half = scored(candidates, torch.zeros(len(fitted), N_ITEMS), fitted)
        candidates.halves.fitted, candidates.weights[HALVES] = kept, mean
        assert torch.equal(by_half[halves == half], scores[halves == half])
        assert not torch.equal(by_half[halves != half], scores[halves != half])


def walkers(n_users: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    start, length = random.integers(0, N_ITEMS - 1, n_users), random.integers(1, 4, n_users)
    walks = 1 + (start[:, None] + np.arange(4)) % (N_ITEMS - 1)
    histories = np.where(np.arange(3) < length[:, None], walks[:, :3], 0)
    return torch.from_numpy(histories), torch.from_numpy(walks[np.arange(n_users), length])


def muddled(targets: torch.Tensor) -> torch.Tensor:
    """Two in three next items at random: what is learned of them is worth a part of what it seems to be."""
    random = torch.randint(1, N_ITEMS, targets.shape, generator=torch.Generator().manual_seed(0))
    return torch.where(torch.arange(len(targets)) % 3 > 0, random, targets)


def scorer(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """An encoder that knows nothing but has its opinion of every last item."""
    table = torch.randn(N_ITEMS, N_ITEMS, generator=torch.Generator().manual_seed(seed))
    return lambda rows: table[rows[torch.arange(len(rows)), (rows != 0).sum(1) - 1]]


def test_fitting_finds_what_the_encoder_does_not_know(candidates):
    histories, targets = walkers(300, 0)
    assert fitted_to(candidates, scorer(2), histories, targets, seed=0) == [1.0, 1.0]
    others, wanted = walkers(100, 1)
    found = scored(candidates, scorer(2)(others), others)[:, 1:].argmax(1) + 1
    assert (found == wanted).float().mean() > 0.95
    assert (scorer(2)(others)[:, 1:].argmax(1) + 1 == wanted).float().mean() < 0.3


@pytest.mark.parametrize("informed", [False, True])
def test_no_score_rests_on_the_targets_of_its_own_half(candidates, informed):
    """With the targets of one half scrambled, its own scores stay to the last bit, and the other half's change."""
    histories, targets = walkers(200, 0)
    if not informed:  # where shares are chosen that are neither 0 nor 1
        targets = muddled(targets)
    own = fold_of(candidates.halves.hashes(histories), HALVES) == 0
    shares, scores = [], []
    for wanted in (targets, torch.where(own, targets.flip(0), targets)):
        shares.append(fitted_to(candidates, scorer(2), histories, wanted, seed=0))
        scores.append(scored(candidates, scorer(2)(histories), histories))
    assert torch.equal(scores[0][own], scores[1][own]) and shares[0][0] == shares[1][0]
    assert not torch.equal(scores[0][~own], scores[1][~own])
    torch.testing.assert_close(candidates.weights[HALVES], candidates.weights[:HALVES].mean(0))


def test_what_serves_nobody_is_shrunk(candidates, monkeypatch):
    """Next items that have nothing to do with the history: a fit follows single users, which harms all others."""
    uniform = lambda rows: torch.zeros(len(rows), N_ITEMS)  # noqa: E731

    def harm(seed: int) -> float:
        histories, random = walkers(300, seed)[0], torch.Generator().manual_seed(seed)
        targets, wanted = torch.randint(1, N_ITEMS, (2, 300), generator=random)
        fitted_to(candidates, uniform, histories, targets, seed=0)
        loss = cross_entropy(scored(candidates, uniform(histories), histories)[:, 1:], wanted - 1)
        return loss.item() - np.log(N_ITEMS - 1)

    shrunk = np.array([harm(seed) for seed in range(8)])
    monkeypatch.setattr(linear_fit, "_share", lambda *_: 1.0)
    whole = np.array([harm(seed) for seed in range(8)])
    assert whole.mean() > 0 and shrunk.mean() < 0.7 * whole.mean()


def test_a_share_of_zero_leaves_the_encoders_scores_to_the_last_bit(candidates, monkeypatch):
    histories, targets = walkers(100, 0)
    monkeypatch.setattr(linear_fit, "_share", lambda *_: 0.0)
    assert fitted_to(candidates, scorer(1), histories, targets, seed=0) == [0.0, 0.0]
    assert torch.equal(scored(candidates, scorer(1)(histories), histories), scorer(1)(histories))


def test_the_share_is_the_likeliest_one_for_those_it_is_tried_on(candidates):
    """Against all shares on a grid, each scored over all items."""
    histories, targets = walkers(90, 5)
    nothing = np.eye(1, candidates.weights.shape[1])[0]
    problem = linear_fit._problem(
        candidates, scorer(2)(histories), histories, muddled(targets), np.random.default_rng(0)
    )
    step = 3 * (linear_fit._solve([problem], nothing) - nothing)
    share = linear_fit._share([([problem], step)], nothing)
    losses = []
    for grid in np.linspace(0, 1, 101):
        candidates.weights[:] = torch.from_numpy(nothing + grid * step)
        scores = scored(candidates, scorer(2)(histories), histories)[:, 1:]
        losses.append(cross_entropy(scores, muddled(targets) - 1).item())
    assert 0 < share < 1 and abs(share - np.argmin(losses) / 100) < 0.011


def test_rounding_moves_the_fit_by_rounding(candidates):
    """No switch that the last bit of a score could turn."""
    histories, targets = walkers(120, 3)

    def fit(score: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        shares = fitted_to(candidates, score, histories, muddled(targets), seed=0)
        return torch.cat([torch.tensor(shares), candidates.weights.flatten()])

    fits = fit(scorer(2)), fit(lambda rows: scorer(2)(rows) + 1e-6 * scorer(9)(rows))
    assert not torch.equal(*fits)
    torch.testing.assert_close(*fits, rtol=0, atol=1e-3)


def test_fitting_reaches_the_optimum(candidates, monkeypatch):
    """The optimum of a convex problem: the gradient by hand, over all items, is zero there."""
    histories, targets = walkers(240, 3)
    monkeypatch.setattr(linear_fit, "_share", lambda *_: 1.0)
    fitted_to(candidates, scorer(0), histories, targets, seed=0)
    rows = fold_of(candidates.halves.hashes(histories), HALVES) == 1
    weights = candidates.weights[0].double().requires_grad_()
    candidates.weights = weights.unsqueeze(0).expand(HALVES + 1, -1)
    logits = scored(candidates, scorer(0)(histories[rows]).double(), histories[rows])[:, 1:]
    penalty = linear_fit.RIDGE * weights[1:].square().sum()
    (slope,) = torch.autograd.grad(cross_entropy(logits, targets[rows] - 1, reduction="sum") + penalty, weights)
    slope[0] = min(slope[0], 0.0) if weights[0] == 0 else slope[0]  # the scale has a bound
    assert slope.abs().max() < 0.05 * int(rows.sum()) ** 0.5


def test_a_signal_without_any_pair_is_no_obstacle():
    empty = Signal(torch.zeros(N_ITEMS + 1, dtype=torch.long), torch.zeros(0, dtype=torch.int), torch.zeros(0))
    candidates = CandidateSimilarity({"text": empty}, 2, hashes_of([str(item) for item in range(N_ITEMS)]))
    fitted_to(candidates, scorer(0), *walkers(20, 0), seed=0)
    assert torch.isfinite(candidates.weights).all() and candidates.n_weights == 1


def test_signals_that_are_not_there_leave_nothing():
    without = dataset()
    without.catalogue = Catalogue(without.catalogue.tokens)
    assert build_linear({**SETTINGS, "candidate_similarity": ["text"]}, without) is None


def test_equal_vectors_share_a_bucket_whatever_rounding_does():
    """Coarse codes: most cosines are equal, and edges fall on them."""
    random = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(6, 16, generator=random), dim=-1)
    coarse = dataset()
    kind = torch.arange(N_ITEMS) % 6
    scaled = vectors[kind].expand(2, -1, -1) * (0.1 + torch.rand(1, N_ITEMS, 1, generator=random))
    ids = replace(coarse.catalogue.semantic_ids, vectors=scaled)
    coarse.catalogue = replace(coarse.catalogue, semantic_ids=ids)
    built = build_linear({**SETTINGS, "candidate_similarity": ["codes"]}, coarse)
    assert built is not None
    signal = built.signals["id"]
    rows = np.repeat(np.arange(N_ITEMS), np.diff(signal.offsets.numpy()))
    pairs = {}
    for row, item, bucket in zip(rows, signal.items.tolist(), signal.buckets.tolist(), strict=True):
        pairs.setdefault((kind[row].item(), kind[item].item()), set()).add(bucket)
    assert all(len(buckets) == 1 for buckets in pairs.values())


def test_random_candidates_stand_for_those_without_a_weight(candidates, monkeypatch):
    """With few candidates per history looked at, the weights are near those of all of them."""
    histories, targets = walkers(600, 3)
    fitted_to(candidates, scorer(0), histories, targets, seed=0)
    every = candidates.weights
    monkeypatch.setattr(linear_fit, "BEST", 1)
    monkeypatch.setattr(linear_fit, "SAMPLED", 6)
    fitted_to(candidates, scorer(0), histories, targets, seed=0)
    assert not torch.equal(candidates.weights, every)
    assert (candidates.weights - every).abs().max() < 0.25 * every.abs().max()


def test_users_of_one_half_alone_leave_it_as_it_is(candidates):
    histories, targets = walkers(80, 0)
    alone = fold_of(candidates.halves.hashes(histories), HALVES) == 0
    before = candidates.weights[0].clone()
    shares = fitted_to(candidates, scorer(0), histories[alone], targets[alone], seed=0)
    assert shares[0] == 0 and torch.equal(candidates.weights[0], before) and shares[1] > 0
    assert not torch.equal(candidates.weights[1], before)
