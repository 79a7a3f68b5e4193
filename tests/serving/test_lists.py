import csv
import sys
from itertools import groupby

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import QUICK, settings, tiny_interactions, write_dataset, write_interactions

import recbole_bbqrec
from recbole_bbqrec import quick_start
from recbole_bbqrec.data import dataset as data_module
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.serving import lists
from recbole_bbqrec.serving.lists import known_histories, write_lists


def by_user(rows):
    """Items of each user in the order of their times, equal times as in the file."""
    ordered = sorted(rows, key=lambda row: (row[0], row[2]))
    return {user: [item for _, item, _ in group] for user, group in groupby(ordered, key=lambda row: row[0])}


@pytest.fixture(scope="module")
def bundle(tiny, untrained):
    return untrained(tiny, "SASRec")


# What is known of the users


def test_all_interactions_of_a_user_are_read_in_time_order(tmp_path, untrained):
    rows = tiny_interactions()
    mixed = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
    assert known_histories(untrained(write_dataset(tmp_path, rows=mixed), "SASRec")) == by_user(rows)


def test_neither_features_nor_codes_are_made_for_it(tiny, untrained, monkeypatch):
    made = untrained(tiny, "BBQRec", **QUICK)

    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(data_module, "build_item_features", fail)
    monkeypatch.setattr(data_module, "fit_semantic_ids", fail)
    assert known_histories(made) == by_user(tiny_interactions())


def test_filters_and_names_of_the_run_hold(tmp_path, untrained):
    place = write_dataset(tmp_path)
    file = place / "tiny" / "tiny.inter"
    _, *lines = file.read_text().splitlines()
    file.write_text("\n".join(["who:token\tasin:token\twhen:float", *lines]) + "\n")
    names = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "asin", "TIME_FIELD": "when"}
    given = {"load_col": {"inter": [*names.values()]}, "user_inter_num_interval": "[9,inf)"}
    expected = {user: items for user, items in by_user(tiny_interactions()).items() if len(items) >= 9}
    found = known_histories(untrained(place, "SASRec", **names, **given))
    assert found == expected and 0 < len(expected) < 60


@pytest.mark.parametrize("seed", [None, 1])
def test_equal_times_have_the_order_of_the_training(tmp_path, untrained, seed):
    rows = [(user, item, 100 + (time - 100) // 4) for user, item, time in tiny_interactions()]
    made = untrained(write_dataset(tmp_path, rows=rows), "SASRec", shuffle_ties=seed)
    _, _, dataset, train, *_ = recbole_bbqrec.load_data_and_model(made.folder)
    tokens = dataset.field2id_token["item_id"]
    trained = {tuple(tokens[items]) for items in train._dataset.train_sequences}
    found = known_histories(made)
    assert {tuple(items[:-2]) for items in found.values()} == trained
    assert (found == by_user(rows)) == (seed is None)


@pytest.mark.parametrize("length", [4, 50])
def test_files_that_are_split_already(tmp_path, untrained, length):
    """Rows hold the history before their item, the last `length` items of it."""
    place, expected = write_dataset(tmp_path), by_user(tiny_interactions())
    parts = {"train": [], "valid": [], "test": []}
    for user, items in expected.items():
        for at in range(1, len(items)):
            part = {len(items) - 1: "test", len(items) - 2: "valid"}.get(at, "train")
            parts[part].append(f"{user}\t{' '.join(items[max(at - length, 0) : at])}\t{items[at]}\t{at // 3}")
    parts["train"] += ["zoe\ti05 i06\ti07\t9", "zoe\ti01 i02\ti03\t1"]  # two sessions
    expected["zoe"] = ["i01", "i02", "i03", "i05", "i06", "i07"]
    long = [f"i{(7 * at) % 40:02d}" for at in range(70)]  # more than models read
    parts["test"].append(f"max\t{' '.join(long[:-1])}\t{long[-1]}\t1")
    expected["max"] = long
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float"
    for part, lines in parts.items():
        (place / "tiny" / f"tiny.{part}.inter").write_text("\n".join([header, *lines]) + "\n")
    columns = {"inter": ["user_id", "item_id_list", "item_id", "timestamp"]}
    given = {"benchmark_filename": [*parts], "load_col": columns}
    assert known_histories(untrained(place, "SASRec", **given)) == expected


@pytest.mark.parametrize("shape", ["plain", "lists", "sessions"])
def test_files_that_are_split_already_count_in_their_order(tmp_path, untrained, shape):
    """Validation rows earlier in time than training; rows shuffled, without times; no users."""
    place, expected = write_dataset(tmp_path), by_user(tiny_interactions())
    parts = {"train": [], "valid": [], "test": []}
    for user, items in expected.items():
        for at, item in enumerate(items):
            part = {len(items) - 1: "test", len(items) - 2: "valid"}.get(at, "train")
            cells = [user, item, str(at * (part == "train"))]
            if shape != "plain":
                cells = [*([user] if shape == "lists" else []), " ".join(items[:at]), item]
            if at or shape == "plain":
                parts[part].append("\t".join(cells))
    columns = {
        "plain": ["user_id:token", "item_id:token", "timestamp:float"],
        "lists": ["user_id:token", "item_id_list:token_seq", "item_id:token"],
        "sessions": ["item_id_list:token_seq", "item_id:token"],
    }
    for part, lines in parts.items():
        lines = ["\t".join(columns[shape]), *(lines if shape == "plain" else lines[::-1])]
        (place / "tiny" / f"tiny.{part}.inter").write_text("\n".join(lines) + "\n")
    made = untrained(place, "SASRec", benchmark_filename=[*parts])
    if shape == "sessions":
        with pytest.raises(InputError, match="no column user_id, so histories have no names"):
            known_histories(made)
    else:
        assert known_histories(made) == expected


def test_errors_of_others_are_not_taken_for_those_of_the_file(tmp_path, untrained):
    class Broken(dict):
        def items(self):
            raise FileNotFoundError("of the caller")

    with pytest.raises(FileNotFoundError, match="of the caller"):
        write_lists(tmp_path / "lists.csv", untrained(write_dataset(tmp_path), "Pop"), Broken())
    assert not (tmp_path / "lists.csv").exists()


def test_data_that_has_moved(tmp_path, untrained):
    made = untrained(write_dataset(tmp_path / "before"), "SASRec")
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.raises(InputError, match="--dataset=tiny: no file"):
        known_histories(made)
    assert known_histories(made, tmp_path / "after") == by_user(tiny_interactions())
    write_interactions(tmp_path / "after", "tiny", [("someone", "i05", 1), ("someone", "i99", 2), ("else", "i01", 3)])
    assert known_histories(made, tmp_path / "after") == {"someone": ["i05", "i99"], "else": ["i01"]}


# Lists


def expected_rows(bundle, histories, *given):
    found = bundle.recommend(histories.values(), *given)
    return [
        (str(user), rank, item, score)
        for user, each in zip(histories, found, strict=True)
        for rank, (item, score) in enumerate(zip(each.items, each.scores, strict=True), 1)
    ]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_lists_of_all_users(bundle, tmp_path, monkeypatch, ending):
    histories, path = known_histories(bundle), tmp_path / "new" / f"lists{ending}"
    expected = expected_rows(bundle, histories, 4)
    monkeypatch.setattr(lists, "BATCH", 7)  # so that there are several blocks
    assert write_lists(path, bundle, histories, 4) == len(expected) == 60 * 4
    table = (pl.read_csv if ending == ".csv" else pl.read_parquet)(path)
    assert table.columns == ["user", "rank", "item", "score"]
    assert [row[:3] for row in table.rows()] == [row[:3] for row in expected]
    np.testing.assert_allclose(table["score"], [row[3] for row in expected], rtol=1e-4)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_one_block_is_in_memory_at_a_time(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "BATCH", 5)
    taken, asked, ranked = 0, [], bundle.ranked

    class Many:
        def __len__(self):
            return 23

        def items(self):
            nonlocal taken
            for user in range(23):
                taken += 1
                yield user, ["i01", "i02"]

    monkeypatch.setattr(
        bundle, "ranked", lambda histories, *given: asked.append((len(histories), taken)) or ranked(histories, *given)
    )
    assert write_lists(tmp_path / "l.csv", bundle, Many(), 1) == 23
    assert asked == [(5, 5), (5, 10), (5, 15), (5, 20), (3, 23)]


def test_what_the_lists_choose_from(bundle, tmp_path, caplog):
    histories = {7: ["i01", "i02"], 'a,"b"': ["i03"], "new": ["nope"], "done": ["i05", "i06"]}
    allowed = ["i05", "i06", "never"]
    assert write_lists(tmp_path / "l.csv", bundle, pd.Series(histories), 9, allow=allowed) == 4
    with open(tmp_path / "l.csv", newline="") as file:
        _, *rows = csv.reader(file)
    expected = expected_rows(bundle, histories, 9, True, allowed)
    assert [row[:3] for row in rows] == [[user, str(rank), item] for user, rank, item, _ in expected]
    assert [row[0] for row in rows] == ["7", "7", 'a,"b"', 'a,"b"']
    assert "2 of 4 users have no list" in caplog.text and caplog.text.count("2 unknown item tokens are ignored") == 2
    assert write_lists(tmp_path / "l.csv", bundle, histories, 9, exclude_seen=False, allow=allowed) == 6


def test_lists_of_nobody_are_an_empty_table(bundle, tmp_path):
    for name, read in (("l.csv", pl.read_csv), ("l.parquet", pl.read_parquet)):
        assert write_lists(tmp_path / name, bundle, {}) == 0
        assert read(tmp_path / name).shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("l.txt", {}, r"l\.txt: found the ending '\.txt', expected \.csv or \.parquet"),
        ("folder.csv", {}, r"folder\.csv: cannot be written \(Is a directory\); name another file"),
        ("file/l.csv", {}, r"l\.csv: cannot be written \(.*\); name another file"),
        ("l.csv", {"k": 0}, "k: found 0"),
        ("l.csv", {"allow": "i01"}, "allow: found 'i01', expected a list of item tokens"),
        (
            "l.csv",
            {"histories": {"u1": ["i01"], "u2": "i01"}},
            "history of user u2: found 'i01', expected a list of item",
        ),
    ],
)
def test_wrong_calls_leave_no_file(bundle, tmp_path, name, given, message):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message):
        write_lists(tmp_path / name, **{"bundle": bundle, "histories": {"u1": ["i01"]}, **given})
    assert {each.name for each in tmp_path.iterdir()} == {"folder.csv", "file"}


def test_parquet_needs_pyarrow(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"writing Parquet needs pyarrow.*pip install 'recbole-bbqrec\[parquet\]'"):
        write_lists(tmp_path / "l.parquet", bundle, {"u1": ["i01"]})
    assert not list(tmp_path.iterdir())


def test_a_run_s_users_from_its_folder(tiny, tmp_path):
    """The last part of a first hour: a finished run, its bundle, lists of all users."""
    run = quick_start.run(config_dict=settings(tiny, "BBQRec", **QUICK, checkpoint_dir=str(tmp_path / "saved")))
    made = recbole_bbqrec.load_bundle(run["run_dir"])
    histories = known_histories(made)
    assert write_lists(tmp_path / "lists.csv", made, histories) == 10 * len(histories)
    table = pl.read_csv(tmp_path / "lists.csv")
    assert not {*table.select("user", "item").rows()} & {(user, item) for user, item, _ in tiny_interactions()}
