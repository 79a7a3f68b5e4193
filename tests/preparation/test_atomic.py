"""Atomic files: what is in the file comes out, and whatever is wrong is named with its line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation.atomic import read_atomic

HEADER = "item_id:token\ttitle:token_seq\tprice:float\tvec:float_seq\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "x.item"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_types_values_and_order_of_columns(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "a\tred lamp\t1.5\t1 2.5\nb\t\t\t\n")
    frame, types = read_atomic(path)
    assert types == {"item_id": "token", "title": "token_seq", "price": "float", "vec": "float_seq"}
    assert frame.title.tolist() == ["red lamp", ""] and frame.vec.tolist() == ["1 2.5", ""]
    assert frame.price.dtype == np.float64 and frame.price[0] == 1.5 and np.isnan(frame.price[1])
    frame, types = read_atomic(path, ["price", "item_id"])
    assert list(frame) == list(types) == ["item_id", "price"]
    assert read_atomic(path, [])[0].shape == (2, 0)


@pytest.mark.parametrize("word", ["NA", "null", "nan", "None", '"quoted', "'", "#", "1_0", " ", "\ufeff", "\\N", "a,b"])
def test_no_token_has_a_meaning(tmp_path: Path, word: str) -> None:
    frame, _ = read_atomic(write(tmp_path, f"item_id:token\ttitle:token_seq\n{word}\t{word}\nb\tx\n"))
    assert frame.values.tolist() == [[word, word], ["b", "x"]]


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, end: str, line_end: str, bom: str) -> None:
    content = (bom + "u:token\ti:token\n1\t2\n3\t4" + end).replace("\n", line_end)
    assert read_atomic(write(tmp_path, content))[0].values.tolist() == [["1", "2"], ["3", "4"]]


def test_separator_encoding_and_header_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "u:token;t:token_seq\né;ü ü\n".encode("latin-1"))
    frame, _ = read_atomic(path, field_separator=";", encoding="latin-1")
    assert frame.values.tolist() == [["é", "ü ü"]]
    frame, types = read_atomic(write(tmp_path, "u:token\tx:float"))
    assert frame.shape == (0, 2) and frame.x.dtype == np.float64 and len(types) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    {
        "empty": ("", "the file is empty"),
        "only blanks": (" \n\n", "the file is empty"),
        "no types": ("item_id\ttitle\n", "line 1, column 1: found 'item_id', expected name:type"),
        "no name": (":token\n", "line 1, column 1"),
        "commas": ("a:token,b:token\n", "unknown type 'token,b:token'.*separated by"),
        "unknown type": ("a:token\tb:text\n", "line 1, column 2, field b: found the unknown type 'text'"),
        "duplicate field": ("a:token\tb:float\ta:token\n", "line 1, column 3: found the field a again.*column 1"),
        "too few": (HEADER + "a\tx\t1\t1\nb\tx\n", "line 3: found 2 columns, expected 4.*price is missing"),
        "too many": (HEADER + "a\tx\t1\t1\t9\n", "line 2: found 5 columns, expected 4.*'9' is one too many"),
        "blank line": (HEADER + "\na\tx\t1\t1\n", "line 2: found a blank line"),
        "no number": (HEADER + "a\tx\t1\t1\nb\tx\tcheap\t1\n", "line 3, field price: found 'cheap'"),
        "nan": (HEADER + "a\tx\tnan\t1\n", "line 2, field price: found 'nan', expected a finite number"),
        "inf": (HEADER + "a\tx\t-inf\t1\n", "field price: found '-inf'"),
        "overflow": (HEADER + "a\tx\t1e999\t1\n", "field price: found '1e999'"),
        "underscore": (HEADER + "a\tx\t1_000\t1\n", "field price: found '1_000'"),
        "other digits": (HEADER + "a\tx\t\u0663\t1\n", "field price"),
        "float_seq": (HEADER + "a\tx\t1\t1 2 x\n", "line 2, field vec: found 'x'"),
        "float_seq nan": (HEADER + "a\tx\t1\t1 nan\n", "line 2, field vec: found 'nan'"),
        "bytes": (
            HEADER.encode() + b"a\tx\t1\t1\nb\t\xff\t1\t1\n",
            "line 3, column 2: found byte 0xff",
        ),
    }.values(),
)
def test_faults_are_one_line_that_names_the_place(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        read_atomic(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_faults_of_the_request(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER)
    with pytest.raises(InputError, match=r"field titel.*did you mean title.*present: item_id, title, price, vec"):
        read_atomic(path, ["titel"])
    with pytest.raises(InputError, match="no such file"):
        read_atomic(tmp_path / "none.item")
    with pytest.raises(InputError, match="cannot be read"):
        read_atomic(tmp_path)
    with pytest.raises(InputError, match="unknown encoding 'utf8000'"):
        read_atomic(path, encoding="utf8000")
    with pytest.raises(InputError, match="field_separator"):
        read_atomic(path, field_separator="")


def test_a_fault_far_down_names_its_line(tmp_path: Path) -> None:
    lines = [f"{row}\t{row}" for row in range(10)]
    path = write(tmp_path, "\n".join(["u:token\tx:float", *lines]))
    assert read_atomic(path)[0].x.tolist() == list(map(float, range(10)))
    for bad, message in (("8", "line 10: found 1 columns"), ("8\tx", "line 10, field x")):
        lines[8] = bad
        with pytest.raises(InputError, match=message):
            read_atomic(write(tmp_path, "\n".join(["u:token\tx:float", *lines])))


_cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), max_size=8)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(_cell.filter(bool), _cell, st.none() | st.floats(-1e300, 1e300)), max_size=20))
def test_what_is_written_is_read(tmp_path: Path, rows: list[tuple[str, str, float | None]]) -> None:
    lines = [f"{token}\t{title}\t{'' if x is None else repr(x)}" for token, title, x in rows]
    frame, _ = read_atomic(write(tmp_path, "\n".join(["i:token\tt:token_seq\tx:float", *lines, ""])))
    assert frame.i.tolist() == [row[0] for row in rows] and frame.t.tolist() == [row[1] for row in rows]
    np.testing.assert_array_equal(frame.x, [np.nan if row[2] is None else row[2] for row in rows])
