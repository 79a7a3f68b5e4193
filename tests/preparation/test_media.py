"""MicroLens, KuaiRec and Yambda in their raw forms, written small, with dirt: read, filtered, built, run."""

import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import settings
from preparation.test_amazon import records

from recbole_bbqrec import cli, quick_start
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import kuairec, microlens, obtain, yambda
from recbole_bbqrec.preparation.raw import Item, Review
from recbole_bbqrec.preparation.vectors import read_vectors

N = 12  # users and items of the sets that runs are tried on
WALKS = [(user, 1 + (user + 2 * step) % N, 100 + step) for user in range(1, N + 1) for step in range(6)]

CAPTIONS = (
    "video_id,manual_cover_text,caption,topic_tag,first_level_category_id,first_level_category_name,"
    "second_level_category_id,second_level_category_name,third_level_category_id,third_level_category_name\n"
)
MATRIX = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def npy(rows: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, rows)
    return target.getvalue()


# MicroLens


def micro_lens(folder: Path) -> Path:
    """Write its files as they are published: item r + 1 has row r of the vectors, item 3 no cover."""
    folder.mkdir()
    pairs = "".join(f"{user},{item},{1661735000000 + time}\n" for user, item, time in WALKS)
    (folder / "MicroLens-100k_pairs.csv").write_text(f"user,item,timestamp\n{pairs}", encoding="utf-8")
    titles = "".join(f"{item}, the {'red' if item % 2 else 'blue'} car, part {item}\n" for item in range(1, N + 1))
    (folder / "MicroLens-100k_title_en.csv").write_text(f"{titles}none, of these\n\n", encoding="utf-8")
    (folder / "tags_to_summary.csv").write_text("".join(f"{item},Car Racing\n" for item in range(1, N)), "utf-8")
    covers = {f"MicroLens-100k_covers/{item}.jpg": b"jpeg %d" % item for item in range(1, 99) if item != 3}
    zipped(folder / "MicroLens-100k_covers.zip", {**covers, "MicroLens-100k_covers/readme.txt": b"no cover"})
    for name, width in (("image_features_CLIPRN50", 4), ("video_features_VideoMAE", 3)):
        rows = np.arange((N - 1) * width, dtype=np.float32).reshape(-1, width)  # the last item has none
        np.save(folder / f"MicroLens-100k_{name}.npy", rows)
    return folder


def test_micro_lens_from_its_files_to_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, data = micro_lens(tmp_path / "raw"), tmp_path / "data"
    cli.main(["prepare", "MicroLens-100K", f"--raw_dir={raw}", f"--data_path={data}"])
    said, place = capsys.readouterr().out, data / "MicroLens-100K"
    assert f"{place}: 12 users, 12 items, 72 interactions\n" in said
    for line in (
        "items with a cover: 11 of 12",
        "items with image vectors: 11 of 12",
        "1 item lines that cannot be read",
    ):
        assert line in said
    lines = (place / "MicroLens-100K.item").read_text(encoding="utf-8").splitlines()
    assert lines[1].split("\t")[:4] == ["1", "the red car, part 1", "", "Car_Racing"]
    assert lines[4].startswith("12\tthe blue car, part 12\t\t\t"), "by token, and without a category"
    assert (place / "MicroLens-100K.inter").read_text().splitlines()[1] == "1\t2\t\t1661735000100"
    assert sorted(path.name for path in (place / "images").iterdir())[:2] == ["1.jpg", "10.jpg"]
    assert (place / "images" / "12.jpg").read_bytes() == b"jpeg 12" and not (place / "images" / "3.jpg").exists()
    tokens, rows = read_vectors(place / "video.safetensors")
    assert tokens == sorted(map(str, range(1, N))) and rows[tokens.index("10")].tolist() == [27.0, 28.0, 29.0]

    given = settings(data, dataset="MicroLens-100K", epochs=1, sid_min_steps=5, second_stage="off")
    del given["text_fields"], given["text_encoder"]
    record = quick_start.run(config_dict=given)
    assert record["metrics"]["valid"]["masked"]["ndcg@10"] > 0
    assert record["settings"]["video_encoder"] == "video.safetensors"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("MicroLens-100k_pairs.csv", b"u,v,w\n1,2,3\n", "found no column for the user"),
        ("MicroLens-100k_covers.zip", b"PK no zip", "no whole zip archive .*fetch it again"),
        ("MicroLens-100k_video_features_VideoMAE.npy", b"\x93NUMPY", "no matrix that can be read"),
        ("MicroLens-100k_image_features_CLIPRN50.npy", npy(np.zeros(3)), r"float64 of shape \[3\], expected numbers"),
    ],
)
def test_faults_of_micro_lens(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    raw = micro_lens(tmp_path / "raw")
    (raw / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        obtain.obtain("MicroLens-100K", tmp_path / "data", raw_dir=raw, progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "data" / "MicroLens-100K").exists()


def test_dirt_in_micro_lens(tmp_path: Path) -> None:
    dirt, path = Counter[str](), tmp_path / "pairs.csv"
    path.write_text("user,item,timestamp\n7,2,1661735000000\n7,,1661735000001\n7,3,then\n\n", encoding="utf-8")
    assert records(microlens.reviews(path, "100k", dirt)) == [
        Review("7", "2", pytest.approx(float("nan"), nan_ok=True), 1661735000000)
    ]
    assert dirt.total() == 2


# KuaiRec


def test_the_matrix_of_kuairec(tmp_path: Path) -> None:
    rows = (
        "0,3649,13838,10867,2020-07-05 00:08:23.438,20200705,1593878903.438,1.2733965215790926\n"
        "0,9598,13665,10984,2020-07-05 00:13:41.297,20200705,1593879221.297,0.5\n"
        "14,148,9,10,,,,0.9\n"  # as a part of the small matrix is
        "14,149,9,10,t,d,1.5939e9,\n"
        "14,150,9\n"
        ",151,9,10,t,d,1593878903.4,2.0\n\n"
    )
    path = zipped(
        tmp_path / "KuaiRec.zip",
        {f"KuaiRec 2.0/data/{name}.csv": (MATRIX + rows).encode() for name in kuairec.VARIANTS},
    )
    for matrix in kuairec.VARIANTS:
        dirt = Counter[str]()
        found = records(kuairec.reviews(path, matrix, dirt))
        assert found[:2] == [
            Review("0", "3649", 1.2733965215790926, 1593878903438),
            Review("0", "9598", 0.5, 1593879221297),
        ]
        assert found[2][:2] == ("14", "149") and found[2].time == 1593900000000 and len(found) == 3
        assert dirt == {"reviews without a time": 1, "reviews without a user": 1, "review lines that cannot be read": 1}
    with pytest.raises(InputError, match=r"found no big_matrix\.csv in the archive"):
        list(kuairec.reviews(zipped(tmp_path / "other.zip", {"a.csv": b""}), "big_matrix", Counter()))
    other = zipped(tmp_path / "first.zip", {"KuaiRec/data/big_matrix.csv": b"user_id,photo_id\n1,2\n"})
    with pytest.raises(InputError, match=r"found no column video_id in big_matrix\.csv"):
        list(kuairec.reviews(other, "big_matrix", Counter()))


def test_captions_of_kuairec(tmp_path: Path) -> None:
    path, dirt = tmp_path / "kuairec_caption_category.csv", Counter[str]()
    path.write_text(
        CAPTIONS + '0,UNKNOWN,"two lines,\nand a comma #dance","[dance,fun]",1,Dance,723,Daily,-124,UNKNOWN\n'
        "1,on the cover,,[],27,Tech,-124,UNKNOWN,-124,UNKNOWN\n"
        "half of a caption,3\n"
        "x,UNKNOWN,,[],27,Tech,-124,UNKNOWN,-124,UNKNOWN\n",
        encoding="utf-8",
    )
    assert list(kuairec.items(path, "big_matrix", dirt)) == [
        Item("0", "two lines,\nand a comma #dance", "", ["Dance", "Daily", "dance", "fun"], "", "", ""),
        Item("1", "", "", ["Tech"], "on the cover", "", ""),
    ]
    assert dirt == {"item lines, 2 columns instead of 10": 1, "item lines, video_id: not a number": 1}


def test_kuairec_keeps_what_was_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    # Every second video of a walk is skipped at first, and watched to the end two hours later.
    rows = "".join(
        f"{user},{item},1,1,t,d,{1593878903 + time}.5,{0.25 if item % 2 else 2.5}\n" for user, item, time in WALKS
    )
    rows += "".join(f"{user},{item},1,1,t,d,{1593886103 + time}.5,3\n" for user, item, time in WALKS if item % 2)
    with zipfile.ZipFile(raw / "KuaiRec.zip", "w") as file:
        file.writestr("KuaiRec 2.0/data/big_matrix.csv", MATRIX + rows)
    (raw / "kuairec_caption_category.csv").write_text(CAPTIONS, encoding="utf-8")
    with pytest.raises(InputError, match=r"KuaiRec.zip: found \d+ bytes, expected 431964858"):
        obtain.obtain("KuaiRec", tmp_path, raw_dir=raw, progress=False)
    known = obtain.public_set("KuaiRec")
    sources = {role: type(source)(source.name, ()) for role, source in known.files.items()}
    small = type(known)(**{**vars(known), "files": sources})
    report = obtain.prepare_public(small, tmp_path, raw_dir=raw, progress=False)
    n_skipped = sum(item % 2 for _, item, _ in WALKS)
    assert report["counts"]["interactions"] == len(WALKS)
    assert report["dirt"]["interactions rated below 2 or not at all, left out"] == n_skipped
    lines = (tmp_path / "KuaiRec" / "KuaiRec.inter").read_text().splitlines()
    assert {line.split("\t")[2] for line in lines[1:]} == {"2.5", "3"}
    shown = obtain.prepare_public(small, tmp_path, written="shown", raw_dir=raw, least_rating=0, progress=False)
    assert shown["counts"]["interactions"] == len(WALKS) and "left out" not in str(shown["dirt"])
    assert shown["dropped"] == {"interactions of a user with an item met before": n_skipped}


# Yambda


def listens(path: Path, rows: list[tuple], **changes: pl.DataType) -> Path:
    schema = {"uid": pl.UInt32, "timestamp": pl.UInt32, "item_id": pl.UInt32, "is_organic": pl.UInt8}
    pl.DataFrame(rows, {**schema, "played_ratio_pct": pl.UInt16, **changes}, orient="row").write_parquet(path)
    return path


def embeddings(path: Path, vectors: dict[int, list[float]], kind: pl.DataType | None = None) -> Path:
    numbers = pl.List(pl.Float64) if kind is None else kind
    rows = {"item_id": list(vectors), "embed": list(vectors.values()), "normalized_embed": list(vectors.values())}
    schema = {"item_id": pl.UInt32, "embed": numbers, "normalized_embed": numbers}
    pl.DataFrame(rows, schema).write_parquet(path, row_group_size=5)
    return path


def test_listens_of_yambda(tmp_path: Path) -> None:
    path, dirt = (
        listens(tmp_path / "l", [(5, 10, 20, 1, 99), (None, 10, 20, 1, 5), (5, 15, 21, 0, None)]),
        Counter[str](),
    )
    found = records(yambda.reviews(path, "50m", dirt))
    assert (
        found[0] == Review("5", "20", 99.0, 10) and found[1][:2] == ("5", "21") and found[1].rating != found[1].rating
    )
    assert len(found) == 2 and dirt == {"listens without a user, a track or a time": 1}
    (tmp_path / "x").write_bytes(b"PAR1 no")
    for broken in (tmp_path / "x", tmp_path / "none", embeddings(tmp_path / "e", {1: [1.0]})):
        with pytest.raises(InputError, match="not a Parquet file of Yambda's flat form") as caught:
            list(yambda.reviews(broken, "50m", Counter()))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [pl.List(pl.Float64), pl.List(pl.Float32), pl.Array(pl.Float64, 2)])
def test_vectors_of_yambda_are_those_of_the_set_alone(tmp_path: Path, kind: pl.DataType) -> None:
    path = embeddings(tmp_path / "e", {item: [item, -item] for item in range(40, 0, -1)}, kind)
    assert yambda.add(tmp_path, ["10", "9", "777"], {"audio_vectors": path}) == {"audio vectors": 2}
    tokens, rows = read_vectors(tmp_path / "audio.safetensors")
    assert tokens == ["10", "9"] and rows.tolist() == [[10, -10], [9, -9]]


def test_faults_of_vectors_of_yambda(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found a vector of none of 1 tracks"):
        yambda.add(tmp_path, ["7"], {"audio_vectors": embeddings(tmp_path / "e", {1: [1.0]})})
    with pytest.raises(InputError, match="found vectors of 1 and 2 numbers, expected one length"):
        yambda.add(tmp_path, ["1", "2"], {"audio_vectors": embeddings(tmp_path / "e", {1: [1.0], 2: [1.0, 2.0]})})


def test_yambda_from_its_files_to_a_run(tmp_path: Path) -> None:
    raw, data = tmp_path / "raw", tmp_path / "data"
    raw.mkdir()
    listens(raw / "listens.parquet", [(user, time * 5, item, 1, 40 + 10 * (item % 7)) for user, item, time in WALKS])
    random = np.random.default_rng(0)
    embeddings(raw / "embeddings.parquet", {item: random.normal(size=8).tolist() for item in range(1, 3 * N)})
    known = obtain.public_set("Yambda-50m")
    sources = {role: type(source)(source.name, ()) for role, source in known.files.items()}
    small = type(known)(**{**vars(known), "files": sources, "user_core": 1, "item_core": 1})
    report = obtain.prepare_public(small, data, raw_dir=raw, progress=False)
    assert report["added"] == {"audio vectors": report["counts"]["items"]} and report["counts"]["items"] == 11
    given = settings(data, dataset="Yambda-50m", epochs=1, sid_min_steps=5, second_stage="off")
    del given["text_fields"], given["text_encoder"]
    record = quick_start.run(config_dict=given)
    assert record["settings"]["audio_encoder"] == "audio.safetensors"
    assert 0 < record["metrics"]["valid"]["masked"]["ndcg@10"] <= 1
