"""The plan of the house: which room may import which, and what no room may do."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_bbqrec

PACKAGE = Path(recbole_bbqrec.__file__).parent
SCRIPT = PACKAGE.parent / "run_recbole_bbqrec.py"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
MAX_LINES = 320

# A room may import itself and the rooms listed here. Modules at the package root are rooms of their own.
FOUNDATION = {"errors", "storage"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "storage": {"errors"},
    "compat": {"errors"},
    "settings": {"errors"},
    "allocation": set(),
    "ranking": FOUNDATION,
    "report": FOUNDATION,
    "checkpoint": FOUNDATION | {"settings"},
    "tokenizer": FOUNDATION,
    "preparation": FOUNDATION,
    "model": FOUNDATION | {"tokenizer"},
    "data": FOUNDATION | {"compat", "report", "settings", "tokenizer", "preparation"},
    "trainer": FOUNDATION | {"checkpoint", "compat", "data", "model", "ranking", "settings"},
    "sequence_trainer": FOUNDATION | {"data", "model", "ranking", "trainer"},
    "untrained_trainer": FOUNDATION | {"data", "ranking", "trainer"},
    "registry": FOUNDATION
    | {"compat", "data", "model", "sequence_trainer", "settings", "trainer", "untrained_trainer"},
    "config": FOUNDATION | {"compat", "data", "registry", "settings"},
    "obtain": FOUNDATION | {"settings", "preparation"},
    "inference": FOUNDATION | {"checkpoint", "compat", "config", "data", "model", "ranking", "registry", "settings"},
    "quick_start": FOUNDATION
    | {
        "checkpoint",
        "config",
        "data",
        "inference",
        "obtain",
        "preparation",
        "ranking",
        "registry",
        "report",
        "settings",
    },
    "experiments": {"*"},
    "cli": {"*"},
}
MAY_START_RUNS = {"cli", "experiments"}  # and the run script: nobody else imports quick_start
WITHOUT_RECBOLE = {"errors", "storage", "tokenizer", "preparation", "ranking", "checkpoint", "report"}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "ray"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "pd.read_pickle", "np.fromfile"}


def room(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def tree(module: Path) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def imports(module: Path) -> set[str]:
    """Absolute dotted names of everything a module imports, on top or inside functions."""
    parents = ("recbole_bbqrec", *module.parts[:-1])
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{prefix}.{alias.name}" for alias in node.names)
    return found


def own_rooms(module: Path) -> set[str]:
    """Rooms of this package that a module imports; the bare package is none of them."""
    names = [name.split(".") for name in imports(module)]
    rooms = {name[1] for name in names if name[0] == "recbole_bbqrec" and len(name) > 1}
    known = {room(other) for other in MODULES}
    return rooms & known


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_one_way(module: Path) -> None:
    here = room(module)
    if here == "__init__":
        return  # its functions hand over to their rooms when called; test_import_has_no_side_effect watches it
    assert here in MAY_IMPORT, (
        f"{module}: a new room; enter what it may import into MAY_IMPORT and docs/architecture.md"
    )
    allowed = MAY_IMPORT[here]
    wrong = set() if "*" in allowed else own_rooms(module) - allowed - {here}
    assert not wrong, f"{module} imports {sorted(wrong)}; {here} may import {sorted(allowed)}"
    if here not in MAY_START_RUNS | {"quick_start"}:
        assert "quick_start" not in own_rooms(module), (
            f"{module}: only {sorted(MAY_START_RUNS)} and the script start runs"
        )


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in WITHOUT_RECBOLE], ids=str)
def test_rooms_that_know_no_recbole(module: Path) -> None:
    outside = sorted(name for name in imports(module) if name.split(".")[0] == "recbole")
    assert not outside, f"{module} imports {outside}; {room(module)} knows no RecBole"


def test_run_script_only_hands_over() -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    modules = {node.module for node in ast.walk(ast.parse(script)) if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name and name.startswith("recbole_bbqrec")} == {"recbole_bbqrec.cli"}
    assert len(script.splitlines()) <= 30


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_is_short(module: Path) -> None:
    lines = len((PACKAGE / module).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{module}: {lines} lines, {MAX_LINES} at most; a longer module holds two ideas"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_nothing_that_runs_code_from_files(module: Path) -> None:
    roots = {name.split(".")[0] for name in imports(module)} | imports(module)
    wrong = sorted(roots & FORBIDDEN_IMPORTS)
    calls = {ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
    wrong += sorted(calls & FORBIDDEN_CALLS)
    if module != Path("compat.py"):  # the place that stands in for ray names it
        assert not wrong, f"{module} uses {wrong}"
    assert not calls & FORBIDDEN_CALLS


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_can_be_imported(module: Path) -> None:
    parts = module.with_suffix("").parts
    importlib.import_module(".".join(["recbole_bbqrec", *(part for part in parts if part != "__init__")]))


PROBE = """
import json, logging, sys, types, warnings
import numpy, torch

def state():
    return {
        "numpy": sorted(name for name, value in vars(numpy).items() if not isinstance(value, types.ModuleType)),
        "torch.load": repr(torch.load),
        "anomaly": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "handlers": len(logging.getLogger().handlers),
        "filters": len(warnings.filters),
        "random": hash(torch.get_rng_state().numpy().tobytes()),
    }

before = state()
import recbole_bbqrec
after = state()
heavy = ("ray", "transformers", "recbole", "sklearn", "pandas", "PIL", "matplotlib", "faiss")
loaded = [name for name in heavy if name in sys.modules]
print(json.dumps({"changed": [key for key in before if before[key] != after[key]], "loaded": loaded}))
"""


def test_import_has_no_side_effect() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert json.loads(done.stdout) == {"changed": [], "loaded": []}


def test_importing_every_room_leaves_anomaly_mode_and_numpy_alone() -> None:
    names = [".".join(["recbole_bbqrec", *m.with_suffix("").parts]).removesuffix(".__init__") for m in MODULES]
    probe = PROBE.replace("import recbole_bbqrec\n", f"for name in {names!r}: __import__(name)\n").replace(
        '"filters": len(warnings.filters),', ""
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    found = json.loads(done.stdout)
    assert found["changed"] == []
    assert not {"ray", "transformers"} & set(found["loaded"])
