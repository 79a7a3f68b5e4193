"""Rows that are interactions: RecBole's splits, the targets of sequences, what users had seen, and no leak."""

import json

import numpy as np
import pytest
import recbole.utils
import torch
from conftest import QUICK, settings, tiny_interactions, write_dataset
from recbole.data.dataset import Dataset
from recbole.data.utils import create_samplers

from recbole_bbqrec import quick_start, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.data.sequences import seen_before, training_sequences
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.leakage import check_leakage

SHARES = {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "RO", "group_by": "user"}
IDS = {key: value for key, value in QUICK.items() if key.startswith("sid_")} | {"attach_semantic_ids": True}


def built(folder, model="BPR", **changes):
    config = Config(config_dict=settings(folder, model, **changes))
    dataset = registry.get_dataset(model)(config)
    return dataset, *split_loaders(config, dataset)


def pairs(part):
    """Users and items of the rows, as tokens."""
    fields = part.uid_field, part.iid_field
    return list(zip(*(part.field2id_token[field][part.inter_feat[field]].tolist() for field in fields), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"group_by": "none"},
        {"order": "TO"},
        {"order": "TO", "group_by": "none"},
        {"split": {"LS": "valid_and_test"}},
        {"split": {"TS": [0.5, 0.2, 0.3]}, "order": "TO", "group_by": "user"},
    ],
)
def test_a_split_has_the_rows_of_recboles_own_in_its_order(tiny, changes):
    given = {**SHARES, **changes}
    config = Config(config_dict=settings(tiny, "BPR", eval_args=given, seed=7))
    recbole.utils.init_seed(7, True)
    theirs = Dataset(config).build()
    for part in theirs[1:]:
        part.sort(by="user_id")
    _, *loaders = built(tiny, eval_args=given, seed=7)
    for ours, expected in zip(loaders, theirs, strict=True):
        assert pairs(ours._dataset) == pairs(expected)


def test_the_last_interactions_are_the_targets_of_sequences(tmp_path):
    few = [("u98", "i01", 1), ("u98", "i02", 2), ("u99", "i01", 1), ("u99", "i02", 2), ("u99", "i03", 3)]
    folder = write_dataset(tmp_path, rows=tiny_interactions() + few)
    of_rows, of_sequences = built(folder)[2:], built(folder, "SASRecPlus")[2:]
    for ours, expected in zip(of_rows, of_sequences, strict=True):
        assert sorted(pairs(ours._dataset)) == sorted(pairs(expected._dataset))
    train = built(folder)[1]._dataset
    assert {("u98", "i01"), ("u98", "i02"), ("u99", "i02")} <= set(pairs(train)), "the first one is no target"
    one, other = train.train_sequences, built(folder, "SASRecPlus")[1]._dataset.train_sequences
    assert one.items.tolist() == other.items.tolist() and one.offsets.tolist() == other.offsets.tolist()


def test_what_a_user_had_seen_is_all_of_the_earlier_parts_but_no_target_of_the_own_one(tmp_path):
    again = [("u00", "i39", 1000), ("u00", "i39", 1001), ("u00", "i38", 1002)]
    folder = write_dataset(tmp_path, rows=tiny_interactions() + again)
    _, train, valid, test = (getattr(one, "_dataset", one) for one in built(folder, eval_args=SHARES))
    for part, earlier in ((valid, [train]), (test, [train, valid])):
        seen = seen_before(part, earlier)
        rows, known = pairs(part), {pair for one in earlier for pair in pairs(one)}
        tokens = part.field2id_token["item_id"]
        for at, (user, _) in enumerate(rows):
            own = {item for owner, item in rows if owner == user}
            found = set(tokens[seen[[at]].nonzero()[1]].tolist())
            assert found == {item for owner, item in known if owner == user} - own
        assert [sorted(tokens[one].tolist()) for one in part.histories] == [
            sorted(item for one in earlier for owner, item in pairs(one) if owner == user) for user, _ in rows
        ]


@pytest.mark.parametrize("changes", [{}, {"eval_args": SHARES}, {"eval_args": {**SHARES, "order": "TO"}}])
def test_the_leakage_check_passes_a_sound_split_and_says_what_it_is(tiny, changes):
    said = check_leakage(*built(tiny, **changes))["leakage_check"]
    assert said.startswith("passed") and ("random order" in said) == (changes == {"eval_args": SHARES})


def test_the_leakage_check_finds_swapped_rows_and_foreign_training_sequences(tiny):
    dataset, train, valid, test = built(tiny)
    one, other = train._dataset.inter_feat, test._dataset.inter_feat
    at = int((one["user_id"] == other["user_id"][0]).nonzero()[0])
    for field in ("item_id", "timestamp"):
        one[field][at], other[field][0] = float(other[field][0]), float(one[field][at])
    with pytest.raises(InputError, match="a held-out item that is not behind all training items in time"):
        check_leakage(dataset, train, valid, test)
    dataset, train, valid, test = built(tiny, eval_args=SHARES)
    train._dataset.train_sequences.items[0] = int(valid._dataset.inter_feat["item_id"][0])
    with pytest.raises(InputError, match="the training sequences are not the liked training rows"):
        check_leakage(dataset, train, valid, test)


def learned(folder, **changes):
    """Codes, features and a trained model, where held-out rows are as the files say."""
    given = settings(folder, "BPR", eval_args=SHARES, epochs=1, **{**IDS, **changes})
    trained = quick_start.train(Config(config_dict=given))
    ids, features = trained.dataset.catalogue.semantic_ids, trained.dataset.catalogue.features
    return {"codes": ids.codes, **features.matrices, **trained.trainer.model.state_dict()}


POPULAR = {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 1, "alpha": 1.0}}


@pytest.mark.parametrize("changes", [{}, POPULAR])
def test_held_out_rows_reach_neither_codes_nor_features_nor_the_model(tmp_path, changes):
    rows = tiny_interactions()
    folder = write_dataset(tmp_path / "a", rows=rows)
    held_out = {pair for loader in built(folder, eval_args=SHARES)[2:] for pair in pairs(loader._dataset)}
    met, swapped, changed = set(), [], None
    for user, item, time in rows:  # another item that has its number already, so that all keep theirs
        is_known = item in met
        met.add(item)
        other = min(met - {item}, default=item)
        swapped.append((user, other if (user, item) in held_out and is_known else item, time))
        if changed is None and (user, item) not in held_out and is_known:
            changed = len(swapped) - 1
    assert swapped != rows and changed is not None
    one, same = learned(folder, **changes), learned(write_dataset(tmp_path / "b", rows=swapped), **changes)
    for name, value in one.items():
        assert torch.equal(value, same[name]), f"{name} knows held-out rows"
    trained_on = list(rows)
    trained_on[changed] = (rows[changed][0], rows[0][1], rows[changed][2])
    assert not torch.equal(one["codes"], learned(write_dataset(tmp_path / "c", rows=trained_on))["codes"])


@pytest.mark.parametrize(("model", "changes"), [("BPR", {}), ("GRU4Rec", {"loss_type": "BPR"})])
def test_popular_negatives_are_those_of_training_and_what_users_had_met_is_recboles(tiny, model, changes):
    dataset, train, *held_out = built(tiny, model, **changes, **POPULAR)
    sampler, items = train._sampler, train._dataset.inter_feat["item_id"].tolist()
    assert sampler._get_candidates_list() == items and sampler.prob.keys() == set(items)
    parts = [loader._dataset for loader in (train, *held_out)]
    (theirs, *_) = create_samplers(train.config, dataset, parts)
    assert np.array_equal(sampler.used_ids, theirs.used_ids) and sampler.prob != theirs.prob


def test_without_times_and_in_random_order_behaviour_is_a_set(tiny):
    assert built(tiny)[0].is_ordered and built(tiny, "SASRec", TIME_FIELD=None)[0].is_ordered
    assert not built(tiny, TIME_FIELD=None, load_col={"inter": ["user_id", "item_id"]})[0].is_ordered
    dataset, train, *_ = built(tiny, eval_args=SHARES)
    of_time = built(tiny, eval_args={**SHARES, "order": "TO"})[1]._dataset
    assert not dataset.is_ordered and of_time.is_ordered
    rows = train._dataset.inter_feat
    train._dataset.inter_feat = rows[torch.randperm(len(rows))]
    again, first = training_sequences(train._dataset), train._dataset.train_sequences
    assert np.array_equal(again.items, first.items), "the order of rows decides nothing"


def test_files_that_are_split_already_are_read_in_the_order_of_time(tmp_path):
    by_user = {}
    for row in tiny_interactions():
        by_user.setdefault(row[0], []).append(row)
    rows = {
        "train": [row for own in by_user.values() for row in own[:-3]],
        "valid": [row for own in by_user.values() for row in own[-3:-1]],
        "test": [own[-1] for own in by_user.values()],
    }

    def learned_from(folder, step):
        write_dataset(folder)
        for name, part in rows.items():
            lines = [
                "user_id:token\titem_id:token\ttimestamp:float",
                *("\t".join(map(str, row)) for row in part[::step]),
            ]
            (folder / "tiny" / f"tiny.{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
        parts = [loader._dataset for loader in built(folder, benchmark_filename=[*rows])[1:]]
        tokens, sequences = parts[0].field2id_token["item_id"], parts[0].train_sequences
        seen = {pair: tokens[own].tolist() for pair, own in zip(pairs(parts[2]), parts[2].histories, strict=True)}
        return [tokens[one].tolist() for one in sequences], seen

    in_order, backwards = learned_from(tmp_path / "a", 1), learned_from(tmp_path / "b", -1)
    assert in_order == backwards
    assert in_order[0] == [[item for _, item, _ in own[:-3]] for own in by_user.values()]


@pytest.mark.parametrize(("order", "expected"), [("TO", "order"), ("RO", "sets")])
def test_the_record_and_the_report_card_say_what_behaviour_was(tiny, tmp_path, order, expected):
    given = {"eval_args": {**SHARES, "order": order}, "epochs": 1, "checkpoint_dir": str(tmp_path)}
    changes = {**IDS, **given, "report_card": True}
    record = quick_start.run(config_dict=settings(tiny, "DeepFM", **changes))
    assert record["behaviour"] == expected
    card = json.loads(next(tmp_path.glob("cache/tiny/tokenizer-*.json")).read_text(encoding="utf-8"))
    assert card["behaviour"] == expected


def test_sequential_models_refuse_random_order_in_one_line(tiny):
    with pytest.raises(InputError, match="eval_args: found order 'RO', expected TO, as histories"):
        built(tiny, "SASRec", eval_args={"order": "RO"})


def test_numbers_of_interactions_that_are_filled_or_scaled_by_all_rows_are_told(tmp_path, caplog):
    write_dataset(tmp_path)
    lines = ["user_id:token\titem_id:token\tprice:float\ttimestamp:float"]
    lines += [f"{user}\t{item}\t{time % 7 or ''}\t{time}" for user, item, time in tiny_interactions()]
    (tmp_path / "tiny" / "tiny.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = {"load_col": {"inter": ["user_id", "item_id", "price", "timestamp"]}, "numerical_features": ["price"]}
    with caplog.at_level("WARNING"):
        built(tmp_path, "FM", **given, normalize_all=True)
    blank = sum(line.split("\t")[2] == "" for line in lines)
    assert blank and f"price: {blank} blank cells of interactions become the mean of all rows" in caplog.text
    assert "price: scaled or cut by the smallest and largest value of all interactions" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        built(tmp_path, "FM")
        built(
            tmp_path, "FM", **{**given, "numerical_features": []}, normalize_all=True, val_interval={"price": "[1,7]"}
        )
    assert "all rows" not in caplog.text and "all interactions" not in caplog.text
