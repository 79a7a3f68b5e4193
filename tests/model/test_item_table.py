import pytest
import torch

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.item_table import ItemTable


def table(**changes):
    torch.manual_seed(0)
    features = {"text": torch.randn(6, 3)}
    present = {"text": torch.tensor([False, True, True, False, True, True])}
    code_ids = torch.tensor([[0, 0], [1, 5], [2, 6], [3, 0], [1, 6], [2, 5]])
    given = {"code_ids": code_ids, "n_code_ids": 9, "features": features, "present": present, **changes}
    return ItemTable(6, 4, **given)


def test_rows_are_the_sum_of_their_parts():
    module = table().eval()
    items = torch.tensor([1, 4])
    centred = module.get_buffer("features_text")[items]
    torch.testing.assert_close(centred.norm(dim=-1), torch.ones(2))
    expected = (
        module.id_embedding(items)
        + module.code_embedding(torch.tensor([[1, 5], [1, 6]])).sum(1)
        + module.projections["text"](centred)
    )
    torch.testing.assert_close(module(items), expected)


def test_padding_is_zero_and_a_missing_modality_has_a_learned_vector():
    module = table(code_ids=None, use_id=False).eval()
    with torch.no_grad():
        module.missing["text"].fill_(7.0)
    rows = module(torch.tensor([0, 3]))
    assert torch.equal(rows[0], torch.zeros(4))
    assert torch.equal(rows[1], torch.full((4,), 7.0))


@pytest.mark.parametrize("part", ["id", "codes", "features"])
def test_each_part_can_stand_alone_and_a_table_needs_one(part):
    module = table(use_id=part == "id", **({} if part == "codes" else {"code_ids": None}),
                   **({} if part == "features" else {"features": None}))  # fmt: skip
    assert module(torch.arange(6)).abs().sum() > 0
    with pytest.raises(InputError, match="items have no representation: set one of --use_item_id"):
        table(use_id=False, code_ids=None, features=None)


def test_id_dropout_is_for_training_alone():
    module = table(id_dropout=0.999, code_ids=None, features=None)
    items = torch.arange(1, 6)
    assert module.train()(items).abs().sum() == 0
    assert module.eval()(items).abs().sum() > 0


def test_appended_rows_have_no_id_part_and_leave_the_others_alone():
    module = table().eval()
    before = module(torch.arange(6))
    new = torch.randn(2, 3)
    ids = module.append(2, torch.tensor([[4, 7], [1, 8]]), {"text": new}, {"text": torch.tensor([True, False])})
    assert ids.tolist() == [6, 7] and module.n_items == 8
    assert torch.equal(module(torch.arange(6)), before)
    centred = torch.nn.functional.normalize(new[:1] - module.get_buffer("mean_text"), dim=-1)
    expected = module.code_embedding(torch.tensor([[4, 7]])).sum(1) + module.projections["text"](centred)
    torch.testing.assert_close(module(ids[:1]), expected)
    without = module.code_embedding(torch.tensor([[1, 8]])).sum(1) + module.missing["text"]
    torch.testing.assert_close(module(ids[1:]), without)


def test_code_and_feature_tables_are_not_in_the_checkpoint():
    names = set(table().state_dict())
    assert not {"code_ids", "features_text", "present_text"} & names
    assert "mean_text" in names


def test_kept_rows_are_those_of_the_table_and_are_forgotten_after_the_block():
    module = table().eval()
    items = torch.tensor([[3, 0], [5, 1]])
    expected = module(items)
    with pytest.raises(RuntimeError, match="within"), module.kept():
        torch.testing.assert_close(module(items), expected)
        module.id_embedding.weight.data += 1.0
        torch.testing.assert_close(module(items), expected)
        raise RuntimeError("within")
    assert not torch.allclose(module(items), expected)
