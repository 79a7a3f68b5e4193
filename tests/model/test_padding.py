import copy
import itertools

import numpy as np
import pytest
import torch
from conftest import N_ITEMS, settings, write_interactions, write_items
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.model import padding
from recbole_bbqrec.model.padding import LENGTH_INDEPENDENT, group_by_length, group_ends, history_lengths, trim

WIDTH = 50  # RecBole's default
DEPENDENT = ("FEARec", "LightSANs", "NextItNet", "RepeatNet", "SINE", "STAMP")


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    """Users with 4 to 45 interactions: most histories are short, as in real data."""
    folder = tmp_path_factory.mktemp("padding")
    generator = np.random.default_rng(1)
    lengths = np.clip(generator.geometric(0.15, size=50) + 3, 4, 45)
    rows = [
        (f"u{user:02d}", f"i{item:02d}", time)
        for user, length in enumerate(lengths)
        for time, item in enumerate(generator.integers(N_ITEMS, size=length))
    ]
    write_interactions(folder, "tiny", rows)
    write_items(folder, "tiny")
    return folder


def build(name, data_path, **more):
    """A model of RecBole with larger weights than at the start, one training batch and one test batch."""
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]}
    changes = {"load_col": columns, "selected_features": ["brand"], "MAX_ITEM_LIST_LENGTH": WIDTH, "seed": 3}
    changes |= more
    config = Config(config_dict=settings(data_path, name, **changes, use_gpu=False))
    dataset = registry.get_dataset(name)(config)
    train, _, test = split_loaders(config, dataset)
    torch.manual_seed(5)
    model = registry.get_model(name)(config, train._dataset)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    for module in model.modules():  # dropout draws differ by shape; everything else must agree
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    train.generator.manual_seed(7)
    batch, evaluation = next(iter(train)), next(iter(test))[0]
    assert history_lengths(batch["item_id_list"]).unique().numel() > 5
    return model, batch, evaluation


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model.calculate_loss(batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def narrowed(interaction):
    """The same rows, histories of at most 12 items, trimmed to their longest."""
    rows = interaction[interaction["item_length"] <= 12]
    short = copy.deepcopy(rows)
    short.interaction["item_id_list"] = trim(rows["item_id_list"], rows["item_length"])
    assert short["item_id_list"].size(1) <= 12 < rows["item_id_list"].size(1)
    return rows, short


@pytest.mark.parametrize("name", sorted(LENGTH_INDEPENDENT))
def test_grouping_changes_nothing(name, data_path):
    model, batch, evaluation = build(name, data_path)
    grouped = group_by_length(copy.deepcopy(model))
    calls = []
    grouped.register_forward_pre_hook(lambda *_: calls.append(1))
    for part in (batch, evaluation):
        assert len(group_ends(np.sort(history_lengths(part["item_id_list"]).numpy()))) > 1

    with torch.no_grad():
        expected, found = model.eval().full_sort_predict(evaluation), grouped.eval().full_sort_predict(evaluation)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grouped.predict(evaluation), model.predict(evaluation), rtol=1e-5, atol=1e-5)

    for mode in (False, True):  # in training mode too: there a layer that mixes rows would show
        expected_loss, expected_gradients = loss_and_gradients(model.train(mode), batch)
        loss, gradients = loss_and_gradients(grouped.train(mode), batch)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
        assert gradients.keys() == expected_gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ft_ratio", [0.0, 1.0])  # masks anywhere in the history, a mask at its end
@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_bert4rec_scores_the_catalogue_at_masks_alone(ft_ratio, loss_type, data_path, monkeypatch):
    model, batch, _ = build("BERT4Rec", data_path, ft_ratio=ft_ratio, loss_type=loss_type)
    grouped = group_by_length(copy.deepcopy(model))
    expected_loss, expected_gradients = loss_and_gradients(model, batch)
    scored, cross_entropy = [], torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda x, y, **keys: scored.append(len(x)) or cross_entropy(x, y, **keys)
    )
    loss, gradients = loss_and_gradients(grouped, batch)
    masks = int((batch["MASK_INDEX"] > 0).sum())
    assert 0 < masks < batch["MASK_INDEX"].numel() / 3
    assert scored == ([masks] if loss_type == "CE" else [])
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(LENGTH_INDEPENDENT))
def test_trimmed_evaluation_changes_nothing(name, data_path):
    model, _, evaluation = build(name, data_path)
    rows, short = narrowed(evaluation)
    with torch.no_grad():
        expected = model.eval().full_sort_predict(rows)
        torch.testing.assert_close(model.full_sort_predict(short), expected, rtol=1e-5, atol=1e-5)
        each = torch.cat([model.full_sort_predict(narrowed(rows[i : i + 1])[1]) for i in range(len(rows))])
        torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DEPENDENT)
def test_models_that_read_padding_are_left_out(name, data_path):
    assert name not in LENGTH_INDEPENDENT
    model, _, evaluation = build(name, data_path)
    rows, short = narrowed(evaluation)
    with torch.no_grad():
        expected = model.eval().full_sort_predict(rows)
        try:
            found = model.full_sort_predict(short)
        except (RuntimeError, IndexError):
            return  # shapes are tied to the padded length
    assert (found - expected).abs().max() > 1e-4


def test_all_names_are_models_of_recbole():
    assert all(registry.get_model(name).__name__ == name for name in LENGTH_INDEPENDENT)


class Counting(torch.nn.Module):
    """Sums item vectors of a history and remembers the shapes it was called with."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 4, padding_idx=0)
        self.shapes = []

    def forward(self, item_seq, item_seq_len):
        assert item_seq.size(0) == item_seq_len.size(0)
        self.shapes.append(tuple(item_seq.shape))
        return self.embedding(item_seq).sum(1) / item_seq_len[:, None]


def histories(lengths, width=20):
    lengths = torch.tensor(lengths)
    items = torch.randint(1, 9, (len(lengths), width), generator=torch.Generator().manual_seed(0))
    return items * (torch.arange(width) < lengths[:, None]), lengths


def test_rows_come_back_in_their_order_from_trimmed_groups(monkeypatch):
    monkeypatch.setattr(padding, "CALL_COST", 1)
    model, (item_seq, lengths) = Counting(), histories([3, 20, 1, 3, 2, 20, 1, 1])
    expected = model(item_seq, lengths)
    model.shapes.clear()
    torch.testing.assert_close(group_by_length(model)(item_seq, item_seq_len=lengths), expected)
    assert model.shapes == [(3, 1), (3, 3), (2, 20)]


def test_small_batches_stay_whole_but_trimmed():
    model, (item_seq, lengths) = group_by_length(Counting()), histories([3, 5, 1])
    model(item_seq, lengths)
    assert model.shapes == [(3, 5)]


def test_copies_are_grouped_copies_of_their_own():
    model = group_by_length(group_by_length(Counting()))
    item_seq, lengths = histories([1, 2])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.embedding.weight.add_(1.0)
    assert not torch.allclose(twin(item_seq, lengths), model(item_seq, lengths))
    assert twin.shapes == model.shapes == [(2, 2)]
    assert model.state_dict().keys() == Counting().state_dict().keys()


def test_lengths_and_trim():
    item_seq = torch.tensor([[4, 0, 2, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
    lengths = history_lengths(item_seq)
    assert lengths.tolist() == [3, 1, 1]
    assert trim(item_seq, lengths).shape == (3, 3)
    assert trim(item_seq[:0], lengths[:0]).shape == (0, 1)


def padded_cost(lengths, ends):
    return sum(
        (end - start) * lengths[end - 1] + padding.CALL_COST for start, end in zip([0, *ends[:-1]], ends, strict=True)
    )


@hypothesis_settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.sampled_from([1, 7, 40]), st.integers(1, 4))
def test_groups_are_the_cheapest_ones(lengths, call_cost, max_groups):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padding, "CALL_COST", call_cost)
        patch.setattr(padding, "MAX_GROUPS", max_groups)
        lengths = sorted(lengths)
        ends = group_ends(np.array(lengths))
        assert ends == sorted(set(ends)) and ends[-1] == len(lengths) and len(ends) <= max_groups
        borders = [i + 1 for i in range(len(lengths) - 1) if lengths[i] < lengths[i + 1]]
        choices = [[*cut, len(lengths)] for n in range(max_groups) for cut in itertools.combinations(borders, n)]
        assert padded_cost(lengths, ends) == min(padded_cost(lengths, choice) for choice in choices)


def test_no_rows_no_groups():
    assert group_ends(np.array([], int)) == []


def test_six_groups_take_most_padding_away():
    lengths = np.sort(np.clip(np.random.default_rng(0).geometric(0.16, size=2048), 1, WIDTH))
    ends = group_ends(lengths)
    padded = padded_cost(lengths, ends) - padding.CALL_COST * len(ends)
    assert padded < 1.3 * lengths.sum() < 0.17 * 2048 * WIDTH
