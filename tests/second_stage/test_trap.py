"""The trap of k-core data, see docs/second-stage.md: an item with few training interactions has its others held out.

Here nothing else can be learned. Items are dealt to users at random, 31 times each: those of one kind 3 times in
training and 28 times as a held-out target, the others the other way round. Who reads that an item is rare in training
reads that it has been held out.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from second_stage import plain

from recbole_bbqrec.model.protocol import FirstStage
from recbole_bbqrec.second_stage.boosted_fit import fit_boosted
from recbole_bbqrec.second_stage.ranker import BoostedRanker

N_USERS, TRAINED, HELD_OUT = 600, 8, 2
EACH, FEW = 31, 3
N_RARE, N_COMMON = 24, 168


def deal(seed: int = 0) -> np.ndarray:
    """Items [U, 10] of the users, training first; no user has one twice. Items up to `N_RARE` are rare."""
    generator = np.random.default_rng(seed)
    rare, common = np.split(np.arange(1, N_RARE + N_COMMON + 1), [N_RARE])
    trained = np.r_[np.repeat(rare, FEW), np.repeat(common, EACH - FEW)]
    held_out = np.r_[np.repeat(rare, EACH - FEW), np.repeat(common, FEW)]
    rows = [
        generator.permutation(np.r_[dealt, generator.choice(more, N_USERS * width - len(dealt))]).reshape(-1, width)
        for dealt, more, width in ((trained, common, TRAINED), (held_out, rare, HELD_OUT))
    ]
    found = np.concatenate(rows, axis=1)
    while twice := [user for user in range(N_USERS) if len(set(found[user])) < TRAINED + HELD_OUT]:
        for user in twice:
            low, high = (0, TRAINED) if generator.random() < 0.6 else (TRAINED, TRAINED + HELD_OUT)
            here, there = (
                (user, generator.integers(low, high)),
                (generator.integers(N_USERS), generator.integers(low, high)),
            )
            found[here], found[there] = found[there], found[here]
    return found


@pytest.fixture(scope="module")
def trap() -> Any:
    found = deal()
    trained, target = found[:, :TRAINED], found[:, TRAINED]
    n_items = int(found.max()) + 1
    return SimpleNamespace(
        data=plain.dataset(n_items, sequences=trained.tolist()),
        histories=torch.from_numpy(trained.copy()),
        targets=torch.from_numpy(target.copy()),
        counts=torch.from_numpy(np.bincount(trained.ravel(), minlength=n_items)),
        chance=float((1 / np.log2(1 + np.arange(1, 11))).sum()) / (n_items - 1 - TRAINED),
    )


@pytest.fixture(scope="module")
def by_default(trap) -> BoostedRanker:
    return plain.built(trap.data, *plain.SIGNALS)


def judged(trap: Any, stage: BoostedRanker, popular: float) -> tuple[float, bool]:
    """NDCG@10 of histories not fitted on, over a model of random scores that may follow training popularity."""
    hashes = stage.folds.item_hashes[:-1]

    def first(histories: torch.Tensor) -> FirstStage:
        noise = ((hashes[histories[:, -1:]] * 31 + hashes) * -7046029254386353131 >> 40).float() / 2**22
        return FirstStage(noise + popular * trap.counts / EACH)

    words, is_better = fit_boosted(stage, first, trap.histories, trap.targets, 0)
    return float(words.rpartition("-> ")[2].partition(":")[0]), is_better


def test_it_is_a_five_core_of_which_training_tells_the_targets(trap):
    everything = np.bincount(deal().ravel())[1:]
    assert everything.min() >= 5 and everything.max() < 1.5 * EACH
    rare = (trap.targets <= N_RARE).float().mean()  # one item in eight is
    assert rare > 0.5 and trap.counts[1 : N_RARE + 1].max() < trap.counts[N_RARE + 1 :].min()


@pytest.mark.parametrize("popular", [0.0, 3.0], ids=["random scores", "scores that follow popularity"])
def test_popularity_reads_the_answers(trap, popular):
    figure, is_better = judged(trap, plain.built(trap.data, "popularity"), popular)
    assert is_better and figure > (1.2 if popular else 3) * trap.chance


@pytest.mark.parametrize("popular", [0.0, 3.0], ids=["random scores", "scores that follow popularity"])
def test_the_default_features_learn_next_to_nothing(trap, by_default, monkeypatch, popular):
    """What no count knows has been held out; trees that are not told so first read the answers from the counts."""
    figure, _ = judged(trap, by_default, popular)
    free = tuple(feature for feature in by_default.features if not feature.is_held)
    monkeypatch.setattr(by_default, "features", free)
    told_nothing, is_better = judged(trap, by_default, popular)
    assert is_better and told_nothing > 3 * trap.chance
    assert figure - trap.chance < 0.25 * (told_nothing - trap.chance)
