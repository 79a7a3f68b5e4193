import pytest
from conftest import settings as quick

from recbole_bbqrec import settings
from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError


@pytest.fixture
def properties(tmp_path, monkeypatch):
    """Write a model's file into a folder that stands for properties/; its path is returned."""
    monkeypatch.setattr(settings, "PROPERTIES", tmp_path)
    (tmp_path / "model").mkdir()

    def write(model, text):
        path = tmp_path / f"model/{model}.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_files_that_are_extended_come_first(properties):
    files = [properties("Top", "width: 1"), properties("Mid", "extends: Top"), properties("Low", "extends: Mid")]
    assert settings.property_files("Low", "nowhere") == files
    assert settings.property_files("Top", "nowhere") == files[:1]
    assert settings.property_files("SASRec", "nowhere") == []


@pytest.mark.parametrize(("text", "message"), [
    ("extends: Nobody", r"One\.yaml: extends 'Nobody', but there is no .*Nobody\.yaml; name a model of that folder"),
    ("extends: One", r"One\.yaml: extends 'One', which extends this file itself"),
    ("extends: Two", r"Two\.yaml: extends 'One', which extends this file itself; take one of them out"),
])  # fmt: skip
def test_extending_nobody_or_in_a_circle_is_refused(properties, text, message):
    properties("One", text)
    properties("Two", "extends: One")
    with pytest.raises(InputError, match=message):
        settings.property_files("One", "nowhere")


def test_extends_is_no_setting_and_its_keys_go_over_those_it_extends(tiny):
    base, control = (Config(config_dict=quick(tiny, model)) for model in ("BBQRec", "SASRecPlusFT"))
    assert "extends" not in settings.plain_settings(control)
    changed = {key for key, value in base.final_config_dict.items() if control[key] != value}
    small = {"hidden_size", "inner_size", "n_layers", "n_negatives", "feature_dim", "report_card"}
    small |= {"second_stage"}  # all of these for quick tests
    small |= {key for key in changed if key.startswith("sid_")}
    assert changed - small == {
        *("model", "attach_semantic_ids", "codes", "use_code_embedding", "scoring"),
    }
    with pytest.raises(InputError, match="unknown key 'extends'"):
        Config(config_dict=quick(tiny, "BBQRec", extends="SASRecPlus"))


def test_a_key_that_came_later_changes_runs_only_where_it_says_something_new(tiny):
    before, same = (
        settings.learning_settings(Config(config_dict=quick(tiny, **more))) for more in ({}, {"id_dim": None})
    )
    assert before == same and not settings.ADDED_LATER.keys() & before.keys()
    for key, value in {"id_dim": 8, "sid_alignment_weight": 9.0}.items():
        given = quick(tiny, **{key: value}, **({"tokenizer": "aligned"} if key.startswith("sid_") else {}))
        assert settings.learning_settings(Config(config_dict=given))[key] == value
