"""Items held out of training: which they are, that nothing learns from them, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import N_ITEMS, settings, tiny_interactions, write_dataset

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.cold_items import cold_tokens, is_cold
from recbole_bbqrec.data.dataloader import WindowDataLoader, split_loaders
from recbole_bbqrec.data.sequences import Sequences, seen_before
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.leakage import check_leakage
from recbole_bbqrec.preparation.vectors import write_vectors

COLD = {"cold_items": 0.2, "second_stage": "off"}
N_COLD = 8  # a fifth of the 40 items


def built(folder, model="BBQRec", **changes):
    config = Config(config_dict=settings(folder, model, **{**COLD, **changes}))
    dataset = registry.get_dataset(model)(config)
    return config, dataset, split_loaders(config, dataset)


def parts(loaders):
    return [loader._dataset for loader in loaders]


def test_the_draw_looks_at_tokens_alone_and_smaller_shares_are_parts_of_larger_ones():
    tokens = [f"i{item:02d}" for item in range(N_ITEMS)]
    drawn = cold_tokens(tokens, 0.2)
    assert len(drawn) == N_COLD and drawn < set(tokens)
    assert cold_tokens(tokens[::-1], 0.2) == drawn > cold_tokens(tokens, 0.1)
    assert len(cold_tokens(tokens, 0.001)) == 1 and cold_tokens(tokens, 0.0) == set()
    with pytest.raises(InputError, match=r"cold_items: found 0\.99, which leaves none of 40 items to train on"):
        cold_tokens(tokens, 0.99)


def test_cold_items_stand_behind_those_that_training_knows(tiny):
    _, dataset, loaders = built(tiny)
    train, valid, test = parts(loaders)
    whole = valid.catalogue
    assert whole is test.catalogue and whole.n_trained == train.item_num == N_ITEMS + 1 - N_COLD
    assert valid.item_num == N_ITEMS + 1 and whole.tokens[: whole.n_trained] == train.catalogue.tokens
    assert {*whole.tokens[whole.n_trained :]} == cold_tokens(whole.tokens[1:], 0.2)
    assert train.catalogue.semantic_ids.codes.shape[0] == train.item_num and dataset.catalogue is train.catalogue
    assert (whole.semantic_ids.codes[whole.n_trained :, -1] >= 0).all(), "encoded by the tokenizer"


def test_no_cold_item_is_in_a_training_window_and_all_are_in_histories_and_masks(tiny):
    config, dataset, loaders = built(tiny)
    train, valid, _ = parts(loaders)
    n_trained, users = train.item_num, {}
    for batch in WindowDataLoader(config, train, train.train_sequences):
        assert batch["item_id_list"].max() < n_trained and batch["target_list"].max() < n_trained
    for user, item, _ in tiny_interactions():  # in the order of time
        users.setdefault(user, []).append(item)
    cold = cold_tokens([f"i{item:02d}" for item in range(N_ITEMS)], 0.2)
    expected = [[item for item in items[:-2] if item not in cold] for _, items in sorted(users.items())]
    found = [[valid.catalogue.tokens[item] for item in sequence] for sequence in train.train_sequences]
    assert found == [items for items in expected if items] and any(cold & {*items[:-2]} for items in users.values())
    seen = seen_before(valid, [train])
    for row, history in enumerate(valid.histories):
        user = dataset.field2id_token["user_id"][valid.inter_feat["user_id"][row]]
        assert [valid.catalogue.tokens[item] for item in history] == users[user][:-2]
        assert sorted(seen[[row]].nonzero()[1]) == sorted({*history} - {int(valid.inter_feat["item_id"][row])})


def test_sequences_of_some_items_leave_out_what_is_empty():
    only = Sequences(np.array([0, 3, 4, 6]), np.array([5, 1, 7, 2, 8, 9])).only(np.array([1, 0, 1, 0, 1, 0], bool))
    assert only.offsets.tolist() == [0, 2, 3] and only.items.tolist() == [5, 7, 8]


@pytest.mark.parametrize("encoder", ["tfidf", "codes", "vectors"])
def test_what_training_knows_does_not_depend_on_cold_items(tmp_path, encoder):
    """Texts and vectors of cold items are changed, and what users did with them: codes, edges, features stay."""
    cold = cold_tokens([f"i{item:02d}" for item in range(N_ITEMS)], 0.2)
    found = []
    for place in ("one", "other"):
        rows = tiny_interactions()
        folder = write_dataset(tmp_path / place, rows=rows)
        matrix = torch.randn(N_ITEMS, 6, generator=torch.Generator().manual_seed(0))
        if place == "other":
            file = folder / "tiny" / "tiny.item"
            lines = file.read_text(encoding="utf-8").splitlines()
            made = [f"{line.split(chr(9))[0]}\todd words odd\tOdd\tA_77\ta_99 b_0" for line in lines]
            lines = [new if line[:3] in cold else line for line, new in zip(lines, made, strict=True)]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            matrix[[int(token[1:]) for token in cold]] = 9.0
        write_vectors(folder / "tiny" / "v.safetensors", [f"i{item:02d}" for item in range(N_ITEMS)], matrix)
        given = {"text_encoder": "v.safetensors"} if encoder == "vectors" else {"text_encoder": encoder}
        given |= {"text_fields": {"tfidf": "title brand", "codes": "text_codes"}.get(encoder, "")}
        config, _, loaders = built(folder, similarity_attention="additive", **given)
        train, valid, _ = parts(loaders)
        torch.manual_seed(0)
        found.append((train.catalogue, valid.catalogue, registry.build_model(config, train)))
    (one, one_whole, model), (other, other_whole, other_model) = found
    assert one.tokens == other.tokens
    for name in ("codes", "vectors", "present"):
        assert torch.equal(getattr(one.semantic_ids, name), getattr(other.semantic_ids, name)), name
    assert torch.equal(one.features.matrices["text"], other.features.matrices["text"])
    known = slice(None, one_whole.n_trained)
    assert torch.equal(one_whole.content["text"].rows[known], other_whole.content["text"].rows[known])
    assert not torch.equal(one_whole.content["text"].rows, other_whole.content["text"].rows)
    assert torch.equal(model.similarity.edges, other_model.similarity.edges)


def test_what_users_do_with_cold_items_reaches_no_code(tiny, tmp_path):
    cold = sorted(cold_tokens([f"i{item:02d}" for item in range(N_ITEMS)], 0.2))
    swap = dict(zip(cold, [*cold[1:], cold[0]], strict=True))
    rows = [(user, swap.get(item, item), time) for user, item, time in tiny_interactions()]
    changed = built(write_dataset(tmp_path, rows=rows))
    one, other = (parts(loaders)[0] for _, _, loaders in (built(tiny), changed))
    assert one.catalogue.tokens == other.catalogue.tokens
    assert torch.equal(one.catalogue.semantic_ids.codes, other.catalogue.semantic_ids.codes)
    assert np.array_equal(one.train_sequences.items, other.train_sequences.items)


def test_decoding_models_get_an_id_of_its_own_for_every_cold_item(tiny):
    _, _, loaders = built(tiny, "TIGER", sid_levels=2, sid_codebook_size=8, sid_steps=40, sid_code_dim=8)
    codes = parts(loaders)[1].catalogue.semantic_ids.codes[1:]
    assert len(torch.unique(codes, dim=0)) == N_ITEMS
    assert torch.equal(codes[:-N_COLD], parts(loaders)[0].catalogue.semantic_ids.codes[1:])


@pytest.mark.parametrize(("targets", "kind"), [([1, 2], "cold"), ([5, 6], "warm")])
def test_targets_of_one_kind_alone_are_refused(targets, kind):
    rows, known = {"item_id": torch.tensor(targets)}, SimpleNamespace(n_trained=5)
    data = SimpleNamespace(inter_feat=rows, iid_field="item_id", catalogue=known)
    with pytest.raises(InputError, match=f"cold_items: found no {kind} item among 2 targets to judge; change"):
        is_cold(data)
    rows["item_id"] = torch.tensor([4, 5])
    assert is_cold(data).tolist() == [False, True]
    known.n_trained = None
    assert is_cold(data) is None


def test_the_leakage_check_sees_a_cold_item_in_training(tiny):
    _, dataset, loaders = built(tiny)
    assert check_leakage(dataset, *loaders) == {"leakage_check": "passed"}
    train = loaders[0]._dataset
    items = train.train_sequences.items.copy()
    items[0] = train.item_num
    train.train_sequences = Sequences(train.train_sequences.offsets, items)
    with pytest.raises(InputError, match="leakage check: the training sequences are not the training part"):
        check_leakage(dataset, *loaders)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("SASRec", {}, "found 0.2 with SASRec, which ranks the items that it was trained with; a cold one has"),
        ("SASRecPlus", {}, "found 0.2 with SASRecPlus, which ranks the items that it was trained with"),
        ("TransitionGraph", {}, "found 0.2 with TransitionGraph, which ranks the items that it was trained with"),
        ("BBQRec", {"text_encoder": None}, "found 0.2 without features, all that is known of a cold item; set"),
        ("BBQRec", {"codes": "random"}, "found 0.2 with codes=random; a cold item has the codes that the tokenizer"),
        ("BBQRec", {"second_stage": "gbdt"}, "found 0.2 with second_stage=gbdt, which is fitted on validation"),
        ("BBQRec", {"train_on": "all"}, "found 0.2 with train_on=all, which leaves nothing to judge"),
        ("BBQRec", {"benchmark_filename": ["a", "b", "c"]}, "found 0.2 with benchmark_filename"),
        ("BBQRec", {"cold_items": 1.0}, r"found 1.0, expected a probability in \[0, 1\)"),
    ],
)
def test_what_cannot_hold_items_out_is_refused_in_one_line(tiny, model, given, message):
    with pytest.raises(InputError, match=f"^cold_items: {message}") as caught:
        Config(config_dict=settings(tiny, model, **{**COLD, **given}))
    assert "\n" not in str(caught.value)
