"""The RQ-VAE that is aligned with behaviour: its collaborative vectors, and what they do to its codes."""

import numpy as np
import pytest
import torch

from recbole_bbqrec.tokenizer import measures, registry
from recbole_bbqrec.tokenizer.aligned import SHIFT, WINDOW, AlignedTokenizer, collaborative_vectors
from recbole_bbqrec.tokenizer.base import flat_sequences
from recbole_bbqrec.tokenizer.features import RQVAETokenizer
from recbole_bbqrec.tokenizer.report_card import report_card

from .conftest import World, make_world

SMALL = {"levels": 2, "codebook_size": 16, "code_dim": 8, "steps": 60, "seed": 3, "progress": False}


def vectors_of(sequences, n_items: int, width: int, seed: int = 0) -> torch.Tensor:
    return collaborative_vectors(*flat_sequences(sequences, n_items), n_items, width, seed)


def shifted_positive_pmi(sequences, n_items: int) -> np.ndarray:
    """As it is defined, by loops."""
    counts = np.zeros((n_items, n_items))
    for part in sequences:
        for place, left in enumerate(part):
            for right in part[place + 1 : place + 1 + WINDOW]:
                counts[left, right] += left != right
                counts[right, left] += left != right
    chance = np.outer(counts.sum(0), counts.sum(0)) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.maximum(np.log(counts / chance) - SHIFT, 0.0), nan=0.0)


def unrelated(seed: int = 1) -> World:
    """Behaviour as in the small world, and features that say nothing of it."""
    world = make_world()
    random = torch.randn(60, 12, generator=torch.Generator().manual_seed(seed))
    return world._replace(features={"text": random}, present={"text": torch.ones(60, dtype=torch.bool)})


@pytest.mark.parametrize("width", [3, 8, 40])
def test_they_are_the_largest_directions_of_the_shifted_positive_pmi(world, width):
    values, directions = np.linalg.eigh(shifted_positive_pmi(world.sequences, 60))
    largest = np.argsort(-np.abs(values))[:width]
    expected = (directions[:, largest] * np.abs(values[largest])) @ directions[:, largest].T
    found = vectors_of(world.sequences, 60, width).double()
    np.testing.assert_allclose((found @ found.T).numpy(), expected, atol=1e-4)


def test_they_repeat_themselves_to_the_last_bit(world):
    first = vectors_of(world.sequences, 60, 8)
    assert all(torch.equal(first, vectors_of(world.sequences, 60, 8)) for _ in range(5))


@pytest.mark.parametrize("sequences", [[], [[0]], [[4, 4, 4]], [[0, 1]]], ids=str)
def test_where_nothing_is_near_anything_more_than_by_chance_all_are_zero(sequences):
    assert not vectors_of(sequences, 5, 8).any()
    assert not vectors_of([], 1, 8).any()


def test_items_that_are_never_met_are_zero(world):
    sequences = [part[part != 7] for part in world.sequences]
    found = vectors_of(sequences, 60, 8)
    met = np.unique(np.concatenate([part for part in sequences if len(part) > 1]))
    assert sorted(torch.nonzero(found.any(1)).flatten().tolist()) == met.tolist() and 7 not in met


def test_alignment_brings_companions_together_where_features_do_not():
    world, overlaps = unrelated(), []
    companions = measures.cooccurring(*flat_sequences(world.sequences, 60), 60, torch.arange(60), 5, WINDOW, 0)
    for kind in (RQVAETokenizer, AlignedTokenizer):
        fitted = kind(**{**SMALL, "steps": 300}).fit(*world)
        near = measures.nearest(fitted.vectors_.sum(0), fitted.present_.any(0), torch.arange(60), 5, 0)
        overlaps.append(measures.overlap(companions, near))
    assert overlaps[0] < 0.2 and overlaps[1] > 2 * overlaps[0]
    assert np.mean(fitted.losses_["alignment"][-5:]) < 0.7 * np.mean(fitted.losses_["alignment"][:5])


@pytest.mark.parametrize(
    ("changed", "given"), [({}, {"alignment_weight": 0.0}), ({"sequences": []}, {})], ids=["no weight", "no sequences"]
)
def test_without_weight_or_behaviour_it_is_the_rqvae(world, changed, given):
    world = world._replace(**changed)
    plain, aligned = RQVAETokenizer(**SMALL).fit(*world), AlignedTokenizer(**SMALL, **given).fit(*world)
    assert torch.equal(plain.codes_, aligned.codes_) and torch.equal(plain.codebooks_, aligned.codebooks_)


def test_items_without_behaviour_or_features_take_no_part(world):
    present = {"text": torch.arange(60) != 9, "image": world.present["image"] & (torch.arange(60) != 9)}
    world = world._replace(sequences=[part[part != 7] for part in world.sequences], present=present)
    fitted = AlignedTokenizer(**SMALL).fit(*world)
    catalogue = fitted.standardise(world.features, world.present, 60)
    objective = fitted._objective(catalogue, flat_sequences(world.sequences, 60))
    vectors = torch.randn(60, 8, requires_grad=True)
    objective(torch.arange(60), vectors)["alignment"].backward()
    met = vectors_of(world.sequences, 60, 8).any(1)
    takes_part = met & (torch.arange(60) != 9)
    assert met[9] and not met[7] and torch.equal(vectors.grad.any(1), takes_part)


def test_new_items_get_the_codes_of_their_features_alone(world):
    fitted = AlignedTokenizer(**SMALL).fit(*world)
    codes = fitted.encode(world.features, world.present).codes
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    given = [{name: rows[order] for name, rows in part.items()} for part in (world.features, world.present)]
    assert torch.equal(fitted.encode(*given).codes, codes[order])
    assert (codes != fitted.codes_).any(1).sum() == fitted.n_moved_, "no others differ from what fit has given"


def test_its_report_card_has_an_rqvae_beside_it(world):
    fitted = registry.TOKENIZERS["aligned"](**SMALL).fit(*world)
    card = report_card(fitted, *world[:3], compare=True)
    assert "skipped" not in card["rqvae"] and card["losses"].keys() == {"reconstruction", "commitment", "alignment"}
