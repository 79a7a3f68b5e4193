"""What is written for a CPU: the same values and gradients as torch's operations give, or the same distribution."""

import pytest
import torch
from conftest import settings as run_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.model import cpu_speed
from recbole_bbqrec.model.cpu_speed import GRAPHS, Dropout, SymmetricGraph, sampled_cross_entropy

# Dropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_the_share_and_the_scale_are_those_of_dropout(p):
    torch.manual_seed(0)
    out = Dropout(p).train()(torch.ones(1001, 303))
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.003)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02 if p < 0.9 else 0.04)
    assert len(out.unique()) == 2


def test_entries_that_share_a_draw_are_independent():
    torch.manual_seed(0)
    kept = (Dropout(0.3).train()(torch.ones(200_000, 4)) != 0).double()
    centred = kept - kept.mean(0)
    correlation = (centred.T @ centred) / len(kept) / 0.21
    assert (correlation - torch.eye(4)).abs().max() < 0.01
    assert (kept.mean(0) - 0.7).abs().max() < 0.005


def test_it_is_the_identity_in_evaluation_and_without_probability():
    x = torch.randn(3, 5)
    assert Dropout(0.4).eval()(x) is x and Dropout(0.0).train()(x) is x


def test_the_seed_decides_and_the_gradient_passes_where_entries_do():
    x = torch.randn(7, 9, requires_grad=True)
    torch.manual_seed(3)
    one = Dropout(0.5).train()(x)
    torch.manual_seed(3)
    assert torch.equal(one, Dropout(0.5).train()(x))
    one.sum().backward()
    assert torch.equal(x.grad != 0, one != 0)


# Sampled cross-entropy


def plainly(
    hidden: torch.Tensor, negatives: torch.Tensor, positive: torch.Tensor, excluded: torch.Tensor
) -> torch.Tensor:
    scores = (hidden @ negatives.T).masked_fill(excluded, -torch.inf)
    return (torch.cat([positive.unsqueeze(1), scores], dim=1).logsumexp(dim=1) - positive).mean()


def inputs(n: int, m: int, width: int, seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    real = [torch.randn(n, width), torch.randn(m, width), torch.randn(n)]
    return [(scale * part).double().requires_grad_() for part in real] + [torch.rand(n, m) < 0.3]


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_value_and_gradients_are_those_of_the_plain_operations(n: int, m: int, width: int, seed: int) -> None:
    given_ = inputs(n, m, width, seed)
    mine, expected = sampled_cross_entropy(*given_), plainly(*given_)
    torch.testing.assert_close(mine, expected)
    for one, other in zip(
        torch.autograd.grad(3 * mine, given_[:3]), torch.autograd.grad(3 * expected, given_[:3]), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_the_value() -> None:
    hidden, negatives, positive, excluded = inputs(4, 7, 3, seed=5)
    assert torch.autograd.gradcheck(
        lambda *given_: sampled_cross_entropy(*given_, excluded), (hidden, negatives, positive)
    )


def test_a_target_whose_negatives_are_all_excluded_costs_nothing() -> None:
    hidden, negatives, positive, excluded = inputs(3, 4, 2, seed=1)
    loss = sampled_cross_entropy(hidden, negatives, positive, torch.ones_like(excluded))
    assert loss.item() == pytest.approx(0.0)
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(loss, (hidden, negatives, positive)))


def test_large_scores_overflow_nowhere() -> None:
    given_ = inputs(6, 9, 4, seed=2, scale=1e3)
    loss = sampled_cross_entropy(*given_)
    torch.testing.assert_close(loss, plainly(*given_))
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, given_[:3]))


# SymmetricGraph


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_models_learn_as_recbole_lets_them(tiny, name, monkeypatch):
    config = Config(config_dict=run_settings(tiny, name, **({"num_clusters": 3} if name == "NCL" else {})))
    dataset = registry.get_dataset(name)(config).build()[0]
    models = {}
    for graphs in (GRAPHS, {}):
        monkeypatch.setattr(cpu_speed, "GRAPHS", graphs)
        torch.manual_seed(0)
        models[bool(graphs)] = registry.build_model(config, dataset)
    ours, recboles = models[True], models[False]
    assert isinstance(getattr(ours, GRAPHS[name]), SymmetricGraph)
    assert isinstance(getattr(recboles, GRAPHS[name]), torch.Tensor)
    for model in models.values():
        found = model.forward()
        torch.cat([found[0], found[1]]).square().sum().backward()
    for one, other in zip(ours.parameters(), recboles.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
        assert one.grad.abs().sum() > 0


def test_a_graph_does_nothing_but_multiply():
    graph = SymmetricGraph(torch.eye(3).to_sparse_coo())
    assert torch.equal(torch.sparse.mm(graph, torch.ones(3, 2)), torch.ones(3, 2))
    with pytest.raises(TypeError):
        torch.sparse.sum(graph)
