"""The engine's columns against the exact rules: the same, or left to them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import atomic, plain_columns
from recbole_bbqrec.preparation.atomic import read_atomic

HEADER = {"user_id": "token", "words": "token_seq", "rating": "float"}
CELLS = st.sampled_from(
    ["a", "bé", "", " ", '"', "NA", "null", "1", "-2.5", "+1e3", "inf", "nan", "1_0", "\ufeff", "\r", "x y"]
)


def without_the_engine(monkeypatch):
    monkeypatch.setattr(plain_columns, "read_plain", lambda *_: None)


def outcome(path, **how):
    try:
        frame, types = read_atomic(path, **how)
    except InputError as error:
        return str(error)
    return {name: frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in frame}, types


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=6), st.sampled_from(["", "\n", "\n\n"]), st.booleans()
)
def test_the_same_with_and_without_the_engine(tmp_path, monkeypatch, rows, end, coded):
    lines = ["\t".join(f"{name}:{kind}" for name, kind in HEADER.items()), *("\t".join(row) for row in rows)]
    path = tmp_path / "x.inter"
    path.write_bytes(("\n".join(lines) + end).encode())
    for fields in (None, ["rating", "user_id"], ["words"]):
        with monkeypatch.context() as patched:
            found = outcome(path, fields=fields, coded=coded)
            without_the_engine(patched)
            assert found == outcome(path, fields=fields, coded=coded)


def test_plain_files_are_read_by_the_engine(tmp_path, monkeypatch):
    """Chunks that end within a line, and within a character, change nothing."""
    monkeypatch.setattr(atomic, "_by_line", None)
    path = tmp_path / "x.inter"
    rows = [(f"ü{number % 7}", f"w{number}é", f"{number / 3!r}") for number in range(100)]
    path.write_text(
        "user_id:token\twords:token_seq\trating:float\n" + "\n".join(map("\t".join, rows)), encoding="utf-8"
    )
    for chunk in (61, 64, 1 << 22):
        monkeypatch.setattr(plain_columns, "CHUNK", chunk)
        frame, _ = read_atomic(path, coded=True)
        assert isinstance(frame["user_id"].dtype, pd.CategoricalDtype)
        assert frame["user_id"].cat.categories.tolist() == [f"ü{number}" for number in range(7)]
        assert list(zip(*(frame[name] for name in frame), strict=True)) == [(u, w, float(x)) for u, w, x in rows]


@pytest.mark.parametrize("coded", [True, False])
def test_a_line_too_long_beside_one_too_short(tmp_path, coded):
    path = tmp_path / "x.inter"
    path.write_text("u:token\ti:token\n1\t2\n3\n4\t5\t6\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 3: found 1 columns, expected 2"):
        read_atomic(path, ["u"], coded=coded)


def test_blanks_are_no_category():
    codes = plain_columns.coded_tokens(["b", "", "a", "b"]).cat
    assert codes.categories.tolist() == ["b", "", "a"] and np.array_equal(codes.codes, [0, 1, 2, 0])
