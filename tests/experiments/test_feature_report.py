"""What `feature_report` says is what the next run does."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import N_ITEMS, settings, write_dataset
from PIL import Image
from preparation import tiny_models

from recbole_bbqrec import storage
from recbole_bbqrec.config import Config
from recbole_bbqrec.data import feature_sources
from recbole_bbqrec.data.dataset import MultiModalSequentialDataset
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.experiments.feature_report import HEADER, feature_report
from recbole_bbqrec.preparation import encoders
from recbole_bbqrec.preparation.image_download import Failure, write_failures

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder (`data_path`) with a tiny data set that may be changed; four items have images."""
    write_dataset(tmp_path)
    (tmp_path / "tiny" / "images").mkdir()
    for at, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "tiny" / "images" / f"i{at:02d}.png")
    return tmp_path


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.vit(tmp_path_factory.mktemp("models") / "vit"))


def configured(folder: Path, **changes: Any) -> Config:
    return Config(config_dict=settings(folder, attach_item_features=True, **changes))


def run(folder: Path, **changes: Any) -> MultiModalSequentialDataset:
    """Build the data set as a run does."""
    return MultiModalSequentialDataset(configured(folder, **changes))


def report(folder: Path, **changes: Any) -> str:
    return feature_report(configured(folder, **changes))


def states(text: str) -> list[SimpleNamespace]:
    """Rows of the table by column, with the line below it that is about the same modality."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[0:1] == "|"]
    assert not rows or rows[0] == list(HEADER)
    remarks = dict(line.split(": ", 1) for line in text.splitlines() if line.startswith(("text: ", "image: ")))
    return [SimpleNamespace(**dict(zip(HEADER, row, strict=True)), remark=remarks.get(row[0], "")) for row in rows[2:]]


def state(folder: Path, **changes: Any) -> SimpleNamespace:
    return states(report(folder, **changes))[-1]


def unused(text: str) -> list[str]:
    """Names of the files that may be deleted."""
    found = re.search(r"not used by these settings and may be deleted: (.*)", text)
    return found[1].split(", ") if found else []


def edit_items(folder: Path, pattern: str, by: str) -> None:
    file = folder / "tiny" / "tiny.item"
    text, times = re.subn(pattern, by, file.read_text(), flags=re.MULTILINE)
    assert times
    file.write_text(text)


def add_addresses(folder: Path) -> None:
    """Give every item but i05 an address of an image."""
    file = folder / "tiny" / "tiny.item"
    head, *rows = file.read_text().splitlines()
    lines = [f"image_url:token\t{head}"]
    lines += [f"{'' if row.startswith('i05') else 'http://x/' + row[:3]}\t{row}" for row in rows]
    file.write_text("\n".join(lines) + "\n")


def test_before_and_after_a_run(folder: Path) -> None:
    config = configured(folder)
    before = feature_report(config)
    assert before.splitlines()[0] == "tiny: item features of 40 items" and config["attach_item_features"]
    (found,) = states(before)
    assert list(vars(found).values())[:6] == ["text", "tfidf", "tiny.item", "39", "1", "missing"]
    assert found.remark == "nothing is encoded yet, the next run does it"
    assert not (folder / "saved" / "cache").exists()
    dataset = run(folder)
    assert len(list(dataset.cache_dir.glob("features-*"))) == 1
    (found,) = states(report(folder))
    assert list(vars(found).values()) == ["text", "tfidf", "tiny.item", "39", "1", "ready", ""]
    assert unused(report(folder)) == []


@pytest.mark.parametrize("changes", [{}, {"load_col": None}, {"load_col": {"item": ["item_id", "title"]}}])
@pytest.mark.parametrize("filtered", [True, False])
def test_the_items_are_those_of_the_data_set(folder: Path, changes: dict, filtered: bool) -> None:
    edit_items(folder, r"^i07\t.*\n", "")
    edit_items(folder, r"^i08\t", "not bought\t")
    if changes.get("load_col"):
        changes = {"load_col": {"inter": ["user_id", "item_id", "timestamp"], **changes["load_col"]}}
    changes = {**changes, "filter_inter_by_user_or_item": filtered}
    dataset = run(folder, **changes)
    assert f" {dataset.item_num - 1} items" in report(folder, **changes)
    assert state(folder, **changes).state == "ready"


def test_filters_apply(folder: Path) -> None:
    dataset = run(folder, item_inter_num_interval="[13,inf)")
    assert dataset.item_num < N_ITEMS
    assert state(folder, item_inter_num_interval="[13,inf)").state == "ready" and state(folder).state == "stale"


def test_the_items_of_a_split_made_beforehand(folder: Path) -> None:
    head = "user_id:token\ttimestamp:float\titem_id_list:token_seq\titem_id:token"
    for part, item in (("train", "i01"), ("valid", "i02"), ("test", "i03")):
        (folder / "tiny" / f"tiny.{part}.inter").write_text(f"{head}\nu01\t7\ti00 i01\t{item}\n")
    columns = {"inter": ["user_id", "timestamp", "item_id_list", "item_id"]}
    found = report(
        folder, benchmark_filename=["train", "valid", "test"], load_col=columns, alias_of_item_id=["item_id_list"]
    )
    assert " 4 items" in found


def test_changed_items_are_counted(folder: Path) -> None:
    run(folder)
    edit_items(folder, r"number 1\t", "number one\t")
    edit_items(folder, r"^i03\t\t", "i03\tnow with a title\t")
    edit_items(folder, r"^(i04|i05)\t.*\n", "")
    found = state(folder)
    assert (found.state, getattr(found, "items with")) == ("stale", str(N_ITEMS - 2))
    assert re.fullmatch(
        r"features-text-[0-9a-f]{16}\.safetensors: 1 items changed, 1 items new, 2 items gone; "
        "the next run encodes all items again",
        found.remark,
    )
    run(folder)
    assert state(folder).state == "ready" and len(unused(report(folder))) == 1


def test_the_list_of_items_is_named_where_nothing_else_differs(folder: Path) -> None:
    edit_items(folder, r"^i09\t.*\n", "")
    run(folder)
    with open(folder / "tiny" / "tiny.inter", "a") as file:
        file.write("u00\tx\t999\n")
    assert ": items 40 -> 41; the next run" in state(folder).remark


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"feature_dim": 5}, "feature_dim 16 -> 5"),
        ({"seed": 3}, "seed 2020 -> 3"),
        (
            {"text_fields": "{title}[ by {brand}]"},
            "fields title brand -> {title}[ by {brand}], 13 items changed",
        ),
        ({"text_encoder": "codes"}, "encoder tfidf -> codes, method tfidf -> codes"),
    ],
)
def test_changed_settings_are_named(folder: Path, changes: dict, told: str) -> None:
    run(folder)
    found = state(folder, **changes)
    assert found.state == "stale" and f".safetensors: {told}; the next run encodes" in found.remark
    assert state(folder).state == "ready"


def test_changed_versions_and_code_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder)
    genuine = feature_sources._versions
    monkeypatch.setattr(feature_sources, "_versions", lambda *names: {**genuine(*names), "scipy": "0.1"})
    monkeypatch.setattr(storage, "source_fingerprint", lambda *modules: "other")
    assert re.search(r": code [0-9a-f]{16} -> other, scipy \S+ -> 0\.1;", state(folder).remark)


def test_a_file_of_the_same_encoder_is_compared_first(folder: Path) -> None:
    run(folder)
    run(folder, text_encoder="codes")
    assert "encoder" not in state(folder, feature_dim=5).remark
    edit_items(folder, r"number 1\t", "number one\t")
    assert "safetensors: 1 items changed;" in state(folder).remark


def test_files_that_cannot_be_read_are_missing(folder: Path) -> None:
    (file,) = run(folder).cache_dir.glob("features-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert state(folder).state == "missing" and file.exists()
    file.write_bytes(whole)
    tensors, header = storage.load(file, "features")
    del tensors["hash.text"]
    storage.save(file, "features", tensors, header)  # as of an earlier version
    assert state(folder).state == "missing"


def test_an_encoding_under_way(folder: Path, vit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"image_folder": "images", "image_encoder": vit, "encode_batch_size": 1}
    genuine, calls = encoders.decode, []

    def stops(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return genuine(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoders, "decode", stops)
        run(folder, **changes)
    begun = report(folder, **changes)
    assert [one.state for one in states(begun)] == ["ready", "begun"] and unused(begun) == []
    assert states(begun)[1].remark == "2 of 4 batches are done, the next run goes on from there"
    Image.new("RGB", (40, 40), "pink").save(folder / "tiny" / "images" / "i00.png")
    other = report(folder, **changes)
    assert states(other)[1].state == "missing" and [Path(name).suffix for name in unused(other)] == [".parts"]


def test_images_that_cannot_be_read(folder: Path, vit: str) -> None:
    (folder / "tiny" / "images" / "i02.png").write_bytes(b"junk")
    changes = {"image_folder": "images", "image_encoder": vit}
    run(folder, **changes)
    found = state(folder, **changes)
    assert (found.state, getattr(found, "items with")) == ("ready", "4")
    assert found.remark == "1 items have something that could not be encoded"


def test_no_item_has_anything(folder: Path) -> None:
    edit_items(folder, r"\tAcme\t", "\t\t")
    found = state(folder, text_fields="brand")
    assert (found.state, getattr(found, "items with")) == ("missing", "0")
    assert "tiny.item: no item has any; the columns brand must have values" in found.remark


def test_a_broken_source_leaves_the_others(folder: Path) -> None:
    run(folder, image_fields="image_codes", image_encoder="codes")
    found = report(folder, image_folder="pics", image_encoder="some/model")
    assert [one.state for one in states(found)] == ["ready", "broken"]
    assert "pics: no such folder" in states(found)[1].remark
    assert unused(found) == []  # the codes may belong to the modality once it is mended
    assert len(unused(report(folder))) == 1
    assert re.search(r"^\| image +\| +some/model \| +pics \| +\| +\| +broken ", found, re.MULTILINE)
    found = report(folder, text_fields="titel")
    assert states(found)[0].state == "broken" and "did you mean title" in found
    with pytest.raises(InputError, match=r"tiny\.inter"):
        (folder / "tiny" / "tiny.inter").write_text("")
        report(folder)


def test_a_model_is_never_downloaded(folder: Path, vit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    changes: dict[str, Any] = {"image_folder": "images", "image_encoder": "someone/vit"}

    def snapshot_download(name: str, local_files_only: bool = False, **_: object) -> str:
        if local_files_only:
            raise FileNotFoundError("not here")
        return vit

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = state(folder, **changes)
    assert found.state == "missing" and found.remark.endswith(
        "someone/vit is not on this machine and is downloaded first"
    )
    run(folder, **changes)
    found = report(folder, **changes)
    assert states(found)[1].state == "stale" and unused(found) == []
    assert "fits if the model is the same; someone/vit is not on this machine" in states(found)[1].remark
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: vit)
    assert state(folder, **changes).state == "ready"


def test_images_addresses_and_failures(folder: Path) -> None:
    with_images = "images: 4 images, 4 of 40 items have one"
    assert with_images in report(folder) and with_images in report(folder, image_folder="images")
    add_addresses(folder)
    images = folder / "tiny" / "images"
    (images / "unsold.jpg").write_bytes(b"x")
    no_picture = {f"i{at}": Failure("http://x", False, f"no picture: {at} x 1 pixels") for at in (10, 11)}
    write_failures(images / "failures.tsv", {**no_picture, "i12": Failure("http://x", True, "status 503")})
    text = report(folder).splitlines()
    assert "images: 5 images, 4 of 40 items have one" in text
    assert "images/failures.tsv: 3 images failed: no picture (2), status 503 (1)" in text
    command = f"bbqrec images tiny --data_path={folder}"
    assert (
        f"{N_ITEMS - 7} items have an address but no image: {command} fetches them" in text
    )  # not what failed for good
    assert not any(command in line for line in report(folder, image_folder="photos").splitlines())
    shutil.rmtree(images)
    text = report(folder)
    assert "images: 0 images, 0 of 40" in text and f"{N_ITEMS - 1} items have an address" in text


def test_a_data_set_without_images_says_nothing_of_them(folder: Path) -> None:
    shutil.rmtree(folder / "tiny" / "images")
    assert "images" not in report(folder)
    assert "images: 0 images, 0 of 40 items have one" in report(folder, image_folder="images")


def test_other_files_are_named(folder: Path) -> None:
    run(folder)
    run(folder, feature_dim=5)
    pattern = r"^.*saved/cache/tiny: not used .* deleted: features-text-\w+\.safetensors$"
    assert re.search(pattern, report(folder).splitlines()[-1])
    nothing = report(folder, text_encoder=None)
    assert "no modality has an encoder" in nothing and "may be deleted" not in nothing
