"""A bundle pushed to a hub on loopback and loaded from there, and what is refused in one line."""

import hashlib
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import settings
from hub_server import TOKEN, Hub
from huggingface_hub import constants

import recbole_bbqrec
from recbole_bbqrec import cli, storage
from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.serving import hub as hub_module
from recbole_bbqrec.serving import model_card
from recbole_bbqrec.serving.hub import fetch, files_of, push
from recbole_bbqrec.serving.items import Items
from recbole_bbqrec.serving.saving import write_bundle

REPO = "org/tiny"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that we are logged in to, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by git LFS, as before Xet
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        files = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield running


@pytest.fixture(scope="module")
def bundle(tiny, untrained):
    """A bundle with a second generation, beside files that are none of its own."""
    made = untrained(tiny, "BBQRec", second_stage="off")
    storage.write_json(made.folder / "notes.json", {})
    (made.folder / "last.safetensors").write_bytes(b"of a training")
    return made.add_items(pd.DataFrame({"item_id": ["new"], "title": ["a red lamp"], "brand": ["Acme"]}))


def test_what_is_pushed_is_loaded_and_recommends_the_same(hub, bundle):
    url = push(bundle.folder, REPO)
    assert url == f"{hub.url}/{REPO}"
    names = {*hub.repos[REPO]}
    assert names == {*files_of(bundle.folder), "README.md"}
    assert {"bundle.json", "weights.safetensors", "generations.json", "generations/0001/features.safetensors"} <= names
    assert not names & {"notes.json", "last.safetensors", "generations/lock"}
    loaded = recbole_bbqrec.load_bundle(f"hf://{REPO}")
    histories = [bundle.item_tokens[1:4], ["new"]]
    assert loaded.item_tokens == bundle.item_tokens and loaded.generation == 1
    assert loaded.recommend(histories) == bundle.recommend(histories)
    assert recbole_bbqrec.load_bundle(f"hf://{REPO}@{hub.sha(REPO)}").titles == bundle.titles


def test_what_is_pushed_names_no_folder_of_this_machine(hub, tiny, bundle):
    assert any(str(tiny).encode() in file.read_bytes() for file in bundle.folder.glob("*.json"))
    push(bundle.folder, REPO)
    assert [name for name, content in hub.repos[REPO].items() if str(tiny).encode() in content] == []


def test_the_card_says_what_it_is_and_has_the_hashes_of_all_files(hub, bundle):
    push(bundle.folder, REPO, results="RESULTS")
    card = hub.repos[REPO]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: recbole_bbqrec\n")
    for said in (
        "# BBQRec on tiny",
        "| items",
        " 40 |",
        "RESULTS",
        f'load_bundle("hf://{REPO}")',
        "adds its terms here",
    ):
        assert said in card
    for name in files_of(bundle.folder):
        assert hashlib.sha256(hub.repos[REPO][name]).hexdigest() in card


def test_the_report_card_of_the_codes_goes_along(hub, tiny, bundle, tmp_path, monkeypatch):
    for name in ("weights.safetensors", "tokenizer.safetensors"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copyfile(bundle.folder / name, tmp_path / "run" / name)
    kept = shutil.copyfile(bundle.folder / "tokenizer.safetensors", tmp_path / "tokenizer-1.safetensors")
    (tmp_path / "tokenizer-1.json").write_text('{"warnings": ["one"]}', encoding="utf-8")
    given = {"catalogue": bundle.catalogue, "tokenizer_file": kept, "feature_files": {}}
    dataset = SimpleNamespace(**given, rows_are_interactions=False)
    write_bundle(tmp_path / "run", Config(config_dict=settings(tiny)), dataset)
    monkeypatch.setattr(model_card, "report_card_table", lambda card: f"CARD {card}")
    push(tmp_path / "run", REPO)
    assert "## Codes\n\nCARD {'warnings': ['one']}" in hub.repos[REPO]["README.md"].decode()
    (tmp_path / "run/report_card.json").write_text("[", encoding="utf-8")
    with pytest.raises(InputError, match="not a report card that can be read"):
        push(tmp_path / "run", REPO)


def test_only_files_of_a_bundle_are_fetched(hub, bundle):
    push(bundle.folder, REPO)
    hub.repos[REPO] |= {"modeling.py": b"raise SystemExit", "weights.bin": b"\x80\x04", "x/items.safetensors": b""}
    folder = fetch(f"hf://{REPO}")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *files_of(bundle.folder)
    }
    assert not {"modeling.py", "weights.bin", "README.md"} & {*hub.requests}


@pytest.fixture
def of_a_stranger(hub, bundle, tmp_path):
    """The folder of a pushed bundle whose file of items names an image in a folder of whoever loads it."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private/i05.png").write_bytes(b"of somebody")
    run = shutil.copytree(bundle.folder, tmp_path / "run")
    known = Items.load(run / "items.safetensors", bundle.item_tokens[:-1])
    replace(known, images={"i05": "i05.png"}, folders=(tmp_path / "private",)).save(run / "items.safetensors")
    push(run, REPO)
    return run


def test_folders_that_a_stranger_names_are_not_looked_into(of_a_stranger, tmp_path):
    assert recbole_bbqrec.load_bundle(of_a_stranger).image_file("i05") == tmp_path / "private/i05.png"
    assert recbole_bbqrec.load_bundle(f"hf://{REPO}").image_file("i05") is None


def test_nor_are_they_when_items_were_added_meanwhile(of_a_stranger):
    one, other = (recbole_bbqrec.load_bundle(f"hf://{REPO}") for _ in range(2))
    row = {"title": "a red lamp", "brand": "Acme"}
    assert other.add_items([{"item_id": "n1", **row}]).generation == 2
    grown = one.add_items([{"item_id": "n2", **row}])  # to the items of the other
    for later in (grown, one.renewed(), grown.renewed()):
        assert (later.generation, later.image_file("i05")) == (3, None)


def test_without_the_hub_what_is_in_the_cache_is_taken(hub, bundle, monkeypatch):
    push(bundle.folder, REPO)
    first = fetch(f"hf://{REPO}")
    hub.__exit__()
    assert fetch(f"hf://{REPO}") == first
    with pytest.raises(InputError, match=r"^hf://org/other: the hub cannot be reached"):
        fetch("hf://org/other")
    with pytest.raises(InputError, match=r"^hf://org/tiny: the hub cannot be reached"):
        push(bundle.folder, REPO)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("hf://org/none", "no such repository, or no right to it (404); check its name"),
        ("hf://org/tiny@v9", "found no such revision"),
        ("hf://org/tiny/more", "found no name of a repository"),
        ("hf://../..", "found no name of a repository"),
        ("hf://org/empty", "found no bundle.json"),
        ("hf://org/secret", "no such repository, or no right to it (401)"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(hub, monkeypatch, url, why):
    hub.repos |= {"org/tiny": {}, "org/empty": {"README.md": b""}, "org/secret": {}}
    hub.private.add("org/secret")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError) as error:
        recbole_bbqrec.load_bundle(url)
    assert str(error.value).startswith(f"{url}: {why}") and "\n" not in str(error.value)


def test_what_is_too_large_is_not_fetched(hub, monkeypatch):
    hub.repos["org/tiny"] = {"bundle.json": b" " * 1000}
    monkeypatch.setattr(hub_module, "MOST_BYTES", 999)
    with pytest.raises(InputError, match="expected at most"):
        fetch("hf://org/tiny")
    assert not hub.requests


def test_the_command_pushes_with_the_figures_of_the_record(hub, bundle, tmp_path, capsys, monkeypatch):
    arguments = ["push", str(bundle.folder), REPO, "--private", f"--endpoint={hub.url}", f"--results={tmp_path}"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"{hub.url}/{REPO}\n" and hub.private == {REPO}
    assert "no record of this run" in hub.repos[REPO]["README.md"].decode()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert cli.main(arguments) == 2
    assert "error: hf://org/tiny: no such repository, or no right to it (401)" in capsys.readouterr().err
    hub.broken = 400
    assert cli.main(arguments) == 2
    assert "error: hf://org/tiny: the hub refuses (400)" in capsys.readouterr().err
    assert cli.main(["push", str(tmp_path), REPO]) == 2
