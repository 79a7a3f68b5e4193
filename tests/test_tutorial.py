"""The tutorial notebook runs from its first cell to its last, and shows what its words promise."""

from pathlib import Path

import pytest

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
NOTEBOOK = Path(__file__).parents[1] / "examples/tutorial.ipynb"
SHORT = '"epochs": 2,', '"epochs": 1, "user_inter_num_interval": "[0,60]",'


def shown(cell):
    """What a cell shows as its value, as plain text."""
    return next(output["data"] for output in cell.outputs if output.output_type == "execute_result")


def test_the_tutorial_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "strip the outputs before they are committed"
    # One epoch on users of few ratings takes a third of the time.
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert SHORT[0] in first.source
    first.source = first.source.replace(*SHORT)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    train, history, listed, why, codes, near, with_new = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert any("masked" in output.get("text", "") for output in train.outputs)
    assert "Star Wars" in shown(history)["text/plain"]
    # Rows of the tables, with their headers.
    assert [shown(cell)["text/html"].count("<tr") for cell in (history, listed, near)] == [4, 6, 6]
    assert shown(why)["text/html"].count("<tr") == 7 and "Terminator 2" in shown(why)["text/html"]
    assert shown(codes)["text/html"].count("<tr") == 10 and ">c3<" in shown(codes)["text/html"]
    assert shown(with_new)["text/plain"].count(",") >= 4
