"""Do two versions of the code give the same ranks? If so, records of the earlier one stand beside those of the later.

A run that takes hours need not be made again where the code that changed does not touch it. Each version trains the
models for a few epochs, with the seed and the settings of their records, and the ranks of all users are compared. Where
they are equal, the records of the earlier version note it, and tables no longer mark them as made by other code.

    git worktree add --detach /tmp/earlier 7e9de71
    python benchmarks/same_ranks.py --earlier=/tmp/earlier --dataset=Sports --models=SASRec,GRU4Rec --data_path=...

It ends with 1 where ranks differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recbole_bbqrec import storage  # noqa: E402
from recbole_bbqrec.config import Config  # noqa: E402
from recbole_bbqrec.errors import InputError  # noqa: E402
from recbole_bbqrec.experiments import records  # noqa: E402

SOURCE = "from recbole_bbqrec.experiments import records; print(records.code_fingerprint())"


def main() -> int:
    given = parse_arguments()
    sources = {tree: python(tree, "-c", SOURCE).strip() for tree in (given.earlier, ROOT)}
    rows = []
    for model in given.models:
        for path in sorted((given.results / "runs" / given.dataset).glob(f"{model}-*.json")):
            record = records.read(path)
            if record["source"] != sources[given.earlier] or "test" not in record["metrics"]:
                continue
            changed = settings_of(record, given)
            first, second = (ranks_of(tree, record, changed, given) for tree in sources)
            is_same = first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
            if is_same:
                noted = {"source": sources[ROOT], "epochs": given.epochs}
                storage.write_json(path, {**record, "same_ranks": noted})
            rows.append([model, record["seed"], given.epochs, len(changed), "the same" if is_same else "DIFFER"])
            print(tabulate(rows, ["model", "seed", "epochs", "settings given", "ranks"]), flush=True)
    if not rows:
        raise InputError(f"found no record on test of {', '.join(given.models)} by the code in {given.earlier}")
    return int(any(row[-1] == "DIFFER" for row in rows))


def settings_of(record: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Settings of a record that are not today's defaults, without what says how long a run trains."""
    usual = Config(record["model"], record["dataset"], config_dict={"data_path": str(given.data_path)})
    told = json.loads(json.dumps(dict(usual.final_config_dict), default=str))
    if told.get("selected_features"):  # a default that earlier versions did not have
        del told["selected_features"], told["load_col"]
    own = {key: value for key, value in record["settings"].items() if key in usual and value != told.get(key)}
    left_out = {"epochs", "eval_step", "stopping_step", "eval_args", "data_path"}
    return {key: value for key, value in own.items() if key not in left_out}


def ranks_of(tree: Path, record: dict[str, Any], changed: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Train as a record was, by the code in `tree` for a few epochs: array name -> ranks on validation."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch, "settings.yaml")
        config.write_text(yaml.safe_dump({**changed, "epochs": given.epochs, "eval_step": given.epochs}))
        arguments = [f"--model={record['model']}", f"--dataset={record['dataset']}", f"--seed={record['seed']}"]
        arguments += ["--seeds=1", f"--config_files={config}", f"--data_path={given.data_path.resolve()}"]
        arguments += [f"--results={scratch}/results", f"--checkpoint_dir={scratch}/saved", "--show_progress=False"]
        python(tree, "run_recbole_bbqrec.py", *arguments)
        (found,) = Path(scratch, "results", "runs", record["dataset"]).glob("*.npz")
        with np.load(found) as arrays:
            return {name: arrays[name] for name in arrays.files}


def python(tree: Path, *arguments: str) -> str:
    """Run Python with the package of `tree` and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{tree}: {' '.join(arguments[:2])} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=Path, required=True, help="a checkout of the version that made the records")
    parser.add_argument("--models", type=lambda text: text.split(","), required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", type=Path, default=Path("dataset"))
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--epochs", type=int, default=1)
    given = parser.parse_args()
    given.earlier = given.earlier.resolve()
    return given


if __name__ == "__main__":
    sys.exit(main())
