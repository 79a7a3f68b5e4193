import pytest
import torch

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.catalogue import Catalogue, ItemFeatures, SemanticIds
from recbole_bbqrec.model.item_table import ItemTable
from recbole_bbqrec.tokenizer.fit import Encoded


def catalogue():
    generator = torch.Generator().manual_seed(0)
    present = torch.tensor([False, True, True, False, True, True])
    tokens = [f"i{item}" for item in range(6)]
    features = ItemFeatures(tokens, {"text": torch.randn(6, 3, generator=generator)}, {"text": present})
    codes = torch.tensor([[-1, -1], [0, 0], [1, 1], [2, -1], [0, 1], [1, 0]])
    ids = SemanticIds(codes, torch.randn(1, 6, 2), present.unsqueeze(0), ["text"], 4)
    return Catalogue(tokens, features, ids)


def table(items=None, **changes):
    torch.manual_seed(0)
    config = {"hidden_size": 4, "use_item_id": True, "use_code_embedding": True, "use_features": True}
    return ItemTable({**config, "id_dropout_prob": 0.0, "id_dim": None, **changes}, items or catalogue())


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
    module = table(use_code_embedding=False, use_item_id=False).eval()
    with torch.no_grad():
        module.missing["text"].fill_(7.0)
    rows = module(torch.tensor([0, 3]))
    assert torch.equal(rows[0], torch.zeros(4))
    assert torch.equal(rows[1], torch.full((4,), 7.0))


@pytest.mark.parametrize("part", ["id", "codes", "features"])
def test_each_part_can_stand_alone_and_a_table_needs_one(part):
    keys = {"id": "use_item_id", "codes": "use_code_embedding", "features": "use_features"}
    module = table(**{key: name == part for name, key in keys.items()})
    assert module(torch.arange(6)).abs().sum() > 0
    with pytest.raises(InputError, match="items have no representation: set one of --use_item_id"):
        table(use_item_id=False, use_code_embedding=False, use_features=False)


def test_id_dropout_is_for_training_alone():
    module = table(id_dropout_prob=0.999, use_code_embedding=False, use_features=False)
    items = torch.arange(1, 6)
    assert module.train()(items).abs().sum() == 0
    assert module.eval()(items).abs().sum() > 0


def test_a_narrow_id_embedding_is_mapped_to_the_width_of_the_rows():
    module = table(id_dim=2, use_code_embedding=False, use_features=False)
    assert module.id_embedding.weight.shape == (6, 2) and module.id_projection.shape == (2, 4)
    items = torch.tensor([3, 0, 5])
    rows = module(items)
    torch.testing.assert_close(rows, module.id_embedding.weight[items] @ module.id_projection)
    assert torch.equal(rows[1], torch.zeros(4))
    assert torch.linalg.matrix_rank(module(torch.arange(6))) == 2
    rows.sum().backward()
    assert module.id_projection.grad.abs().sum() > 0
    assert module.id_embedding.weight.grad.abs().sum(1).ne(0).tolist() == [False, False, False, True, False, True]


def test_an_id_embedding_as_wide_as_the_rows_is_the_plain_table():
    items = torch.arange(6)
    plain = table()(items)
    assert torch.equal(table(id_dim=4)(items), plain) and table(id_dim=4).id_projection is None
    assert table(id_dim=2, use_item_id=False).id_projection is None


def test_narrow_ids_start_as_large_as_wide_ones():
    many = Catalogue([f"i{item}" for item in range(2000)])
    parts = {"hidden_size": 64, "use_code_embedding": False, "use_features": False}
    for width in (None, 32, 16):
        assert table(many, id_dim=width, **parts)(torch.arange(1, 2000)).std().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("id_dim", [None, 3])
def test_rows_of_new_items_have_no_id_part_and_leave_the_others_alone(id_dim):
    module = table(id_dim=id_dim).eval()
    before, known, new = module(torch.arange(6)), catalogue(), torch.randn(2, 3)
    present = torch.tensor([True, False])
    encoded = Encoded(torch.tensor([[3, 2], [0, 3]]), torch.zeros(1, 2, 2), present.unsqueeze(0))
    items = known.grown(ItemFeatures(["a", "b"], {"text": new}, {"text": present}), encoded)
    grown = table(items, id_dim=id_dim).eval()
    grown.load_state_dict(module.state_dict())
    assert grown.n_items == 8 and torch.equal(grown(torch.arange(6)), before)
    matrix, has = known.features.matrices["text"], known.features.present["text"]
    centred = torch.nn.functional.normalize(new[:1] - matrix[has].mean(0), dim=-1)
    expected = module.code_embedding(torch.tensor([[4, 7]])).sum(1) + module.projections["text"](centred)
    torch.testing.assert_close(grown(torch.tensor([6])), expected)
    without = module.code_embedding(torch.tensor([[1, 8]])).sum(1) + module.missing["text"]
    torch.testing.assert_close(grown(torch.tensor([7])), without)


def test_code_and_feature_tables_are_not_in_the_checkpoint():
    names = set(table().state_dict())
    assert names and not {"code_ids", "features_text", "present_text"} & names
