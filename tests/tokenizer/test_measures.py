import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_bbqrec.tokenizer import measures


def test_utilisation_and_perplexity_of_even_one_sided_and_absent_codes():
    codes = torch.tensor([[0, 2, -1], [1, 2, -1], [2, 2, -1], [3, 2, -1]])
    utilisation, perplexity = measures.code_use(codes, 8)
    assert utilisation == [0.5, 0.125, 0.0] and perplexity == pytest.approx([4.0, 1.0, 0.0])


def test_collisions_count_items_and_ids():
    codes = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 0]])
    assert measures.collisions(codes) == {"sharing": 5, "distinct": 3, "largest": 3}


def test_first_code_agreement_stays_within_sequences():
    codes = torch.tensor([0, 0, 1, 1])
    offsets, items = np.array([0, 2, 2, 4]), np.array([0, 1, 2, 3])
    assert measures.first_code_agreement(codes, offsets, items) == {"share": 1.0, "chance": 0.5}
    assert measures.first_code_agreement(codes, np.array([0, 1, 2]), np.array([0, 1])) == {"share": 0.0, "chance": 0.0}


def test_first_code_agreement_leaves_missing_codes_out():
    codes = torch.tensor([0, 0, -1])
    assert measures.first_code_agreement(codes, np.array([0, 3]), np.array([0, 1, 2])) == {"share": 1.0, "chance": 1.0}


def test_nearest_are_those_of_highest_cosine_without_the_item_itself():
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    has = torch.arange(50) % 4 != 0
    asked = torch.tensor([1, 4, 7])
    found = measures.nearest(rows, has, asked, 5, seed=0)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    cosine[:, ~has] = -2
    cosine.fill_diagonal_(-2)
    for row, item in enumerate(asked.tolist()):
        expected = cosine[item].topk(5).indices.tolist() if has[item] else [-1] * 5
        assert sorted(found[row].tolist()) == sorted(expected)


def test_equal_vectors_are_in_random_order():
    rows, everyone = torch.ones(200, 3), torch.ones(200, dtype=torch.bool)
    found = measures.nearest(rows, everyone, torch.arange(200), 10, seed=0)
    assert (found != torch.arange(200).unsqueeze(1)).all()
    assert len(torch.unique(found)) >= 10 and found.float().mean() > 40
    assert not torch.equal(found, measures.nearest(rows, everyone, torch.arange(200), 10, seed=1))


def test_nearest_of_fewer_items_than_neighbours():
    found = measures.nearest(torch.eye(3), torch.ones(3, dtype=torch.bool), torch.arange(3), 5, seed=0)
    assert (found[:, 2:] == -1).all() and (found[:, :2] >= 0).all()
    alone = measures.nearest(torch.eye(1), torch.ones(1, dtype=torch.bool), torch.arange(1), 5, seed=0)
    assert (alone == -1).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=7), max_size=6), st.integers(1, 4))
def test_cooccurring_counts_pairs_within_the_window(sequences, window):
    offsets = np.r_[0, np.cumsum([len(part) for part in sequences])].astype(np.int64)
    items = np.concatenate([np.zeros(0, np.int64), *(np.array(part, dtype=np.int64) for part in sequences)])
    counts = np.zeros((6, 6), dtype=int)
    for part in sequences:
        for i, left in enumerate(part):
            for right in part[i + 1 : i + 1 + window]:
                if left != right:
                    counts[left, right] += 1
                    counts[right, left] += 1
    found = measures.cooccurring(offsets, items, 6, torch.arange(6), 2, window, seed=0).tolist()
    for item in range(6):
        kept = [other for other in found[item] if other >= 0]
        assert len(set(kept)) == len(kept) == min(2, (counts[item] > 0).sum())
        best = sorted(counts[item], reverse=True)[: len(kept)]
        assert [counts[item, other] for other in kept] == best


def test_overlap_is_the_share_of_the_reference_found():
    reference = torch.tensor([[1, 2], [3, -1], [-1, -1], [1, 2]])
    found = torch.tensor([[2, 5], [3, 4], [1, 2], [-1, -1]])
    assert measures.overlap(reference, found) == pytest.approx((0.5 + 1.0) / 2)
    assert measures.overlap(reference[2:3], found[2:3]) is None


def test_overlap_of_random_neighbours_is_chance():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 400, 8, generator=generator)
    everyone, asked = torch.ones(400, dtype=torch.bool), torch.arange(400)
    one, two = (measures.nearest(part, everyone, asked, 10, seed=0) for part in rows)
    assert measures.overlap(one, two) == pytest.approx(10 / 399, abs=0.01)
    assert measures.overlap(one, one) == 1.0


def gaussians(strength: float, n: int = 3000, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(n, width, generator=generator), torch.randn(n, width, generator=generator)
    return x, strength * x + (1 - strength**2) ** 0.5 * noise


def test_probes_and_club_grow_with_dependence():
    found = [measures.independence(*gaussians(strength), seed=0) for strength in (0.0, 0.5, 0.9)]
    assert found[0]["r2"] < 0.02 and found[0]["club"] < 0.2
    assert found[1]["r2"] == pytest.approx(0.25, abs=0.05) and found[2]["r2"] == pytest.approx(0.81, abs=0.05)
    mutual = [-2 * np.log(1 - strength**2) for strength in (0.5, 0.9)]  # of four pairs of Gaussians
    assert found[1]["club"] > mutual[0] and found[2]["club"] > mutual[1] and found[2]["club"] > found[1]["club"]


def test_what_only_a_nonlinear_probe_sees_counts():
    x = gaussians(0.0)[0]
    found = measures.independence(x, x.square(), seed=0)
    assert found["r2_ridge"] < 0.05 and found["r2"] == found["r2_mlp"] > 0.8


def test_scale_and_shift_of_the_parts_do_not_matter():
    x, y = gaussians(0.7, n=500)
    one, other = measures.independence(x, y, seed=0), measures.independence(100 * x + 7, 0.01 * y - 3, seed=0)
    assert one["r2"] == pytest.approx(other["r2"], abs=0.01) and one["club"] == pytest.approx(other["club"], rel=0.05)


def test_a_collapsed_part_is_independent_and_its_spread_says_why():
    x, y = gaussians(0.9, n=500)
    found = measures.independence(torch.ones_like(x), y, seed=0)
    assert found["r2"] < 0.05
    assert measures.spread(torch.ones_like(x)) == {"variance": 0.0, "dimensions": 0.0}
    line = measures.spread(x[:, :1] * torch.ones(1, 4))
    assert line["dimensions"] == pytest.approx(1.0) and measures.spread(x)["dimensions"] > 3.8
    assert measures.independence(x[:7], y[:7], seed=0) == {}
