from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_bbqrec.model.attention import Attention, LayerSettings, TransformerLayer, causal_mask, reweight
from recbole_bbqrec.model.catalogue import Vectors
from recbole_bbqrec.model.similarity import SimilarityAttention

LAYER = LayerSettings(hidden_size=8, inner_size=16, n_heads=2, dropout=0.0, attn_dropout=0.0, eps=1e-12)
MODES = ["additive", "multiplicative", "undiscretised"]


def similarity_of(mode, seed=0, n_items=12, n_layers=2):
    """A similarity over random vectors, with random weights and edges."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(2, n_items, 5, generator=generator)
    present = torch.rand(2, n_items, generator=generator) > 0.1
    present[:, 0] = False
    rows = torch.nn.functional.normalize(vectors, dim=-1)
    signals = {name: Vectors(*signal) for name, *signal in zip(["text", "id"], rows, present, strict=True)}
    similarity = SimilarityAttention(signals, mode, n_layers, 2, n_bins=4)
    if mode != "undiscretised":
        similarity.fit_edges(*torch.randint(1, n_items, (2, 400), generator=generator))
    torch.nn.init.normal_(similarity.weight, generator=generator)
    return similarity


def stack_of(mode, seed=0):
    torch.manual_seed(seed)
    return torch.nn.ModuleList(TransformerLayer(LAYER, mode) for _ in range(2))


def encode(layers, hidden, biases):
    visible = causal_mask(hidden.shape[1], hidden.device)
    for layer, bias in zip(layers, biases, strict=True):
        hidden = layer(hidden, visible, bias)
    return hidden


@pytest.mark.parametrize("mode", MODES)
def test_similarity_starts_as_the_plain_transformer_to_the_last_bit(mode):
    similarity, layers = similarity_of(mode), stack_of(mode)
    items, hidden = torch.randint(0, 12, (3, 6)), torch.randn(3, 6, 8)
    plain = encode(layers, hidden, [None, None])
    assert not torch.allclose(encode(layers, hidden, similarity(items)), plain)
    torch.nn.init.zeros_(similarity.weight)
    assert torch.equal(encode(layers, hidden, similarity(items)), plain)


@pytest.mark.parametrize("mode", MODES)
def test_bias_enters_as_the_formula_says(mode):
    torch.manual_seed(0)
    attention = Attention(LAYER, mode)
    hidden, bias = torch.randn(1, 4, 8), torch.randn(1, 2, 4, 4)
    query, key, value = attention.query_key_value(hidden)[0].chunk(3, dim=-1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = query[:, part] @ key[:, part].T / 4**0.5
        scores = scores * (1 + bias[0, head]) if mode == "multiplicative" else scores + bias[0, head]
        scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ value[:, part])
    found, _ = attention(hidden, causal_mask(4, hidden.device), bias)
    torch.testing.assert_close(found[0], attention.output(torch.cat(heads, dim=-1)))


def test_multiplicative_weights_by_hand():
    # One history of two items: the second attends to the first with score ln 2, to itself with score 0.
    scores = torch.tensor([[[[0.0, 0.0], [0.6931472, 0.0]]]])
    bias = torch.tensor([[[[0.5, 0.5], [1.0, -0.5]]]])
    weights = reweight(scores, bias, "multiplicative").softmax(-1)
    torch.testing.assert_close(weights[0, 0, 1], torch.tensor([0.8, 0.2]))  # exp(2 ln 2) : exp(0) = 4 : 1
    added = reweight(scores, bias, "additive").softmax(-1)[0, 0, 1]
    assert added[0] / added[1] == pytest.approx(2 * torch.tensor(1.5).exp().item(), rel=1e-5)


@settings(deadline=None)
@given(st.sampled_from(MODES), st.integers(2, 8), st.data())
def test_the_future_never_leaks(mode, length, data):
    changed = data.draw(st.integers(0, length - 1))
    seed = data.draw(st.integers(0, 100))
    similarity, layers = similarity_of(mode, seed), stack_of(mode, seed)
    table = torch.randn(12, 8)
    items = torch.randint(1, 12, (2, length))
    other = items.clone()
    other[:, changed:] = torch.randint(0, 12, (2, length - changed))
    other[:, changed] = (items[:, changed] + 1) % 12
    before, after = (encode(layers, table[rows], similarity(rows)) for rows in (items, other))
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


@pytest.mark.parametrize("fused", [True, False])
def test_keys_and_values_of_earlier_calls_serve_like_one_call(fused):
    torch.manual_seed(0)
    attention, hidden = Attention(replace(LAYER, head_size=3, fused=fused)), torch.randn(2, 5, 8)
    whole, (key, _) = attention(hidden, causal_mask(5, hidden.device))
    assert key.shape == (2, 2, 5, 3)
    first, past = attention(hidden[:, :3], causal_mask(3, hidden.device))
    last, longer = attention(hidden[:, 3:], causal_mask(5, hidden.device)[3:], past=past)
    torch.testing.assert_close(torch.cat([first, last], dim=1), whole)
    torch.testing.assert_close(longer[0], key)
    memory = attention.keys_values(hidden)
    torch.testing.assert_close(attention.read(hidden, memory, causal_mask(5, hidden.device)), whole)


def test_positions_of_an_item_see_those_up_to_it():
    found = causal_mask(2, torch.device("cpu"), n_readers=2, n_read=3).int().tolist()
    assert found == [[1, 1, 1, 0, 0, 0]] * 2 + [[1] * 6] * 2
