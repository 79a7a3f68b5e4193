"""Tables and images of one's own become a data set: exact files, an honest report, nothing half-made."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import own_data
from recbole_bbqrec.preparation.own_data import describe, prepare_own

INTERACTIONS = """\
Customer;Product ID;Order date;Stars;Shop
ann;1001;2024-01-02;4,5;Bern
ann;1002;2024-01-01;;Bern
bob;1001;2024-01-05 10:00;3,0;Basel
bob;1002;last week;3,0;Basel
bob;1003;2024-01-06;1,0;Basel

"""
ITEMS = 'Product ID;Name;Genre;Weight\n1001;"Lamp; red";light|home;2\n1002;Tent;;9\n;nameless;;1\n1009;Not sold;;1\n'


def tables(folder: Path) -> tuple[Path, Path]:
    paths = folder / "sales.csv", folder / "goods.csv"
    for path, text in zip(paths, (INTERACTIONS, ITEMS), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def prepare(folder: Path, **options: Any) -> dict[str, Any]:
    sales, goods = tables(folder)
    options = {"items": goods, "user_core": 1, "item_core": 1, **options}
    return prepare_own("Shop", sales, options.pop("items"), folder / "data", **options)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pictures(folder: Path) -> Path:
    (folder / "photos").mkdir()
    for name in ("1001.jpg", "1003.PNG", "other.jpg", "notes.txt"):
        (folder / "photos" / name).write_bytes(name.encode())
    return folder / "photos"


def test_exact_files_and_report(tmp_path: Path) -> None:
    report = prepare(tmp_path)
    data = content(tmp_path / "data")
    time = "time: neither a number of seconds nor a date like 2024-01-31 12:30"
    sales, goods = tmp_path / "sales.csv", tmp_path / "goods.csv"
    assert sorted(data) == ["Shop.bad_rows.tsv", "Shop/Shop.inter", "Shop/Shop.item"]
    assert data["Shop/Shop.inter"].decode() == (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "ann\t1002\t\t1704067200000\n"
        "ann\t1001\t4.5\t1704153600000\n"
        "bob\t1001\t3\t1704448800000\n"
        "bob\t1003\t1\t1704499200000\n"
    )
    rows = [line.split("\t")[:4] for line in data["Shop/Shop.item"].decode().splitlines()]
    assert rows[1:] == [["1001", "Lamp; red", "", "light home"], ["1002", "Tent", "", ""], ["1003", "", "", ""]]
    assert data["Shop.bad_rows.tsv"].decode() == (
        f"file\tline\treason\tfound\n{sales}\t5\t{time}\tlast week\n{goods}\t4\titem: blank\t\n"
    )
    assert report["counts"] == {"users": 2, "items": 3, "interactions": 4}
    assert report["described"] == 2 and report["pictured"] == 0
    assert report["bad_rows_file"] == str(tmp_path / "data" / "Shop.bad_rows.tsv")
    assert report["bad_rows"] == [
        f"{sales}: 4 rows used, 1 bad (1 {time}, first in line 5: 'last week'), 1 blank",
        f"{goods}: 3 rows used, 1 bad (1 item: blank, first in line 4)",
    ]
    assert report["dirt"][f"bad rows of sales.csv, {time}"] == 1
    assert report["dirt"]["bad rows of goods.csv, item: blank"] == 1
    assert report["columns"][0] == {
        "path": str(sales),
        "used": {"user": "Customer", "item": "Product ID", "time": "Order date", "rating": "Stars"},
        "unused": ["Shop"],
    }
    assert report["columns"][1]["unused"] == ["Weight"]


def test_report_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tables(Path())
    photos = pictures(tmp_path)
    options: dict[str, Any] = {"user_core": 1, "item_core": 2}
    time = "time: neither a number of seconds nor a date like 2024-01-31 12:30"
    assert describe(prepare_own("Shop", "sales.csv", "goods.csv", "dataset", images=photos, **options)).split("\n") == [
        "dataset/Shop: 2 users, 1 items, 2 interactions",
        f"sales.csv: 4 rows used, 1 bad (1 {time}, first in line 5: 'last week'), 1 blank",
        "sales.csv: user is Customer, item is Product ID, time is Order date, rating is Stars; not used: Shop",
        "goods.csv: 3 rows used, 1 bad (1 item: blank, first in line 4)",
        "goods.csv: item id is Product ID, title is Name, categories is Genre; not used: Weight",
        "times: 2024-01-02 00:00 to 2024-01-05 10:00 UTC",
        "of 1 items 1 have a text, 1 have an image",
        "images that match no remaining item: 2, such as 1003.PNG, other.jpg; names are compared letter by letter",
        "left out: 2 items of goods.csv with no or too few interactions",
        "left out: 2 interactions of users or items with too few of them",
        "bad rows are listed in dataset/Shop.bad_rows.tsv",
        "2 users are few: the figures of a run will say little",
        "next: bbqrec train --model=BBQRec --dataset=Shop --text_fields='title categories' --text_encoder=tfidf",
        "to use the images add --image_folder=images --image_encoder=<a transformers vision model>",
    ]
    Path("clean.csv").write_text("user,item,time\nu,i,1\n")
    assert describe(prepare_own("Own", "clean.csv", None, "my data", **{**options, "item_core": 1})).split("\n") == [
        "my data/Own: 1 users, 1 items, 1 interactions",
        "clean.csv: 1 rows used, 0 bad",
        "clean.csv: user is user, item is item, time is time",
        "times: 1970-01-01 00:00 to 1970-01-01 00:00 UTC; if these should be dates, format them as YYYY-MM-DD",
        "of 1 items 0 have a text, 0 have an image",
        "1 users are few: the figures of a run will say little",
        "next: bbqrec train --model=BBQRec --dataset=Own --data_path='my data'",
    ]


@pytest.mark.parametrize(("time", "told"), [("20240131", "1970"), ("20240131123000", "2611"), ("-99999999999", "-11")])
def test_times_that_are_hardly_dates_are_told(tmp_path: Path, time: str, told: str) -> None:
    (tmp_path / "sales.csv").write_text(f"user,item,time\nu,i,{time}\n")
    report = describe(prepare_own("Own", tmp_path / "sales.csv", None, tmp_path, user_core=1, item_core=1))
    (line,) = (line for line in report.split("\n") if line.startswith("times: "))
    assert line.startswith(f"times: {told}") and line.endswith("format them as YYYY-MM-DD")


def test_items_listed_twice_or_without_a_title_are_told(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("user,item,time\nu,a,2024-01-01\nu,b,2024-01-02\n")
    (tmp_path / "goods.csv").write_text("item,title,brand\na,Lamp,\na,Light,\nb,,Acme\n")
    given = tmp_path / "sales.csv", tmp_path / "goods.csv"
    lines = describe(prepare_own("Own", *given, tmp_path, user_core=1, item_core=1)).split("\n")
    assert not any("UTF-8" in line for line in lines)
    assert "1 records of an item met before" in lines and "1 items left with a record but no title" in lines


def test_tables_in_another_encoding_are_told_how_to_mend(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("user,item,time\nu,a,2024-01-01\nu,b,2024-01-02\n")
    (tmp_path / "goods.csv").write_bytes("item,title\na,Lamp\nb,Löffel\n".encode("latin-1"))
    given = tmp_path / "sales.csv", tmp_path / "goods.csv"
    report = describe(prepare_own("Own", *given, tmp_path, user_core=1, item_core=1))
    assert f"to keep all rows of {given[1]}, save the file as UTF-8 (in a spreadsheet: CSV UTF-8; in" in report
    assert f"to keep all rows of {given[0]}" not in report


def test_items_without_texts_are_not_called_described(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("Kunde,Artikel,time,Note\nu,a,1,2\nu,b,2,3\n", encoding="utf-8")
    (tmp_path / "goods.csv").write_text("Artikel,Beschriftung\na,rote Lampe\nb,\n", encoding="utf-8")
    columns = {"user": "Kunde", "item": "Artikel", "rating": "Note"}
    options: dict[str, Any] = {"user_core": 1, "item_core": 1}
    given = (tmp_path / "sales.csv", tmp_path / "goods.csv")
    text = describe(prepare_own("One", *given, tmp_path, columns=columns, **options))
    assert "of 2 items 0 have a text" in text and "name one with --title-column, --brand-column" in text
    text = describe(prepare_own("Two", *given, tmp_path, columns={**columns, "title": "Beschriftung"}, **options))
    assert "of 2 items 1 have a text" in text and "--title-column" not in text
    assert "u\ta\t2\t" in (tmp_path / "Two" / "Two.inter").read_text(encoding="utf-8")


def test_one_table_may_be_that_of_the_items_too(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time,title\nu,a,1,Lamp\nu,b,2,\nv,a,3,Lamp\n", encoding="utf-8")
    report = prepare_own("Log", tmp_path / "log.csv", tmp_path / "log.csv", tmp_path, user_core=1, item_core=1)
    assert report["counts"] == {"users": 2, "items": 2, "interactions": 3} and report["described"] == 1
    assert "title is title; not used: user, time" in describe(report)


def test_items_that_one_table_lacks(tmp_path: Path) -> None:
    text = describe(prepare(tmp_path))
    assert f"items with interactions that {tmp_path / 'goods.csv'} lacks: 1, such as 1003\n" in text
    assert f"left out: 1 items of {tmp_path / 'goods.csv'} with no or too few interactions\n" in text
    (tmp_path / "own.csv").write_text("sku,name\n75,Lamp\n1001,Tent\n", encoding="utf-8")
    (tmp_path / "sold.csv").write_text("user,sku,time\nu,00075,1\nu,01001,2\n", encoding="utf-8")
    given = (tmp_path / "sold.csv", tmp_path / "own.csv", tmp_path)
    text = describe(prepare_own("None", *given, user_core=1, item_core=1))
    assert "of 2 items 0 have a text" in text and "text_encoder" not in text and " lacks" not in text
    assert f"do not match: {given[0]} has '00075', {given[1]} has '1001'; write them alike" in text


def test_bad_rows_are_listed_where_no_row_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "sold.csv").write_text("user,item,time\nu,i,soon\n", encoding="utf-8")
    with pytest.raises(InputError, match="no row can be used"):
        prepare_own("Shop", tmp_path / "sold.csv", None, tmp_path / "data")
    assert "\t2\ttime: neither" in content(tmp_path / "data")["Shop.bad_rows.tsv"].decode()


def test_without_items_and_with_columns_named(tmp_path: Path) -> None:
    report = prepare(tmp_path, items=None, columns={"user": "Shop", "rating": "Stars"})
    assert report["counts"] == {"users": 2, "items": 3, "interactions": 4} and report["described"] == 0
    assert b"Bern\t1002\t\t" in content(tmp_path / "data")["Shop/Shop.inter"]
    assert len(report["bad_rows"]) == 1
    with pytest.raises(InputError, match="found the column Weight, expected --items"):
        prepare(tmp_path, items=None, columns={"token": "Weight"})


def test_the_first_bad_row_stops_where_asked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sales.csv, line 5: time: neither .*found 'last week'"):
        prepare(tmp_path, on_bad="error")
    assert not content(tmp_path / "data")


def test_core_and_name_are_handed_on(tmp_path: Path) -> None:
    report = prepare(tmp_path, user_core=1, item_core=2)
    assert report["counts"] == {"users": 2, "items": 1, "interactions": 2}
    with pytest.raises(InputError, match="exists already"):
        prepare(tmp_path)


def test_images_are_copied_by_item(tmp_path: Path) -> None:
    report = prepare(tmp_path, images=pictures(tmp_path))
    data = content(tmp_path / "data")
    assert sorted(data) == [
        "Shop.bad_rows.tsv", "Shop/Shop.inter", "Shop/Shop.item",
        "Shop/images/1001.jpg", "Shop/images/1003.PNG", "Shop/images/other.jpg",
    ]  # fmt: skip
    assert data["Shop/images/1003.PNG"] == b"1003.PNG" and report["pictured"] == 2
    with pytest.raises(InputError, match="exists already"):
        prepare(tmp_path, images=tmp_path / "photos")
    assert content(tmp_path / "data") == data


def test_no_folder_of_images_and_none_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--images: .*photos is no folder"):
        prepare(tmp_path, images=tmp_path / "photos")
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"--images: .*photos holds no image"):
        prepare(tmp_path, images=tmp_path / "photos")
    assert not (tmp_path / "data").exists()


def test_a_copy_that_breaks_leaves_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, copyfile = pictures(tmp_path), shutil.copyfile

    def broken(source: Path, target: Path) -> None:
        if source.name == "other.jpg":
            raise OSError("no space left")
        copyfile(source, target)

    monkeypatch.setattr(own_data.shutil, "copyfile", broken)
    with pytest.raises(InputError, match=r"Shop: cannot be written \(no space left\)"):
        prepare(tmp_path, images=photos)
    assert sorted(content(tmp_path / "data")) == ["Shop.bad_rows.tsv"]
    monkeypatch.undo()
    left = tmp_path / "data" / ".Shop.999999999.part" / "images"  # as a killed run leaves it
    left.mkdir(parents=True)
    (left / "Shop.inter").write_text("half")
    prepare(tmp_path, images=photos)
    assert [path.name for path in sorted((tmp_path / "data").iterdir())] == ["Shop", "Shop.bad_rows.tsv"]
