import numpy as np
import pytest
import torch
from conftest import N_ITEMS, N_USERS, settings, tiny_interactions, write_dataset, write_interactions

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import WindowDataLoader, split_loaders
from recbole_bbqrec.data.dataset import SEMANTIC_ID
from recbole_bbqrec.data.sequences import seen_before, training_sequences
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation.vectors import write_vectors
from recbole_bbqrec.second_stage.linear import build_linear


def built(folder, model="BBQRec", **changes):
    config = Config(config_dict=settings(folder, model, **changes))
    dataset = registry.get_dataset(model)(config)
    return config, dataset, split_loaders(config, dataset)


def by_user(rows):
    users = {}
    for user, item, _ in sorted(rows, key=lambda row: (row[0], row[2])):
        users.setdefault(user, []).append(item)
    return users


def test_features_stand_at_the_row_of_their_item(tiny):
    _, dataset, _ = built(tiny)
    features, tokens = dataset.catalogue.features, dataset.catalogue.tokens
    assert tokens[0] == "[PAD]" and features.tokens == tokens and list(features.matrices) == ["text"]
    matrix, present = features.matrices["text"], features.present["text"]
    assert matrix.dtype == torch.float32 and len(matrix) == dataset.item_num
    assert not present[0] and not matrix[0].any()
    missing = tokens.index("i03")
    assert not present[missing] and not matrix[missing].any() and present.sum() == dataset.item_num - 2


def test_features_and_codes_belong_to_tokens_whatever_is_filtered_and_in_whatever_order(tiny, tmp_path):
    rows = tiny_interactions()
    shuffled = [rows[index] for index in np.random.default_rng(1).permutation(len(rows))]
    write_dataset(tmp_path, rows=shuffled)
    _, one, _ = built(tiny)
    _, other, _ = built(tmp_path)
    assert one.catalogue.tokens != other.catalogue.tokens, "RecBole numbers items in the order in which it meets them"
    place = [other.catalogue.tokens.index(token) for token in one.catalogue.tokens]
    assert torch.equal(one.catalogue.features.matrices["text"], other.catalogue.features.matrices["text"][place])
    assert torch.equal(one.catalogue.semantic_ids.codes, other.catalogue.semantic_ids.codes[place])
    assert torch.equal(one.catalogue.semantic_ids.vectors, other.catalogue.semantic_ids.vectors[:, place])


def test_features_belong_to_tokens_when_items_are_filtered_out(tiny, tmp_path):
    vectors = torch.arange(N_ITEMS * 4.0).view(N_ITEMS, 4)
    write_vectors(tmp_path / "v.safetensors", [f"i{item:02d}" for item in range(N_ITEMS)], vectors)
    _, dataset, _ = built(
        tiny, item_inter_num_interval="[13,inf)", text_encoder=str(tmp_path / "v.safetensors"), text_fields=""
    )
    assert 1 < dataset.item_num < N_ITEMS + 1
    wanted = torch.stack([vectors[int(token[1:])] for token in dataset.catalogue.tokens[1:]])
    assert torch.equal(dataset.catalogue.features.matrices["text"][1:], wanted)
    assert len(dataset.catalogue.semantic_ids.codes) == dataset.item_num


def test_codes_are_an_item_feature_of_every_split(tiny):
    _, dataset, loaders = built(tiny)
    for part in (dataset, *(loader._dataset for loader in loaders)):
        ids = part.get_item_feature()[SEMANTIC_ID]
        assert ids.shape == (dataset.item_num, dataset.catalogue.semantic_ids.codes.shape[1]) and not ids[0].any()
        assert len({tuple(row) for row in ids.tolist()}) == dataset.item_num, "no two items share an ID"
        assert ids.max() < part.num(SEMANTIC_ID)
    row = loaders[1]._dataset[torch.arange(3)]
    assert torch.equal(row[SEMANTIC_ID], ids[row["item_id"]])


def test_recboles_feature_models_can_take_the_codes(tiny, tmp_path):
    from recbole_bbqrec import quick_start

    given = settings(tiny, "SASRecF", attach_semantic_ids=True, selected_features=[SEMANTIC_ID], epochs=1)
    given |= {"checkpoint_dir": str(tmp_path), "pooling_mode": "sum", "hidden_size": 16}
    given |= {"sid_levels": 3, "sid_codebook_size": 8, "sid_epochs": 1, "sid_min_steps": 10, "sid_code_dim": 8}
    assert quick_start.run(config_dict=given)["metrics"]["valid"]["masked"]["recall@20"] >= 0


def test_training_sequences_are_the_training_part_of_each_user(tiny):
    _, dataset, (train, _, _) = built(tiny, "SASRec")
    sequences = training_sequences(train._dataset)
    users = by_user(tiny_interactions())
    assert len(sequences) == N_USERS
    for index, user in enumerate(sorted(users)):
        assert [dataset.catalogue.tokens[item] for item in sequences[index]] == users[user][:-2]


def test_seen_items_come_from_the_split_and_not_from_the_truncated_list(tiny):
    _, dataset, loaders = built(tiny, "SASRec", MAX_ITEM_LIST_LENGTH=3)
    train, valid, test = (loader._dataset for loader in loaders)
    users = by_user(tiny_interactions())
    for part, earlier, dropped in ((valid, [train], 2), (test, [train, valid], 1)):
        seen = seen_before(part, earlier)
        for row, user in enumerate(part.inter_feat["user_id"].tolist()):
            _, items = seen[[row]].nonzero()
            token = dataset.field2id_token["user_id"][user]
            assert sorted(dataset.catalogue.tokens[item] for item in items) == sorted(users[token][:-dropped])


def test_a_target_met_before_stays_in_the_ranking(tmp_path):
    rows = [row for row in tiny_interactions() if row[0] != "u00"]
    rows += [("u00", item, time) for time, item in enumerate(["i01", "i02", "i05", "i01", "i06"])]
    _, dataset, (train, valid, _) = built(write_dataset(tmp_path, rows=rows), "SASRec")
    seen = seen_before(valid._dataset, [train._dataset])
    row = valid._dataset.inter_feat["user_id"].tolist().index(dataset.token2id("user_id", "u00"))
    target, met = (dataset.token2id("item_id", token) for token in ("i01", "i02"))
    assert not seen[row, target] and seen[row, met]


def test_every_training_target_occurs_exactly_once(tiny):
    config, dataset, (train, _, _) = built(tiny, MAX_ITEM_LIST_LENGTH=4, train_batch_size=32)
    batches = WindowDataLoader(config, train._dataset, dataset.train_sequences)
    rows = train._dataset.inter_feat
    wanted = sorted(rows["item_id"].tolist())
    for _ in range(2):
        found, n_batches = [], 0
        for batch in batches:
            n_batches += 1
            targets = batch["target_list"]
            found += targets[targets > 0].tolist()
            assert (targets > 0).sum() <= 32 + 4 * 4
            items, lengths = batch["item_id_list"], batch["item_length"]
            assert items.shape[1] == lengths.max() and torch.equal((items > 0).sum(1), lengths)
            inside = (targets[:, :-1] > 0) & (items[:, 1:] > 0)
            assert torch.equal(targets[:, :-1][inside], items[:, 1:][inside])
        assert sorted(found) == wanted and n_batches == len(batches) and batches.n_targets == len(wanted)


def test_batches_are_reshuffled_each_epoch_and_reproducible(tiny):
    config, dataset, (train, _, _) = built(tiny, train_batch_size=32)
    batches = WindowDataLoader(config, train._dataset, dataset.train_sequences)

    def epoch():
        return [batch["item_id_list"].tolist() for batch in batches]

    first, second = epoch(), epoch()
    assert first != second
    batches.generator.manual_seed(config["seed"])
    assert epoch() == first


def test_ties_in_time_are_shuffled_by_their_own_seed(tmp_path):
    rows = [(user, item, 1) for user, item, _ in tiny_interactions()]
    write_dataset(tmp_path, rows=rows)

    def order(**changes):
        _, dataset, (train, _, _) = built(tmp_path, "SASRec", **changes)
        sequences = training_sequences(train._dataset)
        return [[dataset.catalogue.tokens[item] for item in sequences[user]] for user in range(3)]

    file_order = by_user(rows)
    assert order() == [file_order[user][:-2] for user in sorted(file_order)[:3]]
    assert order(shuffle_ties=1) != order() and order(shuffle_ties=1) == order(shuffle_ties=1)
    assert order(shuffle_ties=1) != order(shuffle_ties=2)


def test_unix_times_keep_their_order(tmp_path):
    """RecBole keeps times as float32: around 1.4e9 everything within 128 s would be one moment."""
    rows = [(user, item, 1_400_000_000 + time) for user, item, time in tiny_interactions()]
    reverse = list(reversed(rows))  # in file order a merged time would put a user's items backwards
    _, dataset, (train, _, _) = built(write_dataset(tmp_path, rows=reverse), "SASRec")
    users = by_user(rows)
    sequences = training_sequences(train._dataset)
    assert [dataset.catalogue.tokens[item] for item in sequences[0]] == users["u00"][:-2]


def test_nothing_is_pickled(tiny, tmp_path):
    _, dataset, _ = built(tiny, "SASRec", checkpoint_dir=str(tmp_path))
    with pytest.raises(InputError, match="not pickled"):
        dataset.save()
    assert not list(tmp_path.rglob("*.pth"))


def test_everything_filtered_away_is_said(tiny):
    with pytest.raises(InputError, match="filtering failed"):
        built(tiny, "SASRec", user_inter_num_interval="[100,inf)")


def with_columns(folder):
    """The tiny data set with ratings 1 to 5, users' towns and items' prices, none of which is in load_col."""
    rows = [(*row, at % 5 + 1) for at, row in enumerate(tiny_interactions())]
    write_dataset(folder)
    for kind, head, lines in (
        ("inter", "user_id:token\titem_id:token\ttimestamp:float\trating:float", rows),
        ("user", "user_id:token\ttown:token", [(f"u{user:02d}", "ab"[user % 2]) for user in range(N_USERS)]),
        ("item", "item_id:token\tprice:float", [(f"i{item:02d}", item) for item in range(N_ITEMS)]),
    ):
        text = "\n".join([head, *("\t".join(map(str, line)) for line in lines)])
        (folder / "tiny" / f"tiny.{kind}").write_text(text + "\n")
    return rows


def test_values_are_filtered_by_columns_that_nobody_loads(tmp_path):
    rows = with_columns(tmp_path)
    keeps = {"rating": "[3,inf)", "town": ["a"], "price": "[0,9];[20,40)"}
    _, dataset, _ = built(tmp_path, "SASRec", text_encoder=None, val_interval=keeps)
    kept = [row for row in rows if row[3] >= 3 and int(row[0][1:]) % 2 == 0 and not 9 < int(row[1][1:]) < 20]
    found = {token for token in dataset.field2id_token["user_id"] if token != "[PAD]"}
    assert found == {user for user, *_ in kept} and set(dataset.catalogue.tokens[1:]) >= {item for _, item, *_ in kept}
    assert len(dataset.inter_feat) == len(kept) - len(found)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"val_interval": {"ratings": "[3,inf)"}}, r"val_interval: found 'ratings', expected a column of tiny\.inter"),
        ({"val_interval": {"rating": "3,5"}}, "found '3,5', expected an interval such as"),
        ({"val_interval": {"rating": "[5,3]"}}, "expected an interval such as"),
        ({"val_interval": {"town": "[1,2]"}}, r"val_interval: town: found '\[1,2\]', expected a list of texts"),
        ({"val_interval": {"town": [1]}}, "val_interval: town: found"),
        ({"val_interval": "rating"}, "val_interval: found 'rating', expected a dict, such as"),
        (
            {"user_inter_num_interval": "[five,inf)"},
            r"user_inter_num_interval: found '\[five,inf\)', expected a number of interactions",
        ),
    ],
)
def test_filters_that_cannot_be_read(tmp_path, changes, told):
    with_columns(tmp_path)
    with pytest.raises(InputError, match=told):
        built(tmp_path, "SASRec", text_encoder=None, **changes)


def test_only_an_empty_data_set_is_a_failed_filter(tiny, monkeypatch):
    monkeypatch.setattr("recbole.data.dataset.Dataset._remove_duplication", lambda _: int("a fault of the code"))
    with pytest.raises(ValueError, match="invalid literal") as raised:
        built(tiny, "SASRec")
    assert not isinstance(raised.value, InputError)


def test_blank_cells_of_feature_columns(tiny):
    """pandas 3 fills nothing in place: blank sequences and tokens are ours to meet."""
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title", "brand"]}
    _, dataset, _ = built(tiny, "SASRec", load_col=columns)
    row = dataset.catalogue.tokens.index("i03")
    feature = dataset.get_item_feature()
    assert not feature["title"][row].any() and feature["brand"][dataset.catalogue.tokens.index("i02")] == 0
    assert feature["title"].min() >= 0


def test_held_out_interactions_reach_neither_codes_nor_edges_nor_statistics(tiny, tmp_path):
    """Swap held-out items among users: everything learned before training stays the same to the last bit."""
    rows = sorted(tiny_interactions(), key=lambda row: (row[0], row[2]))
    last = {}
    for index, (user, _, _) in enumerate(rows):
        last.setdefault(user, []).append(index)
    held_out = [indices[-1] for indices in last.values()] + [indices[-2] for indices in last.values()]
    items = [rows[index][1] for index in held_out]
    swapped = list(rows)
    for index, item in zip(held_out, np.roll(items, 7), strict=True):
        swapped[index] = (rows[index][0], str(item), rows[index][2])
    assert {row[1] for row in swapped} == {row[1] for row in rows} and swapped != rows
    changed = list(rows)
    changed[0] = (rows[0][0], next(f"i{n:02d}" for n in range(N_ITEMS) if f"i{n:02d}" not in {r[1] for r in rows[:20]}),
                  rows[0][2])  # fmt: skip
    write_dataset(tmp_path / "a", rows=rows), write_dataset(tmp_path / "b", rows=swapped)
    write_dataset(tmp_path / "c", rows=changed)
    learned = [_learned(built(tmp_path / name, similarity_attention="additive")) for name in "abc"]
    for name, value in learned[0].items():
        assert torch.equal(value, learned[1][name]), f"{name} knows held-out interactions"
    for name in ("codes", "vectors"):
        assert not torch.equal(learned[0][name], learned[2][name]), "a training interaction does count"


def _learned(made):
    config, dataset, (train, _, _) = made
    tokens = dataset.catalogue.tokens
    order = torch.tensor(sorted(range(len(tokens)), key=lambda index: (index > 0, tokens[index])))
    model = registry.get_model("BBQRec")(config, train._dataset)
    candidates = build_linear(config, train._dataset)
    assert candidates is not None
    lists = {f"{name} neighbours": _by_token(signal, order) for name, signal in candidates.signals.items()}
    return {
        **lists,
        "codes": dataset.catalogue.semantic_ids.codes[order],
        "vectors": dataset.catalogue.semantic_ids.vectors[:, order],
        "edges": model.similarity.edges,
        "features": dataset.catalogue.features.matrices["text"][order],
        "centred": model.item_table.get_buffer("features_text")[order],
    }


def _by_token(signal, order):
    """Neighbours and their buckets, items numbered in the order of their tokens."""
    place = torch.argsort(order)
    rows = [slice(signal.offsets[item], signal.offsets[item + 1]) for item in order.tolist()]
    parts = [torch.stack([place[signal.items[row]], signal.buckets[row].long()]) for row in rows]
    return torch.cat([part[:, part[0].argsort()] for part in parts], dim=1)


def test_a_field_that_is_not_there(tmp_path):
    write_interactions(tmp_path, "tiny", tiny_interactions())
    with pytest.raises(InputError, match=r"tiny\.item"):
        built(tmp_path)
    write_dataset(tmp_path)
    with pytest.raises(InputError, match="titel"):
        built(tmp_path, text_fields="titel brand")
