"""New items from tables: the features, codes and scores that the cold protocol gives them, or one line why not."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import N_ITEMS, write_dataset
from PIL import Image
from preparation import tiny_models
from serving.conftest import SMALL

import recbole_bbqrec
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation.vectors import write_vectors
from recbole_bbqrec.serving import generations

NEW = pd.DataFrame({"item_id": ["n1", 7], "title": ["red lamp number 3", "blue_tent"], "brand": ["Acme", None]})


def assert_same(found, expected):
    """Equal lists; the last bit of a score may depend on where in memory its vectors lie."""
    for one, other in zip(found, expected, strict=True):
        assert (one.items, one.unknown) == (other.items, other.unknown)
        assert one.scores == pytest.approx(other.scores, rel=1e-5, abs=1e-6)


def test_new_items_are_recommended_read_and_kept(coded):
    grown = coded.add_items(NEW)
    assert (coded.generation, grown.generation, generations.newest(coded.folder)) == (0, 1, 1)
    assert grown.item_tokens == [*coded.item_tokens, "n1", "7"] and grown.titles[-2:] == [
        "red lamp number 3",
        "blue tent",
    ]
    again = recbole_bbqrec.load_bundle(coded.folder)
    for bundle in (grown, again):
        (found,) = bundle.recommend([["i01", "n1"]], k=100, exclude_seen=False)
        assert {"n1", "7"} < set(found.items) and not found.unknown and len(found.items) == len(bundle.item_tokens) - 1
        assert bundle.find("tent blue")[0] == "7" and bundle.item_texts().loc["n1", "brand"] == "Acme"
    histories = [["i01", "n1"], [7], ["i05", "i02"]]
    assert_same(again.recommend(histories, k=9), grown.recommend(histories, k=9))
    third = again.add_items(pd.DataFrame({"item_id": ["n3"], "title": ["green ball"], "brand": [""]}))
    assert third.generation == 2 and third.item_tokens[-3:] == ["n1", "7", "n3"]
    assert_same(third.recommend([["i05", "i02"]], 9, allow=grown.item_tokens[1:]), grown.recommend([["i05", "i02"]], 9))
    assert third.semantic_ids().loc["n1"].tolist() == grown.semantic_ids().loc["n1"].tolist()


def test_columns_may_have_other_usual_names(small):
    usual = small.add_items(NEW)
    shops = NEW.rename(columns={"item_id": "SKU", "title": "product_name", "brand": "Manufacturer"})
    shops["SKU"] = ["m1", "m2"]
    again = usual.add_items(shops)
    assert (
        again.item_texts().loc[["m1", "m2"]].to_numpy().tolist()
        == usual.item_texts().loc[["n1", "7"]].to_numpy().tolist()
    )
    assert_same(again.recommend([["m1"]], allow=["i05"]), again.recommend([["n1"]], allow=["i05"]))


TABLES = {
    "new.csv": 'item_id;title;brand;\nn1;"red lamp; 3,5 W";Acme;\n',
    "NEW.TSV": "item_id\ttitle\tbrand\nn1\tred lamp; 3,5 W\tAcme\n\n",
    "new.jsonl": '{"item_id": "n1", "title": ["red", "lamp;", "3,5 W"], "brand": "Acme", "stock": null}\n'
    '{"item_id": 12345678901234567, "title": "lamp", "brand": 7.0, "stock": true}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_files_are_read_as_those_that_are_prepared(small, tmp_path, name):
    (tmp_path / name).write_text(TABLES[name], encoding="utf-16" if name == "NEW.TSV" else "utf-8")
    grown = small.add_items(tmp_path / name)
    assert grown.item_texts().loc["n1", ["title", "brand"]].tolist() == ["red lamp; 3,5 W", "Acme"]
    if name == "new.jsonl":
        row = grown.item_texts().loc["12345678901234567", ["title", "brand", "stock"]]
        assert row.tolist() == ["lamp", "7", "True"] and grown.item_texts().loc["n1", "stock"] == ""


def test_cells_are_read_as_those_of_the_data_set(small, tmp_path):
    """What `bbqrec prepare` makes plain is made plain here: entities, line ends, lists and objects within."""
    row = {"item_id": "n1", "title": "red\nL&ouml;ffel", "brand": [{"name": "Acme"}], "size": {"w": 3, "h": None}}
    (tmp_path / "new.jsonl").write_text(json.dumps(row))
    grown = small.add_items(tmp_path / "new.jsonl")
    assert grown.item_texts().loc["n1", ["title", "brand", "size"]].tolist() == ["red Löffel", "Acme", "3"]
    again = grown.add_items(pd.DataFrame({"item_id": ["n2"], "title": ["red Löffel"], "brand": ["Acme"]}))
    assert torch.equal(*again.catalogue.features.matrices["text"][-2:])


def test_numbers_and_vectors_of_parquet_files(small, tmp_path):
    pytest.importorskip("pyarrow")
    vectors = [{"text": [float(at) for at in range(16)]}, None]
    NEW.assign(item_id=[8, 7], stock=[3, 4], vectors=vectors).to_parquet(tmp_path / "new.parquet")
    grown = small.add_items(tmp_path / "new.parquet")
    assert grown.item_texts().loc[["8", "7"], "stock"].tolist() == ["3", "4"]
    assert grown.catalogue.features.matrices["text"][-2].tolist() == vectors[0]["text"]


def test_an_older_bundle_adds_to_what_is_newest(small):
    first = small.add_items(NEW)
    second = small.add_items(NEW.assign(item_id=["m1", "m2"]))  # `small` itself still is as trained
    assert second.generation == 2 and second.item_tokens == [*first.item_tokens, "m1", "m2"]


def test_features_are_those_of_the_run(small):
    """Items of the same texts get the very rows that the run made of them."""
    twins = small.item_texts().iloc[:12].reset_index(drop=True)
    kept = [row for row in range(12) if twins.loc[row, "title"]]
    twins = twins.loc[kept].assign(item_id=[f"t{row}" for row in kept])
    grown = small.add_items(twins)
    rows = grown.catalogue.features.matrices["text"]
    torch.testing.assert_close(rows[-len(kept) :], rows[[1 + row for row in kept]], atol=1e-5, rtol=0)
    (found,) = grown.recommend([["i01"]], 100, False)
    scores = dict(zip(found.items, found.scores, strict=True))
    assert len({round(scores[f"t{row}"], 4) for row in kept}) > 3, "texts decide, not that they are new"


def test_vectors_stand_in_for_an_encoder(small, tmp_path):
    width = small.catalogue.features.matrices["text"].shape[1]
    vector = np.arange(width) / width
    grown = small.add_items(pd.DataFrame({"item_id": ["v"], "vectors": [{"text": vector}]}))
    torch.testing.assert_close(grown.catalogue.features.matrices["text"][-1], torch.from_numpy(vector).float())
    path = tmp_path / "new.csv"
    pd.DataFrame({"item_id": ["w"], "vectors": [json.dumps({"text": vector.tolist()})]}).to_csv(path, index=False)
    again = small.add_items(path)
    assert torch.equal(*again.catalogue.features.matrices["text"][-2:]) and again.titles[-2:] == ["", ""]
    assert again.similar_items("w", 1)[0] == ("v", pytest.approx(1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": ["i01", "n"]}, "row 1, item_id 'i01' is in the catalogue already; leave it out"),
        ({"item_id": ["n", "n"]}, "row 2, item_id 'n' is in the table twice"),
        ({"item_id": ["n", float("nan")]}, "item_id: found nan, expected item tokens"),
        ({"item_id": ["n", " "]}, "row 2, item_id ' ' is no item token"),
        ({"item_id": ["n", "a\nb"]}, "is no item token"),
        ({"item_id": ["n", "[PAD]"]}, "is no item token"),
        ({"title": ["", "zzzz qqqq"], "brand": ["", ""]}, "found of 'n1' nothing that this model's features can use"),
        ({"title": ["red lamp", "zzzz"], "brand": ["", ""]}, "found of '7' nothing that this model's features can use"),
        ({"title": [["red"], "lamp"]}, "row 1, title: found list, expected a text"),
        ({"title": ["lamp", [["red"], ["red", "lamp"]]]}, "row 2, title: found list, expected a text"),
        ({"vectors": [{"text": [1.0]}, None]}, "vectors of 'n1': found text of shape [1], expected"),
        ({"vectors": [{"image": [1.0]}, None]}, "vectors of 'n1': found image of shape [1], expected"),
        ({"vectors": [{"text": [float("nan")] * 16}, None]}, "vectors of 'n1': found text of shape [16], expected"),
        ({"vectors": ["{", None]}, "vectors of 'n1': found '{', expected a mapping"),
        ({"vectors": [[[1.0], [1.0, 2.0]], None]}, "vectors of 'n1': found '[[1.0], [1.0, 2.0]]', expected a mapping"),
        ({"image": ["nowhere.png", None]}, "image of 'n1': found 'nowhere.png', expected an image file"),
    ],
)
def test_rows_that_cannot_be_used_are_one_line(small, change, message):
    with pytest.raises(InputError) as error:
        small.add_items(NEW.assign(**change))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert generations.newest(small.folder) == 0


def test_tables_that_cannot_be_used_are_one_line(small, tmp_path):
    bad, ragged, double = (tmp_path / f"{name}.csv" for name in ("bad", "ragged", "double"))
    bad.write_bytes(b"item_id,title\n\xff\xfe,x\n")
    ragged.write_text("item_id,title,brand\nn1,red lamp,Acme\nn2,red lamp, large,Acme\n")
    double.write_text("item_id,title,brand,title\nn1,red lamp,Acme,\n")
    for given, message in (
        (
            NEW.drop(columns="title"),
            "found no column title, expected the columns of text_fields (title brand); present: brand; add it, blank",
        ),
        (
            NEW.rename(columns={"item_id": "number"}),
            "new items: found no column item_id; rename the one with the item ids, present: number",
        ),
        (NEW.rename(columns={"item_id": "sku"}).assign(SKU="n"), "new items: found no column item_id"),
        (NEW.iloc[:0], "new items: found no row"),
        (pd.concat([NEW, NEW["title"]], axis=1), "new items: found two columns title, expected names that differ"),
        (["n"], "new items: found list, expected a frame or the path of a CSV file"),
        (tmp_path / "none.csv", "no such file; expected a CSV file"),
        (bad, "no table that can be read (line 2: not UTF-8 text, found '\\\\xff\\\\xfe,x'); save the file as UTF-8"),
        (ragged, "ragged.csv: no table that can be read (line 3: 4 columns instead of 3, found 'n2,red lamp, large"),
        (double, "double.csv: found two columns title, expected names that differ; rename one"),
        (tmp_path, "no such file; expected a CSV file"),
    ):
        with pytest.raises(InputError) as error:
            small.add_items(given)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_encoders_says_so(small):
    (small.folder / "encoders.safetensors").unlink()
    with pytest.raises(InputError, match=r"^new items: text: its encoder is not in this folder.*; give vectors"):
        small.add_items(NEW)


def test_models_without_features_take_none(tiny, untrained):
    for model in ("SASRec", "SASRecPlus"):
        with pytest.raises(InputError, match=f"^new items: {model} scores the items that it was trained with"):
            untrained(tiny, model).add_items(NEW)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory, untrained):
    """The folder of a bundle whose features are of a text model, an image model beside the data set, and images."""
    place = write_dataset(tmp_path_factory.mktemp("pictured"))
    (place / "tiny" / "images").mkdir()
    for item in range(N_ITEMS - 3):
        Image.new("RGB", (32, 32), (6 * item, 90, 200 - item)).save(place / "tiny" / "images" / f"i{item:02d}.png")
    tiny_models.bert(place / "bert")
    tiny_models.vit(place / "tiny" / "vit")
    given = {"text_encoder": str(place / "bert"), "image_encoder": "vit", "image_folder": "images"}
    return place, untrained(place, "SASRecPlusFT", **SMALL, **given).folder


def test_models_that_encode_are_found_again(pictured, tmp_path):
    place, folder = pictured
    bundle = recbole_bbqrec.load_bundle(shutil.copytree(folder, tmp_path / "bundle"))
    shutil.copyfile(place / "tiny" / "images" / "i07.png", tmp_path / "seven.png")
    twin = {"item_id": "twin", **bundle.item_texts().loc["i07", ["title", "brand"]], "image": tmp_path / "seven.png"}
    grown = bundle.add_items(pd.DataFrame([twin, {"item_id": "shown", "image": tmp_path / "seven.png"}]))
    features, seventh = grown.catalogue.features, grown.item_id("i07")
    for name in ("text", "image"):
        torch.testing.assert_close(features.matrices[name][-2], features.matrices[name][seventh], atol=1e-5, rtol=1e-4)
    assert [features.present[name][-1].item() for name in ("text", "image")] == [False, True], "an image is enough"
    assert bundle.image_file("i07").samefile(place / "tiny" / "images" / "i07.png")
    assert bundle.image_file(f"i{N_ITEMS - 1}") is None and grown.image_file("shown").name == "shown.png"

    weights = place / "bert" / "model.safetensors"
    kept = weights.read_bytes()
    tiny_models.bert(place / "bert", seed=1)
    with pytest.raises(InputError, match=r"^new items: text: found another model at .*bert than the one that made"):
        grown.add_items(NEW)
    weights.write_bytes(kept)
    assert grown.add_items(NEW).generation == 2


def test_codes_and_ready_vectors(tiny, tmp_path, untrained):
    own = {**SMALL, "text_encoder": "codes", "text_fields": "text_codes"}
    bundle = untrained(tiny, "SASRecPlusFT", **own)
    grown = bundle.add_items(pd.DataFrame({"item_id": ["n"], "text_codes": ["a_1 b_2"]}))
    rows = grown.catalogue.features.matrices["text"]
    torch.testing.assert_close(rows[-1], rows[grown.item_id("i07")], atol=1e-5, rtol=0)  # the item of these codes
    place = write_dataset(tmp_path)
    vectors = torch.randn(N_ITEMS, 8, generator=torch.Generator().manual_seed(0))
    write_vectors(place / "tiny" / "text.safetensors", [f"i{item:02d}" for item in range(N_ITEMS)], vectors)
    bundle = untrained(place, "SASRecPlusFT", **SMALL, text_encoder="text.safetensors")
    with pytest.raises(InputError, match=r"^new items: found of 'n1' nothing that this model's features can use"):
        bundle.add_items(NEW)
    given = NEW.assign(vectors=[{"text": row.tolist()} for row in vectors[:2]])
    assert torch.equal(bundle.add_items(given).catalogue.features.matrices["text"][-2:], vectors[:2])
