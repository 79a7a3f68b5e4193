import pytest
import torch

from recbole_bbqrec.tokenizer.residual_quantizer import ResidualQuantizer, kmeans


@pytest.fixture
def quantizer() -> ResidualQuantizer:
    torch.manual_seed(0)
    return ResidualQuantizer(levels=2, size=8, dim=4)


def everyone(points: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, len(points), dtype=torch.bool)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_vectors_are_the_sum_of_the_chosen_codes(quantizer):
    x = torch.randn(20, 4, generator=generator())
    result = quantizer.quantize(x)
    books = quantizer.codebooks.detach()
    torch.testing.assert_close(result.vectors, books[0][result.codes[:, 0]] + books[1][result.codes[:, 1]])
    torch.testing.assert_close(result.vectors, quantizer.lookup(result.codes))


def test_every_level_takes_the_nearest_code_of_what_is_left(quantizer):
    x = torch.randn(20, 4, generator=generator())
    codes = quantizer.quantize(x).codes
    left = x
    for level, book in enumerate(quantizer.codebooks.detach()):
        assert torch.equal(torch.cdist(left, book).argmin(1), codes[:, level])
        left = left - book[codes[:, level]]


def test_gradient_passes_straight_through_and_reaches_the_chosen_codes(quantizer):
    x = torch.randn(20, 4, generator=generator(), requires_grad=True)
    weight = torch.randn(20, 4, generator=generator(1))
    result = quantizer.quantize(x)
    (result.vectors * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    for level in range(2):
        expected = torch.zeros(8, 4).index_add_(0, result.codes[:, level], weight)
        torch.testing.assert_close(quantizer.codebooks.grad[level], expected)


def test_loss_pulls_codes_to_points_and_points_to_codes_a_quarter_as_much():
    quantizer = ResidualQuantizer(levels=1, size=1, dim=2)
    x = torch.tensor([[3.0, 0.0]], requires_grad=True)
    with torch.no_grad():
        quantizer.codebooks.zero_()
    result = quantizer.quantize(x)
    assert result.loss.item() == pytest.approx(9.0 * 1.25)
    result.loss.backward()
    assert torch.equal(quantizer.codebooks.grad[0], torch.tensor([[-6.0, 0.0]]))
    assert torch.equal(x.grad, torch.tensor([[1.5, 0.0]]))


def test_unknown_rows_have_no_part_in_the_loss(quantizer):
    x = torch.randn(6, 4, generator=generator())
    known = torch.tensor([True, True, False, True, False, False])
    changed = torch.where(known.unsqueeze(1), x, 100.0)
    torch.testing.assert_close(quantizer.quantize(x, known).loss, quantizer.quantize(changed, known).loss)
    assert quantizer.quantize(x, torch.zeros(6, dtype=torch.bool)).loss == 0


def test_lookup_of_a_missing_signal_is_zero(quantizer):
    assert torch.equal(quantizer.lookup(torch.tensor([[-1, -1], [0, 1]]))[0], torch.zeros(4))


def test_kmeans_finds_separate_clusters():
    truth = torch.eye(6) * 10
    points = truth.repeat(30, 1) + 0.1 * torch.randn(180, 6, generator=generator())
    centres = kmeans(points, 6, generator(1))
    assert torch.cdist(truth, centres).min(1).values.max() < 0.1
    assert torch.equal(centres, kmeans(points, 6, generator(1)))


@pytest.mark.parametrize("n_points", [1, 3])
def test_kmeans_with_fewer_points_than_centres(n_points):
    points = torch.randn(n_points, 4, generator=generator())
    centres = kmeans(points, 8, generator())
    assert torch.isfinite(centres).all()
    assert torch.cdist(points, centres).min(1).values.max() < 1e-6


def test_kmeans_of_equal_points():
    centres = kmeans(torch.ones(10, 3), 4, generator())
    assert torch.equal(centres, torch.ones(4, 3))


def test_start_uses_residuals_level_by_level(quantizer):
    points = torch.randn(500, 4, generator=generator())
    quantizer.start(points.unsqueeze(0), everyone(points), generator())
    left = points
    errors = [left.square().sum(1).mean()]
    for level, book in enumerate(quantizer.codebooks.detach()):
        left = left - book[quantizer.quantize(points).codes[:, level]]
        errors.append(left.square().sum(1).mean())
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.7 * errors[1]


def test_dead_codes_restart_from_the_batch_and_living_ones_stay(quantizer):
    points = torch.randn(50, 4, generator=generator())
    quantizer.usage[0, [1, 5]] = 0.0
    before = quantizer.codebooks.detach().clone()
    quantizer.restart_dead(points.unsqueeze(0), everyone(points), generator(), adam(quantizer))
    after = quantizer.codebooks.detach()
    for code in range(8):
        if code in (1, 5):
            assert (after[0, code] == points).all(1).any()
        else:
            assert torch.equal(after[0, code], before[0, code])
    assert torch.equal(after[1], before[1])
    assert (quantizer.usage[0, [1, 5]] == 1).all()


def adam(quantizer: ResidualQuantizer) -> torch.optim.AdamW:
    return torch.optim.AdamW(quantizer.parameters(), fused=True)


def test_a_restarted_code_keeps_nothing_of_its_predecessor_in_the_optimizer(quantizer):
    """A step without a gradient leaves it where it was put; the others go on by their momentum."""
    optimizer = adam(quantizer)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    quantizer.codebooks.grad = torch.ones_like(quantizer.codebooks)
    optimizer.step()
    points = torch.randn(50, 4, generator=generator())
    quantizer.usage[0, [1, 5]] = 0.0
    quantizer.restart_dead(points.unsqueeze(0), everyone(points), generator(), optimizer)
    before = quantizer.codebooks.detach().clone()
    quantizer.codebooks.grad = torch.zeros_like(quantizer.codebooks)
    optimizer.step()
    moved = (quantizer.codebooks.detach() != before).all(-1)
    assert torch.nonzero(~moved).tolist() == [[0, 1], [0, 5]]


def test_usage_forgets_codes_that_are_no_longer_chosen(quantizer):
    codes = torch.tensor([[0, 0], [1, 1], [-1, -1]])
    for _ in range(400):
        quantizer.observe(codes.unsqueeze(0))
    torch.testing.assert_close(quantizer.usage[0, :2], torch.full((2,), 4.0), rtol=1e-2, atol=0)
    assert (quantizer.usage[:, 2:] < 0.01).all()


def test_every_chain_has_its_own_codebooks_where_they_are_not_shared():
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(levels=2, size=8, dim=4, sets=3)
    x = torch.randn(20, 4, generator=generator())
    result = quantizer.quantize(x, chain=1)
    books = quantizer.codebooks.detach()
    assert books.shape == (6, 8, 4)
    torch.testing.assert_close(result.vectors, books[2][result.codes[:, 0]] + books[3][result.codes[:, 1]])
    torch.testing.assert_close(result.vectors, quantizer.lookup(result.codes, chain=1))
    result.vectors.sum().backward()
    assert quantizer.codebooks.grad.flatten(1).any(1).tolist() == [False, False, True, True, False, False]
    before = books.clone()
    quantizer.usage[:] = 0.0
    missing = torch.full_like(result.codes, -1)
    quantizer.observe(torch.stack([missing, result.codes, missing]))
    assert quantizer.usage.any(1).tolist() == [False, False, True, True, False, False]
    points, known = x.expand(3, -1, -1), torch.tensor([[True], [False], [True]]).expand(3, len(x))
    quantizer.restart_dead(points, known & torch.tensor([[False], [True], [True]]), generator(), adam(quantizer))
    quantizer.start(points, known & torch.tensor([[True], [True], [False]]), generator())
    changed = (quantizer.codebooks.detach() != before).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, False, True, True]


def test_start_without_points_changes_nothing(quantizer):
    before = quantizer.codebooks.detach().clone()
    quantizer.start(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.bool), generator())
    assert torch.equal(quantizer.codebooks.detach(), before)
