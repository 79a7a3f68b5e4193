from dataclasses import replace

import numpy as np
import pytest
import torch

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.catalogue import Catalogue, ItemFeatures, SemanticIds, mean_row
from recbole_bbqrec.tokenizer.fit import Encoded


@pytest.fixture
def catalogue() -> Catalogue:
    """Eleven items in text, image and id; item 5 lacks the image."""
    generator, tokens = torch.Generator().manual_seed(0), [f"i{item}" for item in range(12)]
    present = torch.ones(3, 12, dtype=torch.bool)
    present[:, 0] = present[1, 5] = False
    matrices = {name: torch.rand(12, width, generator=generator) for name, width in (("text", 6), ("image", 9))}
    features = ItemFeatures(tokens, matrices, dict(zip(matrices, present, strict=False)))
    codes = torch.arange(36).view(12, 3) % 8
    codes[0], codes[5, 1] = -1, -1
    vectors = torch.randn(3, 12, 4, generator=generator) * present.unsqueeze(-1)
    return Catalogue(tokens, features, SemanticIds(codes, vectors, present, ["text", "image", "id"], 8))


def test_every_code_has_one_number(catalogue):
    ids = catalogue.semantic_ids
    for numbers, per_position, none in ((ids.code_ids - 1, 8, -1), (ids.symbols, 9, 8)):
        for position in range(3):
            codes, found = ids.codes[:, position], numbers[:, position]
            known = codes >= 0
            assert torch.equal(found[known], position * per_position + codes[known])
            assert (found[~known] == (none if none < 0 else position * per_position + none)).all()
    assert ids.code_ids.max() < ids.n_code_ids == 25 and ids.symbols.max() < 27


def test_identity_codes_follow_the_token_alone(catalogue):
    tokens, ids = [f"item {number}" for number in range(500)], catalogue.semantic_ids
    many = replace(ids, codes=torch.full((500, 3), 2), present=torch.ones(3, 500, dtype=torch.bool))
    found = many.with_identity(tokens, 4)
    assert torch.equal(found.codes[:, :3], many.codes) and found.codes.shape == (500, 7)
    assert (found.codes[0, 3:] == -1).all() and found.codes.dtype == ids.codes.dtype
    drawn = found.codes[1:, 3:]
    assert drawn.min() == 0 and drawn.max() == 7 and len(torch.unique(drawn, dim=0)) > 450  # of 4,096
    assert all((torch.bincount(column) - 62).abs().max() < 30 for column in drawn.T)  # each of 8 about evenly
    order = torch.randperm(499, generator=torch.Generator().manual_seed(0)).add(1)
    moved = many.with_identity(["[PAD]", *(tokens[row] for row in order)], 4)
    assert torch.equal(moved.codes[1:], found.codes[order])
    assert many.with_identity(tokens, 0) is many


def test_features_are_centred_over_the_items_that_have_them(catalogue):
    for name, (rows, present) in catalogue.content.items():
        matrix, has = catalogue.features.matrices[name], catalogue.features.present[name]
        centred = matrix - matrix[has].double().mean(0).float()
        torch.testing.assert_close(rows, centred / centred.norm(dim=1, keepdim=True))
        assert torch.equal(present, has)


def test_centring_does_not_depend_on_the_order_of_the_items():
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mean_row(rows), mean_row(rows.flip(0))) and not mean_row(rows[:0]).any()


def test_what_is_not_attached_has_no_signals():
    assert Catalogue(["[PAD]", "a"]).content == Catalogue(["[PAD]", "a"]).quantised == {}


@pytest.mark.parametrize("form", ["content", "quantised"])
def test_new_items_stand_where_known_ones_of_the_same_data_do(catalogue, form):
    features, ids, copied = catalogue.features, catalogue.semantic_ids, [2, 5]
    rows = {name: matrix[copied] for name, matrix in features.matrices.items()}
    has = {name: present[copied] for name, present in features.present.items()}
    encoded = Encoded(ids.codes[copied], ids.vectors[:, copied], ids.present[:, copied])
    grown = catalogue.grown(ItemFeatures(["a", "b"], rows, has), encoded)
    assert grown.tokens == [*catalogue.tokens, "a", "b"] and grown.n_trained == 12
    assert torch.equal(grown.semantic_ids.codes[[12, 13]], ids.codes[copied])
    for name, (vectors, present) in getattr(grown, form).items():
        old, known = getattr(catalogue, form)[name]
        torch.testing.assert_close(vectors[:12], old, msg="new items do not move the mean")
        torch.testing.assert_close(vectors[12:], old[copied])
        assert torch.equal(present[12:], known[copied])
    again = grown.grown(ItemFeatures(["c"], {"text": rows["text"][1:]}))
    assert again.n_trained == 12
    torch.testing.assert_close(again.content["text"].rows[14], catalogue.content["text"].rows[5])


def test_new_items_lack_what_is_not_given(catalogue):
    grown = catalogue.grown(ItemFeatures(["a"], {"text": catalogue.features.matrices["text"][[2]]}))
    assert grown.content["text"].present[12] and not grown.content["image"].present[12]
    assert (grown.semantic_ids.codes[12] == -1).all() and not grown.semantic_ids.present[:, 12].any()
    assert not np.any(grown.semantic_ids.vectors[:, 12].numpy())


def test_new_items_of_which_nothing_is_known_are_refused(catalogue):
    with pytest.raises(InputError, match="new items: found neither codes nor features"):
        catalogue.grown(ItemFeatures(["a"]))
    with pytest.raises(InputError, match="new items: i3 is in the catalogue already"):
        catalogue.grown(ItemFeatures(["i3"], {"text": torch.ones(1, 6)}))
