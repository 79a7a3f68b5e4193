"""What this project does on a GPU, in one command of at most eight minutes: the same answers as a CPU, and how fast.

First whether scores and ranks of a trained model are those of a CPU; then seconds by stage of a run from nothing to its
result, of epochs and evaluations of several models, and of a catalogue of a million items, as one Markdown table. Parts
that fail or for which no time is left say so in their rows, and the exit status is 1 then.

    python benchmarks/gpu.py --data_path=/data/recsys --dataset=Sports
    python benchmarks/gpu.py                                # data of that size, made by a seed
    python benchmarks/gpu.py --device=cpu --small           # the same script, small, without a GPU
    python benchmarks/gpu.py --wheels=wheels                # a bare machine with torch and no package registry

`--wheels` installs all wheels of a folder, without asking what else they need, into a virtual environment that sees the
packages of the system, and goes on in it. A machine that has the registry fills the folder: `pip download --no-deps
--only-binary=:all: --python-version=3.12 -d wheels recbole==1.2.1 ...`, with every package of pyproject.toml
that the bare machine lacks, torch not among them.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

MARK = "IN_BENCHMARK_VENV"
SMALL_SETTINGS = {"feature_dim": 16, "sid_min_steps": 20, "sid_epochs": 1, "sid_codebook_size": 16, "hidden_size": 16}
SMALL_TIGER = {"sid_steps": 20, "n_layers": 1, "n_decoder_layers": 1, "heads": 2, "head_size": 4, "inner_size": 32}
TOLERANCE, ALIKE = 1e-3, 0.999
"""How far a score may lie from the CPU's, and the share of users whose target has to have the very same rank."""
WARM_UP = 3
"""Batches that are not timed: the first ones choose kernels and grow the memory pool."""


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured on: data that is made where there is none, caps on epochs, and the large catalogue."""

    users: int = 35_598
    items: int = 18_357
    epochs: int = 40
    large_items: int = 1_000_000
    large_interactions: int = 20_000_000
    batches: int = 200


SMALL = Size(users=300, items=120, epochs=1, large_items=2_000, large_interactions=20_000, batches=3)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script itself")
    parser.add_argument("--data_path", type=Path, help="folder of the data set's folder; without it, data is made")
    parser.add_argument("--dataset", default="Sports")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--seconds", type=float, default=460, help="no part begins after these (default 460)")
    parser.add_argument("--seed", type=int, default=2020)
    return parser.parse_args(arguments)


def enter_venv(wheels: Path) -> None:
    """Install the wheels beside the packages of the system, and run this script again there."""
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    if not files:
        sys.exit(f"error: --wheels: no *.whl in {wheels}; fill the folder, see --help")
    folder = Path(tempfile.mkdtemp(prefix="gpu-benchmark-"))
    venv.create(folder, system_site_packages=True, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *files], check=True)
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    os.execve(python, [str(python), *sys.argv], {**os.environ, MARK: "1", "PYTHONPATH": paths})


class Bench:
    """The parts, each a method that yields rows `(what, figure, unit)`; what one leaves, the next may read."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.size = SMALL if arguments.small else Size()
        self.data_path, self.dataset, self.run_dir = arguments.data_path, arguments.dataset, None
        if self.data_path is None or not (self.data_path / self.dataset).is_dir():
            self.data_path, self.dataset = folder, "made"
            make_data(folder / "made", self.size, arguments.seed)

    def settings(self, model: str, **changes: Any) -> dict[str, Any]:
        """Settings of a run; those that the model has no use for are left out by `MAY_BE_UNUSED`."""
        from recbole_bbqrec.settings import MAY_BE_UNUSED

        given = {"model": model, "dataset": self.dataset, "data_path": str(self.data_path)}
        given |= {"text_fields": "title", "text_encoder": "tfidf"} if self.dataset == "made" else {}
        given |= SMALL_SETTINGS if self.arguments.small else {}
        given |= {"seed": self.arguments.seed, "use_gpu": self.arguments.device == "cuda", "show_progress": False}
        given |= {"checkpoint_dir": str(self.folder / "saved"), "report_card": False, "state": "ERROR"}
        return {**given, "second_stage": "linear", MAY_BE_UNUSED: True, **changes}

    def whole_run(self) -> Iterator[tuple[str, float, str]]:
        """BBQRec from files to its table."""
        from recbole_bbqrec import quick_start

        started = time.perf_counter()
        record = quick_start.run(config_dict=self.settings("BBQRec", epochs=self.size.epochs))
        yield "BBQRec from nothing to its result", time.perf_counter() - started, "s"
        for stage, seconds in record["seconds"].items():
            if seconds is not None:
                yield f"of it, {stage}", seconds, "s"
        yield "epochs trained", record["epochs"]["done"], ""
        yield "NDCG@10 on validation, seen items masked", record["metrics"]["valid"]["masked"]["ndcg@10"], ""
        self.run_dir = record["run_dir"]

    def same_as_cpu(self) -> Iterator[tuple[str, float, str]]:
        """Scores and ranks of the run's weights on the device, against those on the CPU."""
        import numpy as np

        if self.run_dir is None:
            raise RuntimeError("the run before has left no weights")
        scores, ranks = zip(*(self._judged(on_gpu) for on_gpu in (False, self.arguments.device == "cuda")), strict=True)
        apart, alike = float(abs(scores[0] - scores[1]).max()), float(np.mean(ranks[0] == ranks[1]))
        yield "largest difference of a score from the CPU's", apart, ""
        yield "users with the very rank of the CPU", alike, ""
        if apart > TOLERANCE or alike < ALIKE:
            raise RuntimeError(f"scores differ by {apart:.2g}, {alike:.2%} of ranks are equal")

    def _judged(self, on_gpu: bool) -> tuple[Any, Any]:
        import torch

        from recbole_bbqrec import quick_start, registry

        changed = {"use_gpu": on_gpu, "state": "ERROR"}
        config, model, _, train, valid, _ = quick_start.load_data_and_model(self.run_dir, changed)  # pyright: ignore
        trainer = registry.get_trainer(config)(config, model)
        rows = valid.collate_fn(range(min(64, len(valid._dataset.inter_feat))))[0]
        with torch.no_grad():
            scores = model.score(rows[model.ITEM_SEQ].to(config["device"]))[:, 1:].cpu()
        return scores, trainer.rank(valid, [train._dataset]).masked

    def epochs(self, model: str, evaluates: bool = True) -> Iterator[tuple[str, float, str]]:
        """The second of two epochs, and an evaluation."""
        from recbole_bbqrec import registry
        from recbole_bbqrec.config import Config
        from recbole_bbqrec.data.dataloader import split_loaders

        changes = SMALL_TIGER if self.arguments.small and model == "TIGERPaper" else {}
        config = Config(config_dict=self.settings(model, epochs=2, second_stage="off", **changes))
        train, valid, _ = split_loaders(config, registry.get_dataset(model)(config))
        trainer = registry.get_trainer(config)(
            config, registry.build_model(config, train._dataset).to(config["device"])
        )
        trainer.fit(train, None, saved=False)
        yield f"{model}: epoch", trainer.state.epoch_seconds[-1], "s"
        if evaluates:
            yield f"{model}: evaluation", timed(lambda: trainer.rank(valid, [train._dataset])), "s"

    def stock(self) -> Iterator[tuple[str, float, str]]:
        """RecBole's SASRec by RecBole's own trainer, which evaluates batch by batch with its collector."""
        from recbole.trainer import Trainer

        from recbole_bbqrec import registry
        from recbole_bbqrec.config import Config
        from recbole_bbqrec.data.dataloader import split_loaders

        config = Config(config_dict=self.settings("SASRec", epochs=2))
        train, valid, _ = split_loaders(config, registry.get_dataset("SASRec")(config))
        trainer = Trainer(config, registry.get_model("SASRec")(config, train._dataset).to(config["device"]))
        trainer.eval_collector.data_collect(train)
        took = [timed(lambda epoch=epoch: trainer._train_epoch(train, epoch)) for epoch in range(2)]
        yield "SASRec as RecBole runs it: epoch", took[-1], "s"
        judged = timed(lambda: trainer.evaluate(valid, load_best_model=False))
        yield "SASRec as RecBole runs it: evaluation", judged, "s"

    def million(self) -> Iterator[tuple[str, float, str]]:
        """BBQRec over codes and IDs of a large catalogue, training batches alone; an epoch by the mean of some."""
        import torch

        from recbole_bbqrec import registry
        from recbole_bbqrec.config import Config
        from recbole_bbqrec.data.dataloader import WindowDataLoader

        size, given = self.size, self.settings("BBQRec", second_stage="off", epochs=1, train_batch_size=4096)
        config = Config(config_dict=given)
        data = Large(size.large_items, size.large_interactions, self.arguments.seed)
        on_gpu = self.arguments.device == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        model = registry.build_model(config, data).to(config["device"]).train()
        loader = WindowDataLoader(config, data, data.train_sequences)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        took: list[float] = []
        for batch, _ in zip(loader, range(size.batches + WARM_UP), strict=False):
            took.append(timed(lambda batch=batch: train_step(model, optimizer, batch.to(config["device"]))))
        name = f"{size.large_items:,} items, {size.large_interactions:,} interactions"
        yield f"{name}: epoch of BBQRec", statistics.mean(took[WARM_UP:] or took) * len(loader), "s"
        if on_gpu:
            yield f"{name}: memory of the GPU", torch.cuda.max_memory_allocated() / 2**30, "GiB"


class Large:
    """A catalogue with random codes and sequences over it, as models and loaders ask a data set."""

    iid_field, item_list_length_field = "item_id", "item_length"

    def __init__(self, n_items: int, n_interactions: int, seed: int) -> None:
        import numpy as np
        import torch

        from recbole_bbqrec.data.sequences import Sequences
        from recbole_bbqrec.model.catalogue import Catalogue, SemanticIds

        generator, size = np.random.default_rng(seed), 256
        codes = torch.from_numpy(generator.integers(size, size=(n_items + 1, 4)))
        codes[0] = -1
        present = torch.ones(2, n_items + 1, dtype=torch.bool)
        present[:, 0] = False
        ids = SemanticIds(codes, torch.zeros(2, n_items + 1, 1), present, ["text", "id"], size)
        self.catalogue = Catalogue(["[PAD]", *map(str, range(n_items))], None, ids)
        offsets = np.append(np.arange(0, n_interactions, 10), n_interactions)
        items = 1 + (n_items * generator.random(n_interactions) ** 2).astype(np.int64)
        self.train_sequences, self.item_num = Sequences(offsets, items), n_items + 1

    def num(self, field: str) -> int:
        return self.item_num


def train_step(model: Any, optimizer: Any, batch: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
    model.calculate_loss(batch).backward()
    optimizer.step()


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call, to the end of what it has put on the device."""
    import torch

    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def make_data(folder: Path, size: Size, seed: int) -> None:
    """Write a data set whose users walk about groups of items, each with a title of words of its group."""
    import numpy as np

    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(1.0, 0.8, size.users).astype(int) + 4, 5, 100)
    own = np.repeat(generator.integers(size.items, size=size.users), lengths)
    near = own + generator.integers(-20, 21, size=len(own))
    far = (size.items * generator.random(len(own)) ** 2).astype(int)
    items = np.where(generator.random(len(own)) < 0.7, near, far) % size.items
    users, times = np.repeat(np.arange(size.users), lengths), np.arange(len(own))
    folder.mkdir(parents=True)
    lines = (f"u{user}\ti{item}\t{moment}\n" for user, item, moment in zip(users, items, times, strict=True))
    with open(folder / f"{folder.name}.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        file.writelines(lines)
    with open(folder / f"{folder.name}.item", "w", encoding="utf-8") as file:
        file.write("item_id:token\ttitle:token_seq\n")
        file.writelines(f"i{item}\tword{item // 20} kind{item % 50} thing{item // 400}\n" for item in range(size.items))


def measure(bench: Bench) -> tuple[list[list[str]], bool]:
    """Rows of the table, and whether every part has come to its end."""
    parts: list[tuple[str, Callable[[], Iterator[tuple[str, float, str]]]]] = [
        ("a whole run", bench.whole_run),
        ("same as the CPU", bench.same_as_cpu),
        ("BBQRec", lambda: bench.epochs("BBQRec")),
        ("SASRecPlus", lambda: bench.epochs("SASRecPlus")),
        ("RecBole's SASRec", bench.stock),
        ("a large catalogue", bench.million),
        ("TIGERPaper", lambda: bench.epochs("TIGERPaper", evaluates=False)),
    ]
    rows, whole, started = [], True, time.perf_counter()
    for name, part in parts:
        if time.perf_counter() - started > bench.arguments.seconds:
            rows.append([name, "not run, no time was left", ""])
            whole = False
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the tables of the runs
                found = part()
                rows += [[what, f"{figure:.4g}", unit] for what, figure, unit in found]
        except Exception as error:
            rows.append([name, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}", ""])
            whole = False
    return rows, whole


def main() -> None:
    arguments = parse_arguments()
    if arguments.wheels and MARK not in os.environ:
        enter_venv(arguments.wheels)
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device=cuda: torch finds no GPU here; --device=cpu --small tries the script without one")
    from tabulate import tabulate

    with tempfile.TemporaryDirectory() as folder:
        rows, whole = measure(Bench(arguments, Path(folder)))
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "the CPU"
    print(f"{device}, torch {torch.__version__}, Python {sys.version.split()[0]}\n")
    print(tabulate(rows, ["what", "figure", "unit"], tablefmt="github", disable_numparse=True))
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
