import math

import pytest
import torch
from torch.nn import functional

from recbole_bbqrec.tokenizer.losses import Club, Probe, cross_signal_contrast, info_nce, reconstruction


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_reconstruction_is_the_mean_square_over_present_items():
    features, decoded = torch.zeros(3, 4), torch.tensor([[1.0] * 4, [2.0] * 4, [100.0] * 4])
    present = torch.tensor([True, True, False])
    assert reconstruction(decoded, features, present).item() == pytest.approx(2.5)
    assert reconstruction(decoded, features, torch.zeros(3, dtype=torch.bool)) == 0


def test_sequence_contrast_equals_cross_entropy_by_hand():
    encoded, candidates, items = randn(5, 8), randn(5, 8, seed=1), torch.arange(5)
    cosine = functional.cosine_similarity(encoded.unsqueeze(1), candidates.unsqueeze(0), dim=-1)
    expected = -torch.log_softmax(cosine / 0.07, dim=1).diagonal().mean()
    torch.testing.assert_close(info_nce(encoded, candidates, items), expected)


def test_an_item_that_is_the_target_of_two_histories_is_no_negative_of_itself():
    row = randn(1, 8)
    pair = info_nce(row.repeat(2, 1), row.repeat(2, 1), torch.tensor([4, 4]))
    assert pair.item() == pytest.approx(0.0, abs=1e-6)
    apart = info_nce(row.repeat(2, 1), row.repeat(2, 1), torch.tensor([4, 5]))
    assert apart.item() == pytest.approx(math.log(2), abs=1e-6)


def test_sequence_contrast_without_targets_is_zero_and_differentiable():
    encoded = torch.zeros(0, 8, requires_grad=True)
    loss = info_nce(encoded, torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    assert loss == 0
    loss.backward()


def test_cross_signal_contrast_prefers_signals_that_agree():
    one, two = randn(6, 8), randn(6, 8, seed=1)
    known, labels = torch.ones(2, 6, dtype=torch.bool), torch.arange(6).expand(2, -1)
    agree = cross_signal_contrast(torch.stack([one, one]), known, labels)
    differ = cross_signal_contrast(torch.stack([one, two]), known, labels)
    assert agree < 0.1 < differ


def test_cross_signal_contrast_takes_no_equal_key_for_a_negative():
    """Items 0 and 1 differ in the first signal and are one in the second: only a contrast with the first parts them."""
    signals = torch.eye(4)[torch.tensor([[0, 1], [2, 2]])]
    known = torch.ones(2, 2, dtype=torch.bool)
    apart = cross_signal_contrast(signals, known, torch.tensor([[0, 1], [0, 1]])).item()
    alike = cross_signal_contrast(signals, known, torch.tensor([[0, 1], [0, 0]])).item()
    assert apart == pytest.approx(math.log(2), abs=1e-6)
    assert alike == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_cross_signal_contrast_leaves_missing_signals_out():
    signals, labels = randn(3, 6, 8).requires_grad_(), torch.arange(6).expand(3, -1)
    known = torch.tensor([[True] * 6, [True, True, True, False, False, False], [True] * 6])
    cross_signal_contrast(signals, known, labels).backward()
    assert (signals.grad[1, 3:] == 0).all() and (signals.grad[1, :3] != 0).any()
    assert cross_signal_contrast(signals[:1], known[:1], labels[:1]) == 0


def correlated(strength: float, n: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    x, noise = randn(n, 4), randn(n, 4, seed=1)
    return x, strength * x + (1 - strength**2) ** 0.5 * noise


def fitted(kind: type, x: torch.Tensor, y: torch.Tensor):
    """A `Club` or a `Probe`, fitted to tell y from x."""
    torch.manual_seed(0)
    estimator = kind(4, 32)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        estimator.fit_loss(x, y).backward()
        optimizer.step()
    return estimator


def test_club_bounds_the_mutual_information_of_gaussians():
    for strength in (0.9, 0.5):
        x, y = correlated(strength)
        truth = -0.5 * 4 * math.log(1 - strength**2)
        assert truth < fitted(Club, x, y).bound(x, y).item()
    x, y = correlated(0.0, n=8192)
    assert fitted(Club, x[:4096], y[:4096]).bound(x[4096:], y[4096:]).item() < 0.1


def test_club_bound_equals_its_definition_over_all_pairs():
    torch.manual_seed(0)
    club, x, y = Club(4, 8), randn(7, 4), randn(7, 4, seed=1)
    mean, log_variance = club._predict(x)
    normal = torch.distributions.Normal(mean.unsqueeze(1), (0.5 * log_variance).exp().unsqueeze(1))
    likelihood = normal.log_prob(y.unsqueeze(0)).sum(-1)  # [i, j]: log q(y_j | x_i)
    expected = likelihood.diagonal().mean() - likelihood.mean()
    torch.testing.assert_close(club.bound(x, y), expected.clamp(min=0))


def test_minimising_the_club_bound_removes_information_and_never_goes_below_zero():
    x, y = correlated(0.9)
    club = fitted(Club, x, y).requires_grad_(False)
    moved = y.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=0.05)
    start = club.bound(x, moved).item()
    for _ in range(100):
        optimizer.zero_grad()
        bound = club.bound(x, moved)
        bound.backward()
        optimizer.step()
        assert bound >= 0
    assert bound < 0.1 * start


def test_fitting_club_leaves_its_inputs_alone():
    club, x, y = Club(4, 8), randn(6, 4).requires_grad_(), randn(6, 4, seed=1).requires_grad_()
    club.fit_loss(x, y).backward()
    assert x.grad is None and y.grad is None
    assert all(parameter.grad is not None for parameter in club.parameters())


def test_a_probe_explains_what_two_parts_share_and_nothing_of_independent_ones():
    x, y = correlated(0.9, n=4096)
    assert fitted(Probe, x[:2048], y[:2048]).explained(x[2048:], y[2048:]).item() == pytest.approx(0.81, abs=0.05)
    probe = fitted(Probe, x[:2048], x[:2048].square())  # no linear map of x tells of its square
    assert probe.explained(x[2048:], x[2048:].square()) > 0.7
    x, y = correlated(0.0, n=4096)
    assert fitted(Probe, x[:2048], y[:2048]).explained(x[2048:], y[2048:]) < 0.01


def test_encoders_learn_to_give_a_probe_nothing_and_stop_there():
    x, y = correlated(0.9)
    probe = fitted(Probe, x, y).requires_grad_(False)
    moved = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        probe.explained(moved, y).backward()
        optimizer.step()
    assert probe.explained(moved, y) == 0 and probe.explained(x, y) > 0.7
    optimizer.zero_grad()
    probe.explained(moved, y).backward()
    assert not moved.grad.any(), "a probe that is worse than the mean moves nobody"


def test_fitting_a_probe_leaves_its_inputs_alone():
    probe, x, y = Probe(4, 8), randn(6, 4).requires_grad_(), randn(6, 4, seed=1).requires_grad_()
    probe.fit_loss(x, y).backward()
    assert x.grad is None and y.grad is None
    assert all(parameter.grad is not None for parameter in probe.parameters())
