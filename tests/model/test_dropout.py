import pytest
import torch

from recbole_bbqrec.model.dropout import Dropout


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
