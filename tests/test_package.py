"""What an installed package holds: the wheel carries the YAML files and leaves the tests at home."""

import ast
import re
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import recbole_bbqrec
from recbole_bbqrec import storage

ROOT = Path(recbole_bbqrec.__file__).parent.parent
file_of = storage._file_of

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs a source checkout")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built by its own backend without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_carries_all_properties(wheel: zipfile.ZipFile) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "properties").rglob("*.yaml")}
    carried = {name.removeprefix("recbole_bbqrec/") for name in wheel.namelist() if name.endswith(".yaml")}
    assert carried == expected
    assert "properties/overall.yaml" in carried


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "recbole_bbqrec"
    there = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    files = {path.relative_to(ROOT).as_posix() for path in there}
    names = wheel.namelist()
    assert files <= set(names)
    allowed = ("recbole_bbqrec/", f"recbole_bbqrec-{recbole_bbqrec.__version__}.dist-info/")
    assert [name for name in names if not name.startswith(allowed)] == []
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_metadata(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = HeaderParser().parsestr(wheel.read(name).decode())
    assert metadata["Version"] == recbole_bbqrec.__version__
    extras = {"dev", "docs", "export", "faiss", "hyperopt", "images", "parquet", "serve", "test"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    needed = metadata.get_all("Requires-Dist")
    assert [line for line in needed if line.startswith("recbole=")] == ["recbole==1.2.1; python_version < '3.12'"]
    assert not any(line.startswith("ray") for line in needed)


def test_what_an_index_shows_leads_somewhere(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    shown = HeaderParser().parsestr(wheel.read(name).decode())
    text = str(shown.get_payload())
    targets = [*re.findall(r"\]\(([^)]+)\)", text), *(url.split(", ")[1] for url in shown.get_all("Project-URL"))]
    assert len(targets) > 2 and all(target.startswith("https://") for target in targets)
    assert "<img" not in text and "run_recbole_bbqrec.py" not in text, "neither is in the wheel"
    assert "Development Status :: 5 - Production/Stable" in shown.get_all("Classifier")
    assert f"## [{recbole_bbqrec.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {recbole_bbqrec.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_version_is_in_no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr(storage, "_file_of", lambda module: reads.append(module) or file_of(module))
    storage.source_fingerprint.__wrapped__("recbole_bbqrec.serving.saving")  # which imports it
    assert "recbole_bbqrec.storage" in reads and "recbole_bbqrec" not in reads


# Import name -> distribution, where the two differ.
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow", "faiss": "faiss-cpu"}


def test_every_imported_package_is_a_dependency(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    needed = HeaderParser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist")
    declared = {line.split(";")[0].strip().split("=")[0].rstrip("<>!~") for line in needed}
    imported: set[str] = set()
    for path in (ROOT / "recbole_bbqrec").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.split(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"recbole_bbqrec"}
    assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in outside} - declared == set()


def test_constraints_pin_everything_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    names = [pin.split("==")[0].lower().replace("_", "-") for pin in pins]
    assert all(pin.count("==") == 1 and "+" not in pin for pin in pins)
    assert names == sorted(set(names))
    assert {"torch", "recbole", "numpy", "pandas", "transformers", "pytest", "ruff", "pyright"} <= set(names)


def test_an_installed_copy_finds_its_properties(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "import recbole_bbqrec.settings as s; print(s.PROPERTIES); print((s.PROPERTIES / 'overall.yaml').is_file())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "recbole_bbqrec" / "properties"), "True"]
