from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import recbole_bbqrec
from recbole_bbqrec import quick_start, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import WindowDataLoader, split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.model.tiger import TIGER, counted

SMALL = {
    "hidden_size": 16,
    "inner_size": 32,
    "n_layers": 2,
    "n_decoder_layers": 1,
    "heads": 3,
    "head_size": 4,
    "feature_dim": 16,
    "sid_codebook_size": 8,
    "sid_code_dim": 8,
    "sid_steps": 40,
    "eval_step": 1,
    "report_card": False,
}
WITHOUT_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
FORMS = pytest.mark.parametrize("causal", [True, False])


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    place = str(tmp_path_factory.mktemp("tiger"))
    config = Config(config_dict=settings(tiny, "TIGER", **SMALL, checkpoint_dir=place))
    return config, split_loaders(config, registry.get_dataset("TIGER")(config))


def make(data, seed=0, **changes):
    """A TIGER on the tiny data set with other settings, and its training batches."""
    config, (train, valid, _) = data
    before = dict(config.final_config_dict)
    config.final_config_dict.update(changes)
    try:
        torch.manual_seed(seed)
        model = registry.build_model(config, train._dataset)
        batches = list(WindowDataLoader(config, train._dataset, train._dataset.train_sequences))
    finally:
        config.final_config_dict.clear()
        config.final_config_dict.update(before)
    return model, batches, valid


def lively(data, **changes):
    """The same with large weights and without dropout: with small ones all items are about equally likely."""
    model, batches, valid = make(data, **WITHOUT_DROPOUT, **changes)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval(), batches, valid


def histories(model, n_rows=6, length=9):
    """Histories of different length, right-padded, each item once."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.stack([1 + torch.randperm(model.n_items - 1, generator=generator)[:length] for _ in range(n_rows)])
    lengths = 1 + torch.arange(n_rows) * (length - 1) // (n_rows - 1)
    return rows * (torch.arange(length) < lengths.unsqueeze(1))


def losses(model, items, targets):
    """Loss of each target [T] of one sequence [T] by itself."""
    alone = torch.diag(targets).unsqueeze(1)  # [T, 1, T]
    return torch.stack(
        [model.calculate_loss({model.ITEM_SEQ: items.view(1, -1), "target_list": target}) for target in alone]
    )


# What reads what


@FORMS
def test_no_loss_knows_items_behind_its_target(data, causal):
    model, _, _ = lively(data, causal_encoder=causal)
    items, targets = torch.arange(1, 9), torch.arange(11, 19)
    before = losses(model, items, targets)
    for changed in range(8):
        other = items.clone()
        other[changed] = 30
        after = losses(model, other, targets)
        torch.testing.assert_close(after[:changed], before[:changed], rtol=1e-5, atol=1e-5)
        assert ((after - before)[changed:].abs() > 1e-4).all(), "all targets from there on read the changed item"


def test_codes_of_a_history_read_later_items_in_the_form_of_the_paper_alone(data):
    items = torch.arange(1, 9).view(1, -1)
    other = items.clone()
    other[0, -1] = 30
    for causal in (True, False):
        model, _, _ = lively(data, causal_encoder=causal)
        same = (model(items) - model(other)).abs().amax(-1).view(8, 4) < 1e-5  # [T, P]
        assert same.tolist() == [[causal] * 4] * 7 + [[False] * 4]


def test_an_item_reads_all_of_its_own_codes(data):
    model, _, _ = lively(data)
    with torch.no_grad():
        before = model(torch.tensor([[5]]))
        model.code_ids[5, -1] = 25 + (model.code_ids[5, -1] - 24) % 8  # another last code
        after = model(torch.tensor([[5]]))
    assert ((before - after).abs().amax(-1) > 1e-4).all()


@FORMS
def test_training_sees_what_scoring_sees(data, causal):
    """The loss of a window is that of its targets, each after the history that scoring would be given."""
    model, _, _ = lively(data, causal_encoder=causal)
    items = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
    targets = torch.tensor([[0, 0, 4, 5, 6], [7, 8, 9, 0, 0]])  # the first window's first targets are another's
    expected = []
    for row, last in targets.nonzero().tolist():
        history = items[row : row + 1, : last + 1]
        states, real = model(history), torch.ones(1, 1, 4 * (last + 1), dtype=torch.bool)
        expected.append(model.decoder.loss(states, real, targets[row, last].view(1, 1)))
    loss = model.calculate_loss({model.ITEM_SEQ: items, "target_list": targets})
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)


# Scores


@FORMS
def test_scores_are_a_distribution_over_the_items(data, causal):
    model, _, _ = lively(data, causal_encoder=causal, beam_size=0)
    scores = model.score(histories(model)).detach()
    assert not model.is_beam_search and (scores[:, 0] == -torch.inf).all()
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(6))
    assert scores[:, 1:].std(1).min() > 0.1 and scores[:, 1:].std(0).max() > 0.1, "items and histories differ"


@FORMS
def test_a_beam_as_wide_as_the_catalogue_agrees_with_the_exact_likelihood(data, causal):
    exact, _, _ = lively(data, causal_encoder=causal, beam_size=0)
    wide, _, _ = make(data, causal_encoder=causal, beam_size=exact.n_items)
    wide.load_state_dict(exact.state_dict())
    scores = wide.eval().score(histories(wide)), exact.score(histories(exact))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(scores[0].argsort(1), scores[1].argsort(1))


def test_a_beam_finds_items_and_nothing_else(data):
    model, _, _ = lively(data, beam_size=5)
    exact, _, _ = lively(data, beam_size=0)
    exact.load_state_dict(model.state_dict())
    rows = histories(model)
    found, expected = model.score(rows), exact.score(rows)
    inside = found > -torch.inf
    assert model.is_beam_search and (inside.sum(1) == 5).all() and not inside[:, 0].any()
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-4, atol=1e-4)


def test_excluded_items_leave_the_beam_to_others(data):
    model, _, _ = lively(data, beam_size=5)
    rows = histories(model)
    seen = rows.nonzero()[:, 0], rows[rows > 0]
    found = model.score(rows, excluded=seen)
    assert (found[seen] == -torch.inf).all() and ((found > -torch.inf).sum(1) == 5).all()


# Codes


@st.composite
def ids(draw, size=6):
    """IDs [n + 1, 3] of few different earlier codes below a padding row, and the items' tokens."""
    rows = draw(st.lists(st.tuples(*[st.integers(0, 1)] * 2, st.integers(0, size - 1)), min_size=1, max_size=6))
    tokens = draw(st.permutations([f"i{number}" for number in range(len(rows))]))
    return torch.tensor([(-1, -1, -1), *rows]), ["[PAD]", *tokens]


@hypothesis_settings(deadline=None)
@given(ids())
def test_counting_tells_items_of_equal_earlier_codes_apart(drawn):
    codes, tokens = drawn
    result = counted(codes, tokens, 6)
    assert torch.equal(result[:, :-1], codes[:, :-1]) and torch.equal(result[0], codes[0])
    groups = {}
    for item in sorted(range(1, len(codes)), key=lambda item: tokens[item]):
        groups.setdefault(tuple(codes[item, :-1].tolist()), []).append(int(result[item, -1]))
    assert all(numbers == list(range(len(numbers))) for numbers in groups.values())


def test_too_many_items_of_equal_codes_are_refused():
    codes = torch.tensor([[-1, -1]] + [[1, place] for place in range(3)])
    assert counted(codes, ["[PAD]", "c", "a", "b"], 3)[1:, 1].tolist() == [2, 0, 1]
    with pytest.raises(InputError, match=r"count_collisions: 3 items have equal codes .* raise sid_levels"):
        counted(codes, ["[PAD]", "c", "a", "b"], 2)


def test_new_items_are_counted_behind_those_that_training_knew():
    codes = torch.tensor([[-1, -1]] + [[1, place] for place in range(4)])
    assert counted(codes, ["[PAD]", "c", "d", "a", "b"], 4, n_trained=3)[1:, 1].tolist() == [0, 1, 2, 3]


def test_counted_codes_are_those_of_the_trie_and_of_the_encoder(data):
    plain, _, _ = make(data)
    model, _, _ = make(data, count_collisions=True)
    codes = data[1][0]._dataset.catalogue.semantic_ids.codes
    assert torch.equal(plain.decoder.trie.item_symbols[1:] % 9, codes[1:])
    symbols = model.decoder.trie.item_symbols[1:] % 9
    assert torch.equal(symbols[:, :3], codes[1:, :3]) and not torch.equal(symbols, codes[1:])
    assert torch.equal(model.code_ids[1:], symbols + 1 + torch.arange(4) * 8)


# Settings and runs


def test_without_codes_there_is_nothing_to_read(tiny, tmp_path):
    given = settings(tiny, "TIGER", **SMALL, codes="none", checkpoint_dir=str(tmp_path))
    with pytest.raises(InputError, match="TIGER: found no semantic IDs"):
        quick_start.run(config_dict=given)


def test_the_form_of_the_paper_has_its_sizes(tiny):
    config = Config(config_dict={"model": "TIGERPaper", "dataset": "tiny", "data_path": str(tiny)})
    assert (config["n_layers"], config["n_decoder_layers"], config["heads"], config["head_size"]) == (4, 4, 6, 64)
    assert (config["hidden_size"], config["inner_size"], config["sid_codebook_size"]) == (128, 1024, 256)
    assert (config["causal_encoder"], config["count_collisions"], config["train_batch_size"]) == (False, True, 256)
    assert (config["sid_levels"], config["MAX_ITEM_LIST_LENGTH"], config["tokenizer"]) == (4, 20, "rqvae")


@pytest.mark.parametrize("name", ["TIGER", "TIGERPaper"])
def test_a_run_repeats_itself_and_its_folder_recommends(tiny, tmp_path, name):
    def run(place):
        given = settings(tiny, name, **SMALL, beam_size=6, checkpoint_dir=str(tmp_path / place))
        return quick_start.execute(config_dict=given)

    (record, ranks), (again, _) = run("one"), run("two")
    assert record["metrics"] == again["metrics"] and record["epochs"]["done"] == 2
    masked, unmasked = ranks["valid"].masked, ranks["valid"].unmasked
    assert 0 < (masked <= 6).mean() < 1 and masked[masked > 6].min() > 40, "what is beyond the beam is not found"
    assert (masked <= 6).sum() >= (unmasked <= 6).sum()
    bundle = recbole_bbqrec.load_bundle(record["run_dir"])
    assert isinstance(bundle.model, TIGER) and not list(Path(record["run_dir"]).glob("candidates*"))
    histories = [bundle.item_tokens[start : start + 9] for start in range(1, 25)]
    for history, (items, scores, _) in zip(histories, bundle.recommend(histories, k=6), strict=True):
        assert len(items) == 6 and not set(items) & set(history) and scores == sorted(scores, reverse=True)
    _, model, _, _, valid, _ = quick_start.load_data_and_model(record["run_dir"])
    rows = valid.collate_fn(range(7))[0][model.ITEM_SEQ]
    torch.testing.assert_close(bundle.model.score(rows), model.score(rows))
