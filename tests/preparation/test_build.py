"""From records to atomic files: duplicates, k-core, order, cleaning, and a folder that is whole or not there."""

import logging
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation.atomic import read_atomic
from recbole_bbqrec.preparation.build import ITEM_HEADER, build, k_core
from recbole_bbqrec.preparation.raw import REVIEWS, Item, Review, clean, frames


def of(records: list[Any]) -> Callable[[Counter[str]], Iterator[Any]]:
    """What `build` calls for its reviews, in frames of two, or for its items."""
    if not records or isinstance(records[0], Item):
        return lambda dirt: iter(records)
    parts = [records[at : at + 2] for at in range(0, len(records), 2)]
    return lambda dirt: (pl.DataFrame(part, schema=REVIEWS, orient="row") for part in parts)


def item(token: str, title: str = "", **more: Any) -> Item:
    return Item(token, title, **{**dict(brand="", categories=[], description="", price="", image_url=""), **more})


def interactions(folder: Path, name: str = "x") -> list[tuple[str, str, float]]:
    frame, types = read_atomic(folder / name / f"{name}.inter")
    assert types == {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
    return list(zip(frame.user_id, frame.item_id, frame.timestamp, strict=True))


def make(
    folder: Path, rows: list[tuple[str, str, int]], items: list[Item] | None = None, **more: Any
) -> dict[str, Any]:
    reviews = [Review(user, token, 1.0, time) for user, token, time in rows]
    settings_ = {"user_core": 1, "item_core": 1, "progress": False, **more}
    return build("x", of(reviews), of(items or []), folder, **settings_)


def brute_force(pairs: set[tuple[str, str]], user_core: int, item_core: int) -> set[tuple[str, str]]:
    """Remove one unfit interaction at a time until there is none."""
    pairs = set(pairs)
    while True:
        users, items = Counter(user for user, _ in pairs), Counter(token for _, token in pairs)
        unfit = [(u, i) for u, i in pairs if users[u] < user_core or items[i] < item_core]
        if not unfit:
            return pairs
        pairs.remove(min(unfit))


ROWS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), st.integers(0, 3)), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.integers(1, 4), st.integers(1, 4))
def test_everything_against_a_brute_force(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]], user_core: int, item_core: int
) -> None:
    folder = tmp_path_factory.mktemp("set")
    left = brute_force({(user, token) for user, token, _ in rows}, user_core, item_core)
    if not left:
        with pytest.raises(InputError, match=f"none of {len(rows)} interactions is left"):
            make(folder, rows, user_core=user_core, item_core=item_core)
        assert list(folder.iterdir()) == []
        return
    report = make(folder, rows, user_core=user_core, item_core=item_core)
    first = {pair: min((t, at) for at, (u, i, t) in enumerate(rows) if (u, i) == pair) for pair in left}
    expected = sorted(left, key=lambda pair: (pair[0], *first[pair]))
    assert interactions(folder) == [(*pair, first[pair][0]) for pair in expected]
    assert report["counts"] == {
        "users": len({user for user, _ in left}),
        "items": len({token for _, token in left}),
        "interactions": len(left),
    }
    assert len(rows) == report["read"]["reviews"] == len(left) + sum(report["dropped"].values())
    assert read_atomic(folder / "x/x.item")[0].item_id.tolist() == sorted({token for _, token in left})


def test_a_long_chain_falls_to_its_end() -> None:
    """Each removal makes the next user or item unfit, so that a fixed number of rounds would not do."""
    pairs = pl.DataFrame({"user": [0, 0, 1, 1, 2, 2, 3], "item": [0, 1, 1, 2, 2, 3, 3]})
    assert k_core(pairs, 2, 2).is_empty() and k_core(pairs.clear(), 2, 2).is_empty()
    ring = pl.concat([pairs, pl.DataFrame({"user": [3], "item": [0]})])
    assert k_core(ring, 2, 2).equals(ring)


def test_of_duplicates_the_earliest_counts_with_its_rating(tmp_path: Path) -> None:
    rows = [("u", "a", 3.0, 9), ("u", "a", 1.0, 5), ("u", "a", 2.0, 5), ("u", "b", 4.5, 7)]
    report = build("x", of([Review(*row) for row in rows]), of([]), tmp_path, 1, 1, progress=False)
    lines = (tmp_path / "x/x.inter").read_text().splitlines()
    assert lines[1:] == ["u\ta\t1\t5", "u\tb\t4.5\t7"]
    assert report["dropped"] == {"interactions of a user with an item met before": 2}


TIES = [("b", "p", 2), *(("a", token, 1) for token in "tqrsmnop"), ("a", "z", 0)]


def test_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    make(tmp_path, TIES)
    assert "".join(token for _, token, _ in interactions(tmp_path)) == "ztqrsmnop" + "p"


def test_shuffled_ties_depend_on_the_seed_and_not_on_the_file(tmp_path: Path) -> None:
    orders = {}
    for seed in (0, 1):
        for way in (1, -1):
            folder = tmp_path / f"{seed}{way}"
            make(folder, TIES[::way], shuffle_ties=seed)
            orders[seed, way] = "".join(token for _, token, _ in interactions(folder))
    assert orders[0, 1] == orders[0, -1] != orders[1, 1] == orders[1, -1]
    assert orders[0, 1][0] == "z" and sorted(orders[0, 1][1:9]) == sorted("tqrsmnop") and orders[0, 1][9] == "p"
    assert orders[0, 1][1:9] not in ("tqrsmnop", "mnopqrst")


def test_item_texts_are_cleaned_and_the_first_with_a_title_counts(tmp_path: Path) -> None:
    items = [
        item("c", "not wanted"),
        item("b", "", brand="first, untitled"),
        item("b", " &nbsp; ", brand="second, untitled"),
        item("b", "\tTwo\r\nlines\x00 &amp; \u2028\"quotes\" 'n'", categories=["A  B", " ", "C&#9;D"], price="1"),
        item("b", "too late"),
        item("a", "", brand="kept", description="\ud83d\ude00 \ud83d end"),
        item("a", " "),
    ]
    report = make(tmp_path, [("u", "b", 1), ("u", "a", 2), ("u", "z", 3)], items)
    frame, types = read_atomic(tmp_path / "x/x.item")
    assert types == dict(part.split(":") for part in ITEM_HEADER[:-1])
    assert frame.values.tolist() == [
        ["a", "", "kept", "", "\U0001f600 \ufffd end", "", ""],
        ["b", "Two lines & \"quotes\" 'n'", "", "A_B C_D", "", "1", ""],
        ["z", "", "", "", "", "", ""],
    ]
    assert report["dirt"] == {
        "item texts with HTML entities": 3,
        "item texts with control characters, tabs or line ends": 3,
        "records of an item met before": 4,
        "items left that no record describes": 1,
        "items left with a record but no title": 1,
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(codec=None)), min_size=1, max_size=6), rating=st.floats(width=64))
def test_any_text_and_rating_come_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], rating: float
) -> None:
    folder = tmp_path_factory.mktemp("set")
    reviews = [Review("u", f"i{at}", rating, at) for at in range(len(texts))]
    items = [item(f"i{at}", text, year="2001", categories=[text]) for at, text in enumerate(texts)]
    build("x", of(reviews), of(items), folder, 1, 1, progress=False)
    frame, _ = read_atomic(folder / "x/x.item")
    cleaned = [clean(text, Counter()) for text in texts]
    assert frame.title.tolist() == cleaned and set(frame.release_year) == {"2001"}
    assert frame.categories.tolist() == ["_".join(text.split()) for text in cleaned]
    ratings = read_atomic(folder / "x/x.inter")[0].rating.tolist()
    assert ratings == [rating] * len(texts) if math.isfinite(rating) else all(map(math.isnan, ratings))


def test_expected_counts_that_differ_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = make(tmp_path, [("u", "a", 1)], expected={"users": 1, "items": 1200, "interactions": 1})
    assert report["differences"] == {"items": {"expected": 1200, "found": 1}}
    assert [record.getMessage() for record in caplog.records] == [
        "x: found 1 items, published are 1,200; the raw files may differ"
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"user_core": 0}, "--user-core: found 0, expected 1 or more"),
        ({"item_core": -1}, "--item-core: found -1, expected 1 or more"),
        ({"shuffle_ties": -1}, "--shuffle-ties: found -1"),
        ({"expected": {"user": 3}}, "found user, expected names out of users, items, interactions"),
        ({"user_core": 2}, "none of 1 interactions is left, expected users with 2 and items with 1 of them"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path, [("u", "a", 1)], **more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden", "a\\b"])
def test_names_that_are_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="expected one that can name a folder"):
        build(name, of([Review("u", "a", 1.0, 1)]), of([]), tmp_path, 1, 1, progress=False)


@pytest.mark.parametrize("bad", ["a\tb", "a\nb"])
def test_names_of_items_that_no_file_can_hold(tmp_path: Path, bad: str) -> None:
    with pytest.raises(InputError, match="clean it"):
        make(tmp_path, [("u", bad, 1)])
    assert list(tmp_path.iterdir()) == []


def test_no_reviews_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of 0 interactions is left"):
        build("x", lambda dirt: iter(()), of([]), tmp_path, 1, 1, progress=False)


def test_a_folder_may_look_like_a_pattern(tmp_path: Path) -> None:
    make(tmp_path / "[a]*?", [("u", "b", 1), ("v", "a", 1)])
    assert interactions(tmp_path / "[a]*?") == [("u", "b", 1.0), ("v", "a", 1.0)]


def test_an_existing_data_set_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="exists already, expected none yet"):
        make(tmp_path, [("u", "a", 1)])
    assert list((tmp_path / "x").iterdir()) == []


def test_a_data_set_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def meanwhile(dirt: Counter[str]) -> Iterator[Item]:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "other").touch()
        yield item("a")

    with pytest.raises(InputError, match="exists already"):
        build("x", of([Review("u", "a", 1.0, 1)]), meanwhile, tmp_path, 1, 1, progress=False)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["x", "x/other"]


def test_two_names_with_one_hash_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Series, "hash", lambda names: names.str.len_bytes().cast(pl.UInt64))
    with pytest.raises(InputError, match=r"'u1' and 'u2' have the same hash, a rare chance; rename one"):
        make(tmp_path, [("u1", "a", 1), ("u2", "bb", 1)])


def killed(folder: Path, when: str) -> None:
    """Build a data set in a process that kills itself, as a power cut would: no `finally` runs."""

    def die(moment: str) -> None:
        if moment == when:
            os.kill(os.getpid(), signal.SIGKILL)

    def reviews(dirt: Counter[str]) -> Iterator[pl.DataFrame]:
        for start in (0, 150):
            yield from frames(Review(f"u{at % 17}", f"i{at % 23}", at % 5, at % 7) for at in range(start, start + 150))
            die("within reviews")

    def items(dirt: Counter[str]) -> Iterator[Item]:
        die("before items")
        for at in range(23):
            if at == 11:
                die("within items")
            yield Item(f"i{at}", f"title {at}", "", [], "", "", "")

    rename = os.rename
    if when != "never":
        os.rename = lambda *names: (die("before the rename"), rename(*names), die("after the rename"))  # type: ignore
    build("x", reviews, items, folder, 5, 5, progress=False)


MOMENTS = ["within reviews", "before items", "within items", "before the rename", "after the rename"]


def run(folder: Path, when: str) -> None:
    code = "import sys; from pathlib import Path; from preparation.test_build import killed; "
    code += f"killed(Path({str(folder)!r}), {when!r})"
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_at_any_point_the_set_is_whole_or_not_there(tmp_path: Path) -> None:
    killed(tmp_path / "whole", "never")
    whole = content(tmp_path / "whole")
    assert sorted(whole) == ["x/x.inter", "x/x.item"]
    for when in MOMENTS:
        folder = tmp_path / when
        run(folder, when)
        if when == "after the rename":
            assert content(folder) == whole
            continue
        assert not (folder / "x").exists()
        killed(folder, "never")
        assert content(folder) == whole, "what the killed process left was not removed"


def test_folders_of_running_processes_are_let_be(tmp_path: Path) -> None:
    other, gone = tmp_path / f".x.{os.getppid()}.part", tmp_path / ".x.999999999.part"
    foreign = tmp_path / ".x.notes.part"
    for path in (other, gone, foreign):
        path.mkdir()
    make(tmp_path, [("u", "a", 1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([other.name, foreign.name, "x"])
