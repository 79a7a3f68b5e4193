"""Public data sets from descriptions, fetched from a server on loopback."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preparation.loopback import File, Loopback
from preparation.test_movielens import ML_100K, archive

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation.public import PublicSet, describe, prepare_public

REVIEWS = [("u1", "b", 2, 5.0), ("u1", "a", 1, 4.0), ("u2", "a", 7, 3.0), ("u2", "b", 7, 2.0), ("u3", "c", 1, 1.0)]
CORE = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + (
    "u1\ta\t4\t1\nu1\tb\t5\t2\nu2\ta\t3\t7\nu2\tb\t2\t7\n"
)
SEQUENCES = ("title", "categories", "description")
HEADER = "\t".join(
    f"{name}:token_seq" if name in SEQUENCES else f"{name}:token"
    for name in ("item_id", "title", "brand", "categories", "description", "price", "image_url")
)
TITLE = "Red &amp; 5' lamp"
ITEMS = {
    "2014": [
        {
            "asin": "a",
            "title": TITLE,
            "brand": "Acme",
            "categories": [["Home", "Big lamps"]],
            "price": 9.5,
        },
        {"asin": "b", "title": "Tent", "imUrl": "http://x/b.jpg", "categories": [["Sports"]]},
    ],
    "2018": [
        {
            "asin": "a",
            "title": TITLE,
            "brand": "Acme",
            "category": ["Home", "Big lamps"],
            "price": "$9.5",
        },
        {"asin": "b", "title": "Tent", "imageURLHighRes": ["http://x/b.jpg"], "category": ["Sports"]},
    ],
    "2023": [
        {
            "parent_asin": "a",
            "title": TITLE,
            "store": "Acme",
            "categories": ["Home", "Big lamps"],
            "price": 9.5,
        },
        {"parent_asin": "b", "title": "Tent", "images": [{"large": "http://x/b.jpg"}], "categories": ["Sports"]},
    ],
}


@pytest.fixture
def site() -> Iterator[Loopback]:
    with Loopback() as site:
        yield site


def amazon_files(variant: str) -> tuple[bytes, bytes]:
    keys = {"2023": ("user_id", "parent_asin", "timestamp", "rating")}
    named = keys.get(variant, ("reviewerID", "asin", "unixReviewTime", "overall"))
    reviews = "".join(json.dumps(dict(zip(named, row, strict=True))) + "\n" for row in REVIEWS)
    write = repr if variant == "2014" else json.dumps
    items = "".join(write(item) + "\n" for item in ITEMS[variant])
    return gzip.compress(reviews.encode()), gzip.compress(items.encode())


def description(site: Loopback, variant: str = "2014", **changes: Any) -> dict[str, Any]:
    """Description of a small Amazon set that `site` serves."""
    reviews, items = amazon_files(variant)
    site.files |= {"/reviews_Toys.gz": File(reviews, etag='"1"'), "/meta_Toys.gz": File(items, etag='"2"')}
    urls = [site.url("/gone/{name}"), site.url("/{name}")]
    return {
        "reader": "amazon",
        "variant": variant,
        "category": "Toys",
        "categories": ["Baby", "Toys"],
        "user_core": 2,
        "item_core": 2,
        "files": {
            "reviews": {"name": "reviews_{category}.gz", "urls": urls},
            "items": {"name": "meta_{category}.gz", "urls": urls, "size": len(items)},
        },
        "about": "reviews",
        "expected": {"users": 2, "items": 2, "interactions": 5},
        **changes,
    }


@pytest.mark.parametrize("variant", ITEMS)
def test_amazon_to_exact_files(site: Loopback, tmp_path: Path, variant: str, caplog: pytest.LogCaptureFixture) -> None:
    public = PublicSet.from_description("Set", description(site, variant))
    report = prepare_public(public, tmp_path, progress=False)
    assert (tmp_path / "Set" / "Set.inter").read_text() == CORE
    assert (tmp_path / "Set" / "Set.item").read_text() == (
        f"{HEADER}\na\tRed & 5' lamp\tAcme\tHome Big_lamps\t\t9.5\t\nb\tTent\t\tSports\t\t\thttp://x/b.jpg\n"
    )
    raw = tmp_path / "raw" / f"amazon-{variant}"
    assert report["raw"] == [str(raw / "reviews_Toys.gz"), str(raw / "meta_Toys.gz")]
    assert report["differences"] == {"interactions": {"expected": 5, "found": 4}}
    assert "Set: found 4 interactions, published are 5; the raw files may differ" in caplog.text
    assert describe(report).splitlines() == [
        f"{tmp_path / 'Set'}: 2 users, 2 items, 4 interactions",
        "left out: 1 interactions of users or items with too few of them",
        "met: 1 item texts with HTML entities",
        f"raw files, kept: {raw / 'reviews_Toys.gz'}, {raw / 'meta_Toys.gz'}",
    ]


def test_movielens_from_one_archive(site: Loopback, tmp_path: Path) -> None:
    content = archive(tmp_path / "a.zip", ML_100K).read_bytes()
    site.files["/ml-100k.zip"] = File(content)
    found = {
        "reader": "movielens",
        "variant": "ml-100k",
        "files": {"archive": {"name": "ml-100k.zip", "urls": [site.url("/{name}")]}},
        "user_core": 1,
        "item_core": 1,
    }
    prepare_public(PublicSet.from_description("ml-100k", found), tmp_path, written="films", progress=False)
    assert site.count("/ml-100k.zip") == 1
    assert (tmp_path / "films" / "films.item").read_text(encoding="utf-8").splitlines()[1:] == [
        "242\tLes Misérables\t\tAction Sci-Fi\t\t\t\t1995",
        "377\tunknown\t\t\t\t\t\t",
    ]


def test_raw_files_are_fetched_once_and_may_be_fetched_by_hand(site: Loopback, tmp_path: Path) -> None:
    public = PublicSet.from_description("Set", description(site))
    prepare_public(public, tmp_path, progress=False)
    site.requests.clear()
    prepare_public(public, tmp_path, written="Again", progress=False)
    by_hand = tmp_path / "mine"
    by_hand.mkdir()
    for name in ("reviews_Toys.gz", "meta_Toys.gz"):
        (by_hand / name).write_bytes(site.files[f"/{name}"].content)
    prepare_public(public, tmp_path / "there", raw_dir=by_hand, progress=False)
    assert site.requests == []
    for folder in (tmp_path / "Again", tmp_path / "there" / "Set"):
        assert (folder / f"{folder.name}.inter").read_text() == CORE


def test_a_data_set_that_exists_is_refused_before_anything_is_fetched(site: Loopback, tmp_path: Path) -> None:
    (tmp_path / "Set").mkdir()
    with pytest.raises(InputError, match="exists already"):
        prepare_public(PublicSet.from_description("Set", description(site)), tmp_path, progress=False)
    assert site.requests == []


def test_other_cores_are_not_compared_with_the_published_counts(site: Loopback, tmp_path: Path) -> None:
    public = PublicSet.from_description("Set", description(site))
    report = prepare_public(public, tmp_path, user_core=1, item_core=1, progress=False)
    assert report["counts"] == {"users": 3, "items": 3, "interactions": 5} and report["differences"] == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"user_core": 0}, "--user-core: found 0"),
        ({"written": ""}, "data set name ''"),
        ({"written": "a/b"}, "data set name 'a/b'"),
        ({"shuffle_ties": -1}, "--shuffle-ties: found -1"),
    ],
)
def test_options_are_refused_before_anything_is_fetched(
    site: Loopback, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare_public(PublicSet.from_description("Set", description(site)), tmp_path, progress=False, **given)
    assert site.requests == []


def test_folders_that_cannot_be_written_are_said(site: Loopback, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    public = PublicSet.from_description("Set", description(site))
    with pytest.raises(InputError, match=r"file.*cannot be written .*another folder"):
        prepare_public(public, tmp_path / "file", raw_dir=tmp_path / "raw", progress=False)


def test_files_that_nobody_has_name_every_address(site: Loopback, tmp_path: Path) -> None:
    public = PublicSet.from_description("Set", description(site))
    site.files.clear()
    with pytest.raises(InputError, match=r"gone/reviews_Toys\.gz: status 404; .*/reviews_Toys\.gz: .*--raw_dir="):
        prepare_public(public, tmp_path, progress=False)
    assert not (tmp_path / "Set").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category": "toys"}, "found the category 'toys'; did you mean Toys"),
        ({"category": ""}, "expected one of Baby, Toys"),
        ({"reader": "netflix"}, "reader 'netflix'"),
        ({"variant": "2015"}, "variant '2015', expected one of 2014, 2018, 2023"),
        ({"reader": "movielens", "variant": "ml-25m"}, "variant 'ml-25m', expected one of ml-100k, ml-1m"),
        ({"files": {"reviews": {"name": "a", "urls": []}}}, "files reviews"),
        ({"files": {"archive": {"urls": []}}}, "KeyError 'name'"),
        ({"user_core": None}, "TypeError"),
    ],
)
def test_descriptions_that_do_not_fit(site: Loopback, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PublicSet.from_description("Set", {**description(site), **changes})
