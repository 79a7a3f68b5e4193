"""One process against several on one run: seconds of an epoch's training and of a ranking, and the speed-up.

    python benchmarks/processes.py --processes=2 --users=12000 --items=6000
    python benchmarks/processes.py --model=BBQRecWithoutCandidates --text_encoder=tfidf --text_fields=title

Where the model has an item tokenizer, also seconds of its training, for which the first process takes the threads of
all. Sequences and titles are drawn at random, so the metrics mean nothing. Every process computes with one thread, so
as many cores as processes are at work. The runs alternate; ratios are those of the medians. About three minutes on two
cores, with an item tokenizer ten.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PARTS = "tokenizer", "epoch", "evaluate"


def write_data(folder: Path, n_users: int, n_items: int) -> None:
    """Write sequences of 5 to 20 items, each near the one before it, and items with titles of ten words."""
    generator, lines = np.random.default_rng(0), ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(n_users):
        steps = generator.integers(1, 50, generator.integers(5, 21))
        items = (generator.integers(n_items) + np.cumsum(steps)) % n_items
        lines += [f"u{user}\ti{item}\t{time}" for time, item in enumerate(items)]
    (folder / "drawn").mkdir(parents=True)
    (folder / "drawn" / "drawn.inter").write_text("\n".join(lines) + "\n")
    words = generator.zipf(1.5, (n_items, 10)) % 3000
    titles = [f"i{item}\t{' '.join(f'word{word}' for word in row)}" for item, row in enumerate(words)]
    (folder / "drawn" / "drawn.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *titles]) + "\n")


def run(folder: Path, n_processes: int, settings: list[str]) -> dict[str, float]:
    """Seconds of the item tokenizer, of an epoch and of a ranking."""
    result = folder / "record.json"
    saved = tempfile.mkdtemp(dir=folder)  # an item tokenizer kept there would be read by the next run
    places = [f"--data_path={folder}", f"--checkpoint_dir={saved}", f"--result_file={result}"]
    start = [sys.executable]
    if n_processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    command = [*start, str(ROOT / "run_recbole_bbqrec.py"), "--dataset=drawn", *places, *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    seconds = json.loads(result.read_text())["seconds"]
    return {name: seconds[name] for name in PARTS if seconds.get(name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--users", type=int, default=12_000)
    parser.add_argument("--items", type=int, default=6_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="SASRecPlus")
    given, settings = parser.parse_known_args()
    fixed = ["--resume=False", "--show_progress=False", "--state=WARNING", "--report_card=False"]
    fixed += [f"--model={given.model}", f"--epochs={given.epochs}", *settings]
    found: dict[int, list[dict[str, float]]] = {1: [], given.processes: []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder, given.users, given.items)
        for _ in range(given.rounds):
            for n_processes, rounds in found.items():
                rounds.append(run(folder, n_processes, fixed))
    for part in found[1][0]:
        one, several = (statistics.median(each[part] for each in rounds) for rounds in found.values())
        print(
            f"{part}: one process {one:.2f} s, {given.processes} processes {several:.2f} s, {one / several:.2f} times"
        )


if __name__ == "__main__":
    main()
