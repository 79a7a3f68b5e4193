from dataclasses import replace

import numpy as np
import pytest
from conftest import settings

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.data.sequences import Sequences
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import leakage
from recbole_bbqrec.evaluation.leakage import check_leakage


def split(folder, model="SASRec", **changes):
    """The data set and its three loaders, for a test to tamper with."""
    config = Config(config_dict=settings(folder, model, **changes))
    dataset = registry.get_dataset(model)(config)
    return (dataset, *split_loaders(config, dataset))


BY_RATIO = {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "TO", "group_by": "user", "mode": "full"}


MANY_HELD_OUT = {**BY_RATIO, "split": {"RS": [0.3, 0.2, 0.5]}}
BY_TIME = {**BY_RATIO, "split": {"TS": [0.4, 0.2, 0.4]}}
OVER_ALL = {**BY_TIME, "group_by": "none"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MAX_ITEM_LIST_LENGTH": 3},
        {"eval_args": BY_RATIO},
        {"shuffle_ties": 1},
        {"eval_args": MANY_HELD_OUT, "MAX_ITEM_LIST_LENGTH": 3},
        {"eval_args": BY_TIME, "MAX_ITEM_LIST_LENGTH": 3},
        {"eval_args": BY_TIME, "model": "SASRecPlus"},
        {"eval_args": OVER_ALL, "MAX_ITEM_LIST_LENGTH": 3},
        {"eval_args": OVER_ALL, "model": "SASRecPlus"},
        {"eval_args": OVER_ALL, "model": "BBQRec", "cold_items": 0.2, "second_stage": "off"},
    ],
)
def test_sound_splits_pass(tiny, changes):
    assert check_leakage(*split(tiny, **changes)) == {"leakage_check": "passed"}


def test_repeated_items_pass(tmp_path):
    from conftest import write_dataset

    rows = [(f"u{user}", f"i{(user + time % 3) % 7:02d}", time) for user in range(9) for time in range(8)]
    assert check_leakage(*split(write_dataset(tmp_path, rows=rows))) == {"leakage_check": "passed"}


def items_of(loader):
    return loader._dataset.inter_feat["item_id"]


def test_targets_that_are_not_a_users_last_two(tiny):
    dataset, train, valid, test = split(tiny)
    user = valid._dataset.inter_feat["user_id"][4]
    at = int((test._dataset.inter_feat["user_id"] == user).nonzero())
    items_of(valid)[4], items_of(test)[at] = int(items_of(test)[at]), int(items_of(valid)[4])
    token = dataset.field2id_token["user_id"][user]
    with pytest.raises(InputError, match=rf"leakage check: user {token}: found a held-out item .* \(1 users in all\)"):
        check_leakage(dataset, train, valid, test)


def test_a_training_row_later_than_a_validation_row(tiny):
    dataset, train, valid, test = split(tiny, eval_args=OVER_ALL)
    train._dataset.inter_feat["timestamp"][-1] = valid._dataset.inter_feat["timestamp"].min()
    with pytest.raises(InputError, match="a row that is not later than all rows of earlier parts"):
        check_leakage(dataset, train, valid, test)


def test_a_split_that_loses_rows(tiny):
    dataset, train, valid, test = split(tiny)
    valid._dataset.inter_feat = valid._dataset.inter_feat[:-1]
    with pytest.raises(InputError, match=r"found \d+ rows in the split, expected"):
        check_leakage(dataset, train, valid, test)


@pytest.mark.parametrize("phase", [2, 3])
def test_held_out_items_in_the_training_sequences(tiny, phase):
    parts = split(tiny)
    train = parts[1]._dataset
    offsets = train.train_sequences.offsets.copy()
    offsets[1:] += 1
    items = np.insert(train.train_sequences.items, train.train_sequences.offsets[1], int(items_of(parts[phase])[0]))
    train.train_sequences = Sequences(offsets, items)
    with pytest.raises(InputError, match="the training sequences are not the training part"):
        check_leakage(*parts)


def test_a_held_out_item_in_a_training_history(tiny):
    dataset, train, valid, test = split(tiny)
    user = int(train._dataset.inter_feat["user_id"][0])
    target = items_of(test)[test._dataset.inter_feat["user_id"] == user]
    train._dataset.inter_feat["item_id_list"][0, 0] = target
    with pytest.raises(InputError, match="a training history with an item from outside the training part"):
        check_leakage(dataset, train, valid, test)


def test_a_held_out_item_in_a_history_that_is_no_list_yet(tiny):
    dataset, train, valid, test = split(tiny, model="SASRecPlus")
    part, other = train._dataset, int(items_of(test)[0])
    user = int(test._dataset.inter_feat["user_id"][0])
    row = int((part.inter_feat["user_id"] == user).nonzero()[-1])
    items = part.histories.items.copy()
    items[part.histories.start[row]] = other
    part.histories = replace(part.histories, items=items)
    with pytest.raises(InputError, match="a training history with an item from outside the training part"):
        check_leakage(dataset, train, valid, test)


@pytest.mark.parametrize("split_name", ["valid", "test"])
@pytest.mark.parametrize("how", ["one too few", "one too many"])
def test_masks_that_are_not_what_came_before(tiny, monkeypatch, split_name, how):
    parts = split(tiny)
    tampered = parts[2 if split_name == "valid" else 3]._dataset
    real = leakage.seen_before

    def wrong(evaluated, earlier):
        seen = real(evaluated, earlier)
        if evaluated is not tampered:
            return seen
        if how == "one too few":
            seen.data[0] = False  # the first user's
        else:
            seen[0, next(item for item in range(1, 41) if not seen[0, item])] = True
        return seen

    monkeypatch.setattr(leakage, "seen_before", wrong)
    with pytest.raises(InputError, match=r"masked items that are not those before the target \(1 users"):
        check_leakage(*parts)


def test_the_check_runs_before_the_training_and_stops_it(tiny, tmp_path, monkeypatch):
    from recbole_bbqrec import quick_start
    from recbole_bbqrec.training import trainer

    def refuse(*_):
        raise InputError("leakage check: no")

    monkeypatch.setattr(trainer.ProtocolTrainer, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match="leakage check: no"):
        quick_start.execute(config_dict=settings(tiny, "SASRec", checkpoint_dir=str(tmp_path)), inspect=refuse)


def test_files_that_were_split_already(tmp_path):
    """Training sequences and masks are held against the rows; what the files repeat is counted, not refused."""
    rows = {
        "train": ["u1\ta\tb\t1", "u1\ta b\tc\t2", "u2\ta\tc\t1"],
        "valid": ["u1\ta b c\td\t3", "u2\ta c a\tc\t4"],
        "test": ["u1\ta b c d\te\t4"],
    }
    (tmp_path / "tiny").mkdir()
    for name, lines in rows.items():
        head = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
        (tmp_path / "tiny" / f"tiny.{name}.inter").write_text("\n".join([head, *lines]) + "\n")

    def parts():
        return split(tmp_path, benchmark_filename=list(rows))

    told = "passed, the files were split already; 1 of 3 held-out targets follow the same item as in their user's"
    assert check_leakage(*parts())["leakage_check"].startswith(told)
    tampered = parts()
    tampered[1]._dataset.train_sequences.items[1] = 4
    with pytest.raises(InputError, match="the training sequences are not those of the training rows"):
        check_leakage(*tampered)


def test_masks_of_files_that_were_split_already(tmp_path, monkeypatch):
    """A mask that leaves out what the user met in an earlier file."""
    from conftest import tiny_interactions

    (tmp_path / "tiny").mkdir()
    users = {}
    for row in tiny_interactions():
        users.setdefault(row[0], []).append("\t".join(map(str, row)))
    for name, part in (("train", slice(-2)), ("valid", slice(-2, -1)), ("test", slice(-1, None))):
        lines = [line for seen in users.values() for line in seen[part]]
        head = "user_id:token\titem_id:token\ttimestamp:float"
        (tmp_path / "tiny" / f"tiny.{name}.inter").write_text("\n".join([head, *lines]) + "\n")
    parts = split(tmp_path, benchmark_filename=["train", "valid", "test"])
    real = leakage.seen_before

    def wrong(evaluated, earlier):
        seen = real(evaluated, earlier)
        seen.data[0] = False
        seen.eliminate_zeros()
        return seen

    monkeypatch.setattr(leakage, "seen_before", wrong)
    with pytest.raises(InputError, match=r"masked items that are not those before the target \(1 users"):
        check_leakage(*parts)
