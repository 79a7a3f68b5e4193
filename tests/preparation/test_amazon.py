"""The three releases of the Amazon reviews, with their dirt: exact records, exact counts, exact atomic files."""

import ast
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import amazon
from recbole_bbqrec.preparation.build import build
from recbole_bbqrec.preparation.raw import Item, Review


def records(frames: Iterable[pl.DataFrame]) -> list[Review]:
    return [Review(*row) for frame in frames for row in frame.iter_rows()]


def write(path: Path, lines: list[Any], zipped: bool = True) -> Path:
    """Write lines: bytes and texts as they are, anything else as JSON."""
    raw = [line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
           for line in lines]  # fmt: skip
    content = b"\n".join(raw) + b"\n"
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


def review(user: Any, item: Any, time: Any, rating: Any = 5.0, **more: Any) -> dict[str, Any]:
    return {
        "reviewerID": user,
        "asin": item,
        "overall": rating,
        "unixReviewTime": time,
        "reviewText": "so \t so",
        **more,
    }


DIRTY_REVIEWS = [
    review("A1", "B1", 30),
    review("A1", "B2", 10, rating=3.5),
    "",
    '{"reviewerID": "A9", "asin": "B1", "over',
    "[1, 2]",
    b'{"reviewerID": "A2", "asin": "B1", "overall": 1, "unixReviewTime": 5, "reviewText": "caf\xe9"}',
    review("A1", "B1", 20, rating=2.0),  # a duplicate, and the earlier one
    review("A2", "B2", 5, rating=None),
    {"asin": "B1", "overall": 4.0, "unixReviewTime": 5},
    review("A3", None, 5),
    review("A\t3", "B1", 5),
    review("A3", "B1", None),
    review("A3", "B1", "soon"),
    review("A3", "B1", 7, rating=math.nan),
    review("A3", "B2", "7", rating="4"),
]

DIRT_OF_REVIEWS = {
    "review lines that cannot be read": 2,
    "lines with bytes that are not UTF-8": 1,
    "reviews without a user": 2,
    "reviews without an item": 1,
    "reviews without a time": 2,
    "reviews without a rating, kept": 2,
}


@pytest.mark.parametrize("release", ["2014", "2018"])
@pytest.mark.parametrize("zipped", [True, False])
def test_reviews_with_all_their_dirt(tmp_path: Path, release: str, zipped: bool) -> None:
    dirt: Counter[str] = Counter()
    found = records(amazon.reviews(write(tmp_path / "r", DIRTY_REVIEWS, zipped), release, dirt))
    assert [(r.user, r.item, r.time, "" if math.isnan(r.rating) else r.rating) for r in found] == [
        ("A1", "B1", 30, 5.0),
        ("A1", "B2", 10, 3.5),
        ("A2", "B1", 5, 1.0),
        ("A1", "B1", 20, 2.0),
        ("A2", "B2", 5, ""),
        ("A3", "B1", 7, ""),
        ("A3", "B2", 7, 4.0),
    ]
    assert +dirt == DIRT_OF_REVIEWS


def test_reviews_of_2023_name_things_otherwise(tmp_path: Path) -> None:
    record = {"user_id": "AE", "asin": "B1-red", "parent_asin": "B1", "rating": 4.0, "timestamp": 1588687728923}
    found = records(amazon.reviews(write(tmp_path / "r", [record]), "2023", Counter()))
    assert found == [Review("AE", "B1", 4.0, 1588687728923)]


ITEMS_2014 = [
    # as published: quotes of both kinds, escapes, paths of categories, entities, a tab
    """{'asin': 'B1', 'description': "Don't \\t worry, it's 5\\" wide", 'title': 'A &quot;Red&quot; Lamp', """
    """'price': 12.99, 'imUrl': 'http://i.com/a.jpg?x=1&amp;y=2', 'related': {'also_bought': ['B7', 'B8']}, """
    """'salesRank': {'Toys': 1}, 'brand': '', """
    """'categories': [['Sports &amp; Outdoors', 'Cycling'], ['Sports &amp; Outdoors', 'Lights']]}""",
    "{'asin': 'B2', 'categories': [['Toys']]}",  # no title: the next record of B2 is the one that counts
    "{'asin': 'B2', 'title': u'Caf\\xe9 \\u201cX\\u201d \\ud83d\\ude00', 'price': None, 'categories': None}",
    "{'asin': 'B2', 'title': 'too late', 'brand': 'Z'}",
    "{'asin': 'B3', 'title': __import__('os').getcwd()}",
    "{'title': 'no name'}",
    "{'asin': 'B4', 'title': 'cut off",
    "{'asin': 'B5', 'title': 'not reviewed'}",
]


def test_2014_from_raw_to_atomic_files(tmp_path: Path) -> None:
    raw = write(tmp_path / "reviews_X.json.gz", DIRTY_REVIEWS), write(tmp_path / "meta_X.json.gz", ITEMS_2014)
    report = build(
        "X",
        partial(amazon.reviews, raw[0], "2014"),
        partial(amazon.items, raw[1], "2014"),
        tmp_path,
        user_core=2,
        item_core=2,
        expected={"users": 3, "items": 2, "interactions": 7},
        progress=False,
    )
    assert (tmp_path / "X/X.inter").read_text(encoding="utf-8") == (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "A1\tB2\t3.5\t10\nA1\tB1\t2\t20\nA2\tB1\t1\t5\nA2\tB2\t\t5\nA3\tB1\t\t7\nA3\tB2\t4\t7\n"
    )
    assert (tmp_path / "X/X.item").read_text(encoding="utf-8") == (
        "item_id:token\ttitle:token_seq\tbrand:token\tcategories:token_seq\tdescription:token_seq\tprice:token\t"
        "image_url:token\n"
        'B1\tA "Red" Lamp\t\tSports_&_Outdoors Cycling Lights\tDon\'t worry, it\'s 5" wide\t12.99\t'
        "http://i.com/a.jpg?x=1&y=2\n"
        "B2\tCafé “X” \U0001f600\t\t\t\t\t\n"
    )
    assert report["counts"] == {"users": 3, "items": 2, "interactions": 6}
    assert report["read"] == {"reviews": 7, "items": 5}
    assert report["dropped"] == {"interactions of a user with an item met before": 1}
    assert report["differences"] == {"interactions": {"expected": 7, "found": 6}}
    assert report["dirt"] == {
        **DIRT_OF_REVIEWS,
        "item lines that cannot be read": 2,
        "items without a name (asin)": 1,
        "item texts with HTML entities": 3,
        "item texts with control characters, tabs or line ends": 2,
        "records of an item met before": 2,
    }


def test_items_of_2018(tmp_path: Path) -> None:
    records = [
        {
            "asin": "B1",
            "title": "Drum",
            "brand": "Big Co",
            "category": ["Music", "Drums"],
            "description": ["loud", "", "round"],
            "price": "$1,012.50 - $2,000",
            "imageURL": ["s1.jpg", "s2.jpg"],
            "imageURLHighRes": ["", "l2.jpg"],
        },
        {
            "asin": "B2",
            "title": "var x; getTime();",
            "price": ".a-box{color:red}",
            "imageURL": ["s.jpg"],
            "brand": None,
        },
        '{"asin": "B3", "title": "raw\ttab", "description": "as text"}',
    ]
    dirt: Counter[str] = Counter()
    assert list(amazon.items(write(tmp_path / "m", records), "2018", dirt)) == [
        Item("B1", "Drum", "Big Co", ["Music", "Drums"], "loud round", "1012.50", "l2.jpg"),
        Item("B2", "", "", [], "", "", "s.jpg"),
        Item("B3", "raw\ttab", "", [], "as text", "", ""),
    ]
    assert +dirt == {"items with a script for a title": 1, "items with an unreadable price": 1}


def test_items_of_2023(tmp_path: Path) -> None:
    images = [{"thumb": "t.jpg", "large": "l.jpg", "hi_res": None}, {"hi_res": "h2.jpg"}]
    records = [
        {
            "parent_asin": "B1",
            "title": "Ball",
            "store": "Co",
            "categories": ["Sports", "Balls", "Sports"],
            "description": [],
            "price": 9.5,
            "images": images,
        },
        {
            "parent_asin": "B2",
            "title": None,
            "store": None,
            "price": "from 12.99",
            "images": [None, {"hi_res": "h.jpg"}],
        },
        {"asin": "B3", "title": "child only"},
    ]
    dirt: Counter[str] = Counter()
    assert list(amazon.items(write(tmp_path / "m", records), "2023", dirt)) == [
        Item("B1", "Ball", "Co", ["Sports", "Balls"], "", "9.5", "l.jpg"),
        Item("B2", "", "", [], "", "12.99", "h.jpg"),
    ]
    assert +dirt == {"items without a name (asin)": 1}


LITERALS = st.recursive(
    st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(LITERALS, st.sampled_from([repr, ascii]))
def test_fast_reading_of_literals_is_exact(value: Any, spell: Any) -> None:
    assert amazon._parse_literal(spell(value)) == value


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.text(alphabet="'\"\\/ab{}:,nxu04 \t\x01é", max_size=8), min_size=1, max_size=3),
    st.integers(0),
    st.sampled_from(["", "'", '"', "\\", "\\x4", "u'", "1"]),
)
def test_what_is_no_literal_is_never_read_as_another(texts: list[str], at: int, put: str) -> None:
    spelt = repr({"k": texts})
    spelt = spelt[: at % len(spelt)] + put + spelt[at % len(spelt) + 1 :]
    try:
        expected = ast.literal_eval(spelt)
    except (ValueError, SyntaxError, TypeError):
        with pytest.raises((ValueError, SyntaxError, TypeError)):
            amazon._parse_literal(spelt)
    else:
        assert amazon._parse_literal(spelt) == expected


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "spelt",
    [r"'a\/b'", r"'\\/'", r"'\\\'\"'", r'"it\'s \"5\" \\"', r"'\x41\xe9\u201c\U0001f600\n\t\0\a\N{BULLET}'", r"'\d'",
     """['5"', "o'c", '6"', 7]""", """{'a': 'x"', "b'": '"'}""", "u'x'", "(1, None, True)", "'a' 'b'", "'\x01\\''"],
)  # fmt: skip
def test_ways_to_spell_a_string(spelt: str) -> None:
    assert amazon._parse_literal(spelt) == ast.literal_eval(spelt)


@pytest.mark.parametrize("spelt", ["[\t\"\\'']", "\"/\\'u'"])
def test_strings_that_do_not_end(spelt: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        amazon._parse_literal(spelt)


@pytest.mark.filterwarnings("error")
def test_odd_escapes_are_read_without_a_word(tmp_path: Path) -> None:
    line = r"""{'asin': 'B1', 'title': 'a\d "b"', 'brand': u'\w'}"""
    found = list(amazon.items(write(tmp_path / "m", [line]), "2014", Counter()))
    assert found == [Item("B1", 'a\\d "b"', "\\w", [], "", "", "")]


@pytest.mark.parametrize("line", [ITEMS_2014[0], ITEMS_2014[1], r"{'a': 'it\'s 5\" \\ caf\xe9\n'}"])
def test_common_literals_take_the_fast_way(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ast.literal_eval(line)
    monkeypatch.setattr(ast, "literal_eval", lambda text: pytest.fail("the slow way"))
    assert amazon._parse_literal(line) == expected


@pytest.mark.parametrize("cut", [5, 60, -4])
def test_cut_off_files_are_errors_not_short_data(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress("\n".join(json.dumps(review(f"A{at}", "B", at)) for at in range(50)).encode())
    (tmp_path / "r.json.gz").write_bytes(whole[:cut])
    with pytest.raises(InputError, match=r"r\.json\.gz: cannot be read .* fetch it again"):
        list(amazon.reviews(tmp_path / "r.json.gz", "2014", Counter()))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; fetch it"):
        list(amazon.items(tmp_path / "m", "2014", Counter()))
