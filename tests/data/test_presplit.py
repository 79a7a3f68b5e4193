"""Files that are split already, in the shapes people have them: `benchmark_filename`."""

import logging

import numpy as np
import pytest
import torch
from conftest import N_USERS, settings, tiny_interactions, write_dataset, write_items

from recbole_bbqrec import quick_start, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.data.sequences import seen_before, training_sequences
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.configuration import data_fingerprint
from recbole_bbqrec.evaluation.leakage import check_leakage
from recbole_bbqrec.experiments.records import data_statistics

FILES = ["train", "valid", "test"]
LISTS = {
    "user": "user_id:token",
    "history": "item_id_list:token_seq",
    "item": "item_id:token",
    "time": "timestamp:float",
}
PLAIN = {key: LISTS[key] for key in ("user", "item", "time")}


def by_user(rows):
    users = {}
    for user, item, time in rows:
        users.setdefault(user, []).append((item, time))
    return users


def leave_one_out(rows, shape="lists", cut=1000):
    """Rows of each file as dicts: of every user the last interaction is test, the one before it validation."""
    parts = [[], [], []]
    for user, seen in by_user(rows).items():
        for at, (item, time) in enumerate(seen):
            history = [before for before, _ in seen[:at]][-cut:]
            if shape == "plain" or history:
                part = max(0, at - len(seen) + 3)
                parts[part].append({"user": user, "history": " ".join(history), "item": item, "time": time})
    return parts


def write_parts(folder, parts, columns=None, names=FILES):
    columns = LISTS if columns is None else columns
    (folder / "tiny").mkdir(parents=True, exist_ok=True)
    write_items(folder, "tiny")
    for name, rows in zip(names, parts, strict=True):
        lines = ["\t".join(columns.values()), *("\t".join(str(row[key]) for key in columns) for row in rows)]
        (folder / "tiny" / f"tiny.{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def without(columns, *keys):
    return {key: name for key, name in columns.items() if key not in keys}


def shuffled(parts, seed=1):
    generator = np.random.default_rng(seed)
    return [[rows[at] for at in generator.permutation(len(rows))] for rows in parts]


def rows_of(*sessions):
    """Training rows (user, history, item, time) as they are written, one after the other in time."""
    return [
        {"user": user, "history": history, "item": item, "time": time}
        for time, (user, history, item) in enumerate(sessions)
    ]


def built(folder, model="SASRec", **changes):
    config = Config(config_dict=settings(folder, model, **{"benchmark_filename": FILES, **changes}))
    dataset = registry.get_dataset(model)(config)
    return dataset, split_loaders(config, dataset)


def sequences_of(dataset, train):
    return [[dataset.catalogue.tokens[item] for item in one] for one in training_sequences(train._dataset)]


def masked(dataset, evaluated, earlier):
    """Tokens masked for each row, by the row's user."""
    users, seen = evaluated.inter_feat[dataset.uid_field], seen_before(evaluated, earlier)
    names = dataset.field2id_token[dataset.uid_field][users.numpy()]
    tokens = [sorted(dataset.catalogue.tokens[item] for item in seen[[row]].nonzero()[1]) for row in range(len(users))]
    return dict(zip(names.tolist(), tokens, strict=True))


TINY = by_user(tiny_interactions())
TRAINING = [[item for item, _ in TINY[user][:-2]] for user in sorted(TINY)]
HELD_OUT = [rows_of(("u1", "a b c", "d")), rows_of(("u1", "a b c d", "e"))]
"""Validation and test rows for tests whose point is the training rows."""
SHAPES = {
    "lists": (leave_one_out(tiny_interactions()), LISTS),
    "plain": (leave_one_out(tiny_interactions(), "plain"), PLAIN),
    "shuffled lists": (shuffled(leave_one_out(tiny_interactions())), LISTS),
    "shuffled plain": (shuffled(leave_one_out(tiny_interactions(), "plain")), PLAIN),
    "without times": (shuffled(leave_one_out(tiny_interactions())), without(LISTS, "time")),
    "plain without times": (leave_one_out(tiny_interactions(), "plain"), without(PLAIN, "time")),
    "cut": (shuffled(leave_one_out(tiny_interactions(), cut=3)), LISTS),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_training_sequences_masks_and_targets_are_those_of_the_unsplit_data(tmp_path, shape):
    dataset, (train, valid, test) = built(write_parts(tmp_path, *SHAPES[shape]))
    assert sequences_of(dataset, train) == TRAINING
    parts = [train._dataset, valid._dataset, test._dataset]
    for at in (1, 2):
        wanted = {user: sorted(item for item, _ in seen[: at - 3]) for user, seen in TINY.items()}
        assert masked(dataset, parts[at], parts[:at]) == wanted
    assert [len(part.inter_feat) for part in parts] == [sum(map(len, TRAINING)) - N_USERS, N_USERS, N_USERS]
    assert check_leakage(dataset, train, valid, test) == {"leakage_check": "passed, the files were split already"}


@pytest.mark.parametrize("model", ["TransitionGraph", "BBQRec", "SASRec", "BERT4Rec"])
def test_the_figures_are_those_of_the_unsplit_data(tmp_path, tiny, model):
    def metrics(folder, **changes):
        given = settings(folder, model, epochs=1, final=True, checkpoint_dir=str(folder / "saved"), **changes)
        return quick_start.run(config_dict=given)["metrics"]

    write_dataset(tmp_path / "unsplit")
    for shapes, read in ((("lists", "plain"), {}), (("cut",), {"MAX_ITEM_LIST_LENGTH": 8})):
        unsplit = metrics(tmp_path / "unsplit", **read)
        for shape in shapes:
            cut = (leave_one_out(tiny_interactions(), cut=8), LISTS)
            folder = write_parts(tmp_path / shape, *(cut if shape == "cut" else SHAPES[shape]))
            assert metrics(folder, benchmark_filename=FILES, **read) == unsplit, shape


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (lambda history, item: ("[" + ", ".join(history.split()) + "]", item), r"found '.*' in a list, expected items"),
        (
            lambda history, item: (history, f"{item}.0"),
            "found lists of 'i.*' and items such as 'i.*', expected the same",
        ),
        (lambda history, item: (f"{history} {item}", item), "found every list ending with its own target"),
        (lambda history, item: (f"{history} 0 0", item), "found '0' at the end of most lists"),
    ],
    ids=["brackets", "other ids", "the target too", "padding"],
)
def test_lists_of_something_else_are_refused(tmp_path, written, told):
    parts = [[{**row, **dict(zip(("history", "item"), written(row["history"], row["item"]), strict=True))}
              for row in part] for part in leave_one_out(tiny_interactions())]  # fmt: skip
    with pytest.raises(InputError, match=rf"item_id_list: {told}"):
        built(write_parts(tmp_path, parts))


def test_lists_with_another_mark_between_items(tmp_path):
    parts = [[{**row, "history": row["history"].replace(" ", ",")} for row in part]
             for part in leave_one_out(tiny_interactions())]  # fmt: skip
    given = {"benchmark_filename": FILES, "seq_separator": ",", "data_path": str(write_parts(tmp_path, parts))}
    assert Config("SASRec", "tiny", config_dict=given)["seq_separator"] == ","
    dataset, (train, _, _) = built(tmp_path, seq_separator=",")
    assert sequences_of(dataset, train) == TRAINING


def test_recboles_own_recipe_is_taken_as_it_is(tmp_path):
    folder = write_parts(tmp_path, leave_one_out(tiny_interactions()))
    given = {
        "benchmark_filename": FILES,
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id", "timestamp"]},
    }
    strict = Config("SASRec", "tiny", config_dict={**given, "data_path": str(folder)})
    dataset, (train, _, _) = built(folder, **given)
    assert strict["alias_of_item_id"] == ["item_id_list"] and sequences_of(dataset, train) == TRAINING


def test_other_names_of_fields_and_lists(tmp_path):
    columns = {"user": "uid:token", "history": "asin_seq:token_seq", "item": "asin:token", "time": "at:float"}
    write_parts(tmp_path, leave_one_out(tiny_interactions()), columns)
    (tmp_path / "tiny" / "tiny.item").unlink()
    names = {"USER_ID_FIELD": "uid", "ITEM_ID_FIELD": "asin", "TIME_FIELD": "at", "LIST_SUFFIX": "_seq"}
    names["load_col"] = {"inter": ["user_id", "item_id", "timestamp"], "user": []}  # by the names that are the default
    for columns in (names["load_col"], {"user": []}):
        dataset, (train, _, _) = built(tmp_path, **{**names, "load_col": columns})
        assert sequences_of(dataset, train) == TRAINING


@pytest.mark.parametrize("load_col", [None, {"inter": ["user_id", "item_id", "item_id_list", "timestamp"]}])
def test_other_lists_share_the_numbers_of_what_they_list(tmp_path, load_col):
    rows = [{**row, "kind": row["item"][-1], "kinds": " ".join(x[-1] for x in row["history"].split())}
            for row in leave_one_out(tiny_interactions())[0]]  # fmt: skip
    columns = {**LISTS, "kind": "kind:token", "kinds": "kind_list:token_seq", "first": "first:token"}
    rows = [{**row, "first": row["history"].split()[0]} for row in rows]
    load_col = load_col and {"inter": [*load_col["inter"], "first", "kind", "kind_list"]}
    write_parts(tmp_path, [rows] * 3, columns)
    dataset, (train, _, _) = built(tmp_path, load_col=load_col, alias_of_item_id=["first"], MAX_ITEM_LIST_LENGTH=4)
    row = {name: values[0] for name, values in train._dataset[[100]].interaction.items()}
    history = rows[100]["history"].split()
    length = int(row["item_length"])
    assert length == min(4, len(history)) and row["item_id_list"].shape == row["kind_list"].shape == (4,)
    assert [dataset.catalogue.tokens[item] for item in row["item_id_list"][:length]] == history[-4:]
    assert dataset.catalogue.tokens[row["first"]] == history[0]
    kinds = dataset.field2id_token["kind"][row["kind_list"][:length].numpy()]
    assert kinds.tolist() == [item[-1] for item in history[-4:]]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        pytest.param([("u1", "a", "b"), ("u1", "a b", "c"), ("u1", "x", "y"), ("u1", "x y", "z")],
                     ["a b c", "x y z"], id="two sessions"),
        pytest.param([("u1", "a", "b"), ("u1", "x", "y"), ("u1", "a b", "c"), ("u1", "x y", "z")],
                     ["a b c", "x y z"], id="sessions side by side"),
        pytest.param([("u1", "a", "b"), ("u1", "a", "b"), ("u1", "a", "c")],
                     ["a b", "a b", "a c"], id="sessions that begin alike"),
        pytest.param([("u1", "a b c", "d"), ("u2", "x", "y")], ["a b c d", "x y"], id="the whole history in one row"),
        pytest.param([("u1", "a", "b"), ("u1", "a b c d", "e")], ["a b c d e"], id="rows that are missing"),
        pytest.param([("u1", "", "a"), ("u1", "a", "b"), ("u2", "", "x"), ("u2", "x", "y")],
                     ["a b", "x y"], id="rows without a history"),
        pytest.param([("u1", "a", "b"), ("u1", "a b", "c"), ("u1", "b c", "d"), ("u1", "c d", "b"), ("u1", "x y", "a")],
                     ["a b c d b", "x y a"], id="cut histories"),
    ],
)  # fmt: skip
def test_rows_are_joined_where_they_continue_one_another(tmp_path, rows, wanted):
    parts = [rows_of(*rows), *HELD_OUT]
    dataset, (train, _, _) = built(write_parts(tmp_path, parts))
    assert [" ".join(one) for one in sequences_of(dataset, train)] == wanted


def test_files_without_users_are_sessions(tmp_path):
    rows = [("", "a", "b"), ("", "a b", "c"), ("", "x y", "z"), ("", "x", "y"), ("", "a", "c"), ("", "c", "a")]
    parts = [rows_of(*rows), rows_of(("", "a", "c"), ("", "y", "z")), rows_of(("", "x y", "a"))]
    folder = write_parts(tmp_path, parts, without(LISTS, "user", "time"))
    dataset, (train, valid, test) = built(folder)
    assert [" ".join(one) for one in sequences_of(dataset, train)] == ["a b c", "x y z", "a c", "c a"]
    assert sorted(masked(dataset, valid._dataset, [train._dataset]).values()) == [["a"], ["y"]]
    assert data_statistics(dataset.config)["users"] == 7 and check_leakage(dataset, train, valid, test)
    with pytest.raises(InputError, match=r"--model=FPMC: learns something of every user, .* no column user_id; add it"):
        built(folder, "FPMC")
    given = settings(folder, "BBQRec", benchmark_filename=FILES, epochs=1, text_encoder=None, candidate_similarity=[])
    assert quick_start.run(config_dict={**given, "n_negatives": 0})["users"]["valid"] == 2


def test_models_read_the_last_items_and_everything_is_masked(tmp_path):
    parts = leave_one_out(tiny_interactions())
    history = ["i01", "i05", "i07", "i02", "i09"]
    parts[2].append({"user": "new", "history": " ".join(history), "item": "i11", "time": 0})
    dataset, (train, valid, test) = built(write_parts(tmp_path, parts), MAX_ITEM_LIST_LENGTH=3)
    assert sequences_of(dataset, train) == TRAINING
    row = {name: values[0] for name, values in test._dataset[[0]].interaction.items()}  # the earliest
    assert [dataset.catalogue.tokens[item] for item in row["item_id_list"]] == history[-3:] and row["item_length"] == 3
    assert masked(dataset, test._dataset, [train._dataset, valid._dataset])["new"] == sorted(history)
    given = settings(tmp_path, "Caser", benchmark_filename=FILES, MAX_ITEM_LIST_LENGTH=20, epochs=1)
    assert quick_start.run(config_dict=given)["users"]["valid"] == N_USERS, "lists are as long as Caser is wide"


def test_rows_that_nothing_can_be_judged_by_are_left_out_and_told(tmp_path, caplog):
    parts = leave_one_out(tiny_interactions(), "plain")
    parts[1].append({"user": "new", "item": "i01", "time": 3})
    parts[2][0]["time"] = -1
    with caplog.at_level(logging.WARNING):
        _, (_, valid, _) = built(write_parts(tmp_path, parts, PLAIN))
    assert len(valid._dataset.inter_feat) == N_USERS
    assert "1 validation and test rows have nothing before them" in caplog.text
    assert "1 users have a row earlier in time than one in a file before it" in caplog.text
    for at, name in enumerate(FILES):
        with pytest.raises(InputError, match=rf"tiny\.{name}\.inter: found no row with anything before it"):
            built(write_parts(tmp_path, [*parts[:at], [], *parts[at + 1 :]], PLAIN))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"benchmark_filename": ["train", "test"]}, r"benchmark_filename: found \['train', 'test'\], expected three"),
        (
            {"benchmark_filename": "[train,valid,test]"},
            r"found .*\[train,valid,test\].*, expected three names.*--bench",
        ),
        ({"benchmark_filename": ["train", "test", "test"]}, "expected three names, each once"),
        ({"benchmark_filename": ["train", "dev", "test"]}, r"benchmark_filename: no file .*tiny\.dev\.inter; expected"),
        ({"user_inter_num_interval": "[5,inf)"}, "user_inter_num_interval: has no effect on files that are split alr"),
        ({"item_inter_num_interval": "[5,inf)"}, "item_inter_num_interval: has no effect"),
        ({"val_interval": {"timestamp": "[1,9]"}}, "val_interval: has no effect"),
        ({"rm_dup_inter": "first"}, "rm_dup_inter: has no effect"),
        ({"shuffle_ties": 1}, "shuffle_ties: has no effect"),
        ({"eval_args": {"split": {"RS": [8, 1, 1]}, "order": "TO", "mode": "full"}}, "eval_args: split: has no effect"),
        ({"seq_len": {"item_id_list": 5}}, "seq_len: item_id_list .MAX_ITEM_LIST_LENGTH cuts histories.: has no eff"),
        ({"USER_ID_FIELD": None}, "USER_ID_FIELD: found none, expected a name"),
        (
            {"USER_ID_FIELD": "member"},
            r"tiny\.train\.inter, line 1: expected the field member, which is not in the header",
        ),
        ({"TIME_FIELD": "at"}, r"tiny\.train\.inter, line 1: expected the field at, which is not in the header"),
        (
            {"benchmark_filename": None},
            r"found tiny\.test\.inter, tiny\.train\.inter, tiny\.valid\.inter, which need --",
        ),
        ({"model": "DIEN"}, "--model=DIEN: reads negative histories"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, changes, told):
    write_parts(tmp_path, *SHAPES["lists"])
    with pytest.raises(InputError, match=told) as refused:
        built(tmp_path, changes.pop("model", "SASRec"), **changes)
    assert "\n" not in str(refused.value)


def test_headers_that_fit_no_shape(tmp_path):
    parts = leave_one_out(tiny_interactions())
    names = {**LISTS, "history": "item_seq:token_seq"}
    with pytest.raises(InputError, match=r"found item_seq:token_seq, expected item_id_list:token_seq for histories"):
        built(write_parts(tmp_path, parts, names))
    with pytest.raises(InputError, match=r"found item_id_list:token, expected item_id_list:token_seq"):
        built(write_parts(tmp_path, parts, {**LISTS, "history": "item_id_list:token"}))
    with pytest.raises(InputError, match="found neither user_id nor item_id_list among item_id, timestamp"):
        built(write_parts(tmp_path, parts, without(LISTS, "user", "history")))
    write_parts(tmp_path, parts)
    write_parts(tmp_path, parts[1:2], PLAIN, FILES[1:2])
    with pytest.raises(
        InputError, match=r"tiny\.valid\.inter, line 1: found no column item_id_list, expected it as in"
    ):
        built(tmp_path)


def test_every_file_counts_for_the_fingerprint_and_in_the_statistics(tmp_path):
    def config():
        return Config(config_dict=settings(tmp_path, "SASRec", benchmark_filename=FILES))

    parts = leave_one_out(tiny_interactions(), "plain")
    write_parts(tmp_path, parts, PLAIN)
    before = data_fingerprint(config())
    found = data_statistics(config())
    rows = tiny_interactions()
    assert (found["users"], found["interactions"], found["tied_times"]) == (N_USERS, len(rows), 0)
    assert found["items"] == len({item for _, item, _ in rows})
    parts[2][0]["item"] = "i00"
    write_parts(tmp_path, parts, PLAIN)
    assert data_fingerprint(config()) != before


def test_a_run_is_read_back(tmp_path):
    write_parts(tmp_path, *SHAPES["without times"])
    given = settings(tmp_path, "SASRec", benchmark_filename=FILES, epochs=1)
    record = quick_start.run(config_dict=given)
    model, dataset = quick_start.load_data_and_model(record["run_dir"])[1:3]
    assert model.n_items == dataset.item_num and len(dataset.histories.items) > len(tiny_interactions())


def test_an_unsplit_file_without_times_goes_by_its_order(tmp_path):
    rows = tiny_interactions()
    write_dataset(tmp_path)
    path = tmp_path / "tiny" / "tiny.inter"
    text = [line.rpartition("\t")[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join(text) + "\n")
    with pytest.raises(InputError, match=r"expected the field timestamp"):
        built(tmp_path, benchmark_filename=None)
    dataset, (train, valid, test) = built(tmp_path, benchmark_filename=None, TIME_FIELD=None)
    assert sequences_of(dataset, train) == TRAINING
    assert check_leakage(dataset, train, valid, test) == {"leakage_check": "passed"}
    assert data_statistics(dataset.config)["interactions"] == len(rows)
    assert torch.equal(train._dataset.inter_feat["timestamp"], train._dataset.inter_feat["timestamp"].sort().values)
