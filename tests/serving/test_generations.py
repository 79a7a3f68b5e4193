"""Generations of items: whole or not there, whatever ends the program, and one writer after the other."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
from PIL import Image

import recbole_bbqrec
from recbole_bbqrec import storage
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.serving import generations


def rows(*tokens):
    titles = [f"red lamp number {token}" for token in tokens]
    return pd.DataFrame({"item_id": tokens, "title": titles, "brand": "Acme"})


def test_a_kill_at_any_moment_leaves_the_old_generation_whole(coded, monkeypatch):
    coded.add_items(rows("n1"))
    before = recbole_bbqrec.load_bundle(coded.folder).recommend([["i01", "n1"]], k=7)
    genuine, writes, moment = storage.replacing, [], 0

    class Killed(BaseException):
        pass

    def failing(path):
        writes.append(path)
        if len(writes) == moment:
            raise Killed
        return genuine(path)

    monkeypatch.setattr(storage, "replacing", failing)
    while generations.newest(coded.folder) == 1 and moment < 20:
        moment += 1
        writes.clear()
        try:
            coded.add_items(rows("n2"))
        except Killed:
            assert generations.newest(coded.folder) == 1
            assert recbole_bbqrec.load_bundle(coded.folder).recommend([["i01", "n1"]], k=7) == before
    assert moment > 4 and writes[-1].name == "generations.json", "the manifest is written last"
    assert recbole_bbqrec.load_bundle(coded.folder).item_tokens[-2:] == ["n1", "n2"]


def test_many_writers_lose_no_item(small):
    bundles = [recbole_bbqrec.load_bundle(small.folder) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda at: bundles[at].add_items(rows(f"n{at}")).generation, range(4)))
    newest = recbole_bbqrec.load_bundle(small.folder)
    assert sorted(made) == [1, 2, 3, 4] and newest.generation == 4
    assert {f"n{at}" for at in range(4)} == set(newest.item_tokens[-4:])
    kept = {path.name for path in (small.folder / "generations").iterdir() if path.is_dir()}
    assert kept == {"0003", "0004"}


def test_a_new_training_takes_items_of_the_old_one_away(small, caplog):
    small.add_items(rows("n1"))
    training = storage.fingerprint(small.folder / "weights.safetensors", small.item_tokens)
    generations.keep_those_of(small.folder, training)
    assert generations.newest(small.folder) == 1 and not caplog.text
    generations.keep_those_of(small.folder, "another")
    assert generations.newest(small.folder) == 0 and "add them again" in caplog.text
    assert recbole_bbqrec.load_bundle(small.folder).item_tokens == small.item_tokens


def test_a_bundle_loaded_before_a_new_training_adds_items_to_the_new_one(small):
    file, weights = small.folder / "bundle.json", small.folder / "weights.safetensors"
    file.write_text(json.dumps({**json.loads(file.read_text()), "training": "another"}))
    tensors, header = storage.load(weights, "weights")
    storage.save(weights, "weights", {name: value * 2 for name, value in tensors.items()}, header)
    grown = small.add_items(rows("n1"))
    manifest = json.loads((small.folder / "generations.json").read_text())
    assert manifest == {"generation": 1, "training": "another"} and grown.training == "another"
    old, new = (bundle.model.get_parameter("position_embedding.weight") for bundle in (small, grown))
    assert torch.equal(new, 2 * old)


def test_a_damaged_manifest_is_one_line(small):
    (small.folder / "generations.json").write_text("{")
    with pytest.raises(InputError, match=r"generations\.json: not a manifest of generations .*; delete it"):
        recbole_bbqrec.load_bundle(small.folder)


def test_images_travel_with_new_items_and_stay_inside(small, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "new.csv").write_text("item_id,title,brand,image\na/../b,red lamp,,a.png\nc,red tent,,\n")
    grown = small.add_items(tmp_path / "new.csv").add_items(rows("n1"))
    (tmp_path / "a.png").unlink()
    moved = recbole_bbqrec.load_bundle(shutil.copytree(small.folder, tmp_path / "moved"))
    for bundle in (grown, moved):
        file = bundle.image_file("a/../b")
        assert file is not None and file.is_relative_to(bundle.folder.resolve()) and Image.open(file).size == (8, 8)
        assert bundle.image_file("c") is bundle.image_file("i01") is None
