"""The plan of the house: which room may import which, and what no room may do."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import recbole_bbqrec

PACKAGE = Path(recbole_bbqrec.__file__).parent
SCRIPT = PACKAGE.parent / "run_recbole_bbqrec.py"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
MAX_LINES = 400

# Rooms from the ground up: a module may import its own room and those before it. Modules at the root are rooms too.
ORDER = (
    *("errors", "storage", "claims", "watch", "distributed", "compat", "run_log", "modalities"),
    *("key_types", "schema", "conditions", "recbole_keys", "keys", "settings"),
    *("preparation", "tokenizer", "model", "data"),
    *("evaluation", "second_stage", "training", "registry", "protocol", "layers", "config", "refusals", "run_record"),
    *("serving", "quick_start", "registration", "experiments", "cli"),
)
# Apart from what stands above them, these do not know each other.
APART = {("model", "preparation"), ("tokenizer", "preparation"), ("serving", "experiments")}
WITHOUT_RECBOLE = {"errors", "storage", "schema", "recbole_keys", "settings", "preparation", "tokenizer", "evaluation"}
WITHOUT_RECBOLE |= {"keys", "claims", "watch", "distributed", "modalities", "key_types", "conditions"}
ROOMS = {"preparation", "tokenizer", "model", "data", "evaluation", "second_stage", "training", "serving"}
ROOMS |= {"experiments", "cli"}
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "ray"}
RECBOLES_CHECKPOINTS = Path("training/recbole_checkpoint.py")  # plain data in torch's own form, which RecBole reads
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


def test_root_holds_no_other_modules() -> None:
    assert {room(module) for module in MODULES if len(module.parts) > 1} == ROOMS
    assert {room(module) for module in MODULES} == {*ORDER, "__init__"}


def test_the_floor_plan_names_every_module_and_no_other() -> None:
    plan = SCRIPT.with_name("docs").joinpath("architecture.md").read_text(encoding="utf-8").split("Three decisions")[0]
    named = set(re.findall(r"\b[a-z_]+\.py\b", plan)) - {SCRIPT.name, Path(__file__).name}
    assert named == {module.name for module in MODULES} - {"__init__.py"}
    assert " ".join(ORDER) == " ".join(plan.split("```")[1].replace(",", " ").split())


def test_imports_run_one_way() -> None:
    for module in MODULES:
        here = room(module)
        if here == "__init__":
            continue  # its functions hand over to their rooms when called; test_import_has_no_side_effect watches it
        allowed = {other for other in ORDER[: ORDER.index(here) + 1] if (here, other) not in APART}
        wrong = own_rooms(module) - allowed
        assert not wrong, f"{module} imports {sorted(wrong)}; {here} may import {sorted(allowed)}"


def test_rooms_that_know_no_recbole() -> None:
    for module in MODULES:
        outside = sorted(name for name in imports(module) if name.split(".")[0] == "recbole")
        assert not (outside and room(module) in WITHOUT_RECBOLE), f"{module} imports {outside}"


def test_run_script_only_hands_over() -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    modules = {node.module for node in ast.walk(ast.parse(script)) if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name and name.startswith("recbole_bbqrec")} == {"recbole_bbqrec.cli"}
    assert len(script.splitlines()) <= 30


def test_modules_are_short() -> None:
    for module in MODULES:
        lines = len((PACKAGE / module).read_text(encoding="utf-8").splitlines())
        assert lines <= MAX_LINES, f"{module}: {lines} lines, {MAX_LINES} at most; a longer module holds two ideas"


def test_nothing_runs_code_from_files() -> None:
    for module in MODULES:
        found = {name.split(".")[0] for name in imports(module)} | imports(module)
        calls = {ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)}
        if module != Path("compat.py"):  # the place that stands in for ray names it
            assert not found & FORBIDDEN_IMPORTS, f"{module} imports {sorted(found & FORBIDDEN_IMPORTS)}"
        if module == RECBOLES_CHECKPOINTS:
            source = (PACKAGE / module).read_text(encoding="utf-8")
            assert source.count("torch.load(") == source.count("weights_only=True") == 1
            calls -= {"torch.load", "torch.save"}
        assert not calls & FORBIDDEN_CALLS, f"{module} calls {sorted(calls & FORBIDDEN_CALLS)}"


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
