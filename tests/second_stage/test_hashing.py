import pytest
import torch
from torch.nn.functional import pad

from recbole_bbqrec.second_stage import hashing
from recbole_bbqrec.second_stage.hashing import Folds, first_by_hash, fold_of, hashes_of, sample_of

TOKENS = [str(1000 - item) for item in range(30)]
HISTORIES = torch.tensor([[3, 4, 0], [4, 3, 0], [3, 0, 0], [3, 3, 0], [3, 4, 5]])


def test_a_history_has_one_hash_whatever_its_padding_and_the_numbers_of_its_items():
    hashes = Folds(2, hashes_of(TOKENS)).hashes(HISTORIES)
    assert len(set(hashes.tolist())) == len(hashes) and len(hashes.abs().log2().int().unique()) <= 8
    assert torch.equal(Folds(2, hashes_of(TOKENS)).hashes(pad(HISTORIES, (0, 45))), hashes)
    order = [0, *range(len(TOKENS) - 1, 0, -1)]  # the same items, numbered from the other end
    renumbered = Folds(2, hashes_of([TOKENS[item] for item in order]))
    place = torch.tensor(order).argsort()
    assert torch.equal(renumbered.hashes(torch.where(HISTORIES > 0, place[HISTORIES], 0)), hashes)


def test_items_that_come_later_share_a_hash():
    folds = Folds(2, hashes_of(TOKENS))
    later, other, known = folds.hashes(torch.tensor([[3, 30, 4], [3, 31, 4], [3, 29, 4]]))
    assert later == other != known


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_folds_are_equal_parts_in_the_order_of_the_hashes(n_folds):
    hashes = torch.randint(-(2**63), 2**63 - 1, (30_000,), generator=torch.Generator().manual_seed(0))
    hashes = torch.cat([hashes, torch.tensor([-(2**63), -1, 0, 2**63 - 1])]).sort().values
    folds = fold_of(hashes, n_folds)
    assert (folds.diff() >= 0).all() and folds.unique().tolist() == list(range(n_folds))
    assert (folds.bincount() - 30_000 / n_folds).abs().max() < 500
    assert n_folds != 2 or torch.equal(folds, (hashes >= 0).long())


def test_who_was_not_fitted_on_has_no_fold():
    folds = Folds(3, hashes_of(TOKENS))
    assert folds(HISTORIES).tolist() == [3] * 5
    hashes = folds.hashes(HISTORIES)
    folds.fitted = hashes[[0, 2, 4]].unique()
    expected = fold_of(hashes, 3).where(torch.tensor([True, False, True, False, True]), torch.tensor(3))
    assert torch.equal(folds(pad(HISTORIES, (0, 2))), expected)


def test_a_sample_begins_with_what_all_of_them_begin_with(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    histories, targets = torch.randint(1, 40, (200, 5), generator=generator), torch.randint(1, 40, (200,))
    tokens = ["[PAD]", *(f"i{item}" for item in range(1, 40))]
    folds = Folds(1, hashes_of(tokens))
    in_order = first_by_hash(folds.hashes(histories), folds.item_hashes[targets])
    monkeypatch.setattr(hashing, "AT_ONCE", 7)
    asked = []

    def lists(rows):
        asked.append(len(rows))
        return histories[rows]

    found = sample_of(lists, targets, tokens, 50)
    assert found.tolist() == sorted(in_order[:50].tolist()) and max(asked) <= 7
    part = first_by_hash(folds.hashes(histories[found]), folds.item_hashes[targets[found]])
    assert found[part[:20]].tolist() == in_order[:20].tolist(), "nothing changes for who takes fewer"
    assert sample_of(lists, targets, tokens, 200).tolist() == [*range(200)]
