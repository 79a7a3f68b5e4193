import collections
import logging
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from conftest import write_dataset

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.ranking import tie_order
from recbole_bbqrec.quick_start import load_data_and_model

GENERATING = {
    "BBQRecGenerate": {"hidden_size": 16, "inner_size": 32, "n_layers": 1, "feature_dim": 16, "sid_codebook_size": 8},
    "TIGER": {"n_layers": 1, "n_decoder_layers": 1, "sid_codebook_size": 16},
}
QUICK_CODES = {"sid_code_dim": 8, "sid_steps": 40, "report_card": False}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory, untrained):
    """The bundle of a model whose item tokens are whole numbers, from 101 to 140, and one is spelled 7.0."""
    rows = [(f"u{user}", str(101 + (user * 3 + step) % 40), step) for user in range(30) for step in range(8)]
    rows += [(f"u{user}", "7.0", 9) for user in range(5)]
    return untrained(write_dataset(tmp_path_factory.mktemp("numbered"), rows=rows), "SASRec")


@pytest.fixture(scope="module")
def beams(tiny, untrained):
    """Bundles of a model that searches with a beam of 3, and of the same weights that scores exactly."""

    def make(model):
        given = {**GENERATING[model], **QUICK_CODES}
        if model == "BBQRecGenerate":
            given.pop("sid_steps")
            given |= {"sid_epochs": 1, "sid_min_steps": 30}
        return [untrained(tiny, model, **given, beam_size=size) for size in (3, 0)]

    return make


# What is accepted

TEXTS = [["103", "105"], ["120"]]
FORMS = {
    "tuples": lambda: (("103", "105"), ("120",)),
    "a generator": lambda: (history for history in TEXTS),
    "map": lambda: map(list, TEXTS),
    "generators in a generator": lambda: (iter(history) for history in TEXTS),
    "values of a dict": lambda: {"u": TEXTS[0], "v": TEXTS[1]}.values(),
    "whole numbers": lambda: [[103, 105], [120]],
    "numpy's numbers": lambda: [[np.int64(103), np.float32(105)], [np.uint8(120)]],
    "arrays": lambda: [np.array([103, 105]), np.array(["120"])],
    "an array of lists": lambda: np.array([np.array([103, 105]), np.array([120])], dtype=object),
    "tensors": lambda: [torch.tensor([103, 105]), torch.tensor([120])],
    "tensors of one number": lambda: [list(torch.tensor([103, 105])), [torch.tensor(120)]],
    "floats of a column with gaps": lambda: [[103.0, 105.0], [120.0]],
    "pandas columns": lambda: [pd.Series([103, 105]), pd.Series(["120"])],
    "a pandas column of lists": lambda: pd.Series([[103, 105], [120]], index=["u", "v"]),
    "a polars column of lists": lambda: pl.Series([[103, 105], [120]]),
    "deques": lambda: collections.deque([collections.deque(["103", "105"]), collections.deque(["120"])]),
}


@pytest.mark.parametrize("form", FORMS)
def test_histories_come_in_many_forms(numbered, form):
    expected = numbered.recommend(TEXTS, k=3)
    assert [len(each.items) for each in expected] == [3, 3] and expected[0].scores != expected[1].scores
    assert numbered.recommend(FORMS[form](), k=3) == expected
    assert all(isinstance(item, str) for each in expected for item in each.items)


def test_a_rectangle_of_numbers_is_histories(numbered):
    expected = numbered.recommend([["103", "105"], ["120", "121"]], k=3)
    assert numbered.recommend(np.array([[103, 105], [120, 121]]), k=3) == expected
    assert numbered.recommend(torch.tensor([[103, 105], [120, 121]]), k=3) == expected


def test_users_of_a_frame(numbered):
    frame = pd.DataFrame({"user_id": [8, 5, 8, 5, 8], "item_id": [103, 120, 105, np.nan, 107]}).dropna()
    histories = frame.groupby("user_id")["item_id"].apply(list)
    lists = pd.DataFrame(numbered.recommend(histories, k=2), index=histories.index)
    assert lists.loc[5, "items"] == numbered.recommend([["120"]], k=2)[0].items
    assert lists.loc[8, "items"] == numbered.recommend([["103", "105", "107"]], k=2)[0].items


def test_numbers_are_spelled_as_the_tokens_are(numbered):
    expected = numbered.recommend([["7.0", "103"]] * 2)
    assert not expected[0].unknown and numbered.recommend([[7, 103], [7.0, 103.0]]) == expected
    unknown = numbered.recommend([[7.5, 999, 998.0, "103.0", -1]])[0].unknown
    assert unknown == ["7.5", "999", "998", "103.0", "-1"]


@pytest.mark.parametrize("k", [3, 3.0, np.int32(3), np.float64(3), torch.tensor(3), np.array(3.0)])
def test_k_is_a_whole_number_of_any_type(numbered, k):
    assert len(numbered.recommend([["103"]], k=k)[0].items) == 3


# What is refused

HISTORIES = "expected a list of lists of item tokens: [['B0048KGFHU', ...]]"
COLUMN = "expected a column of lists, as frame.groupby('user_id')['item_id'].apply(list) makes it"
TOKENS = "expected item tokens: texts or whole numbers"
FRAME = pd.DataFrame({"user_id": [1, 1], "item_id": [103, 105]})
REFUSED = {
    "a string": ("103", f"histories: found '103', {HISTORIES}"),
    "a dict": ({"u": ["103"]}, f"histories: found dict, {HISTORIES}"),
    "nothing": (None, f"histories: found None, {HISTORIES}"),
    "one token": (103, f"histories: found 103, {HISTORIES}"),
    "a set": ({("103",), ("105",)}, f"histories: found set, {HISTORIES}"),
    "a frame": (FRAME, f"histories: found DataFrame, {COLUMN}"),
    "a polars frame": (pl.DataFrame({"item_id": [103]}), f"histories: found DataFrame, {COLUMN}"),
    "groups of a frame": (FRAME.groupby("user_id")["item_id"], f"histories: found SeriesGroupBy, {COLUMN}"),
    "a flat list": (["103", "105"], f"history 0: found '103', {HISTORIES}"),
    "a flat list of numbers": ([103, 105], f"history 0: found 103, {HISTORIES}"),
    "a flat array": (np.array([103, 105]), f"history 0: found 103, {HISTORIES}"),
    "a column": (FRAME["item_id"], f"history 0: found 103, {HISTORIES}"),
    "a missing history": (pd.Series([["103"], np.nan]), f"history 1: found nan, {HISTORIES}"),
    "a history as a dict": ([["103"], {"103": 1}], f"history 1: found dict, {HISTORIES}"),
    "a history as a set": ([{"103", "105"}], f"history 0: found set, {HISTORIES}"),
    "None in a history": ([["103"], ["103", None]], f"history 1: found None, {TOKENS}"),
    "NaN in a history": ([[103.0, float("nan")]], f"history 0: found nan, {TOKENS}"),
    "numpy's NaN": ([np.array([103, np.nan])], f"history 0: found nan, {TOKENS}"),
    "pandas' NA": ([pd.Series([103, None], dtype="Int64")], f"history 0: found <NA>, {TOKENS}"),
    "infinity": ([[float("inf")]], f"history 0: found inf, {TOKENS}"),
    "a number that has lost digits": ([[1e17]], f"history 0: found 1e+17, {TOKENS}"),
    "a list in a history": ([[["103"]]], f"history 0: found list, {TOKENS}"),
    "a cube": (torch.zeros(1, 2, 2), f"history 0: found list, {TOKENS}"),
    "a boolean": ([["103", True]], f"history 0: found True, {TOKENS}"),
    "numpy's boolean": ([[np.True_]], f"history 0: found np.True_, {TOKENS}"),
    "bytes": ([[b"103"]], f"history 0: found b'103', {TOKENS}"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_histories_are_refused_in_one_line(numbered, form):
    given, message = REFUSED[form]
    for ask in (numbered.recommend, numbered.scores):
        with pytest.raises(InputError) as error:
            ask(given)
        assert str(error.value).replace("np.True_", "True") == message.replace("np.True_", "True")


@pytest.mark.parametrize("k", [0, -1, 2.5, "10", True, float("nan"), float("inf"), [3], np.array([3]), np.True_])
def test_other_k_are_refused(numbered, k):
    with pytest.raises(InputError, match=r"^k: found .*, expected a whole number, at least 1$"):
        numbered.recommend([["103"]], k=k)


def test_no_k_is_for_allowed_items_alone(numbered):
    with pytest.raises(InputError, match="k: found None, expected a whole number; None is for all items of `allow`"):
        numbered.recommend([["103"]], k=None)
    assert len(numbered.recommend([["103"]], k=None, allow=["103", "104", "105"])[0].items) == 2, "103 is seen"


# Scores


def test_scores_are_those_of_the_model(numbered):
    histories = [["103", "105"], ["120"]]
    _, model, dataset, *_ = load_data_and_model(numbered.folder)
    ids = torch.tensor(
        [[dataset.token2id("item_id", token) for token in row] + [0] * (50 - len(row)) for row in histories]
    )
    batch = {"item_id_list": ids, "item_length": torch.tensor([2, 1])}
    with torch.no_grad():
        expected = model.full_sort_predict(batch).numpy()
    scores = numbered.scores(histories)
    assert scores.dtype == np.float32 and scores.shape == (2, len(numbered.item_tokens) - 1)
    order = [dataset.token2id("item_id", token) for token in numbered.item_tokens[1:]]
    np.testing.assert_allclose(scores, expected[:, order], rtol=1e-5, atol=1e-6)
    some = [104, "7.0", "103", 104.0]
    places = [numbered.item_tokens.index(token) - 1 for token in ("104", "7.0", "103", "104")]
    np.testing.assert_allclose(numbered.scores(histories, some), scores[:, places], rtol=1e-5, atol=1e-6)
    assert numbered.scores([], some).shape == (0, 4) and numbered.scores(histories, []).shape == (2, 0)


def test_recommendations_are_the_best_scores(tiny, untrained):
    bundle = untrained(tiny, "Pop")  # where many items have the same score
    scores, tokens = bundle.scores([["i01"]])[0], bundle.item_tokens[1:]
    assert len(set(scores.tolist())) < len(scores) / 2
    ties = tie_order(len(tokens) + 1, bundle.settings["seed"])[1:].tolist()
    order = sorted(range(len(tokens)), key=lambda item: (-scores[item], ties[item]))
    for k in (1, 7, 40, 100):
        (found,) = bundle.recommend([["i01"]], k, exclude_seen=False)
        assert found.items == [tokens[item] for item in order[:k]] and found.scores == scores[order[:k]].tolist()


def test_what_has_no_score_is_minus_infinity(numbered, caplog):
    scores = numbered.scores([["103"], ["nope"]], ["104", "never"])
    assert np.isfinite(scores).tolist() == [[True, False], [False, False]] and np.isneginf(scores[1]).all()
    assert "2 unknown item tokens are ignored, such as never, nope" in caplog.text


@pytest.mark.parametrize("model", GENERATING)
def test_scores_beyond_the_beam(beams, model):
    beam, exact = beams(model)
    histories, tokens = [["i01", "i02"], ["i07"]], beam.item_tokens[1:]
    found, expected = beam.scores(histories), exact.scores(histories)
    assert np.isfinite(found).sum(1).tolist() == [3, 3] and np.isfinite(expected).all()
    inside = np.isfinite(found)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(beam.scores(histories, tokens[::-1]), expected[:, ::-1], rtol=1e-4, atol=1e-4)


# Allowed items


@pytest.mark.parametrize("model", ["SASRec", "TransitionGraph", *GENERATING])
def test_only_allowed_items_are_ranked_and_all_of_them(tiny, untrained, beams, model):
    bundle, exact = beams(model) if model in GENERATING else [untrained(tiny, model)] * 2
    histories, allowed = [["i01", "i02"], ["i07"], []], ["i30", "i02", "i11", "i25", "i07"]
    scores = dict(zip(exact.item_tokens[1:], exact.scores(histories[:1])[0].tolist(), strict=True))
    first, second, empty = bundle.recommend(histories, allow=allowed)
    expected = sorted({*allowed} - {"i02"}, key=lambda item: -scores[item])
    assert first.items == expected and first.scores == pytest.approx([scores[item] for item in expected], abs=1e-4)
    assert sorted(second.items) == ["i02", "i11", "i25", "i30"] and empty.items == []
    assert bundle.recommend(histories[:1], k=2, allow=allowed)[0].items == expected[:2]
    assert sorted(bundle.recommend(histories, exclude_seen=False, allow=allowed)[0].items) == sorted(allowed)


def test_allowed_items_of_each_history(numbered):
    histories, of_each = [["103", "105"], ["120"]], [[104, 110], ["111", "112", "113"]]
    found = numbered.recommend(histories, allow=of_each)
    assert [sorted(each.items) for each in found] == [["104", "110"], ["111", "112", "113"]]
    alone = [numbered.recommend([history], allow=items)[0] for history, items in zip(histories, of_each, strict=True)]
    assert [each.items for each in found] == [each.items for each in alone]
    for allow in ({104, 110}, np.array([104, 110]), pd.Series(["104", "110"]), (item for item in ["110", 104.0])):
        assert [sorted(each.items) for each in numbered.recommend(histories, allow=allow)] == [["104", "110"]] * 2
    assert [each.items for each in numbered.recommend(histories, allow=[])] == [[], []]
    assert [each.items for each in numbered.recommend(histories, allow=[[], ["104"]])] == [[], ["104"]]


def test_unknown_allowed_items_are_reported(numbered, caplog):
    (found,) = numbered.recommend([["103", "nope"]], allow=["104", "never"])
    assert found.items == ["104"] and found.unknown == ["nope", "never"]
    assert "2 unknown item tokens are ignored, such as never, nope" in caplog.text
    caplog.set_level(logging.WARNING)
    caplog.clear()
    one, other = numbered.recommend([["103"], ["105"]], allow=[["104"], ["never"]])
    assert (one.unknown, other) == ([], ([], [], ["never"])) and "1 unknown" in caplog.text


@pytest.mark.parametrize(
    ("allow", "message"),
    [
        ("104", "allow: found '104', expected a list of item tokens, or one for each history"),
        ({"104": 1}, "allow: found dict, expected a list of item tokens, or one for each history"),
        (FRAME, f"allow: found DataFrame, {COLUMN}"),
        ([["104"]], "allow: found 1 lists, expected one for each of 2 histories; give one list of item tokens"),
        ([["104"], "105"], "allow: found '105', expected item tokens alone, or lists of them alone"),
        ([["104"], None], "allow: found None, expected item tokens alone, or lists of them alone"),
        (["104", None], f"allow: found None, {TOKENS}"),
        ([["104"], [True]], f"allow, history 1: found True, {TOKENS}"),
    ],
)
def test_other_allowed_items_are_refused(numbered, allow, message):
    with pytest.raises(InputError, match=re.escape(message)):
        numbered.recommend([["103"], ["105"]], allow=allow)
