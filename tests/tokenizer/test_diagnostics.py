import numpy as np
import pytest
import torch

from recbole_bbqrec.tokenizer import diagnostics


def test_utilisation_and_perplexity_of_even_one_sided_and_absent_codes():
    codes = torch.tensor([[0, 2, -1], [1, 2, -1], [2, 2, -1], [3, 2, -1]])
    assert diagnostics.utilisation(codes, 8) == [0.5, 0.125, 0.0]
    assert diagnostics.perplexity(codes, 8) == pytest.approx([4.0, 1.0, 0.0])


def test_collisions_count_items_and_ids():
    codes = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 0]])
    assert diagnostics.collisions(codes) == {"sharing": 5, "distinct": 3, "largest": 3}


def test_first_code_agreement_stays_within_sequences():
    codes = torch.tensor([0, 0, 1, 1])
    offsets, items = np.array([0, 2, 2, 4]), np.array([0, 1, 2, 3])
    assert diagnostics.first_code_agreement(codes, offsets, items) == (1.0, 0.5)
    assert diagnostics.first_code_agreement(codes, np.array([0, 1, 2]), np.array([0, 1])) == (0.0, 0.0)


def test_first_code_agreement_leaves_missing_codes_out():
    codes = torch.tensor([0, 0, -1])
    assert diagnostics.first_code_agreement(codes, np.array([0, 3]), np.array([0, 1, 2])) == (1.0, 1.0)
