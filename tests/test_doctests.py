"""The examples in docstrings of what people call first, run as they stand, after one run on the tiny data set."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import settings

import recbole_bbqrec
from recbole_bbqrec.quick_start import run
from recbole_bbqrec.serving import bundle
from recbole_bbqrec.tokenizer import features, fit


@pytest.fixture(scope="module")
def known(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the examples may name: settings of a short run, and the folder of one that has ended."""
    given = settings(tiny, epochs=1, checkpoint_dir=str(tmp_path_factory.mktemp("saved")))
    return {"settings": given, "folder": run(config_dict=given)["run_dir"]}


@pytest.mark.parametrize("module", [recbole_bbqrec, bundle, fit, features], ids=lambda module: module.__name__)
def test_examples(module, known: dict) -> None:
    found = [test for test in doctest.DocTestFinder(recurse=True).find(module) if test.examples]
    assert found
    for test in found:
        if test.name.endswith(".register"):  # changes RecBole for the whole process
            continue
        test.globs.update(known)
        outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
        assert outcome.failed == 0, test.name


def test_example_of_register() -> None:
    code = "import doctest, recbole_bbqrec as r; doctest.run_docstring_examples(r.register, vars(r), name='register')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_ten_names() -> None:
    assert len(recbole_bbqrec.__all__) == 10
    for name in recbole_bbqrec.__all__:
        assert getattr(recbole_bbqrec, name).__doc__, name
    assert (Path(recbole_bbqrec.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = recbole_bbqrec.nothing
