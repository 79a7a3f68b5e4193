import pytest
import torch

from recbole_bbqrec.model.bbqrec import CodeHeads
from recbole_bbqrec.model.catalogue import SemanticIds

CODES = torch.tensor([[-1, -1], [0, 1], [0, 2], [2, -1]])


def made(codes: torch.Tensor, codebook_size: int) -> CodeHeads:
    nothing = torch.zeros(0)
    return CodeHeads(SemanticIds(codes, nothing, nothing, [], codebook_size), hidden_size=5)


def score(heads: CodeHeads, hidden: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    return heads.states(hidden) @ heads.rows(items).T


@pytest.fixture
def heads() -> CodeHeads:
    torch.manual_seed(0)
    return made(CODES, 3)


def by_hand(heads: CodeHeads, hidden: torch.Tensor, item: int) -> torch.Tensor:
    logits = hidden @ heads.heads.weight.T + heads.heads.bias
    total = torch.zeros(len(hidden))
    for position, code in enumerate(CODES[item].tolist()):
        of_position = logits[:, position * 4 : position * 4 + 4]
        total = total + of_position.log_softmax(-1)[:, code if code >= 0 else 3]
    return total


def test_score_is_the_sum_of_the_log_probabilities_of_an_items_codes(heads):
    hidden = torch.randn(4, 5)
    scores = score(heads, hidden, torch.arange(4))
    for item in range(1, 4):
        torch.testing.assert_close(scores[:, item], by_hand(heads, hidden, item))


def test_loss_is_the_mean_of_minus_the_targets_scores(heads):
    hidden, targets = torch.randn(3, 5), torch.tensor([3, 1, 2])
    wanted = -score(heads, hidden, targets).diagonal().mean()
    torch.testing.assert_close(heads.loss(hidden, targets), wanted)


def test_all_id_strings_together_have_probability_one():
    codes = torch.cartesian_prod(torch.tensor([0, 1, -1]), torch.tensor([0, 1, -1]))
    heads = made(codes, 2)
    scores = score(heads, torch.randn(6, 5), torch.arange(9))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(6))


def test_every_parameter_learns_and_the_loss_falls(heads):
    hidden, targets = torch.randn(3, 5), torch.tensor([1, 2, 3])
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.1)
    first = heads.loss(hidden, targets).item()
    for _ in range(50):
        optimizer.zero_grad()
        loss = heads.loss(hidden, targets)
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in heads.parameters())
        optimizer.step()
    assert loss.item() < 0.3 * first
