"""Which item columns RecBole's own feature-aware models get to read."""

import pytest
from conftest import settings, tiny_interactions, write_dataset, write_interactions

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.data.dataset import SEMANTIC_ID
from recbole_bbqrec.errors import InputError

INTER = ["user_id", "item_id", "timestamp"]


def columns(folder, model="FDSA", **changes):
    config = Config(config_dict=settings(folder, model, **changes))
    return config["selected_features"], config["load_col"].get("item")


@pytest.mark.parametrize("model", ["FDSA", "SASRecF", "GRU4RecF"])
def test_the_columns_of_texts_are_the_default(tiny, model):
    assert columns(tiny, model) == (["title", "brand"], ["item_id", "title", "brand"])


def test_codes_of_images_and_columns_of_a_template_are_taken_too_each_once(tiny):
    given = {"text_fields": "{title}[ by {brand}][ {title}]", "image_fields": "image_codes text_codes"}
    assert columns(tiny, **given)[0] == ["title", "brand", "image_codes", "text_codes"]


def test_recboles_default_stays_where_the_items_have_that_column(tmp_path):
    write_dataset(tmp_path)
    path = tmp_path / "tiny" / "tiny.item"
    path.write_text(path.read_text().replace("brand:token", "class:token", 1))
    assert columns(tmp_path, text_fields="title") == (["class"], ["item_id", "class"])


def test_chosen_columns_are_loaded_and_load_col_wins(tiny):
    assert columns(tiny, selected_features=["brand"]) == (["brand"], ["item_id", "brand"])
    load = {"inter": INTER, "item": ["item_id", "title", "brand"]}
    assert columns(tiny, selected_features=["brand"], load_col=load) == (["brand"], load["item"])


def test_all_columns_stay_all_columns(tiny):
    config = Config(config_dict=settings(tiny, "FDSA", load_col=None))
    assert config["load_col"] is None and config["selected_features"] == ["title", "brand"]


def test_attached_codes_are_no_column(tiny):
    assert columns(tiny, attach_semantic_ids=True, selected_features=[SEMANTIC_ID]) == ([SEMANTIC_ID], None)
    both = columns(tiny, attach_semantic_ids=True, selected_features=[SEMANTIC_ID, "brand"])
    assert both == ([SEMANTIC_ID, "brand"], ["item_id", "brand"])
    with pytest.raises(InputError, match=f"selected_features: found '{SEMANTIC_ID}'"):
        columns(tiny, selected_features=[SEMANTIC_ID])


def test_other_models_load_no_item_columns(tiny):
    for model in ("SASRec", "BBQRec"):
        assert columns(tiny, model) == (None, None)


def test_a_model_of_recbole_gets_the_values_of_the_columns(tiny):
    config = Config(config_dict=settings(tiny, "FDSA"))
    train, _, _ = split_loaders(config, registry.get_dataset("FDSA")(config))
    features = train._dataset.get_item_feature()
    assert features["brand"].shape == (41,) and features["title"].shape == (41, 4)  # "red lamp number 0"
    assert features["brand"].unique().numel() == 2 and not features["title"][0].any()


def test_mistakes_name_the_column_or_the_file(tiny, tmp_path):
    with pytest.raises(InputError, match=r"selected_features: found 'brnd', .*did you mean brand\?"):
        columns(tiny, selected_features=["brnd"])
    with pytest.raises(InputError, match=r"selected_features: found 'class', expected columns of .*title"):
        columns(tiny, text_fields="", text_encoder=None)
    write_interactions(tmp_path, "tiny", tiny_interactions())
    with pytest.raises(InputError, match=r"tiny\.item: no such file, but FDSA reads columns of items"):
        columns(tmp_path)
