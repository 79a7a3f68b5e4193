"""A small world with two modalities and behaviour that follows them: 60 items in 6 groups; sequences keep to one."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import where

from recbole_bbqrec.tokenizer.base import ItemTokenizer
from recbole_bbqrec.tokenizer.fit import BehaviorBindTokenizer


class World(NamedTuple):
    features: dict[str, torch.Tensor]
    present: dict[str, torch.Tensor]
    sequences: list[np.ndarray]
    n_items: int

    def fit(self, **settings) -> BehaviorBindTokenizer:
        small = {
            "codebook_size": 16,
            "code_dim": 16,
            "min_steps": 50,
            "epochs": 1,
            "progress": False,
            "device": where(),
        }
        return BehaviorBindTokenizer(**{**small, **settings}).fit(*self)


def make_world(n_items: int = 60, n_groups: int = 6, seed: int = 0) -> World:
    random = np.random.default_rng(seed)
    group = np.arange(n_items) % n_groups
    centres = {"text": random.normal(size=(n_groups, 12)), "image": random.normal(size=(n_groups, 8))}
    features = {
        name: torch.tensor(centre[group] + 0.7 * random.normal(size=(n_items, centre.shape[1])), dtype=torch.float32)
        for name, centre in centres.items()
    }
    present = {"text": torch.ones(n_items, dtype=torch.bool), "image": torch.arange(n_items) % 5 != 0}
    features["image"][~present["image"]] = 0.0
    sequences = [
        random.choice(np.flatnonzero(group == random.integers(n_groups)), size=random.integers(1, 9), replace=False)
        for _ in range(80)
    ]
    return World(features, present, sequences, n_items)


def vectors_of(tokenizer: ItemTokenizer, codes: torch.Tensor) -> torch.Tensor:
    """Sum [n, D] of the codebook vectors that IDs [n, P] stand for."""
    books = tokenizer.codebooks_
    parts = [
        books[place % len(books)][code.clamp(min=0)] * (code >= 0).unsqueeze(1) for place, code in enumerate(codes.T)
    ]
    return torch.stack(parts).sum(0)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def fitted(world: World) -> BehaviorBindTokenizer:
    return world.fit()
