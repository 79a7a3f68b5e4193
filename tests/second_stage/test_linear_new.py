"""Neighbours of items that training does not know: a new item is treated as a known one of the same vector is."""

import pytest
import torch
from torch.nn import functional

from recbole_bbqrec.model.catalogue import PADDING, Catalogue, ItemFeatures
from recbole_bbqrec.model.protocol import FirstStage
from recbole_bbqrec.second_stage.hashing import hashes_of
from recbole_bbqrec.second_stage.linear import CandidateSimilarity, _edges, _signal, restore_linear
from recbole_bbqrec.second_stage.neighbours import nearest, token_order

N_KNOWN, SIZE, TWIN = 60, 8, 17


@pytest.fixture
def grown():
    """A catalogue whose new items are a twin of a known one and one without a text, and its second stage, restored."""
    tokens = [PADDING, *(f"i{item:02d}" for item in range(1, N_KNOWN))]
    rows = torch.randn(N_KNOWN, 6, generator=torch.Generator().manual_seed(0))
    present = torch.arange(N_KNOWN) > 0
    known = Catalogue(tokens, ItemFeatures(tokens, {"text": rows * present.unsqueeze(1)}, {"text": present}))
    order, place = token_order(tokens)
    vectors = known.content["text"]
    lists = nearest(vectors.rows[order], vectors.present[order], SIZE)
    signal = _signal(lists, _edges(lists), order, place)
    stage = CandidateSimilarity({"text": signal}, 2, hashes_of(tokens))
    stage.weights = torch.randn(stage.weights.shape, generator=torch.Generator().manual_seed(1))
    new = ItemFeatures(["twin", "blank"], {"text": rows[[TWIN, 0]]}, {"text": torch.tensor([True, False])})
    catalogue = known.grown(new)
    made = restore_linear(stage.state_dict(), catalogue)
    made.load_state_dict(stage.state_dict())
    return catalogue, stage, made


def scores(stage, history, n_items):
    return stage(FirstStage(torch.zeros(1, n_items)), torch.tensor([history]))[0]


def test_known_items_keep_their_scores(grown):
    catalogue, before, after = grown
    for history in ([3, 9], [TWIN], [40, 41, TWIN]):
        torch.testing.assert_close(scores(after, history, N_KNOWN + 2)[:N_KNOWN], scores(before, history, N_KNOWN))
    assert before.state_dict().keys() == after.state_dict().keys(), "the lists of new items come with the catalogue"
    assert functional.cosine_similarity(*catalogue.content["text"].rows[[TWIN, N_KNOWN]], 0) == pytest.approx(1)


def test_a_twin_is_scored_as_its_known_one_is(grown):
    _, _, stage = grown
    listing = [item for item in range(1, N_KNOWN) if item != TWIN and scores(stage, [item], N_KNOWN + 2)[TWIN] != 0]
    assert len(listing) > 3
    for item in range(1, N_KNOWN):
        found = scores(stage, [item], N_KNOWN + 2)
        if item != TWIN:
            assert found[N_KNOWN] == found[TWIN], f"after item {item}"
        assert found[N_KNOWN + 1] == 0, "nothing is known of it"


def test_a_twin_says_what_its_known_one_says(grown):
    _, before, stage = grown
    said, by_twin = scores(before, [TWIN], N_KNOWN), scores(stage, [N_KNOWN], N_KNOWN + 2)
    others = torch.arange(N_KNOWN) != TWIN
    # The known one takes the first place in the list of its twin, so the last one falls out.
    differs = torch.nonzero(said[others] != by_twin[:N_KNOWN][others])
    assert (said[others] != 0).sum() > 3 and len(differs) <= 1
    assert by_twin[TWIN] != 0
    assert not scores(stage, [N_KNOWN + 1], N_KNOWN + 2)[:N_KNOWN].any()
