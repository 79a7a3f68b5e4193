"""What is read by the batch is exactly what the rules for single rows make of it."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from preparation.test_amazon import records

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import amazon, raw, table_files
from recbole_bbqrec.preparation.bad_rows import BadRows
from recbole_bbqrec.preparation.raw import Review
from recbole_bbqrec.preparation.tables import REVIEW_COLUMNS, find_columns, read_reviews


def parts(text: str) -> list[str]:
    return text.replace("\n", "").split("|")


NAMES = parts("""A1|x-4|u_3|1234|1234.0|0012|12.50|1e5|1.23457E+12|null|true|-0|007|é|a.b@c|NA|\U0001f600|\ufeffq|
\u2028z|'q'|#1|\x07|| | A1 |a b|a\tb""")
TIMES = parts("""0|1700000000|1700000000123|1700000000123456|1700000000123456789|99999999999|100000000000|
99999999999999999|999999999999999999|9999999999999999999|-1.5|1700000000,5|1.7e9|2024-02-31|2024-13-01|1969-12-31|
0999-01-01|1000-01-01|2024-01-31T12:30|2024-01-31T24:00|2024-01-31T12:60|2024-01-31T12:30:05|2024-01-31T12:30:60|
2024-01-31T12:30:05Z|2024-01-31T1:30|2024/1/31|31.01.2024|nan|\u0663|1_000|| 5|2024-01-31 12:30 """)
RATINGS = parts("4.5|4,5|nan|1e3|1e999|-1|00|5.|3.14159265358979|0.1|12345678901|0.000001|2.50|-0.0|good|| 3")
VALUES = parts(r"""null|true|[]|["u1"]|{"a":1}|{"a:b":1}|NaN|Infinity|1e5|8.0|-0|12345678901234567890123|"u\ud800"|
"\u0075"|"a\tb"|0.5|1E2|[[1]]|05""")
KEYS = ("user_id", "item_id", "timestamp", "rating")


def cells(random_: random.Random) -> tuple[str, ...]:
    odd = [random_.choice(odd) for odd in (NAMES, NAMES, TIMES, RATINGS)]
    plain = (f"u{random_.randrange(9)}", f"i{random_.randrange(9)}", random_.choice(["7", "2024-01-31"]), "4.0")
    return tuple(random_.choice([cell, *[good] * 5]) for cell, good in zip(odd, plain, strict=True))


def json_line(random_: random.Random) -> str:
    def value(cell: str) -> str:
        number = cell.replace(".", "", 1).isdigit() and cell[0] != "0" and cell.isascii() and cell[-1] != "."
        return random_.choice([json.dumps(cell, ensure_ascii=random_.random() < 0.5), cell if number else '"x"'])

    texts = [value(cell) if random_.random() < 0.95 else random_.choice(VALUES) for cell in cells(random_)]
    more = [f'"{random_.choice(KEYS)}": "again"', '"text": "\\"item_id\\": \\"z\\", {"', '"style": {"Size:": "L"}']
    more += ['"n": {"user_id": "inner"}', '"t": "user_id"', '"\\u0075ser_id": "escaped"', '"l": [0, "\\\\"]']
    parts = [f'"{key}"{random_.choice([":", ": ", " : "])}{text}' for key, text in zip(KEYS, texts, strict=True)]
    parts = random_.sample(parts, 4 - (random_.random() < 0.1)) + random_.choices([*more, '"o": 1'], k=1)
    line = f"{{{random_.choice([', ', ',', ' , ']).join(random_.sample(parts, len(parts)))}}}"
    odd = [
        "",
        " ",
        "[1]",
        "x",
        line[:-1],
        line + " x",
        line[:-1] + ",}",
        line * 2,
        f"\ufeff{line}",
        f" {line}\t ",
        "{}",
    ]
    return line if random_.random() < 0.9 else random_.choice([*odd, line.replace(",", ",\t", 1), "\x0b" + line])


def table(random_: random.Random, ending: str) -> bytes:
    mark, end = {".csv": ",", ".tsv": "\t", ".jsonl": ""}[ending], random_.choice(["\n", "\r\n", "\r"])
    rows = [json_line(random_) for _ in range(60)]
    if mark:
        rows = [mark.join(cells(random_)) for _ in range(60)]
        rows = [f'"{row.replace(mark, chr(34) + mark + chr(34))}"' if random_.random() < 0.2 else row for row in rows]
        odd = ["", " ", mark * 3, f"u{mark}i", f'u{mark}"i"{mark}3{mark}4', f'"u\n"{mark}i{mark}3{mark}', f'"u{mark}i']
        rows = [mark.join(KEYS)] + [random_.choice([row, *[row] * 20, *odd]) for row in rows]
    content = (random_.choice(["", "", "\ufeff"]) + end.join(rows) + random_.choice(["", end])).encode()
    at = random_.randrange(60, len(content))
    return content if random_.random() < 0.7 else content[:at] + b"\xff" + content[at:]


def everything(path: Path, on_bad: str) -> Any:
    """All that comes of a table: its reviews and bad rows, or the error."""
    bad = BadRows(path, on_bad)
    try:
        found = records(read_reviews(find_columns(path, REVIEW_COLUMNS, {})[0], bad))
    except InputError as error:
        return str(error)
    return [repr(review) for review in found], bad.rows, bad.counts, bad.good, bad.blank


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_tables(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_LINES", 16)
    monkeypatch.setattr(raw, "_BYTES", 800)
    monkeypatch.setattr(table_files, "_BYTES", 800)
    for seed in range(25):
        random_ = random.Random(seed)
        path, on_bad = tmp_path / f"{seed}{ending}", random_.choice(["skip", "skip", "error"])
        path.write_bytes(table(random_, ending))
        fast = everything(path, on_bad)
        with monkeypatch.context() as patch:
            patch.setattr(raw, "_TOKEN", r"^\z.")  # nothing is plain
            assert everything(path, on_bad) == fast, path
    assert isinstance(fast, tuple) or "mend" in fast


@pytest.mark.parametrize("release", amazon.VARIANTS)
def test_amazon(tmp_path: Path, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_LINES", 16)
    plain = raw._TOKEN
    user, item, rating, time = amazon._REVIEW_KEYS[release]
    for seed in range(25):
        random_ = random.Random(seed)
        content = table(random_, ".jsonl").replace(b"user_id", user.encode()).replace(b"item_id", item.encode())
        content = content.replace(b'"timestamp"', f'"{time}"'.encode()).replace(b'"rating"', f'"{rating}"'.encode())
        path, found = tmp_path / "r.json", []
        path.write_bytes(gzip.compress(content) if seed % 2 else content)
        for token in (plain, r"^\z."):
            monkeypatch.setattr(raw, "_TOKEN", token)
            dirt: Counter[str] = Counter()
            found.append((list(map(repr, records(amazon.reviews(path, release, dirt)))), +dirt))
        monkeypatch.setattr(raw, "_TOKEN", plain)
        assert found[0] == found[1]


def test_most_rows_never_meet_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"user": "u-1", "item": 7, "time": "2024-01-31", "t": "\\u00e9"}\n{"user": 12, "item": "B", "time": 5}\r\n'
    )
    (tmp_path / "y.csv").write_text("user,item,time,rating\nu,i,2024-01-31 12:30,4.5\nv,i,1700000000123,3\n")
    for name in ("_identifier", "milliseconds", "_rating"):
        monkeypatch.setattr(f"recbole_bbqrec.preparation.tables.{name}", lambda *_: pytest.fail("the slow way"))
    paths = sorted(tmp_path.iterdir())
    found = [records(read_reviews(find_columns(path, REVIEW_COLUMNS, {})[0], BadRows(path))) for path in paths]
    assert [review[:2] for review in found[0]] == [("u-1", "7"), ("12", "B")]
    assert [review.time for review in found[0]] == [1_706_659_200_000, 5000]
    assert found[1] == [Review("u", "i", 4.5, 1_706_704_200_000), Review("v", "i", 3.0, 1_700_000_000_123)]
