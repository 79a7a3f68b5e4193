"""The GPU benchmark by hand, small and without a GPU: every part comes to its end."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FILE)
    module = sys.modules["gpu_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_measures_every_part_on_data_of_its_own(gpu, tmp_path, capsys):
    arguments = gpu.parse_arguments(["--device=cpu", "--small"])
    bench = gpu.Bench(arguments, tmp_path)
    rows, whole = gpu.measure(bench)
    table = {what: figure for what, figure, _ in rows}
    assert whole, rows
    assert table["largest difference of a score from the CPU's"] == "0"
    assert table["users with the very rank of the CPU"] == "1"
    for name in ("BBQRec", "SASRecPlus", "SASRec as RecBole runs it", "TIGERPaper"):
        assert float(table[f"{name}: epoch"]) > 0
    assert float(table["2,000 items, 20,000 interactions: epoch of BBQRec"]) > 0
    assert capsys.readouterr().out == ""


def test_what_fails_and_what_has_no_time_say_so(gpu, tmp_path, monkeypatch):
    bench = gpu.Bench(gpu.parse_arguments(["--device=cpu", "--small"]), tmp_path)
    monkeypatch.setattr(bench, "whole_run", lambda: (_ for _ in ()).throw(ValueError("no\nluck")))
    for part in ("same_as_cpu", "stock", "million"):
        monkeypatch.setattr(bench, part, lambda: iter(()))
    monkeypatch.setattr(bench, "epochs", lambda *_, **__: iter(()))
    rows, whole = gpu.measure(bench)
    assert rows == [["a whole run", "failed: ValueError: no luck", ""]] and not whole
    bench.arguments.seconds = -1
    rows, whole = gpu.measure(bench)
    assert not whole and all(figure == "not run, no time was left" for _, figure, _ in rows)


def test_without_a_gpu_it_says_so_in_a_line(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="error: --device=cuda: torch finds no GPU here"):
        gpu.main()


def test_a_folder_without_wheels_is_refused(gpu, tmp_path):
    with pytest.raises(SystemExit, match=r"error: --wheels: no \*.whl in"):
        gpu.enter_venv(tmp_path)
