"""Anyone's tables: every format and quirk gives exact rows, every bad row is named with its line and reason."""

import csv
import gzip
import io
import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import bad_rows, table_files
from recbole_bbqrec.preparation.bad_rows import BadRows, write_bad_rows
from recbole_bbqrec.preparation.raw import Item, Review
from recbole_bbqrec.preparation.table_files import open_table
from recbole_bbqrec.preparation.tables import ITEM_COLUMNS, REVIEW_COLUMNS, find_columns, read_items, read_reviews

ROWS = [("ann", "lamp", 1_700_000_000, 4.5), ("bob", "tent", 1_700_000_060, 3.0)]
REVIEWS = [Review(user, item, rating, time * 1000) for user, item, time, rating in ROWS]


def put(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def records(frames: Iterable[pl.DataFrame]) -> list[Review]:
    return [Review(*row) for frame in frames for row in frame.iter_rows()]


def header(path: Path) -> list[str]:
    with open_table(path) as table:
        return table.names


def reviews(path: Path, columns: Mapping[str, str] | None = None, on_bad: str = "skip") -> tuple[list[Review], BadRows]:
    bad = BadRows(path, on_bad)
    found = records(read_reviews(find_columns(path, REVIEW_COLUMNS, columns or {})[0], bad))
    assert bad.good == len(found)
    return found, bad


def items(path: Path, columns: Mapping[str, str] | None = None) -> tuple[list[Item], BadRows]:
    bad = BadRows(path)
    return list(read_items(find_columns(path, ITEM_COLUMNS, columns or {})[0], bad)), bad


def separated(mark: str) -> str:
    return "\n".join(mark.join(map(str, row)) for row in (("user_id", "item_id", "timestamp", "rating"), *ROWS)) + "\n"


def as_json() -> str:
    keys = ("user_id", "item_id", "timestamp", "rating")
    return "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in ROWS)


def parquet(path: Path, table: Mapping[str, Any], **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    files.write_table(pyarrow.table(dict(table)), path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", separated(",")),
        ("x.CSV", separated(";")),
        ("x.csv", separated("\t")),
        ("x.csv.gz", separated(",")),
        ("x.tsv", separated("\t")),
        ("x.tsv.gz", separated("\t")),
        ("x.jsonl", as_json()),
        ("x.jsonl.gz", as_json()),
        ("x.csv", "\ufeff" + separated(",")),
        ("x.csv", separated(";").replace(".", ",")),
        ("x.csv", separated(",").replace("\n", "\r\n").removesuffix("\r\n")),
        ("x.csv", separated(",").replace("\n", "\r")),
        ("x.csv", "sep=;\n" + separated(";")),
        ("x.csv", "\n" + separated(",")),
        ("x.tsv", separated("\t").encode("utf-16")),
        ("x.csv", separated(",").replace("user_id", " User ID ").replace("item_id", '"itemId"')),
        ("x.tsv", separated("\t").replace("user_id", "user_id:token").replace("timestamp", "timestamp:float")),
    ],
)
def test_every_text_format_gives_the_same_reviews(tmp_path: Path, name: str, content: str | bytes) -> None:
    found, bad = reviews(put(tmp_path, content, name))
    assert found == REVIEWS and not bad.rows and bad.blank == 0


def test_parquet_gives_the_same_reviews_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user, item, time, rating = zip(*ROWS, strict=True)
    path = parquet(tmp_path / "x.parquet", {"user": user, "other": item, "item": item, "time": time, "rating": rating})
    monkeypatch.setattr(table_files, "_BATCH", 1)
    assert reviews(path)[0] == REVIEWS
    assert find_columns(path, REVIEW_COLUMNS, {})[1] == ["other"]


def test_parquet_types_and_bad_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    moment = datetime(2024, 1, 31, 12, 30, tzinfo=timezone.utc)
    table = {
        "user": pyarrow.array([1.0, 2.0, None, 4.0]),  # a column of ids with a gap
        "item": pyarrow.array(["a", "b", "c", "d"]).dictionary_encode(),
        "time": pyarrow.array([moment, None, moment, moment], pyarrow.timestamp("ns")),
        "rating": pyarrow.array([Decimal("4.50"), None, None, None]),
    }
    found, bad = reviews(parquet(tmp_path / "x.parquet", table))
    assert [row[:2] for row in found] == [("1", "a"), ("4", "d")]
    assert found[0] == ("1", "a", 4.5, 1706704200000) and math.isnan(found[1].rating)
    assert bad.rows == [(2, "time: blank", ""), (3, "user: blank", "")]
    assert "first in row 2" in bad.summary()


def test_parquet_dates_lists_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    names = pyarrow.Array.from_buffers(pyarrow.binary(), 2, pyarrow.array([b"a", b"b\xff"]).buffers()).view(
        pyarrow.string()
    )
    path = parquet(tmp_path / "x.parquet", {"item_id": names, "genres": [["x, y", "z"], []], "title": ["t", None]})
    found, bad = items(path)
    assert found == [Item("a", "t", "", ["x, y", "z"], "", "", "")]
    assert bad.rows == [(2, "not UTF-8 text", "b\\xff")]
    days = {"user": ["u"], "item": ["i"], "day": [date(1970, 1, 3)]}
    assert reviews(parquet(path, days), {"time": "day"})[0][0].time == 2 * 86_400_000


def test_parquet_that_is_none_and_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        header(put(tmp_path, "a,b\n", "x.parquet"))
    with pytest.raises(InputError, match="no such file"):
        header(tmp_path / "none.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'recbole-bbqrec\[parquet\]'"):
        header(tmp_path / "x.parquet")


BAD = "user,item,time,rating\nann,lamp,1,5\n"


BAD_ROWS: dict[str, tuple[str | bytes, tuple[int, str, str]]] = {
    "too few": ("ann,lamp,2\n", (3, "3 columns instead of 4", "ann,lamp,2")),
    "too many": ("ann,lamp,2,5,x\n", (3, "5 columns instead of 4", "ann,lamp,2,5,x")),
    "no user": (" ,lamp,2,5\n", (3, "user: blank", "")),
    "no item": ("ann,,2,5\n", (3, "item: blank", "")),
    "no time": ("ann,lamp,,5\n", (3, "time: blank", "")),
    "words": ("ann,lamp,noon,5\n", (3, "time: neither a number of seconds nor a date like 2024-01-31 12:30", "noon")),
    "rating": ("ann,lamp,2,good\n", (3, "rating: not a number", "good")),
    "nan": ("ann,lamp,2,nan\n", (3, "rating: not a number", "nan")),
    "overflow": ("ann,lamp,2,1e999\n", (3, "rating: not a number", "1e999")),
    "rounded": (
        "ann,1.23457E+12,2,5\n",
        (3, "item: a number that a spreadsheet has rounded (export the column as text)", "1.23457E+12"),
    ),
    "line end": ('ann,"la\nmp",2,5\n', (3, "item: a tab, line end or control character inside", "la\\nmp")),
    "bytes": (b"ann,l\xe4mp,2,5\n", (3, "not UTF-8 text", "ann,l\\xe4mp,2,5")),
    "after a quote": ('ann,"la"mp,2,5\n', (3, "wrong quotes, ',' expected after '\"'", 'ann,"la"mp,2,5')),
    "open quote": ('ann,"lamp,2,5\n', (3, "a quote is never closed", 'ann,"lamp,2,5')),
    "huge cell": (
        'ann,"' + "x" * 140_000 + '",2,5\n',
        (3, "wrong quotes, field larger than field limit (131072)", 'ann,"' + "x" * 92 + "..."),
    ),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_named_and_the_next_rows_read(
    tmp_path: Path, row: str | bytes, expected: tuple[int, str, str]
) -> None:
    row = row if isinstance(row, bytes) else row.encode()
    path = put(tmp_path, BAD.encode() + row + b"bob,tent,2,4\n")
    found, bad = reviews(path)
    assert found == [Review("ann", "lamp", 5, 1000), Review("bob", "tent", 4, 2000)]
    assert bad.rows == [expected] and bad.counts == {expected[1]: 1}
    with pytest.raises(InputError) as error:
        reviews(path, on_bad="error")
    assert f"{path}, line 3: {expected[1]}, found" in str(error.value) and "--on-bad=skip" in str(error.value)


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """A header and cells over several lines, blank lines, and bad rows between them."""
    content = (
        'item_id,"long\nname",title\n'  # lines 1 and 2
        'a,,"two\nlines, ""quoted"""\n'  # 3 and 4
        "\n ,, \n"  # 5 and 6
        ",,no id\n"  # 7
        'b,,"one\r\ntwo\r\nthree",too much\n'  # 8 to 10
        "c,,last"  # 11
    )
    found, bad = items(put(tmp_path, content))
    assert [(item.token, item.title) for item in found] == [("a", 'two\nlines, "quoted"'), ("c", "last")]
    assert [row[:2] for row in bad.rows] == [(7, "item: blank"), (8, "4 columns instead of 3")]
    assert bad.blank == 2 and bad.summary().endswith(
        r"x.csv: 2 rows used, 2 bad (1 4 columns instead of 3, first in line 8: 'b,,one\r\ntwo\r\nthree,too much'; "
        "1 item: blank, first in line 7), 2 blank"
    )


def test_an_open_quote_swallows_no_rows(tmp_path: Path) -> None:
    rows = [f"i{at},plain {at}" for at in range(1200)]
    rows[7] = 'i7,"open'
    rows[1100] = 'i1100,"open again'
    found, bad = items(put(tmp_path, "item_id,title\n" + "\n".join(rows)))
    assert [row[:2] for row in bad.rows] == [(9, "a quote is never closed"), (1102, "a quote is never closed")]
    assert [item.token for item in found] == [f"i{at}" for at in range(1200) if at not in (7, 1100)]


def test_quotes_in_tsv_with_and_without_quoting(tmp_path: Path) -> None:
    content = (
        "item_id\ttitle\n"
        'a\t"Best" lamp\n'
        'b\t5" pipe\n'
        'c\t"open\n'
        'd\t"a tab\tinside"\n'
        'e\t"two\nlines"\n'
        'f\t"open\n'
        'g\tdone"\n'
    )
    found, bad = items(put(tmp_path, content, "x.tsv"))
    titles = ['"Best" lamp', '5" pipe', '"open', "a tab\tinside", "two\nlines", '"open', 'done"']
    assert [item.title for item in found] == titles and not bad.rows


JSON_BAD = [
    ('{"user": "u", "item": "i"}', "time: blank", ""),
    ('{"user": ["u"], "item": "i", "time": 2}', "user: not one name", "['u']"),
    ('{"user": true, "item": "i", "time": 2}', "user: not one name", "True"),
    ('{"user": "u", "item": "i", "time": true}', "time: neither", "True"),
    ('{"user": "u", "item": "i", "time": Infinity}', "time: neither", "inf"),
    ('{"user": "u\\ud800", "item": "i", "time": 2}', "not UTF-8 text", "u\\ud800"),
    ('{"user": "u", "item": "i", "time": 2', "not JSON", '{"user": "u", "item": "i", "time": 2'),
    ("[1, 2]", "not a JSON object", "[1, 2]"),
    ("[" * 100_000, "not JSON", "[" * 97 + "..."),
]


def test_json_lines(tmp_path: Path) -> None:
    good = (
        '{"user": 7, "item": 8.0, "time": 1700000000123}\n\n{"rating": "4,5", "time": "5", "user": "u", "item": "i"}\n'
    )
    path = put(tmp_path, good + "\n".join(line for line, *_ in JSON_BAD), "x.jsonl")
    found, bad = reviews(path)
    assert found[0][:2] == ("7", "8") and math.isnan(found[0].rating) and found[0].time == 1_700_000_000_123
    assert found[1:] == [Review("u", "i", 4.5, 5000)] and bad.blank == 1
    assert [row.line for row in bad.rows] == list(range(4, 4 + len(JSON_BAD)))
    for row, (_, reason, text) in zip(bad.rows, JSON_BAD, strict=True):
        assert row.reason.startswith(reason) and row.text == text


NESTED = (
    '{"item_id": 1, "attributes": {"brand": "A", "more": {"genre": ["x", "y"]}, "a.b": {"c": 1999}}, "a.b": "no"}\n'
    '{"item_id": 2, "attributes": null}\n{"item_id": 3, "attributes": "B"}\n'
)


def test_what_objects_hold_is_named_with_dots(tmp_path: Path) -> None:
    path = put(tmp_path, NESTED, "x.jsonl")
    columns = {"brand": "attributes.brand", "categories": "attributes.more.genre", "year": "attributes.a.b.c"}
    first, *others = items(path, columns)[0]
    assert first == Item("1", "", "A", ["x", "y"], "", "", "", "1999")
    assert others == [Item(token, "", "", [], "", "", "") for token in "23"]
    assert find_columns(path, ITEM_COLUMNS, columns)[1] == ["a.b"]
    with pytest.raises(
        InputError, match=r"did you mean attributes.brand\? present: attributes.brand, attributes.more, "
    ):
        find_columns(path, ITEM_COLUMNS, {"brand": "attributes.brnd"})
    line = '{"user_id": 7, "user": {"id": "u"}, "item": {"id": "i"}, "time": {"$date": "1970-01-02"}}\n'
    path = put(tmp_path, line, "x.jsonl")
    found, bad = reviews(path, {"item": "item.id", "time": "time.$date"})
    assert [(row.user, row.item, row.time) for row in found] == [("7", "i", 86_400_000)] and not bad.rows
    assert reviews(path, {"user": "user.id", "item": "item.id"})[0][0].user == "u"
    assert header(put(tmp_path, '{"a":' * 900 + "1" + "}" * 900, "x.jsonl")) == ["a"]


def test_what_objects_hold_in_parquet(tmp_path: Path) -> None:
    about = [{"brand": "A", "more": {"year": 1999.0}}, {"brand": None, "more": None}]
    path = parquet(tmp_path / "x.parquet", {"item": ["a", "b"], "about": about})
    found, _ = items(path, {"brand": "about.brand", "year": "about.more.year"})
    assert found == [Item("a", "", "A", [], "", "", "", "1999"), Item("b", "", "", [], "", "", "")]


@pytest.mark.parametrize(
    "names",
    [
        "Kunden-Nr.;Artikel;Datum;Bewertung",
        "Kundennummer;Produkt;Zeitpunkt;Sterne",
        "id_client;Produit;Date achat;score",
    ],
)
def test_german_and_french_names(tmp_path: Path, names: str) -> None:
    assert reviews(put(tmp_path, f"{names}\nu;i;2.1.1970;4,5\n"))[0] == [Review("u", "i", 4.5, 86_400_000)]


def test_names_of_items_with_accents_however_they_are_spelt(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        names = unicodedata.normalize(form, "Produit,Titre,Marque,Cat\u00e9gorie,Prix,Ann\u00e9e")
        assert items(put(tmp_path, f"{names}\ni,t,b,c,9,1999\n"))[0] == [
            Item("i", "t", "b", ["c"], "", "9", "", "1999")
        ]
    names = "Artikelnummer,Titel,Marke,Kategorie,Beschreibung,Preis,Bild,Jahr"
    assert len(find_columns(put(tmp_path, f"{names}\n"), ITEM_COLUMNS, {})[0]) == 8
    assert items(put(tmp_path, "Artikel,id,Produkt\nt,i,p\n"))[0][0].token == "i"


TIMES: list[tuple[Any, int]] = [
    ("0", 0),
    ("1", 1000),
    ("-1.5", -1500),
    ("1700000000", 1_700_000_000_000),
    ("1700000000.123", 1_700_000_000_123),
    ("1700000000,123", 1_700_000_000_123),
    ("1.7e9", 1_700_000_000_000),
    ("1700000000123", 1_700_000_000_123),
    ("1700000000123456", 1_700_000_000_123),
    ("1700000000123456789", 1_700_000_000_123),
    ("20240131", 20_240_131_000),
    ("2024-01-31", 1_706_659_200_000),
    ("2024/1/31", 1_706_659_200_000),
    ("2024-01-31 12:30", 1_706_704_200_000),
    ("2024-01-31T12:30:05Z", 1_706_704_205_000),
    ("2024-01-31T12:30:05.1239999 UTC", 1_706_704_205_123),
    ("2024-01-31T12:30:05+02:00", 1_706_697_005_000),
    ("2024-01-31 12:30:05-0130", 1_706_709_605_000),
    ("2024-01-31 12:30:05.5+02", 1_706_697_005_500),
    ("1969-12-31 23:59:59", -1000),
    ("31.01.2024", 1_706_659_200_000),
    ("31.1.2024 12:30", 1_706_704_200_000),
    ("3.01.2024 9:05:09,5 Z", 1_704_272_709_500),
    ("31.01.2024T12:30:05+02:00", 1_706_697_005_000),
    ("31.1.2024, 12:30:05", 1_706_704_205_000),
]


@pytest.mark.parametrize(("text", "time"), TIMES)
def test_times(tmp_path: Path, text: str, time: int) -> None:
    assert reviews(put(tmp_path, f'user,item,time\nu,i,"{text}"\n'))[0][0].time == time


@pytest.mark.parametrize(
    "text",
    """31/01/2024; 01/31/2024; 31-01-2024; 31.01.24; 31.02.2024; 1.31.2024; 31.01/2024; 31.01.20245; 2024-02-31;
    2024-01-31 25:00; 2024-01/31; 2024-01-31 1:30 PM; 1_000; nan; 1,234,567; 1.234,5; 1e20; 1e400;
    1e999999999; 1e99999999999999999999; 1e-999999999; 2024-01-31,; 2024-01-31,12:30; 2024-01-31 12:30+2;
    \u0663; Jan 2024; 2024-01-31T12:30+99:00""".replace("\n    ", " ").split("; "),
)
def test_what_is_no_time(tmp_path: Path, text: str) -> None:
    found, bad = reviews(put(tmp_path, f'user,item,time\nu,i,1\nu,i,"{text}"\n'))
    assert len(found) == 1 and [(row.line, row.text) for row in bad.rows] == [(3, text)]


@given(st.datetimes(datetime(1973, 4, 1), datetime(2200, 1, 1)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_moment_has_one_time_however_it_is_spelt(tmp_path: Path, moment: datetime) -> None:
    moment = moment.replace(tzinfo=timezone.utc)
    exact = (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
    spellings = [moment.isoformat(), moment.isoformat(" ").replace("+00:00", ""), exact, exact // 1000, exact * 1000]
    spellings += [Decimal(exact) / 10**6, moment.astimezone(timezone(timedelta(hours=-7, minutes=-30))).isoformat()]
    path = put(tmp_path, "user,item,time\n" + "".join(f"u,i,{text}\n" for text in spellings))
    assert [review.time for review in reviews(path)[0]] == [exact // 1000] * len(spellings)


def test_ids_of_spreadsheets(tmp_path: Path) -> None:
    rows = ["1234.0,0012", "1234,-5.00", "12.50,1e5", "NA,B00E+1", " a b ,#1"]
    found, bad = reviews(put(tmp_path, "user,item,time\n" + "".join(f"{row},1\n" for row in rows)))
    assert not bad.rows
    assert [row[:2] for row in found] == [
        ("1234", "0012"), ("1234", "-5"), ("12.50", "1e5"), ("NA", "B00E+1"), ("a b", "#1")
    ]  # fmt: skip


CATEGORIES = [
    ("Adventure|Comedy", ["Adventure", "Comedy"]),
    ("Home > Lamps, big", ["Home", "Lamps, big"]),
    ("a; b;;c", ["a", "b", "c"]),
    ("a, b", ["a", "b"]),
    ("['a, b', 'c']", ["a, b", "c"]),
    ('["a", ["b", null, 3]]', ["a", "b", "3"]),
    ("[new] lamps", ["[new] lamps"]),
    ("", []),
]


@pytest.mark.parametrize(("text", "parts"), CATEGORIES)
def test_categories(tmp_path: Path, text: str, parts: list[str]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["id", "genres"], ["a", text]])
    assert items(put(tmp_path, buffer.getvalue()))[0] == [Item("a", "", "", parts, "", "", "")]


def test_items_with_everything(tmp_path: Path) -> None:
    row = {
        "asin": "B1",
        "name": "Lamp &amp; shade ",
        "Store": "Acme",
        "description": ["One.", "", "Two."],
        "Price": 9.5,
    }
    row |= {"imageURL": ["http://x/1.jpg", "http://x/2.jpg"], "year": 1999.0, "colour": "red"}
    path = put(tmp_path, json.dumps(row), "x.jsonl")
    expected = Item("B1", "Lamp &amp; shade", "Acme", [], "One. Two.", "9.5", "http://x/1.jpg", "1999")
    assert items(path)[0] == [expected]
    assert find_columns(path, ITEM_COLUMNS, {})[1] == ["colour"]
    assert items(path, {"brand": "colour"})[0] == [expected._replace(brand="red")]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    {
        "no user": ("a,item,time\n", {}, "user .such as user_id. .*present: a, item, time.; name it .*--user-column$"),
        "near": ("user_idd,item,time\n", {}, "did you mean user_idd"),
        "no header": ("196,242,881250949\n", {}, "present: 196, 242, 881250949"),
        "several": ("a,time\n", {"user": "u"}, "user .expected u., the item .such as item_id.*; name them .*, --item"),
        "wrong name": ("u,item,time\n", {"user": "v"}, r"expected v. .*present: u, item, time"),
        "twice": ("User ID,user_id,item,time\n", {}, "User ID and user_id may both be the user; .*--user-column"),
        "given twice": ("u,u,item,time\n", {"user": "u"}, "u and u may both be the user; rename all but"),
        "no field": ("user,item,time\n", {"usr": "u"}, "there is no field 'usr' .did you mean user"),
        "empty": ("", {}, "the file is empty"),
        "blank": (" \n\n", {}, "the file is empty"),
        "no rows": ("user,item,time\n", {}, "found no row below the first line, which has the names"),
        "bad rows": ("user,item,time\n,,\n,i,1\n", {}, "1 bad .1 user: blank, first in line 3., 1 blank; .* --user-c"),
        "words": ("user,item,time\nu,i,soon\n", {}, "in line 2: 'soon'.; mend .*right column with --time-column$"),
        "no dates": ("user,item,time\nu,i,01/31/2024\n", {}, "2: '01/31/2024'.; format that column as YYYY-MM-DD$"),
        "rounded": ("user,item,time\n1E+12,i,1\n", {}, "first in line 2: '1E.12'.; mend the file$"),
        "too many": ("user,item,time\nu,i,1," + "x" * 50 + "\n", {}, r"2: 'u,i,1,x{31}\.\.\.'.; mend the file$"),
        "some bytes": (b"user,item,time\nu\xfc,i,1\n", {}, "save the file as UTF-8 .in a spreadsheet: CSV UTF-8"),
        "bytes": (b"user,item,time,\xff\n", {}, "line 1: the header is not UTF-8 text; save .* iconv"),
        "16 bits": ("user,item,time\n".encode("utf-16-le"), {}, "line 1: the header is not UTF-8 text"),
        "quote": ('user,"item,time\n', {}, "line 1: the header is unreadable, a quote is never closed"),
    }.values(),
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path: Path, content: str | bytes, columns: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reviews(put(tmp_path, content), columns)


def test_items_that_cannot_be_used_are_told_the_options_of_items(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"for the item id \(such as item_id\) .* --item-id-column$"):
        items(put(tmp_path, "name,price\na,1\n"))
    with pytest.raises(InputError, match=r"1 item: blank.* --item-id-column$"):
        items(put(tmp_path, "item,name\n,a\n"))


def test_endings_and_damaged_files(tmp_path: Path) -> None:
    for name, message in (
        ("x.xlsx", "save the sheet as CSV UTF-8"),
        ("x.txt", "'.txt', expected one of .csv"),
        ("x", "''"),
    ):
        with pytest.raises(InputError, match=message):
            header(put(tmp_path, "", name))
    with pytest.raises(InputError, match="no such file"):
        header(tmp_path / "none.csv")
    with pytest.raises(InputError, match="no JSON object in the first"):
        header(put(tmp_path, "\nx\n[]\n", "x.jsonl"))
    whole = put(tmp_path, "user,item,time\n" + "".join(f"u,{at},{at * 7919}\n" for at in range(9999)), "x.csv.gz")
    whole.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"cannot be read .*copy or export the file again"):
        reviews(whole)
    for broken in (b"\x00", b"\x00\xd8\x00\xd8\n\x00"):  # half a character, half a pair
        with pytest.raises(InputError, match=r"cannot be read .*utf-16"):
            reviews(put(tmp_path, "user\titem\ttime\nu\ti\t1\n".encode("utf-16") + broken, "x.tsv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"cannot be read .Is a directory"):
        header(tmp_path / "folder.csv")


def test_list_of_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_rows, "_KEPT", 2)
    path, target = put(tmp_path, BAD + "ann\nann,lamp,a\tb\x07é,5\nann\nann\n"), tmp_path / "new" / "x.bad_rows.tsv"
    bad = reviews(path)[1]
    time = "time: neither a number of seconds nor a date like 2024-01-31 12:30"
    assert bad.counts == {"1 columns instead of 4": 3, time: 1}
    write_bad_rows(target, [BadRows("y.csv"), bad])
    assert target.read_text(encoding="utf-8") == (
        "file\tline\treason\tfound\n"
        f"{path}\t3\t1 columns instead of 4\tann\n"
        f"{path}\t4\t{time}\ta\\tb\\x07é\n"
        f"{path}\t\tand 2 more, which are only counted\t\n"
    )
    write_bad_rows(target, [BadRows("y.csv")])
    assert not target.exists()
    with pytest.raises(InputError, match="--on-bad: found 'stop', expected skip or error"):
        BadRows(path, "stop")


def test_tabs_and_line_ends_in_different_cells_of_a_tsv(tmp_path: Path) -> None:
    found, bad = items(put(tmp_path, 'item_id\ttitle\tdescription\n"i0"\t"a\nb"\t"c\td"\n'))
    assert [(item.title, item.description) for item in found] == [("a\nb", "c\td")] and not bad.counts


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('",;\n\r\t|')).map(str.strip)


@given(
    st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"])
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_text_survives(tmp_path: Path, cells: list[tuple[str, str]], mark: str, end: str) -> None:
    # With tabs between the cells, what is quoted over a tab and the end of a line counts as two stray quotes: many
    # programs write TSV without quotes of its own.
    assume(mark != "\t" or not any("\t" in cell and {*"\r\n"} & {*cell} for row in cells for cell in row))
    buffer = io.StringIO()
    # All quoted: before Python 3.13 the writer leaves a lone carriage return bare, and the line would end there.
    writer = csv.writer(buffer, delimiter=mark, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["item_id", "title", "description"])
    writer.writerows([[f"i{at}", *row] for at, row in enumerate(cells)])
    found, bad = items(put(tmp_path, buffer.getvalue()))
    assert [(item.title, item.description) for item in found] == cells and not bad.counts
    assert [item.token for item in found] == [f"i{at}" for at in range(len(cells))]
