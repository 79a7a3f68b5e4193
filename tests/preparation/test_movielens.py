"""MovieLens archives as published, written small by the tests, with broken lines."""

import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from preparation.test_amazon import records

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import movielens
from recbole_bbqrec.preparation.build import build
from recbole_bbqrec.preparation.raw import Item, Review

ML_100K = {
    "ml-100k/u.data": "196\t242\t3\t881250949\n22\t377\t1\t878887116\n\n22\t377\t1\n22\t\t1\t5\n22\t242\tx\t5\n",
    "ml-100k/u.genre": "unknown|0\nAction|1\nComedy|2\nSci-Fi|3\n\n",
    "ml-100k/u.item": (
        "242|Les Misérables (1995)|01-Jan-1995||http://x|0|1|0|1\n"
        "377|unknown||||1|0|0|0\n378|too|short\n|No Name (1990)||||0|0|0|0\n"
    ),
}
ML_1M = {
    "ml-1m/ratings.dat": "1::1193::5::978300760\n2::1193::4::978298413\n2::48\n",
    "ml-1m/movies.dat": "1193::One Flew: Over (the) Nest, A (1975)::Drama|Sci-Fi\n48::Café\n49::Café::Drama\n",
}


def archive(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name, text.encode("latin-1"))
    return path


def test_ml_100k(tmp_path: Path) -> None:
    path, dirt = archive(tmp_path / "ml-100k.zip", ML_100K), Counter[str]()
    assert records(movielens.reviews(path, "ml-100k", dirt)) == [
        Review("196", "242", 3.0, 881250949),
        Review("22", "377", 1.0, 878887116),
    ]
    assert list(movielens.items(path, "ml-100k", dirt)) == [
        Item("242", "Les Misérables", "", ["Action", "Sci-Fi"], "", "", "", "1995"),
        Item("377", "unknown", "", [], "", "", "", ""),
    ]
    assert dirt == {"review lines that cannot be read": 3, "item lines that cannot be read": 2}


def test_ml_1m(tmp_path: Path) -> None:
    path, dirt = archive(tmp_path / "ml-1m.zip", ML_1M), Counter[str]()
    assert records(movielens.reviews(path, "ml-1m", dirt)) == [
        Review("1", "1193", 5.0, 978300760),
        Review("2", "1193", 4.0, 978298413),
    ]
    assert list(movielens.items(path, "ml-1m", dirt)) == [
        Item("1193", "One Flew: Over (the) Nest, A", "", ["Drama", "Sci-Fi"], "", "", "", "1975"),
        Item("49", "Café", "", ["Drama"], "", "", "", ""),
    ]
    assert dirt == {"review lines that cannot be read": 1, "item lines that cannot be read": 1}


def test_from_the_archive_to_atomic_files(tmp_path: Path) -> None:
    path = archive(tmp_path / "ml-100k.zip", ML_100K)
    read = [partial(reader, path, "ml-100k") for reader in (movielens.reviews, movielens.items)]
    build("ml", *read, tmp_path, user_core=1, item_core=1, progress=False)
    assert (tmp_path / "ml/ml.inter").read_text(encoding="utf-8") == (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n22\t377\t1\t878887116\n"
    )
    assert (tmp_path / "ml/ml.item").read_text(encoding="utf-8") == (
        "item_id:token\ttitle:token_seq\tbrand:token\tcategories:token_seq\tdescription:token_seq\tprice:token\t"
        "image_url:token\trelease_year:token\n"
        "242\tLes Misérables\t\tAction Sci-Fi\t\t\t\t1995\n377\tunknown\t\t\t\t\t\t\n"
    )


def test_broken_archives(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(movielens.reviews(tmp_path / "none.zip", "ml-1m", Counter()))
    path = archive(tmp_path / "ml-1m.zip", ML_1M)
    with pytest.raises(InputError, match=r"found no ml-100k/u\.data in the archive"):
        list(movielens.reviews(path, "ml-100k", Counter()))
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    with pytest.raises(InputError, match="cannot be read to its end"):
        list(movielens.reviews(path, "ml-1m", Counter()))
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 255]) + whole[51:])
    with pytest.raises(InputError, match="cannot be read to its end"):
        list(movielens.reviews(path, "ml-1m", Counter()))
    empty = archive(tmp_path / "e.zip", {**ML_100K, "ml-100k/u.genre": ""})
    with pytest.raises(InputError, match=r"u\.genre is empty"):
        list(movielens.items(empty, "ml-100k", Counter()))
