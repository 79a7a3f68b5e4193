import numpy as np
import pytest
import torch

from recbole_bbqrec.tokenizer.independence import independence, spread


def gaussians(strength: float, n: int = 3000, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(n, width, generator=generator), torch.randn(n, width, generator=generator)
    return x, strength * x + (1 - strength**2) ** 0.5 * noise


def test_probes_and_club_grow_with_dependence():
    found = [independence(*gaussians(strength), seed=0) for strength in (0.0, 0.5, 0.9)]
    assert found[0]["r2"] < 0.02 and found[0]["club"] < 0.2
    assert found[1]["r2"] == pytest.approx(0.25, abs=0.05) and found[2]["r2"] == pytest.approx(0.81, abs=0.05)
    mutual = [-2 * np.log(1 - strength**2) for strength in (0.5, 0.9)]  # of four pairs of Gaussians
    assert found[1]["club"] > mutual[0] and found[2]["club"] > mutual[1] and found[2]["club"] > found[1]["club"]


def test_what_only_a_nonlinear_probe_sees_counts():
    x = gaussians(0.0)[0]
    found = independence(x, x.square(), seed=0)
    assert found["r2_ridge"] < 0.05 and found["r2"] == found["r2_mlp"] > 0.8


def test_scale_and_shift_of_the_parts_do_not_matter():
    x, y = gaussians(0.7, n=500)
    one, other = independence(x, y, seed=0), independence(100 * x + 7, 0.01 * y - 3, seed=0)
    assert one["r2"] == pytest.approx(other["r2"], abs=0.01) and one["club"] == pytest.approx(other["club"], rel=0.05)


def test_a_collapsed_part_is_independent_and_its_spread_says_why():
    x, y = gaussians(0.9, n=500)
    found = independence(torch.ones_like(x), y, seed=0)
    assert found["r2"] < 0.05
    assert spread(torch.ones_like(x)) == {"variance": 0.0, "dimensions": 0.0}
    line = spread(x[:, :1] * torch.ones(1, 4))
    assert line["dimensions"] == pytest.approx(1.0) and spread(x)["dimensions"] > 3.8
    assert independence(x[:7], y[:7], seed=0) == {}
