import io

import numpy as np
from PIL import Image

from recbole_bbqrec.evaluation import report
from recbole_bbqrec.evaluation.report import bar_figure, line_figure, markdown_table

RECORD = {
    "model": "BBQRec",
    "dataset": "tiny",
    "seed": 1,
    "metrics": {"valid": {"masked": {"recall@10": 0.25}, "unmasked": {"recall@10": 0.125}}},
    "users": {"valid": 60},
    "rows": {"valid": 60},
    "epochs": {"best": 2, "done": 3, "hit_cap": False},
    "seconds": {"train": 1.5},
    "peak_memory_mib": 100.4,
    "parameters": 7,
    "settings": {},
}


def test_the_table_of_a_run():
    text = report.result_table(RECORD)
    assert text.startswith("BBQRec on tiny, seed 1\n\n| split")
    assert "0.2500" in text and "0.1250" in text and "best epoch 2 of 3; 7 parameters; peak memory 100 MiB" in text
    assert "add --final" in text and "cap on epochs" not in text and "users: 60 valid; best" in text
    several = report.result_table({**RECORD, "rows": {"valid": 69}})
    assert "users: 60 valid; judged rows: 69 valid, and metrics are means over the rows, as in RecBole; best" in several
    capped = {**RECORD, "epochs": {"best": 3, "done": 3, "hit_cap": True}}
    assert report.result_table(capped).startswith("BBQRec* on tiny") and "cap on epochs" in report.result_table(capped)


def test_a_markdown_table_keeps_its_texts():
    lines = markdown_table(["row", "p"], [["full", ""], ["club", "0.010"], ["x", "1e-3"]]).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if ":" not in line] == [
        ["row", "p"],
        ["full", ""],
        ["club", "0.010"],
        ["x", "1e-3"],
    ]
    assert lines[1].replace("-", "") == "|:|:|"
    assert markdown_table(["row", "p"], []).splitlines()[0].split() == ["|", "row", "|", "p", "|"]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def bar(mean, low, high):
    return {"mean": mean, "low": low, "high": high}


def test_figures():
    bars = {"full": bar(0.5, 0.4, 0.6), "club": bar(0.3, 0.29, 0.32)}
    panels = {"R@10": bars, "change": {"full": None, "club": bar(-10.0, -12.0, -8.0)}}
    png = bar_figure("Title", panels, "full")
    assert png == bar_figure("Title", {**panels, "none": {"full": None}}, "full"), "equal input, equal file"
    other = {**panels, "R@10": {**bars, "club": bar(0.45, 0.4, 0.5)}}
    before, after = pixels(png), pixels(bar_figure("Title", other, "full"))
    assert before.shape == after.shape and (before != after).any()
    colours = {tuple(colour) for colour in before.reshape(-1, 3)}
    assert (0x44, 0x77, 0xAA) in colours and (0x99, 0xBB, 0xDD) in colours
    assert (0x44, 0x77, 0xAA) not in {tuple(colour) for colour in pixels(bar_figure("Title", panels)).reshape(-1, 3)}


def test_a_row_that_the_first_panel_lacks_has_its_place():
    first, second = {"a": None, "b": bar(0.5, 0.4, 0.6)}, {"a": bar(0.4, 0.3, 0.5), "b": bar(0.2, 0.1, 0.3)}
    whole = pixels(bar_figure("Title", {"X": first, "Y": second}))
    assert whole.shape == pixels(bar_figure("Title", {"X": second, "Y": second})).shape
    assert whole.shape[0] > pixels(bar_figure("Title", {"X": first, "Y": {"a": None, "b": second["b"]}})).shape[0]


def test_many_panels_stand_in_two_rows():
    bars = {"a": bar(0.4, 0.3, 0.5), "b": bar(0.2, 0.1, 0.3)}
    four, five = (pixels(bar_figure("Title", dict.fromkeys(map(str, range(n)), bars))).shape for n in (4, 5))
    assert four[1] == five[1] and five[0] > 1.5 * four[0]


def test_a_figure_of_lines_shows_every_point():
    lines = {"ids": [(0.1, bar(0.3, 0.2, 0.4)), (10.0, bar(0.5, 0.4, 0.6))], "codes": [(1.0, bar(0.4, 0.3, 0.5))]}
    png = line_figure("Title", "MiB", "N@10", {**lines, "none": []})
    assert png == line_figure("Title", "MiB", "N@10", lines), "equal input, equal file; a line without points is none"
    for name in lines:
        moved = [(place, bar(0.45, 0.4, 0.5)) for place, _ in lines[name]]
        assert (pixels(png) != pixels(line_figure("Title", "MiB", "N@10", {**lines, name: moved}))).any()


def test_files_are_written_whole(tmp_path):
    report.write_file(tmp_path / "a" / "x.md", "café\n")
    report.write_file(tmp_path / "a" / "x.png", b"\x89")
    assert (tmp_path / "a" / "x.md").read_bytes() == b"caf\xc3\xa9\n"
    assert (tmp_path / "a" / "x.png").read_bytes() == b"\x89"
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"x.md", "x.png"}
