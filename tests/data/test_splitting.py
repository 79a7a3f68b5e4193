"""Splits as arrays against RecBole's own, row for row."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import N_ITEMS, settings, tiny_interactions, write_dataset
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data import splitting
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.data.sequences import Histories
from recbole_bbqrec.errors import InputError

USERS = st.lists(st.integers(1, 6), max_size=40)


def rows_of_recbole(split, users, times=None):
    """Which rows RecBole puts into which part."""
    users = np.array(users, np.int64)
    columns = {"user": users, "time": users * 0.0 if times is None else times, "row": np.arange(len(users))}
    stub = SimpleNamespace(
        inter_feat=Interaction({name: torch.from_numpy(values) for name, values in columns.items()}),
        time_field="time",
        logger=SimpleNamespace(debug=lambda _: None),
        _drop_unused_col=lambda: None,
        copy=lambda rows: rows["row"].tolist(),
    )
    for name in ("_grouped_index", "_split_index_by_leave_one_out", "_calcu_split_ids"):
        setattr(stub, name, getattr(Dataset, name).__get__(stub))
    return split(stub)


def lists(parts):
    return [part.tolist() for part in parts]


@given(USERS, st.sampled_from(["valid_and_test", "valid_only", "test_only"]))
def test_leaving_one_out(users, mode):
    expected = rows_of_recbole(lambda stub: Dataset.leave_one_out(stub, "user", mode), users)
    assert lists(splitting.leave_one_out(np.array(users, np.int64), mode)) == expected


@given(USERS, st.sampled_from([[8, 1, 1], [0.5, 0.25, 0.25], [0.3, 0.3, 0.4]]))
def test_a_share_of_each_user(users, ratios):
    expected = rows_of_recbole(lambda stub: Dataset.split_by_ratio(stub, ratios, "user"), users)
    shares = [ratio / sum(ratios) for ratio in ratios]
    cut = lambda size: Dataset._calcu_split_ids(None, size, shares)  # noqa: E731
    assert lists(splitting.by_ratio(np.array(users, np.int64), len(ratios), cut)) == expected


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.sampled_from([[0.8, 0.1, 0.1], [0.4, 0.2, 0.4]]))
def test_a_border_in_time(users, ratios):
    times = np.sort(np.random.default_rng(len(users)).integers(0, 9, len(users))).astype(np.float32)
    expected = rows_of_recbole(lambda stub: Dataset.time_based_split(stub, ratios, "user"), users, times)
    assert lists(splitting.by_time(np.array(users, np.int64), times, ratios)) == expected


def test_histories_end_at_their_target():
    histories = Histories(np.arange(1, 9), np.array([0, 2, 5]), np.array([4, 3, 5]))
    assert histories.padded(3).tolist() == [[2, 3, 4], [3, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("group_by", ["user", "none"])
@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [0.6, 0.2, 0.2]}, {"TS": [0.6, 0.2, 0.2]}])
def test_batches_have_the_rows_that_recbole_makes(tiny, split, group_by):
    """Of a model of ours and one of RecBole's, whose rows hold their lists before anyone asks for them."""
    eval_args = {"split": split, "order": "TO", "group_by": group_by, "mode": "full"}
    found = []
    for model in ("SASRecPlus", "SASRec"):
        config = Config(config_dict=settings(tiny, model, eval_args=eval_args, MAX_ITEM_LIST_LENGTH=4))
        loaders = split_loaders(config, registry.get_dataset(model)(config))
        parts = [loader._dataset for loader in loaders]
        assert ["item_id_list" in part.inter_feat for part in parts] == [model == "SASRec"] * 3
        found.append([part[np.arange(len(part))] for part in parts])
    for ours, theirs in zip(*found, strict=True):
        for field in ("user_id", "item_id", "item_id_list", "item_length", "timestamp"):
            assert torch.equal(ours[field], theirs[field])


TIMES = st.lists(st.integers(0, 9), min_size=8, max_size=40)


@given(TIMES, st.sampled_from([[0.8, 0.1, 0.1], [0.4, 0.2, 0.4], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]))
def test_parts_follow_one_another_in_time(times, shares):
    times = np.sort(np.array(times, np.float64))
    try:
        parts = splitting.over_all_users(times, splitting.cuts_in_time(times, shares))
    except InputError:  # too many rows of one time
        assert len(np.unique(times)) < len(times)
        return
    assert np.concatenate(parts).tolist() == [*range(len(times))]
    for at, (before, after) in enumerate(itertools.pairwise(parts), start=1):
        # As near to the shares as whole times allow: the row at the share is the first time of what comes after.
        place = round(sum(shares[:at]) * len(times))
        assert not len(after) or (times[after[0]] == times[place] and (not len(before) or before[-1] < place))
        assert not len(before) or not len(after) or times[before[-1]] < times[after[0]]


def by_time(folder, model="SASRecPlus", **changes):
    """The data set and its parts, split by time over all users."""
    given = settings(folder, model, **{"eval_args": {"split": {"TS": [0.6, 0.2, 0.2]}}, **changes})
    config = Config(config_dict=given)
    dataset = registry.get_dataset(model)(config)
    return dataset, [loader._dataset for loader in split_loaders(config, dataset)]


def tokens_of(part, *fields):
    return [set(part.field2id_token[field][part.inter_feat[field].numpy()].tolist()) for field in fields]


def test_training_decides_who_and_what_there_is(tmp_path):
    """A user and an item that come later, and what reaches its number of interactions by later ones alone, are out."""
    rows = [(user, item, time) for time, item in enumerate("abcd") for user in ("u1", "u2", "u3")]
    rows += [("u4", "a", 3), ("u1", "e", 3)]
    rows += [("u4", "b", 4), ("u2", "a", 4), ("u5", "a", 4), ("u1", "f", 4), ("u3", "e", 4), ("u1", "a", 4)]
    rows += [("u2", "a", 5), ("u3", "b", 5), ("u2", "e", 5), ("u4", "c", 5), ("u3", "a", 5), ("u1", "b", 5)]
    write_dataset(tmp_path, rows=rows)
    core = {"user_inter_num_interval": "[2,inf)", "item_inter_num_interval": "[2,inf)"}
    dataset, parts = by_time(tmp_path, eval_args={"split": {"TS": [14, 6, 6]}}, **core)
    assert dataset.field2id_token["item_id"].tolist()[1:] == [*"abcd"]
    assert sorted(dataset.field2id_token["user_id"].tolist()[1:]) == ["u1", "u2", "u3"]
    assert [len(part) for part in parts] == [9, 2, 4]
    assert tokens_of(parts[1], "user_id", "item_id") == [{"u1", "u2"}, {"a"}]


def test_histories_go_on_within_a_part(tiny):
    """Of several targets of one user in a part, the later ones have the earlier ones behind them."""
    _, parts = by_time(tiny)
    test = parts[2]
    users, targets = (test.inter_feat[field].numpy() for field in ("user_id", "item_id"))
    number = range(len(users))
    pairs = [(row, later) for row in number for later in number[row + 1 :] if users[row] == users[later]]
    histories = list(test.histories)
    assert pairs and all(targets[row] in histories[later] for row, later in pairs)


def test_all_models_have_the_same_targets(tiny):
    found = []
    for model in ("SASRecPlus", "BPR"):
        _, parts = by_time(tiny, model, item_inter_num_interval="[3,inf)")
        pairs = [[part.field2id_token[f][part.inter_feat[f].numpy()] for f in ("user_id", "item_id")] for part in parts]
        found.append([sorted(map(tuple, np.stack(of_part, axis=1).tolist())) for of_part in pairs[1:]])
    assert found[0] == found[1] and all(found[0])


def test_later_rows_decide_nothing_of_training(tmp_path):
    rows = tiny_interactions()
    cut = sorted(time for _, _, time in rows)[round(0.6 * len(rows))]
    late = [(user, f"i{(int(item[1:]) + 3 * (time >= cut)) % N_ITEMS:02d}", time) for user, item, time in rows]
    assert late != rows
    found = []
    for name, given_rows in (("a", rows), ("b", late)):
        dataset, parts = by_time(write_dataset(tmp_path / name, rows=given_rows), item_inter_num_interval="[3,inf)")
        sequences = parts[0].train_sequences
        found.append((set(dataset.catalogue.tokens), [dataset.catalogue.tokens[item] for item in sequences.items]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_on": "all"}, "train_on: found 'all' with a split by time over all users"),
        ({"TIME_FIELD": None}, "without TIME_FIELD, a column of times"),
    ],
)
def test_what_a_split_by_time_cannot_have(tiny, changes, words):
    with pytest.raises(InputError, match=words):
        by_time(tiny, **changes)


def test_rows_of_one_time_cannot_be_divided(tmp_path):
    write_dataset(tmp_path, rows=[(user, item, 7) for user, item, _ in tiny_interactions()])
    with pytest.raises(InputError, match=r"found no row for training in a split by time \(1 different times"):
        by_time(tmp_path)


def test_who_is_known_has_nothing_later(tmp_path):
    rows = [(f"u{user}", f"i{item}", 10 * (user > 5) + item) for user in range(9) for item in range(6)]
    with pytest.raises(InputError, match=r"no row for validation in a split by time \(training knows no user"):
        by_time(write_dataset(tmp_path, rows=rows))


def test_the_split_by_time_is_over_all_users_unless_it_is_said(tiny):
    for given_args, expected in (({}, "none"), ({"group_by": "user"}, "user")):
        eval_args = {"split": {"TS": [0.8, 0.1, 0.1]}, **given_args}
        assert (
            Config(config_dict=settings(tiny, "SASRecPlus", eval_args=eval_args))["eval_args"]["group_by"] == expected
        )
