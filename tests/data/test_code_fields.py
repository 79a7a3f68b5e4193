import pytest
import torch

from recbole_bbqrec.data.code_fields import prefixes, weighted_vectors
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.catalogue import SemanticIds


def ids_of(codes, n_signals=1, width=4):
    codes = torch.tensor([[-1] * len(codes[0]), *codes])
    present = torch.stack([part[:, 0] >= 0 for part in codes.chunk(n_signals, dim=1)])
    vectors = torch.randn(n_signals, len(codes), width, generator=torch.Generator().manual_seed(0))
    return SemanticIds(codes, vectors * present.unsqueeze(-1), present, ["text", "id"][:n_signals], 8)


SHARED = [
    [1, 0, 2, 5],
    [1, 0, 2, 6],
    [1, 3, 2, 5],
    [1, 3, 4, 6],
    [-1, -1, 4, 5],
    [7, 0, 4, 6],
    [7, 0, 4, 7],
    [7, 0, 2, 4],
]


def test_prefixes_number_the_first_codes_of_each_signal_together():
    found = {prefix.name: prefix for prefix in prefixes(ids_of(SHARED, 2))}
    assert list(found) == ["sid_1", "sid_1_2", "sid_3"], "the last codes of all would tell items apart"
    assert found["sid_1"].ids.tolist() == [0, 1, 1, 1, 1, 0, 2, 2, 2] and found["sid_1"].tokens == ["[PAD]", "1", "7"]
    assert found["sid_1_2"].ids.tolist() == [0, 1, 1, 2, 2, 0, 3, 3, 3]
    assert found["sid_1_2"].tokens == ["[PAD]", "1-0", "1-3", "7-0"]


def test_the_number_of_levels_is_a_bound():
    assert [prefix.name for prefix in prefixes(ids_of(SHARED, 2), levels=1)] == ["sid_1", "sid_3"]


def test_codes_that_no_two_items_share_are_an_error():
    with pytest.raises(InputError, match=r"fewer than two of 4 items each.*sid_codebook_size"):
        prefixes(ids_of([[1, 2], [2, 2], [3, 2], [4, 2]]))


def test_recboles_models_make_a_linear_map_of_the_vectors():
    ids = ids_of(SHARED, 2)
    columns = weighted_vectors(ids)
    assert list(columns) == ["sid_vector_text", "sid_vector_id"] and columns["sid_vector_text"].shape == (9, 4, 2)
    table = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    values, places = columns["sid_vector_text"].unbind(-1)
    count = (places != 0).sum(1, keepdim=True)
    mean = (values.unsqueeze(-1) * table[places.long()]).sum(1) / (
        count + 1e-8
    )  # ContextRecommender.embed_float_seq_fields
    unit = torch.nn.functional.normalize(ids.vectors[0], dim=-1)
    torch.testing.assert_close(mean, unit @ table[1:])
    assert not mean[[0, 5]].any(), "neither padding nor an item without the signal has any"
