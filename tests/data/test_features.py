"""Item features: right rows for right tokens, and a cache that is never trusted wrongly."""

import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from preparation import tiny_models

from recbole_bbqrec import storage
from recbole_bbqrec.data import feature_sources, features
from recbole_bbqrec.data.features import ItemFeatures, build_item_features
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import encoders
from recbole_bbqrec.preparation.vectors import write_vectors

ROWS = {
    "i1": ("red lamp", "Acme", "Home Floor_Lamps", "A_1 B_1"),
    "i2": ("blue lamp", "", "Home Floor_Lamps", "A_1 B_2"),
    "i3": ("", "", "", ""),
    "i4": ('"green tent', "NA", "Out_Door Tents", "A_2 B_1"),
    "i5": ("blue tent", "Acme", "Out_Door Tents", "A_2 B_2"),
}
TOKENS = list(ROWS)
SETTINGS = {
    "dataset": "d",
    "device": "cpu",
    "seed": 2020,
    "feature_dim": 256,
    "encode_batch_size": 32,
    "max_text_tokens": 128,
    "ITEM_ID_FIELD": "item_id",
    "field_separator": "\t",
    "seq_separator": " ",
    "encoding": None,
}
TEXT = {"text_fields": "title brand categories", "text_encoder": "tfidf"}
COLOURS = {"i1": "red", "i2": "green", "i4": "blue", "i5": "white"}


def write_items(folder: Path, rows: dict[str, tuple], extra: str = "") -> Path:
    lines = ["item_id:token\ttitle:token_seq\tbrand:token\tcategories:token_seq\tcodes:token_seq"]
    lines += ["\t".join((token, *row)) for token, row in rows.items()]
    folder.mkdir(exist_ok=True)
    (folder / "d.item").write_text("\n".join(lines) + "\n" + extra, encoding="utf-8")
    return folder / "d.item"


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """The .item file of a data set with images; i3 has neither text nor image."""
    file = write_items(tmp_path / "d", ROWS)
    (tmp_path / "d" / "images").mkdir()
    for token, colour in COLOURS.items():
        Image.new("RGB", (40, 40), colour).save(tmp_path / "d" / "images" / f"{token}.png")
    return file


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_models.bert(folder / "bert")
    tiny_models.vit(folder / "vit")
    tiny_models.clip(folder / "clip")
    return folder


def build(file: Path, tokens: list[str] = TOKENS, cache: str = "cache", **config: Any) -> tuple[ItemFeatures, int]:
    """The features, and of how many modalities they were encoded now."""
    genuine, encoded = features._encode, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_encode", lambda *given: (encoded.append(given), genuine(*given))[1])
        found = build_item_features({**SETTINGS, "data_path": file.parent, **config}, tokens, file.parent / cache)
    return found.features, len(encoded)


def texts(file: Path, tokens: list[str], **config: Any) -> list[str]:
    """Texts as an encoder gets them."""
    return feature_sources.read_texts({**SETTINGS, "data_path": file.parent, **config}, tokens, ["text"])["text"]


def files(file: Path) -> set[str]:
    folder = file.parent / "cache"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def same(left: ItemFeatures, right: ItemFeatures) -> bool:
    def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)

    return left.tokens == right.tokens and equal(left.matrices, right.matrices) and equal(left.present, right.present)


def test_rows_follow_sorted_tokens_whatever_the_order_asked(items: Path) -> None:
    first, encoded = build(items, [*TOKENS, "[PAD]", "unlisted"], **TEXT)
    assert encoded == 1 and first.tokens == [*TOKENS, "unlisted"] and first.modalities == ["text"]
    assert first.present["text"].tolist() == [True, True, False, True, True, False]
    assert not first.matrices["text"][[2, 5]].any() and first.matrices["text"].dtype == torch.float32
    again, encoded = build(items, ["unlisted", *TOKENS[::-1], "i1"], **TEXT)
    assert same(first, again) and encoded == 0


def test_texts_that_nobody_reads_are_named(items: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        build(items, **TEXT)
        assert "does not use" not in caplog.text
        build(items)
    assert (
        "texts that this run does not use (title categories codes); to use them, add --text_encoder=tfidf"
        in caplog.text
    )
    items.write_text("no header\n")
    assert not build(items)[0].matrices, "what is not needed may be broken"


def test_what_is_read_tells_what_it_cost_when_it_was_made(items: Path) -> None:
    def cost() -> float | None:
        return build_item_features(
            {**SETTINGS, "data_path": items.parent, **TEXT}, TOKENS, items.parent / "cache"
        ).seconds

    first = cost()
    assert first is not None and first > 0 and cost() == first
    tensors, header = storage.load(cached(items), "features")
    storage.save(cached(items), "features", tensors, {key: of for key, of in header.items() if key != "cost"})
    assert cost() is None, "a file from before does not tell"


def test_text_template(items: Path) -> None:
    rows = texts(items, [*TOKENS, "x"], **TEXT)
    assert rows[0] == "red lamp Acme Home Floor Lamps" and rows[3] == '"green tent NA Out Door Tents'
    assert rows[2] == rows[5] == ""
    assert texts(items, ["i1"], **{**TEXT, "text_fields": "brand title"}) == ["Acme red lamp"]
    assert texts(items, ["i1"], **{**TEXT, "text_fields": ["brand", "title"]}) == ["Acme red lamp"]


def test_numbers_and_other_separators_in_texts(tmp_path: Path) -> None:
    (tmp_path / "d.item").write_text("id:token;year:float;tags:token_seq\na;1995;x|y_z\nb;;\n")
    how = {"ITEM_ID_FIELD": "id", "field_separator": ";", "seq_separator": "|"}
    rows = texts(tmp_path / "d.item", ["a", "b"], text_fields="tags year", text_encoder="tfidf", **how)
    assert rows == ["x y z 1995", ""]


def test_codes_vectors_and_images(items: Path, models: Path) -> None:
    write_vectors(items.parent / "v.safetensors", ["i5", "other", "i1"], torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
    found, _ = build(
        items,
        text_fields="codes",
        text_encoder="codes",
        image_encoder="v.safetensors",  # beside the .item file
    )
    assert found.matrices["text"].tolist()[:3] == [[1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    assert found.matrices["image"].tolist() == [[5, 6], [0, 0], [0, 0], [0, 0], [1, 2]]
    assert found.present["image"].tolist() == [True, False, False, False, True]
    found, _ = build(items, **TEXT, image_folder="images", image_encoder=str(models / "vit"))
    assert found.modalities == ["text", "image"]
    assert found.present["image"].tolist() == [True, True, False, True, True]
    found, _ = build(items, image_fields="title", image_encoder=str(models / "clip"))  # captions of images
    assert found.matrices["image"].shape == (5, 8)
    assert build(items)[0].modalities == []
    (items.parent / "codes").mkdir()  # a name of an encoder is no path
    assert build(items, text_fields="codes", text_encoder="codes")[1] == 0


def test_missing_items_are_counted(items: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_items(items.parent, ROWS, extra="i1\tother title\t\t\t\n")
    found, _ = build(items, [*TOKENS, "x", "y", "z"], **TEXT)
    assert "text features: 8 items x" in caplog.text and "4 items (50.0 %) have none" in caplog.text
    assert "1 rows repeat an item" in caplog.text and "3 items have no row" in caplog.text
    write_items(items.parent, ROWS)
    assert same(found, build(items, [*TOKENS, "x", "y", "z"], **TEXT)[0])  # the first row was kept


def test_tokens_never_become_paths(items: Path, models: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(items.parent / "secret.png")
    tokens = ["i1", "../secret", "..", "a/b", str(items.parent / "secret")]
    found, _ = build(items, tokens, image_folder="images", image_encoder=str(models / "vit"))
    assert [token for token, there in zip(found.tokens, found.present["image"], strict=True) if there] == ["i1"]


def test_reindex_adds_padding_and_unknown_tokens(items: Path) -> None:
    found, _ = build(items, **TEXT)
    rows = found.reindex(["[PAD]", "i5", "nobody", "i1", "i3"])
    assert rows.tokens == ["[PAD]", "i5", "nobody", "i1", "i3"]
    assert rows.present["text"].tolist() == [False, True, False, True, False]
    assert not rows.matrices["text"][[0, 2, 4]].any()
    assert torch.equal(rows.matrices["text"][[1, 3]], found.matrices["text"][[4, 0]])
    assert same(found.reindex(["[PAD]", *TOKENS]).reindex(TOKENS), found)


@examples(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=8), data=st.data())
def test_save_and_load(tmp_path: Path, tokens: list[str], data: st.DataObject) -> None:
    present = torch.tensor([data.draw(st.booleans()) for _ in tokens], dtype=torch.bool)
    written = ItemFeatures(tokens, {"b": torch.rand(len(tokens), 3), "a": torch.zeros(len(tokens), 1)}, {})
    written.present = {"b": present, "a": ~present}
    written.save(tmp_path / "f.safetensors", {"note": 1})
    assert same(written, ItemFeatures.load(tmp_path / "f.safetensors"))
    order = data.draw(st.permutations(tokens))
    assert same(written.reindex(order).reindex(tokens).reindex(order), written.reindex(order))


def test_load_refuses_what_it_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    storage.save(path, "features", {"tokens": torch.zeros(1, dtype=torch.uint8)}, {"modalities": []})
    with pytest.raises(InputError, match="delete it and run again"):
        ItemFeatures.load(path)
    written = ItemFeatures(["a"], {"m": torch.zeros(2, 1)}, {"m": torch.zeros(2, dtype=torch.bool)})
    written.save(path, {})
    with pytest.raises(InputError, match="differ in number"):
        ItemFeatures.load(path)


def test_every_input_makes_a_new_file_and_the_old_one_is_found_again(items: Path, models: Path) -> None:
    own = shutil.copytree(models / "bert", items.parent / "bert")
    base: dict[str, Any] = {
        "text_fields": "title",
        "text_encoder": "bert",
        "image_folder": "images",
        "image_encoder": str(models / "vit"),
    }
    image, original = items.parent / "images" / "i1.png", items.read_text()
    picture, other_picture = image.read_bytes(), (items.parent / "images" / "i5.png").read_bytes()
    first, _ = build(items, **base)
    changes: list[tuple[str, Callable[[], Any], dict, list[str]]] = [
        ("text", lambda: items.write_text(original.replace("red", "tent")), {}, TOKENS),
        ("text", lambda: None, {"text_fields": "title brand"}, TOKENS),
        ("text", lambda: None, {"max_text_tokens": 3}, TOKENS),
        ("text", lambda: tiny_models.bert(own, seed=1), {}, TOKENS),
        ("image", lambda: image.write_bytes(other_picture), {}, TOKENS),
        ("image", lambda: None, {"image_encoder": str(models / "clip")}, TOKENS),
        ("text image", lambda: None, {"encode_batch_size": 2}, TOKENS),
        ("text image", lambda: None, {}, TOKENS[:4]),
    ]
    for expected, change, settings, tokens in changes:
        before = files(items)
        change()
        build(items, tokens, **{**base, **settings})
        assert {name.split("-")[1] for name in files(items) - before} == set(expected.split())
        items.write_text(original)
        image.write_bytes(picture)
        tiny_models.bert(own)
        os.utime(image)
        again, encoded = build(items, **base)
        assert encoded == 0 and same(first, again)


def test_settings_and_versions_that_matter(items: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(items, **TEXT)
    for change in ({"feature_dim": 2}, {"seed": 1}, {"text_encoder": "codes"}):
        before = files(items)
        build(items, **{**TEXT, **change})
        assert len(files(items) - before) == 1
    before = files(items)
    build(items, **TEXT, max_text_tokens=5, encode_batch_size=7)  # tfidf knows neither
    assert files(items) == before
    monkeypatch.setattr(feature_sources, "_versions", lambda *names: dict.fromkeys(names, "0.0"))
    build(items, **TEXT)
    monkeypatch.setattr(storage, "source_fingerprint", lambda *modules: "other code")
    build(items, **TEXT)
    assert len(files(items) - before) == 2


def test_vector_files_count_by_content(items: Path) -> None:
    path = items.parent / "v.npy"
    np.save(path, np.ones((2, 3), dtype=np.float32))
    for tokens in ("i1\ni2", "i1\ni4"):
        path.with_suffix(".tokens.txt").write_text(tokens)
        found, encoded = build(items, text_encoder=str(path))
        assert encoded == 1 and found.present["text"].sum() == 2
    np.save(path, np.zeros((2, 3), dtype=np.float32))
    assert not build(items, text_encoder=str(path))[0].matrices["text"].any()
    assert len(files(items)) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "hash", "earlier version", "other", "other settings"])
def test_a_damaged_cache_file_is_made_again(items: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    first, _ = build(items, **TEXT)
    (path,) = (items.parent / "cache").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flip":
        at = content.index(np.float32(first.matrices["text"][0].max()).tobytes())
        content[at] ^= 1
        path.write_bytes(content)
    elif damage in ("hash", "earlier version"):
        tensors, header = storage.load(path, "features")
        number = tensors.pop("hash.text")
        storage.save(path, "features", tensors | ({"hash.text": number + 1} if damage == "hash" else {}), header)
    elif damage == "other settings":
        build(items, **TEXT, feature_dim=3)
        (other,) = set((items.parent / "cache").iterdir()) - {path}
        other.replace(path)
    else:
        ItemFeatures(["x"], {"text": torch.ones(1, 1)}, {"text": torch.ones(1, dtype=torch.bool)}).save(path, {})
    again, encoded = build(items, **TEXT)
    assert same(first, again) and encoded == 1 and "a damaged file" in caplog.text
    assert build(items, **TEXT)[1] == 0


def counted(patch: Any, stop: int = 99, end: Callable[[], None] | None = None) -> list[int]:
    """Make the models note the items of each batch, and `end` at batch number `stop`."""
    genuine, sizes = encoders._load_model, []

    def note(network: Any, _: tuple, batch: dict[str, torch.Tensor]) -> None:
        if len(sizes) == stop:
            if end is None:
                raise KeyboardInterrupt
            end()
        sizes.append(len(next(iter(batch.values()))))

    def load(*given: Any) -> tuple[Any, list[str]]:
        network, missing = genuine(*given)
        network.register_forward_pre_hook(note, with_kwargs=True)
        return network, missing

    patch.setattr(encoders, "_load_model", load)
    return sizes


def cached(file: Path, folder: str = "cache") -> Path:
    (path,) = (file.parent / folder).glob("features-*")
    return path


def content(path: Path) -> tuple[str, dict[str, Any]]:
    """Fingerprint of the tensors of a features file, and its header without what it cost."""
    tensors, header = storage.load(path, "features")
    return storage.fingerprint(tensors), {key: value for key, value in header.items() if key != "cost"}


def whole(file: Path, base: dict) -> tuple[str, dict[str, Any]]:
    """Content of the features file of an undisturbed run."""
    build(file, cache="elsewhere", **base)
    return content(cached(file, "elsewhere"))


@pytest.mark.parametrize("modality", ["text", "image"])
def test_an_interrupted_encoding_goes_on(
    items: Path, models: Path, monkeypatch: pytest.MonkeyPatch, modality: str
) -> None:
    base: dict[str, Any] = {"text_fields": "title categories", "text_encoder": str(models / "bert")}
    if modality == "image":
        (items.parent / "images" / "i1.png").write_bytes(b"<html>")
        base = {"image_folder": "images", "image_encoder": str(models / "vit")}
    base |= {"encode_batch_size": 1, "max_text_tokens": 5}
    expected = whole(items, base)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, stop=2)
        build(items, **base)
    assert cached(items).suffix == ".parts"
    (part,) = cached(items).iterdir()
    tensors, header = storage.load(part, "encoding part")
    assert header["seconds"] > 0
    storage.save(part, "encoding part", tensors, {**header, "seconds": 1000.0})
    sizes = counted(monkeypatch)
    build(items, **base)
    assert sizes == ([1, 1] if modality == "text" else [1])  # of 4 texts, or of 3 readable images
    assert content(cached(items)) == expected
    _, header = storage.load(cached(items), "features")
    assert header["cost"]["seconds"] > 1000, "of all processes"
    told = {"cut_texts": 4, "token_limit": 5} if modality == "text" else {"unreadable": {"UnidentifiedImageError": 1}}
    assert header.items() >= told.items()


def test_changed_inputs_do_not_go_on(items: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"text_fields": "title", "text_encoder": str(models / "bert"), "encode_batch_size": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, stop=3)
        build(items, **base)
    items.write_text(items.read_text().replace("red", "tent"))
    sizes = counted(monkeypatch)
    build(items, **base)
    assert sizes == [1, 1, 1, 1]


def killed_at(moment: str, file: Path, config: dict) -> None:
    """Encode in this process, which ends at a moment: to be run in a process of its own."""
    encoders.SECONDS_PER_PART = -1.0
    save_file = storage.save_file

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dies_writing(tensors: Any, path: str, **more: Any) -> None:
        if moment == "writing the whole" and "features-" not in Path(path).name:
            return save_file(tensors, path, **more)
        Path(path).write_bytes(b"half a file")
        die()

    if moment == "encoding":
        counted(pytest.MonkeyPatch(), 2, die)
    elif "writing" in moment:
        storage.save_file = dies_writing
    else:
        shutil.rmtree = die  # type: ignore[assignment]
    build(file, **config)


@pytest.mark.parametrize(
    ("moment", "left"), [("encoding", 2), ("writing a part", 4), ("writing the whole", 1), ("clearing up", 0)]
)
def test_a_killed_run_goes_on(
    items: Path, models: Path, monkeypatch: pytest.MonkeyPatch, moment: str, left: int
) -> None:
    base = {"image_folder": "images", "image_encoder": str(models / "vit"), "encode_batch_size": 1}
    expected = whole(items, base)
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=(moment, items, base))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any(name.endswith(".parts") for name in files(items))
    assert any(name.endswith(".safetensors") for name in files(items)) == (moment == "clearing up")
    sizes = counted(monkeypatch)
    build(items, **base)
    assert len(sizes) == left and content(cached(items)) == expected


def test_the_header_says_what_the_features_are(items: Path, models: Path) -> None:
    build(items, [*TOKENS, "x"], **{**TEXT, "text_fields": "{title}[ by {brand}]"}, feature_dim=7)
    tensors, header = storage.load(cached(items), "features")
    assert (
        header.items()
        >= {
            "modality": "text",
            "modalities": ["text"],
            "encoder": "tfidf",
            "fields": "{title}[ by {brand}]",
            "source": "d.item",
            "feature_dim": 7,
            "items": 6,
            "present": 4,
        }.items()
    )
    assert set(header["versions"]) == {"scikit-learn", "scipy", "numpy"}
    assert cached(items).name == f"features-text-{header['inputs']}.safetensors"
    assert str(items.parent) not in str(header)
    hashes = tensors["hash.text"]
    assert hashes.dtype == torch.int64 and (hashes != 0).tolist() == [True, True, False, True, True, False]
    shutil.rmtree(items.parent / "cache")
    build(items, image_fields="brand", image_folder="images", image_encoder=str(models / "vit"))
    _, header = storage.load(cached(items), "features")
    assert header["source"] == "images" and header["fields"] is None and header["present"] == 4
    assert header["versions"].keys() >= {"transformers", "torch", "pillow"} and header["unreadable"] == {}


def test_hashes_tell_which_items_changed(items: Path) -> None:
    def hashes(**config: Any) -> torch.Tensor:
        shutil.rmtree(items.parent / "cache", ignore_errors=True)
        build(items, **config)
        ((name, found),) = [pair for pair in storage.load(cached(items), "features")[0].items() if "hash" in pair[0]]
        assert name in ("hash.text", "hash.image")
        return found

    before = hashes(**TEXT)
    items.write_text(items.read_text().replace("red lamp", "pink lamp"))
    assert (hashes(**TEXT) != before).tolist() == [True, False, False, False, False]
    write_vectors(items.parent / "v.safetensors", TOKENS[:3], torch.eye(3))
    before = hashes(image_encoder="v.safetensors")
    write_vectors(items.parent / "v.safetensors", [*TOKENS[:3], "i5"], torch.eye(4)[:, :3] + torch.eye(4)[1:2, :3])
    assert (hashes(image_encoder="v.safetensors") != before).tolist() == [True, True, True, False, True]


def test_an_image_that_cannot_be_opened_ends_nothing(
    items: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = storage._update

    def update(digest: Any, part: Any) -> None:
        if isinstance(part, Path) and part.name == "i1.png":
            part.unlink()  # between the listing and the reading
        genuine(digest, part)

    monkeypatch.setattr(storage, "_update", update)
    found, _ = build(items, image_folder="images", image_encoder=str(models / "vit"))
    assert found.present["image"].tolist() == [False, True, False, True, True]
    _, header = storage.load(cached(items), "features")
    assert header["unreadable"] == {"FileNotFoundError": 1}


def test_a_template_from_the_settings(items: Path) -> None:
    template = {**TEXT, "text_fields": " {title}[ by {brand}][, in {categories}] "}
    rows = texts(items, TOKENS, **template)
    assert rows[0] == "red lamp by Acme, in Home Floor Lamps" and rows[1] == "blue lamp, in Home Floor Lamps"
    assert rows[2] == ""
    plain, _ = build(items, **TEXT)
    before = files(items)
    assert same(plain, build(items, **{**TEXT, "text_fields": "{title} {brand} {categories}"})[0])
    assert files(items) == before  # the same texts are the same inputs
    codes, _ = build(items, image_fields="{codes}", image_encoder="codes")
    assert codes.matrices["image"].tolist()[:3] == [[1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]  # `_` is kept


@pytest.mark.parametrize(
    ("config", "message"),
    {
        "no fields": ({"text_encoder": "tfidf"}, "text_fields: found nothing"),
        "no source of images": ({"image_encoder": "some/model"}, "image_fields or image_folder: found nothing"),
        "unknown column": ({**TEXT, "text_fields": "titel"}, "did you mean title"),
        "template": ({**TEXT, "text_fields": "{title}[ by {brand}"}, r"text_fields: found a \[ without its other half"),
        "column of a template": ({**TEXT, "text_fields": "{titel}"}, "did you mean title"),
        "unknown item column": ({**TEXT, "ITEM_ID_FIELD": "itemid"}, "field itemid.*did you mean item_id"),
        "no folder": ({"image_folder": "pics", "image_encoder": "x/y"}, "pics: no such folder"),
        "no vectors": ({"text_encoder": "none.npy"}, "none.npy: .*No such file"),
        "no model": ({"text_fields": "title", "text_encoder": "./none"}, "none: no such folder"),
    }.values(),
)
def test_faults_of_the_settings(items: Path, config: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(items, **config)
    assert "\n" not in str(caught.value)


def test_no_item_has_the_modality(items: Path, models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 2 items has text features; the columns title"):
        build(items, ["x", "i3"], text_fields="title", text_encoder="tfidf")
    with pytest.raises(InputError, match="none of the 1 items has image features; images must be called"):
        build(items, ["x"], image_folder="images", image_encoder=str(models / "vit"))
    (items.parent / "images" / "x.jpg").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"none of the 1 items has image features.*be readable"):
        build(items, ["x"], image_folder="images", image_encoder=str(models / "vit"))
    with pytest.raises(InputError, match=r"d\.item: no such file, but text_fields asks for its columns title"):
        build(tmp_path / "d.item", text_fields="title", text_encoder="tfidf")


def test_settings_of_a_configuration_without_get() -> None:
    class Config:
        """RecBole's way: `in` and `[]` alone, absent keys are `None`."""

        def __contains__(self, key: str) -> bool:
            return key in {
                "text_encoder",
                "text_fields",
                "image_encoder",
                "image_folder",
                "ITEM_ID_FIELD",
                "feature_dim",
            }

        def __getitem__(self, key: str) -> Any:
            return {"text_encoder": "~", "text_fields": ["a", "b"], "ITEM_ID_FIELD": "iid"}.get(key)

    found = feature_sources.template_of(Config(), "text")
    assert found.columns == ["a", "b"] and feature_sources.template_of(Config(), "image").columns == []
    assert feature_sources.modalities(Config()) == {} and features.PADDING == "[PAD]"
