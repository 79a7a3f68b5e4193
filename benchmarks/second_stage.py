"""Seconds of CPU of a second stage by trees: fitting it, ranking all validation users, and one history in use.

The model is untrained, whose weights decide nothing about the time. Ranking is measured in turns with and without the
second stage, one history on the very calls of a bundle; medians are told. Fitting is measured once.

    python benchmarks/second_stage.py --data_path=/data/recsys --dataset=Sports
    python benchmarks/second_stage.py --data_path=/data/recsys --dataset=Beauty --model=TransitionGraph

Further --key=value arguments are settings, as for run_recbole_bbqrec.py.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from recbole_bbqrec import compat, load_bundle, registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.model.untrained import Pop
from recbole_bbqrec.second_stage import boosted_fit, socket
from recbole_bbqrec.serving.folder import WEIGHTS
from recbole_bbqrec.serving.saving import write_bundle
from recbole_bbqrec.settings import plain_settings
from recbole_bbqrec.training import checkpoint
from recbole_bbqrec.training.allocation import keep_freed_memory
from recbole_bbqrec.training.trainer import ProtocolTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SASRecPlusFT", help="default: SASRecPlusFT")
    parser.add_argument("--dataset", default="Sports")
    parser.add_argument("--data_path", required=True, help="folder of the data set's folder")
    parser.add_argument("--rounds", type=int, default=3, help="rankings of each kind (default 3)")
    parser.add_argument("--histories", type=int, default=200, help="single histories (default 200)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    given, settings = parser.parse_known_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as run_recbole_bbqrec.py does
    with tempfile.TemporaryDirectory() as folder:
        named = {"model": given.model, "dataset": given.dataset, "data_path": given.data_path}
        places = {"checkpoint_dir": folder, "show_progress": False, "state": "ERROR", "second_stage": "gbdt"}
        print(report(Config(arguments=settings, config_dict={**named, **places}), Path(folder), given))


def report(config: Config, folder: Path, given: argparse.Namespace) -> str:
    compat.init_seed(config)
    data = registry.get_dataset(config["model"])(config)
    train, valid, _ = split_loaders(config, data)
    model = registry.build_model(config, train._dataset).eval()
    if isinstance(model, Pop):
        model.count(train._dataset.train_sequences.offsets, train._dataset.train_sequences.items)
    rows = valid._dataset.inter_feat
    histories, targets = rows[model.ITEM_SEQ], rows[model.ITEM_ID]
    stage, seconds = timed(lambda: socket.build(config, train._dataset))
    table = [["building its signals", "", f"{seconds:.1f}"]]
    parts = {name: part_of_fit(name) for name in ("collect", "cross_fit")}
    (words, _), seconds = timed(lambda: socket.fit(stage, model, config, histories, targets))
    table += [["candidates and features to fit on", "", f"{parts['collect'][0]:.1f}"]]
    table += [["trees of the folds", "", f"{parts['cross_fit'][0]:.1f}"], ["fitting, all of it", "", f"{seconds:.1f}"]]
    if not stage.trees:
        return f"{words}; nothing to measure"
    trainer = registry.get_trainer(config)(config, model)
    spent: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * given.rounds):
        socket.attach(model, stage if turn % 2 else None)
        spent[bool(turn % 2)].append(timed(lambda: ProtocolTrainer.rank(trainer, valid, [train._dataset]))[1])
    table.append([f"ranking {len(rows)} users", *(f"{statistics.median(spent[with_it]):.1f}" for with_it in spent)])
    one = {with_it: milliseconds(folder, model, stage if with_it else None, config, data, given) for with_it in spent}
    table.append(["one history, ms", *(f"{one[with_it]:.2f}" for with_it in spent)])
    header = ["CPU s", "model alone", "second stage"]
    shown = tabulate(table, header, tablefmt="github", disable_numparse=True, colalign=("left", "right", "right"))
    return f"{given.model} on {given.dataset}, untrained, {len(data.catalogue.tokens) - 1} items; {words}\n{shown}"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and its seconds of CPU."""
    started = time.process_time()
    return work(), time.process_time() - started


def part_of_fit(name: str) -> list[float]:
    """Measure a function of `boosted_fit` whenever it is called; the seconds are added to the list."""
    work, spent = getattr(boosted_fit, name), []

    def measured(*args: Any) -> Any:
        result, seconds = timed(lambda: work(*args))
        spent.append(seconds)
        return result

    setattr(boosted_fit, name, measured)
    return spent


def milliseconds(folder: Path, model: Any, stage: Any, config: Config, data: Any, given: argparse.Namespace) -> float:
    """Median over single histories of a bundle's `recommend`, after a warm-up."""
    place = folder / ("with" if stage is not None else "without")
    socket.attach(model, stage)
    checkpoint.save_weights(place / WEIGHTS, model, {"settings": plain_settings(config)})
    write_bundle(place, config, data)
    bundle, spent = load_bundle(place), []
    size = max(1, (len(bundle.item_tokens) - 11) // given.histories)
    for at in range(-10, given.histories):
        begin = 1 + max(at, 0) * size
        history = bundle.item_tokens[begin : begin + 1 + at % 10]
        spent.append(timed(lambda history=history: bundle.recommend([history]))[1])
    return 1e3 * statistics.median(spent[10:])


if __name__ == "__main__":
    main()
