from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_bbqrec.data.sequences import Sequences
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model import similarity as module
from recbole_bbqrec.model.catalogue import Catalogue, ItemFeatures, SemanticIds, Vectors
from recbole_bbqrec.model.similarity import SimilarityAttention, sample_pairs

NAMES = ["text", "image", "id", "more", "most"]


def make(n_signals=2, n_items=12, mode="additive", n_layers=2, n_heads=2, n_bins=4, seed=0, **settings):
    """A similarity over signals of different widths, its weights random; item 3 lacks the last signal."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(n_items, 4 + place, generator=generator) for place in range(n_signals)]
    present = torch.ones(n_signals, n_items, dtype=torch.bool)
    present[:, 0] = False
    present[-1, 3] = False
    rows = [torch.nn.functional.normalize(matrix, dim=-1) for matrix in matrices]
    signals = {name: Vectors(*signal) for name, *signal in zip(NAMES, rows, present, strict=False)}
    similarity = SimilarityAttention(signals, mode, n_layers, n_heads, n_bins, **settings)
    if mode != "undiscretised":
        similarity.fit_edges(*torch.randint(1, n_items, (2, 400), generator=generator))
    torch.nn.init.normal_(similarity.weight, generator=generator)
    return similarity


def plain_biases(similarity, items):
    """The same biases straight from their definition, [E, B, A, T, T]."""
    buckets = similarity.buckets(items)
    looked_up = [torch.nn.functional.embedding(b, w) for b, w in zip(buckets, similarity.weight, strict=True)]
    return sum(looked_up).unflatten(-1, (-1, similarity.n_heads)).permute(3, 0, 4, 1, 2)


# Buckets


def test_buckets_by_hand():
    similarity = make()
    buckets = similarity.buckets(torch.tensor([[1, 2, 3, 1, 0]]))
    same, missing = similarity.n_bins, similarity.n_bins + 1
    assert buckets[0, 0, 0, 0] == same and buckets[0, 0, 0, 3] == same, "one item against itself, also met twice"
    assert (buckets[1, 0, 2] == missing).all() and (buckets[1, 0, :, 2] == missing).all(), "item 3 lacks signal 1"
    assert (buckets[:, 0, 4] == missing).all(), "padding has no signal"
    for signal, vectors in enumerate(similarity.vectors):
        cosine = vectors[1] @ vectors[2]
        assert buckets[signal, 0, 0, 1] == int((cosine >= similarity.edges[signal]).sum())


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), max_size=6), st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8))
def test_edges_partition_the_cosines_and_keep_their_order(edges, cosines):
    angles = torch.arccos(torch.tensor(sorted(cosines)))
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    vectors = torch.cat(
        [torch.tensor([[0.0, 0.0], [1.0, 0.0]]), vectors]
    )  # padding, the item compared with, the others
    present = torch.arange(len(vectors)) > 0
    similarity = SimilarityAttention({"text": Vectors(vectors, present)}, "additive", 1, 1, len(edges) + 1)
    similarity.edges[0] = torch.tensor(sorted(edges))
    found = []
    for item in range(2, len(vectors)):
        bucket = int(similarity.buckets(torch.tensor([[1, item]]))[0, 0, 1, 0])
        cosine = float(similarity.vectors[0][1] @ similarity.vectors[0][item])
        borders = [-torch.inf, *similarity.edges[0].tolist(), torch.inf]
        holding = [place for place, (low, high) in enumerate(pairwise(borders)) if low <= cosine < high]
        assert holding == [bucket]
        found.append(bucket)
    assert found == sorted(found) and found[0] >= 0 and found[-1] < similarity.n_bins


def test_edges_cut_the_training_pairs_into_equal_parts():
    similarity = make(n_items=40)
    left, right = torch.randint(1, 40, (2, 4000), generator=torch.Generator().manual_seed(1))
    similarity.fit_edges(left, right)
    rows = torch.stack([left, right], dim=1)[left != right]
    counts = torch.bincount(similarity.buckets(rows)[0, :, 1, 0], minlength=4)
    assert (counts / len(rows)).sub(0.25).abs().max() < 0.02


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(0, 5))
def test_buckets_do_not_depend_on_the_batch(seed, length, padding):
    # Sums of few codes, as quantised vectors are: the edges lie right at the cosines that occur.
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(4, 16, generator=generator)
    vectors = codes[torch.randint(4, (20,), generator=generator)] + codes[torch.randint(4, (20,), generator=generator)]
    items = Vectors(torch.nn.functional.normalize(vectors, dim=-1), torch.arange(20) > 0)
    similarity = SimilarityAttention({"id": items}, "additive", 1, 1)
    similarity.fit_edges(*torch.randint(1, 20, (2, 500), generator=generator))
    items = torch.randint(1, 20, (30, length), generator=generator)
    together = similarity.buckets(torch.nn.functional.pad(items, (0, padding)))
    for row in range(len(items)):
        alone = similarity.buckets(items[row : row + 1])
        assert torch.equal(alone[:, 0], together[:, row, :length, :length])


def test_pairs_come_from_one_sequence_and_are_reproducible():
    offsets, items = np.array([0, 3, 4, 9]), np.arange(1, 10)
    owner = np.repeat([0, 1, 2], [3, 1, 5])
    left, right = sample_pairs(offsets, items, max_distance=2, seed=3)
    assert (owner[left - 1] == owner[right - 1]).all()
    assert ((right - left) >= 1).all() and ((right - left) <= 2).all()
    again = sample_pairs(offsets, items, max_distance=2, seed=3)
    assert torch.equal(left, again[0]) and torch.equal(right, again[1])
    assert len(sample_pairs(np.array([0, 1, 2]), np.array([1, 2]), 2, 0)[0]) == 0


# Biases


@pytest.mark.parametrize("max_table", [1, 40, 8192])
@pytest.mark.parametrize("n_signals", [1, 2, 3, 5])
def test_biases_and_gradients_are_those_of_one_look_up_per_signal(n_signals, max_table, monkeypatch):
    monkeypatch.setattr(module, "MAX_TABLE", max_table)  # all signals at once, some together, each alone
    similarity = make(n_signals, n_layers=3, n_heads=2)
    items = torch.randint(0, 12, (7, 6), generator=torch.Generator().manual_seed(1))
    upstream = torch.randn(3, 7, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    gradients = []
    for biases in (similarity(items), plain_biases(similarity, items)):
        assert len(biases) == 3 and biases[0].shape == (7, 2, 6, 6)
        similarity.weight.grad = None
        torch.stack(list(biases)).backward(upstream)
        gradients.append(similarity.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    found, expected = torch.stack(similarity(items)), plain_biases(similarity, items)
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if n_signals < 4 else 1e-6)
    assert torch.equal(found, found.transpose(-1, -2))


def test_both_ways_to_look_up_are_the_same():
    table, index = torch.randn(3, 9, requires_grad=True), torch.randint(9, (4, 5))
    results = [module._look_up(table, index, sorts) for sorts in (False, True)]
    assert torch.equal(*results) and torch.equal(results[0][1, 2, 3], table[1, index[2, 3]])
    upstream = torch.randn(3, 4, 5)
    torch.testing.assert_close(*(torch.autograd.grad(result, table, upstream)[0] for result in results))


def test_undiscretised_bias_by_hand():
    similarity = make(mode="undiscretised", n_layers=1, n_heads=2)
    bias = similarity(torch.tensor([[1, 2, 3, 1, 0]]))[0][0]
    by_text, by_image, no_text, no_image, same = similarity.weight
    text, image = (vectors[1] @ vectors[2] for vectors in similarity.vectors)
    torch.testing.assert_close(bias[:, 0, 1], text * by_text + image * by_image)
    torch.testing.assert_close(bias[:, 1, 0], bias[:, 0, 1])
    torch.testing.assert_close(bias[:, 0, 3], same, msg="one item met twice")
    vectors = similarity.vectors[0]
    torch.testing.assert_close(bias[:, 0, 2], vectors[1] @ vectors[3] * by_text + no_image)
    torch.testing.assert_close(bias[:, 2, 2], same + no_image)
    torch.testing.assert_close(bias[:, 4, 1], no_text + no_image)
    torch.testing.assert_close(bias[:, 4, 4], no_text + no_image)


@pytest.mark.parametrize("mode", ["additive", "undiscretised"])
def test_ids_beyond_the_catalogue_count_as_padding(mode):
    similarity = make(mode=mode)
    mask, padded = (torch.stack(similarity(torch.tensor([[1, 2, item, 4, item]]))) for item in (12, 0))
    assert torch.equal(mask, padded)


@pytest.mark.parametrize("mode", ["additive", "multiplicative", "undiscretised"])
def test_shared_layers_have_one_set_of_weights(mode):
    own, shared = make(mode=mode, n_layers=3), make(mode=mode, n_layers=3, shared_layers=True)
    assert own.weight.numel() == 3 * shared.weight.numel()
    assert shared.weight.numel() == (2 * 2 * 6 if mode != "undiscretised" else 2 * 5)
    items = torch.randint(0, 12, (2, 4), generator=torch.Generator().manual_seed(0))
    assert len(own(items)) == len(shared(items)) == 3
    assert torch.equal(shared(items)[0], shared(items)[2]) and not torch.equal(own(items)[0], own(items)[2])


@pytest.mark.parametrize("mode", ["additive", "undiscretised"])
def test_gradients_do_not_depend_on_the_number_of_threads(mode):
    similarity = make(3, n_items=300, mode=mode)
    items = torch.randint(0, 300, (200, 30), generator=torch.Generator().manual_seed(0))
    upstream = torch.randn(2, 200, 2, 30, 30, generator=torch.Generator().manual_seed(1))
    gradients = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            similarity.weight.grad = None
            torch.stack(similarity(items)).backward(upstream)
            gradients.append(similarity.weight.grad)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_one_bin_still_tells_same_and_missing_apart():
    similarity = make(n_bins=1)
    assert similarity.buckets(torch.tensor([[1, 2, 0, 1]]))[0, 0, 0].tolist() == [1, 0, 2, 1]


# From a data set


def catalogue(n_items=12):
    """Semantic IDs of three signals and features of two modalities of different width; item 5 has no image."""
    generator = torch.Generator().manual_seed(3)
    present = torch.ones(3, n_items, dtype=torch.bool)
    present[:, 0] = False
    present[1, 5] = False
    vectors = torch.randn(3, n_items, 4, generator=generator) * present.unsqueeze(-1)
    codes = torch.zeros(n_items, 3, dtype=torch.long)
    matrices = {name: torch.rand(n_items, width, generator=generator) for name, width in (("text", 6), ("image", 9))}
    known = dict(zip(matrices, present, strict=False))
    features = ItemFeatures([str(item) for item in range(n_items)], matrices, known)
    sequences = Sequences(np.array([0, 6, 11]), np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]))
    ids = SemanticIds(codes, vectors, present, ["text", "image", "id"], 8)
    return SimpleNamespace(catalogue=Catalogue(features.tokens, features, ids), train_sequences=sequences)


def build(dataset, **changes):
    defaults = {"similarity_attention": "additive", "similarity_signals": None, "seed": 1}
    config = {**defaults, "similarity_shared_layers": False, "codes": "learned", **changes}
    return SimilarityAttention.from_dataset(config, dataset, n_layers=2, n_heads=2, max_length=5)


def test_quantised_vectors_are_compared():
    dataset = catalogue()
    similarity = build(dataset)
    assert similarity.signals == ["text", "image", "id"] and not similarity.weight.any()
    for vectors, expected in zip(similarity.vectors, dataset.catalogue.semantic_ids.vectors, strict=True):
        assert torch.equal(vectors, torch.nn.functional.normalize(expected, dim=-1))
    pairs = sample_pairs(dataset.train_sequences.offsets, dataset.train_sequences.items, 4, 1)
    expected = build(SimpleNamespace(**{**vars(dataset), "train_sequences": None}))
    assert not expected.edges.any(), "without training sequences the edges come with the weights"
    expected.fit_edges(*pairs)
    assert torch.equal(similarity.edges, expected.edges)
    assert set(similarity.state_dict()) == {"weight", "edges"}
    assert set(build(dataset, similarity_attention="undiscretised").state_dict()) == {"weight"}


@pytest.mark.parametrize("codes", ["learned", "none"])
def test_signals_are_chosen_by_name(codes):
    everything, one = build(catalogue(), codes=codes), build(catalogue(), codes=codes, similarity_signals=["image"])
    assert one.signals == ["image"] and len(one.weight) == 1
    assert torch.equal(one.vectors[0], everything.vectors[1])
    assert torch.equal(one.present[0], everything.present[1]) and not one.present[0, 5]
    assert torch.equal(one.edges[0], everything.edges[1])
    two = build(catalogue(), codes=codes, similarity_signals=["image", "text"])
    assert two.signals == ["text", "image"], "the order of the names means nothing"
    with pytest.raises(InputError, match=r"similarity_signals: found 'sound', expected some of text, image"):
        build(catalogue(), codes=codes, similarity_signals=["text", "sound"])


def test_nothing_to_compare():
    nothing = SimpleNamespace(catalogue=Catalogue([]), train_sequences=None)
    assert build(nothing) is None and build(nothing, codes="none") is None
    assert build(catalogue(), similarity_attention="off") is None and build(catalogue(), similarity_signals=[]) is None


def test_without_codes_raw_features_are_compared_centred():
    dataset = catalogue()
    similarity = build(dataset, codes="none")
    assert similarity.signals == ["text", "image"]
    for name, vectors in zip(similarity.signals, similarity.vectors, strict=True):
        matrix, known = dataset.catalogue.features.matrices[name], dataset.catalogue.features.present[name]
        centred = matrix - matrix[known].double().mean(0).float()
        torch.testing.assert_close(vectors, centred / centred.norm(dim=1, keepdim=True))
    assert torch.isfinite(torch.stack(similarity(torch.tensor([[1, 5, 2, 0]])))).all()
