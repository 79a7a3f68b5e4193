"""What a bundle says of its items: titles, words, likeness, codes, tables, images."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK
from PIL import Image

import recbole_bbqrec
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.second_stage.reasons import OWN_SCORE
from recbole_bbqrec.serving.items import Items
from recbole_bbqrec.serving.search import TitleIndex


def test_words_find_titles():
    titles = ["", "Café Noir", "noir: a café story", "Black Cat", "The Café", ""]
    index = TitleIndex(["[PAD]", *"abcde"], titles)
    assert index.find("CAFE noir", 9) == [1, 2] and index.find("caf", 9) == [1, 4, 2] and index.find("caf", 1) == [1]
    assert index.find("noir black", 9) == index.find("", 9) == index.find("?!", 9) == index.find("afe", 9) == []


def test_titles_and_words(coded):
    assert coded.titles[0] == "" and coded.title("i04") == "red lamp number 4" and coded.title("i03") == ""
    assert coded.find("number 4 lamp") == ["i04"] and coded.find("i03") == ["i03"]
    assert len(coded.find("red", limit=3)) == 3 and coded.find("nothing of the kind") == []
    assert coded.item_texts().loc["i04"].to_dict()["title"] == coded.title("i04")


def test_tables_are_by_item_with_titles_first(coded):
    vectors, codes = coded.item_vectors(), coded.semantic_ids()
    for frame in (vectors, codes):
        assert frame.index.tolist() == coded.item_tokens[1:] and frame.columns[0] == "title"
    np.testing.assert_allclose(vectors.iloc[:, 1:], coded.ranker.shared().rows[1:].detach(), atol=1e-6)
    ids = coded.catalogue.semantic_ids.codes
    assert codes.loc["i05"].tolist()[1:] == ids[coded.item_id("i05")].tolist()
    for other in coded.item_tokens[1:9]:
        same = (ids[coded.item_id("i05")] == ids[coded.item_id(other)]).nonzero().flatten().tolist()
        assert coded.shared_codes("i05", other) == same


def test_similar_items_are_those_of_largest_cosine(coded):
    found = coded.similar_items("i05", k=5)
    rows = torch.nn.functional.normalize(coded.vectors[1:], dim=1)
    cosines = dict(zip(coded.item_tokens[1:], (rows @ rows[coded.item_id("i05") - 1]).tolist(), strict=True))
    del cosines["i05"]
    assert [token for token, _ in found] == sorted(cosines, key=cosines.__getitem__, reverse=True)[:5]
    with pytest.raises(InputError, match=r"^item: found 'nope', expected a known token"):
        coded.similar_items("nope")


@pytest.mark.parametrize(("model", "width"), [("SASRec", 64), ("ContentNeighbors", None), ("Pop", 0)])
def test_other_models_have_vectors_of_their_own_kind(tiny, untrained, model, width):
    bundle = untrained(tiny, model)
    if width == 0:
        with pytest.raises(InputError, match=r"^item vectors: Pop has none"):
            bundle.item_vectors()
    else:
        assert bundle.item_vectors().shape == (len(bundle.item_tokens) - 1, 1 + (width or bundle.vectors.shape[1]))
        assert len(bundle.similar_items("i05", 3)) == 3 and bundle.shared_codes("i05", "i06") == []
        with pytest.raises(InputError, match=r"^semantic IDs: the model was trained without"):
            bundle.semantic_ids()


def test_frames_in_and_out(small):
    rows = [("b", "i05", 3), ("b", "i02", 1), ("a", "i07", 2), ("c", "nope", 1), ("b", "i09", 2)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    found = small.recommend_frame(frame, k=4, deny=["i01"])
    expected = small.recommend([["i07"], ["i02", "i09", "i05"]], k=4, deny=["i01"])
    assert found["item"].tolist() == [item for each in expected for item in each.items]
    assert found["user"].tolist() == ["a"] * 4 + ["b"] * 4 and found["rank"].tolist() == [1, 2, 3, 4] * 2
    assert found["title"].tolist() == [small.title(item) for item in found["item"]]
    for times in (["11.2.2024", "9.2.2024", "1.1.2024", "1.1.2024", "10.2.2024"], ["10", "8", "1", "1", "9"]):
        assert small.recommend_frame(frame.assign(timestamp=times), k=4, deny=["i01"]).equals(found), "no order of text"
    plain = frame.sort_values("timestamp").rename(columns={"user_id": "user", "item_id": "item"})
    plain = plain.drop(columns="timestamp")
    assert small.recommend_frame(plain, k=4, deny=["i01"]).equals(found)
    users = pd.Categorical(frame["user_id"], ["a", "b", "c", "without rows"])
    assert small.recommend_frame(frame.assign(user_id=users), k=4, deny=["i01"]).equals(found)
    for wrong, message in (
        (frame.assign(timestamp=[3, 1, 2, 1, None]), "frame: found a row without a timestamp; drop such rows"),
        (frame.assign(timestamp="soon"), "frame: timestamp: neither a number of seconds nor a date.*, found 'soon'"),
        (frame.drop(columns="item_id"), "frame: found no column item_id or item"),
        (rows, "frame: found list, expected a pandas frame"),
        (frame.assign(item_id=None), "frame: found a row without a user or an item"),
        (pd.concat([frame, frame["item_id"]], axis=1), "frame: found two columns item_id, expected names that differ"),
        (pd.concat([frame, frame["user_id"]], axis=1), "frame: found two columns user_id, expected names that differ"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            small.recommend_frame(wrong)


def test_allowed_items_are_found_without_a_warning(small):
    """torch warns of ways to index that will mean something else."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found, other) = small.recommend([["i05"], ["i06"]], None, allow=[["i01", "i02"], ["i03"]])
    assert sorted(found.items) == ["i01", "i02"] and other.items == ["i03"]


def test_denied_items_leave_the_lists(small):
    (whole, other) = small.recommend([["i05"], ["i06", "i07"]], k=100)
    for_all = small.recommend([["i05"], ["i06", "i07"]], k=100, deny=[*whole.items[:3], "nope"])
    assert for_all[0].items == whole.items[3:] and not for_all[0].unknown
    of_each = small.recommend([["i05"], ["i06", "i07"]], k=100, deny=[[], other.items[1:]])
    assert of_each[0] == whole and of_each[1].items == other.items[:1]
    both = small.recommend([["i05"]], None, allow=whole.items[:4], deny=whole.items[:2])[0]
    assert both.items == whole.items[2:4]
    with pytest.raises(InputError, match=r"^deny: found 1 lists, expected one for each of 2 histories"):
        small.recommend([["i05"], ["i06"]], deny=[["i01"]])


def test_a_beam_spends_no_place_on_what_is_denied(tiny, untrained):
    bundle = untrained(tiny, "BBQRecGenerate", **{**QUICK, "beam_size": 10})
    (found,) = bundle.recommend([["i05"]], k=10)
    denied = bundle.recommend([["i05"]], k=10, deny=found.items)[0]
    assert denied.items and not set(denied.items) & set(found.items)


def test_images_are_found_inside_their_folder_alone(tmp_path):
    inside, secret = tmp_path / "images", tmp_path / "secret.png"
    inside.mkdir()
    for path in (inside / "a.png", secret):
        Image.new("RGB", (4, 4)).save(path)
    (inside / "link.png").symlink_to(secret)
    (inside / "notes.txt").write_text("x")
    names = {"a": "a.png", "b": "../secret.png", "c": str(secret), "d": "link.png", "e": "notes.txt", "f": "gone.png"}
    items = Items([*names], {}, "", names, (inside,))
    assert items.image_file("a") == (inside / "a.png").resolve()
    assert [items.image_file(token) for token in "bcdefz"] == [None] * 6


def test_bundles_without_titles_still_load(small):
    for name in ("items", "encoders"):
        (small.folder / f"{name}.safetensors").unlink()
    bundle = recbole_bbqrec.load_bundle(small.folder)
    assert bundle.titles == [""] * len(bundle.item_tokens) and bundle.find("red") == []
    assert bundle.find("i05") == ["i05"] and bundle.image_file("i05") is None
    assert bundle.recommend([["i05"]]) == small.recommend([["i05"]])


def test_every_model_that_scores_items_says_why(small, tiny, untrained):
    for bundle, has_reason in ((small, True), (untrained(tiny, "SASRec"), True), (untrained(tiny, "Pop"), False)):
        histories = [["i05", "i06", "i05", "i09"], ["i07"], ["nope"], []]
        found = bundle.recommend(histories, k=5, explain=True)
        assert found == bundle.recommend(histories, k=5)
        for history, result in zip(histories, found, strict=True):
            assert len(result.reasons) == len(result.items)
            assert all(reason.item in history or reason == (None, OWN_SCORE, 1.0) for reason in result.reasons)
            assert all(0 < reason.share <= 1 for reason in result.reasons)
            assert any(reason.item for reason in result.reasons) == (has_reason and bool(result.items))
    # What speaks for an item is the one without which its score falls most.
    history, found = ["i05", "i06", "i09"], small.recommend([["i05", "i06", "i09"]], k=5, explain=True)[0]
    assert repr(found).startswith("Explained(items=[") and repr(found).endswith(f", reasons={found.reasons})")
    whole, *without = (
        small.scores([[item for item in history if item != left]], found.items)[0] for left in ("", *history)
    )
    for item, reason in enumerate(found.reasons):
        losses = [whole[item] - scores[item] for scores in without]
        spoke = sum(max(loss, 0) for loss in losses)
        if spoke > 0:
            assert reason.item == history[int(np.argmax(losses))]
            assert reason.share == pytest.approx(max(losses) / spoke, abs=1e-3)
