"""Encoders: rows in, a matrix and the known rows out, the same whatever the batches are."""

import builtins
import logging
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from preparation import tiny_models

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import encoders
from recbole_bbqrec.preparation.encoders import model_folder, transformers_image, transformers_text


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the models bert, clip, vit and classifier (a vit whose file has no pooler)."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.bert(folder / "bert")
    tiny_models.clip(folder / "clip")
    tiny_models.vit(folder / "vit")
    tiny_models.vit(folder / "classifier", classifier=True)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    colours = ["red", "green", "blue", "white", "black"]
    for name in colours:
        Image.new("RGB", (40, 48), name).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in colours]


def test_text_mean_is_over_real_tokens_only(models: Path) -> None:
    texts = ["red lamp", "", "green tent rope blue lamp", "tent", "  "]
    matrix, known, _ = transformers_text(texts, models / "bert", batch_size=4)
    assert matrix.shape == (5, 16) and known.tolist() == [True, False, True, True, False]
    assert not matrix[~known].any() and not matrix.is_inference()
    for row in (0, 2, 3):  # alone, without any padding
        alone, *_ = transformers_text([texts[row]], models / "bert", batch_size=1)
        torch.testing.assert_close(matrix[row], alone[0], atol=1e-5, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 7))
def test_texts_keep_their_rows(models: Path, order: list[int], batch_size: int) -> None:
    texts = ["red", "red lamp", "", "a b c d e f", "tent rope", "blue"]
    expected, *_ = transformers_text(texts, models / "bert", batch_size=2)
    found, *_ = transformers_text([texts[at] for at in order], models / "bert", batch_size=batch_size)
    torch.testing.assert_close(found, expected[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("asked", "limit"), [(6, 6), (128, 22)])
def test_long_texts_are_cut_and_counted(models: Path, caplog: pytest.LogCaptureFixture, asked: int, limit: int) -> None:
    caplog.set_level(logging.INFO)
    long = " ".join(["red"] * 40)
    matrix, _, notes = transformers_text([long, "red", long + " lamp"], models / "bert", max_tokens=asked)
    assert f"2 of 3 texts cut to {limit} tokens" in caplog.text
    assert notes == {"cut_texts": 2, "token_limit": limit}
    assert torch.isfinite(matrix).all()


def test_clip_has_towers_for_both(models: Path, pictures: list[Path]) -> None:
    texts, known, _ = transformers_text(["red lamp", "blue tent rope", ""], models / "clip", batch_size=1)
    assert texts.shape == (3, 8) and known.tolist() == [True, True, False]
    assert transformers_image(pictures, models / "clip")[0].shape == (5, 8)


@pytest.mark.parametrize("name", ["clip", "vit", "classifier"])
def test_images_keep_their_rows(models: Path, pictures: list[Path], name: str) -> None:
    paths = [pictures[0], None, *pictures[1:]]
    matrix, known, _ = transformers_image(paths, models / name, batch_size=2)
    assert known.tolist() == [True, False, True, True, True, True] and not matrix[1].any()
    assert len(torch.unique(matrix[known], dim=0)) == 5
    backwards, *_ = transformers_image(paths[::-1], models / name, batch_size=3)
    torch.testing.assert_close(backwards.flip(0), matrix, atol=1e-5, rtol=1e-5)


def test_random_pooler_is_not_used_and_no_randomness_is_drawn(models: Path, pictures: list[Path]) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(transformers_image(pictures, models / "classifier")[0])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


def test_bad_images_are_missing_and_named(
    models: Path, pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for at in range(25):
        (tmp_path / f"{at}.jpg").write_bytes(b"<html>404</html>")
    bad = [tmp_path / f"{at}.jpg" for at in range(25)]
    Image.new("RGB", (1, 1)).save(tmp_path / "24.jpg")
    Image.new("RGB", (2, 2)).save(tmp_path / "23.jpg")
    matrix, known, notes = transformers_image([*bad, pictures[0]], models / "vit", batch_size=5)
    assert notes == {"unreadable": {"UnidentifiedImageError": 23, "no picture": 2}}
    assert known.tolist() == [False] * 25 + [True] and not matrix[:25].any()
    assert "0.jpg: UnidentifiedImageError" in caplog.text and "5 more" in caplog.text
    matrix, known, _ = transformers_image(bad, models / "vit")
    assert matrix.shape == (25, 0) and not known.any()


def test_models_that_cannot_be_loaded(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, folder: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            getattr(encoders, name)(["x"] if name == "transformers_text" else [None], folder)
        assert "\n" not in str(caught.value)

    for name in (str(tmp_path / "none"), "./none", "~/none", "a/b/c", "a\\b"):
        with pytest.raises(InputError, match="no such folder"):
            model_folder(name)
    broken("transformers_text", tmp_path, "not a model that can be loaded")
    broken("transformers_text", models / "vit", "not a model that can be loaded")
    broken("transformers_image", models / "bert", "not a model that can be loaded")
    pickled = shutil.copytree(models / "bert", tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    broken("transformers_text", pickled, "not a model that can be loaded.*safetensors")
    damaged = shutil.copytree(models / "bert", tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((models / "bert" / "model.safetensors").read_bytes()[:500])
    broken("transformers_text", damaged, "not a model that can be loaded")
    partial = shutil.copytree(models / "bert", tmp_path / "partial")
    config = (partial / "config.json").read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2')
    (partial / "config.json").write_text(config)
    broken("transformers_text", partial, "lacks 16 weights")


def test_hub_names_are_downloaded_without_pickles(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def snapshot_download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(models / "bert")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert model_folder(str(models / "bert")) == models / "bert" and not asked
    assert model_folder("someone/some-model") == models / "bert" and not asked["local_files_only"]
    assert asked["name"] == "someone/some-model" and not any("bin" in part for part in asked["allow_patterns"])
    assert model_folder("someone/some-model", download=False) == models / "bert" and asked["local_files_only"]

    def unreachable(name: str, **options: object) -> str:
        raise ConnectionError("first line\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        InputError, match=r"someone/x: neither a local folder.*first line.nsecond line'\)\).*its folder"
    ):
        model_folder("someone/x")
    assert model_folder("someone/x", download=False) is None
    with pytest.raises(InputError, match="none: no such folder"):
        model_folder("./none", download=False)


def test_features_that_are_not_finite(models: Path, tmp_path: Path) -> None:
    import transformers

    folder = shutil.copytree(models / "bert", tmp_path / "nan")
    network = transformers.BertModel.from_pretrained(folder)
    torch.nn.init.constant_(network.embeddings.word_embeddings.weight, float("nan"))
    network.save_pretrained(folder)
    with pytest.raises(InputError, match="not finite"):
        transformers_text(["red"], folder)


def test_pillow_is_optional(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def without_pillow(name: str, *rest: object, **more: object) -> object:
        if name.startswith("PIL"):
            raise ImportError("No module named 'PIL'")
        return genuine(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(InputError, match=r"pip install 'recbole-bbqrec\[images\]'"):
        transformers_image([None], models / "vit")
