import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_bbqrec.model.attention import (
    CausalSelfAttention,
    SimilarityBias,
    SimilarityBuckets,
    TransformerLayer,
    sample_pairs,
)


def buckets_of(n_items=12, n_bins=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(2, n_items, 5, generator=generator)
    present = torch.ones(2, n_items, dtype=torch.bool)
    present[:, 0] = False
    present[1, 3] = False
    module = SimilarityBuckets(vectors, present, n_bins)
    left, right = torch.randint(1, n_items, (2, 400), generator=generator)
    module.fit_edges(left, right)
    return module


def test_buckets_by_hand():
    module = buckets_of()
    items = torch.tensor([[1, 2, 3, 1, 0]])
    buckets = module(items)
    assert buckets.shape == (2, 1, 5, 5)
    same, missing = module.n_bins, module.n_bins + 1
    assert buckets[0, 0, 0, 0] == same and buckets[0, 0, 0, 3] == same, "one item against itself, also met twice"
    assert (buckets[1, 0, 2] == missing).all() and (buckets[1, 0, :, 2] == missing).all(), "item 3 lacks signal 1"
    assert (buckets[:, 0, 4] == missing).all(), "padding has no signal"
    cosine = module.vectors[0, 1] @ module.vectors[0, 2]
    assert buckets[0, 0, 0, 1] == int((cosine >= module.edges[0]).sum())
    assert torch.equal(buckets, buckets.transpose(-1, -2))


def test_edges_cut_the_training_pairs_into_equal_parts():
    module = buckets_of(n_items=40)
    left, right = torch.randint(1, 40, (2, 4000), generator=torch.Generator().manual_seed(1))
    kept = left != right
    cosine = (module.vectors[0, left[kept]] * module.vectors[0, right[kept]]).sum(-1)
    module.fit_edges(left, right)
    share = torch.bincount(torch.bucketize(cosine, module.edges[0], right=True), minlength=4) / len(cosine)
    assert share.sub(0.25).abs().max() < 0.02


@given(st.floats(-1, 1), st.integers(0, 50))
def test_every_cosine_falls_into_exactly_one_bucket(cosine, seed):
    edges = buckets_of(seed=seed).edges[0]
    assert (edges.diff() >= 0).all()
    inside = [(low <= cosine) and (cosine < high) for low, high in
              zip([-float("inf"), *edges.tolist()], [*edges.tolist(), float("inf")], strict=True)]  # fmt: skip
    assert sum(inside) == 1


def test_pairs_come_from_one_sequence_and_are_reproducible():
    offsets, items = np.array([0, 3, 4, 9]), np.arange(1, 10)
    owner = np.repeat([0, 1, 2], [3, 1, 5])
    left, right = sample_pairs(offsets, items, max_distance=2, seed=3)
    assert (owner[left - 1] == owner[right - 1]).all()
    assert ((right - left) >= 1).all() and ((right - left) <= 2).all()
    again = sample_pairs(offsets, items, max_distance=2, seed=3)
    assert torch.equal(left, again[0]) and torch.equal(right, again[1])
    assert len(sample_pairs(np.array([0, 1, 2]), np.array([1, 2]), 2, 0)[0]) == 0


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
def test_zero_bias_is_the_plain_transformer_exactly(mode):
    torch.manual_seed(0)
    layer = TransformerLayer(16, 32, 2, 0.0, 0.0, 1e-12, mode)
    hidden = torch.randn(3, 6, 16)
    bias = SimilarityBias(2, 6, 1, 2)(torch.randint(0, 6, (2, 3, 6, 6)))[0]
    assert torch.equal(layer(hidden, bias), layer(hidden, None))


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
def test_bias_enters_as_the_formula_says(mode):
    torch.manual_seed(0)
    attention = CausalSelfAttention(8, 1, 0.0, mode)
    hidden, bias = torch.randn(1, 4, 8), torch.randn(1, 1, 4, 4)
    query, key, value = attention.query_key_value(hidden)[0].chunk(3, dim=-1)
    scores = query @ key.T / 8**0.5
    scores = scores + bias[0, 0] if mode == "additive" else scores * (1 + bias[0, 0])
    scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(attention(hidden, bias)[0], attention.output(scores.softmax(-1) @ value))


@given(st.integers(2, 8), st.integers(0, 7), st.integers(0, 100))
def test_the_future_never_leaks(length, changed, seed):
    torch.manual_seed(seed)
    changed = changed % length
    layer = TransformerLayer(8, 16, 2, 0.0, 0.0, 1e-12, "additive")
    hidden, bias = torch.randn(1, length, 8), torch.randn(1, 2, length, length)
    other = hidden.clone()
    other[0, changed] += 1
    before = layer(hidden, bias)[0, :changed]
    assert torch.equal(before, layer(other, bias)[0, :changed])


def test_bias_sums_over_signals_and_knows_layers_and_heads():
    module = SimilarityBias(n_signals=2, n_buckets=3, n_layers=2, n_heads=2)
    with torch.no_grad():
        module.weight.copy_(torch.arange(24.0).view(2, 3, 4))
    buckets = torch.tensor([[[[0, 1], [2, 0]]], [[[1, 1], [0, 2]]]])
    bias = module(buckets)
    assert bias.shape == (2, 1, 2, 2, 2)
    for layer in range(2):
        for head in range(2):
            expected = module.weight[0, 1, layer * 2 + head] + module.weight[1, 1, layer * 2 + head]
            assert bias[layer, 0, head, 0, 1] == expected
