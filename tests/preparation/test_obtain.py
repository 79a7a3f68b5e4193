"""Public data sets by name, from the YAML files to a run that fetches what it lacks."""

import gzip
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import settings, tiny_interactions
from preparation.loopback import Fault, File, Loopback
from preparation.tiny_models import vit

from recbole_bbqrec import cli, quick_start
from recbole_bbqrec import settings as settings_module
from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import image_download, obtain
from recbole_bbqrec.settings import property_files, public_sets

SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"


@pytest.fixture
def site() -> Iterator[Loopback]:
    with Loopback() as site:
        yield site


@pytest.mark.parametrize("name", public_sets())
def test_every_description_can_be_read(name: str) -> None:
    found = settings_module.public_source(name)
    assert found is not None
    for category in found.get("categories", [""]) if "category" not in found else [""]:
        public = obtain.public_set(f"{name}-{category}" if category else name)
        assert public.about and public.terms and public.cite
        for source in public.files.values():
            assert "{" not in source.name and source.name.endswith((".gz", ".zip", ".csv", ".npy", ".parquet"))
            assert Path(source.name).name == source.name and not source.name.startswith(".")
            assert source.sha256 is None or re.fullmatch("[0-9a-f]{64}", source.sha256)
            assert source.urls and all(
                url.startswith("http") and url.endswith(f"/{source.name}") for url in source.urls
            )


def test_names_lead_to_files_and_counts() -> None:
    sports = obtain.public_set("Sports")
    assert sports.files["reviews"].urls[0] == f"{SNAP}reviews_Sports_and_Outdoors_5.json.gz"
    assert sports.files["items"].name == "meta_Sports_and_Outdoors.json.gz"
    assert sports.expected == {"users": 35598, "items": 18357, "interactions": 296337}
    games = obtain.public_set("Amazon2018-Video_Games")
    assert (games.name, games.variant, games.expected) == ("Amazon2018-Video_Games", "2018", {})
    assert games.files["items"].urls[0].endswith("/amazon_v2/metaFiles2/meta_Video_Games.json.gz")
    assert property_files("BBQRec", "Amazon2018-Video_Games")[-1].name == "Amazon2018.yaml"
    assert property_files("BBQRec", "Sports-tiny")[-1].name == "BBQRec.yaml"  # no family of that name has categories


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Video_Games", "mean Amazon2014-Video_Games or Amazon2018-Video_Games or Amazon2023-Video_Games.; your own"),
        ("sports", "did you mean Sports"),
        ("Amazon2014-VideoGames", "did you mean Video_Games"),
        ("Amazon2014", "expected one of Amazon_Instant_Video"),
        (
            "Shop",
            "one of Amazon2014-<Category>, Amazon2018-<Category>, Amazon2023-<Category>, Beauty, KuaiRec, "
            "MicroLens-100K, Sports, Toys, Yambda-50m, ml-100k, ml-1m; your own tables: bbqrec prepare Shop --from",
        ),
        ("sports-tiny", "not known"),
    ],
)
def test_names_that_are_not_known(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        obtain.public_set(name)


def test_where_data_comes_from_is_no_setting_of_a_run(tiny: Path) -> None:
    (tiny / "Amazon2018-Toys").mkdir(exist_ok=True)
    (tiny / "Amazon2018-Toys" / "Amazon2018-Toys.inter").touch()
    config = Config(config_dict={"model": "BBQRec", "dataset": "Amazon2018-Toys", "data_path": str(tiny)})
    assert config["source"] is None and "source" not in config.final_config_dict
    assert config["text_fields"] == "title brand categories"


@pytest.fixture
def public(site: Loopback, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    """A public data set `tiny` on loopback, with titles and addresses of images."""
    from PIL import Image

    reviews = [{"user_id": u, "parent_asin": i, "rating": 5.0, "timestamp": t} for u, i, t in tiny_interactions()]
    items = []
    for item in sorted({review["parent_asin"] for review in reviews}):
        path, picture = f"/{item}.png", io.BytesIO()
        Image.new("RGB", (8, 8), (int(item[1:]) * 6, 0, 0)).save(picture, "PNG")
        site.files[path] = File(picture.getvalue())
        items.append({"parent_asin": item, "title": f"lamp {item}", "images": [{"large": site.url(path)}]})
    for name, rows in (("r.jsonl.gz", reviews), ("m.jsonl.gz", items)):
        site.files[f"/{name}"] = File(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    source = {
        "reader": "amazon",
        "variant": "2023",
        "files": {
            "reviews": {"name": "r.jsonl.gz", "urls": [site.url("/{name}")]},
            "items": {"name": "m.jsonl.gz", "urls": [site.url("/{name}")]},
        },
        "user_core": 5,
        "item_core": 1,
        "about": "Reviews of nobody",
        "terms": "free",
        "cite": "nobody",
    }
    monkeypatch.setattr(image_download, "PAUSE", 0.01)
    known = settings_module.public_source
    for module in (obtain, quick_start):
        monkeypatch.setattr(module, "public_source", lambda name: source if name == "tiny" else known(name))
    texts = {"text_fields": "title", "text_encoder": "tfidf"}
    monkeypatch.setattr(obtain, "dataset_settings", lambda _: texts)
    return site


def test_a_run_fetches_a_public_set_that_is_missing(public: Loopback, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        logging.getLogger(), "handlers", []
    )  # as in a process of its own, where nobody has set up a log
    record = quick_start.run(config_dict=settings(tmp_path, epochs=1, text_fields="title"))
    shown = capsys.readouterr()
    assert record["users"] == {"valid": 60}
    assert "tiny is not in" in shown.out and "fetching r.jsonl.gz (0.0 MB)" in shown.err
    assert "Reviews of nobody; free. Please cite nobody" in shown.err
    asked = len(public.requests)
    quick_start.run(config_dict=settings(tmp_path, epochs=1, text_fields="title"))
    assert len(public.requests) == asked


def test_a_run_fetches_images_that_it_is_asked_to_encode(public: Loopback, tmp_path: Path, capsys) -> None:
    model = vit(tmp_path / "model")
    del public.files["/i07.png"]
    given = settings(
        tmp_path, epochs=1, text_fields="title", image_folder="images", image_encoder=str(model), encode_batch_size=16
    )
    quick_start.run(config_dict=given)
    out = capsys.readouterr().out
    assert "images: 40 wanted, 0 there before, 39 fetched, 1 failed, 0 of them may come on another try" in out
    assert "failed: 1 status 404" in out
    there = [path.name for path in (tmp_path / "tiny").iterdir() if path.suffix != ".lock"]
    assert sorted(there) == ["images", "tiny.inter", "tiny.item"]
    asked = len(public.requests)
    quick_start.run(config_dict=given)  # the folder is there: nothing is asked for again
    assert len(public.requests) == asked
    assert cli.main(["images", "tiny", f"--data_path={tmp_path}"]) == 0  # unless one wants it
    assert "40 wanted, 39 there before, 0 fetched, 1 failed," in capsys.readouterr().out


def image_settings(folder: Path, **changes: object) -> dict:
    given = {"epochs": 1, "text_fields": "title", "image_folder": "images", "encode_batch_size": 16}
    return settings(folder, **{**given, **changes})


def test_a_run_does_not_take_half_the_images_for_all_of_them(public: Loopback, tmp_path: Path, capsys) -> None:
    given = image_settings(tmp_path, image_encoder=str(vit(tmp_path / "model")))
    busy = [f"/i{item:02d}.png" for item in range(20, 24)]
    for path in busy:
        public.faults[path] = [Fault(status=503)] * 3
    with pytest.raises(
        InputError, match=r"4 of 40 images did not come but may on another try; run again .* `bbqrec images"
    ):
        quick_start.run(config_dict=given)
    assert not (tmp_path / "tiny" / "images").exists()
    assert public.count("/i01.png") == 1
    quick_start.run(config_dict=given)
    assert len(list((tmp_path / "tiny" / "images").glob("*.png"))) == 40
    assert public.count("/i01.png") == 1, "what has come is kept"


def test_what_there_is_of_the_images_can_be_taken(public: Loopback, tmp_path: Path, capsys) -> None:
    assert cli.main(["prepare", "tiny", f"--data_path={tmp_path}"]) == 0
    public.faults["/i07.png"] = [Fault(status=503)] * 3
    assert cli.main(["images", "tiny", f"--data_path={tmp_path}"]) == 0
    assert "1 failed, 1 of them may come on another try" in capsys.readouterr().out
    assert len(list((tmp_path / "tiny" / "images").glob("*.png"))) == 39


def test_images_that_no_run_reads_are_not_fetched(public: Loopback, tmp_path: Path) -> None:
    vectors = tmp_path / "tiny.npy"
    np.save(vectors, np.eye(40, 8, dtype=np.float32))
    (tmp_path / "tiny.tokens.txt").write_text("".join(f"i{item:02d}\n" for item in range(40)))
    quick_start.run(config_dict=image_settings(tmp_path, image_encoder=str(vectors)))
    assert public.count("/i01.png") == 0
    quick_start.run(config_dict=settings(tmp_path, "SASRec", epochs=1, image_folder="images", image_encoder="x/y"))
    assert public.count("/i01.png") == 0


def test_a_set_that_another_process_has_built_meanwhile_is_used(public: Loopback, tmp_path: Path, monkeypatch) -> None:
    real = obtain.obtain

    def twice(*given: Any, **named: Any) -> Any:
        real(*given, **named)
        return real(*given, **named)

    monkeypatch.setattr(obtain, "obtain", twice)
    assert quick_start.run(config_dict=settings(tmp_path, epochs=1, text_fields="title"))["users"] == {"valid": 60}


def test_a_folder_without_interactions_is_not_taken_for_a_missing_set(public: Loopback, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(InputError, match=r"no file .*tiny\.inter"):
        quick_start.run(config_dict=settings(tmp_path))
    assert not public.requests


def test_prepare_by_name_and_under_another(public: Loopback, tmp_path: Path, capsys) -> None:
    place = f"--data_path={tmp_path / 'd'}"
    assert cli.main(["prepare", "tiny", place]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (f"next: bbqrec train --model=BBQRec --dataset=tiny {place}")
    raw = tmp_path / "d" / "raw" / "amazon-2023"
    assert cli.main(["prepare", "tiny", place, "--as=small", "--item-core=12", f"--raw_dir={raw}"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"--dataset=small {place} --text_fields=title --text_encoder=tfidf"), last
    assert public.count("/r.jsonl.gz") == public.count("/m.jsonl.gz") == 1
    assert cli.main(["prepare", "tiny", place]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["Shop", "--items=i.csv"], "--items: found 'i.csv' without --from"),
        (["Shop", "--user-column=who"], "--user-column: found 'who' without --from"),
        (["Shop", "--from=i.csv", "--raw_dir=raw"], "--raw_dir: found 'raw' with --from"),
        (["Shop", "--seed=3"], "prepare takes no settings"),
        (["Shop"], "not known"),
    ],
)
def test_options_that_do_not_go_together(given: list[str], message: str, capsys) -> None:
    assert cli.main(["prepare", *given]) == 2
    assert message in capsys.readouterr().err


def test_images_need_addresses(tiny: Path, capsys) -> None:
    assert cli.main(["images", "tiny", f"--data_path={tiny}"]) == 2
    assert "image_url" in capsys.readouterr().err
    assert cli.main(["images", "none", f"--data_path={tiny}"]) == 2
    assert "prepare the data set from files" in capsys.readouterr().err


def test_a_missing_data_set_says_how_to_get_it(tmp_path: Path) -> None:
    for name, command in (
        ("Sports", "bbqrec prepare Sports`"),
        ("Shop", "bbqrec prepare Shop --from interactions.csv`"),
    ):
        with pytest.raises(InputError, match=command):
            Config(config_dict={"model": "BBQRec", "dataset": name, "data_path": str(tmp_path)})
