"""The command lines: `run_recbole_bbqrec.py` for runs, `bbqrec` for everything on top of them."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import InputError
from .preparation.raw import COLUMN_FLAGS
from .training.allocation import keep_freed_memory

# The parts behind a command are imported when it is called: `bbqrec --help` needs neither torch nor RecBole.

SETTINGS = "Further --key=value arguments are settings, as for run_recbole_bbqrec.py; properties/ explains them."


class Command(NamedTuple):
    """A sub-command: its help, what it reads, and what it does with that and the settings that follow."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], int]


def _experiment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="name of the data set")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for tables and records")
    parser.epilog = SETTINGS


def _ablate_arguments(parser: argparse.ArgumentParser) -> None:
    _experiment_arguments(parser)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default 3; 1 screens)")
    parser.add_argument("--rows", default="", help="names of rows, separated by commas (default: all that apply)")
    parser.add_argument("--final", action="store_true", help="also judge the test split")
    parser.add_argument("--table-only", action="store_true", help="make table and figure again from the records")


def _ablate(given: argparse.Namespace, settings: list[str]) -> int:
    from .experiments import ablation

    if given.table_only:
        if settings or given.rows:
            raise InputError("--table-only reads records alone: give --dataset, --results and --final, nothing else")
        ablation.remake(given.dataset, given.final, given.results)
        return 0
    rows = [name for name in given.rows.split(",") if name]
    return ablation.ablate(given.dataset, rows, given.seeds, settings, given.final, given.results)


def _cost_arguments(parser: argparse.ArgumentParser) -> None:
    _experiment_arguments(parser)
    parser.add_argument("--users", type=int, default=1000, help="histories that are scored (default 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="times each way of scoring is timed (default 5)")


def _cost(given: argparse.Namespace, settings: list[str]) -> int:
    from .experiments.cost import cost

    cost(given.dataset, given.users, given.rounds, settings, given.results)
    return 0


def _ids_arguments(parser: argparse.ArgumentParser) -> None:
    _experiment_arguments(parser)
    parser.add_argument("--seeds", type=int, default=5, help="fits of each tokenizer (default 5)")


def _ids(given: argparse.Namespace, settings: list[str]) -> int:
    from .experiments.ids import study

    study(given.dataset, given.seeds, settings, given.results)
    return 0


def _leaderboard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="name of the data set")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for the files and of the records")
    parser.add_argument("--final", action="store_true", help="show the test split instead of validation")
    parser.add_argument("--models", default="", help="rows, separated by commas (default: all that have a record)")
    parser.add_argument("--keys", default="", help="run keys to show instead of the latest of their models")
    parser.add_argument("--against", metavar="MODEL", help="compare with this row (default: the best one)")
    parser.epilog = "Records are made by run_recbole_bbqrec.py --model=A,B --dataset=X,Y --seeds=3, see there."


def _leaderboard(given: argparse.Namespace, settings: list[str]) -> int:
    from .experiments import leaderboard

    _no_settings("leaderboard", settings)
    models, keys = ([name for name in text.split(",") if name] for text in (given.models, given.keys))
    print(leaderboard.write(given.dataset, given.results, given.final, models, keys, given.against))
    return 0


def _recommend_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder of a finished run, such as saved/BBQRec-ml-100k-2020-...")
    parser.add_argument(
        "--history",
        required=True,
        action="append",
        metavar="TOKEN,TOKEN",
        help="item tokens in time order, separated by commas; may be given several times",
    )
    parser.add_argument("-k", type=int, default=10, help="number of items (default 10)")


def _recommend(given: argparse.Namespace, settings: list[str]) -> int:
    from .evaluation import report
    from .serving.bundle import load_bundle

    if settings:
        raise InputError(f"argument {settings[0]!r}: recommend takes no settings, the run has its own")
    histories = [[token for token in text.split(",") if token] for text in given.history]
    found = load_bundle(given.folder).recommend(histories, given.k)
    for text, (items, scores, unknown) in zip(given.history, found, strict=True):
        print(f"after {text}" + (f" (unknown, ignored: {', '.join(unknown)})" if unknown else ""))
        rows = [[str(at), item, f"{score:.4f}"] for at, (item, score) in enumerate(zip(items, scores, strict=True), 1)]
        print(report.markdown_table(["rank", "item", "score"], rows) if rows else "no known item in it")
    return 0


def _tune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="name of the model")
    _experiment_arguments(parser)
    parser.add_argument("--minutes", type=float, default=60.0, help="CPU time of all trials together (default 60)")
    parser.add_argument("--space", type=Path, metavar="FILE", help="keys and their values (default: the model's own)")
    parser.add_argument("--storage", metavar="URL", help="database of the trials, for many processes (default: a file)")


def _tune(given: argparse.Namespace, settings: list[str]) -> int:
    from .experiments.tune import tune

    return tune(given.model, given.dataset, given.minutes, settings, given.space, given.results, given.storage)


def _place_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the data set")
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="folder of data sets (default dataset)")


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    _place_arguments(parser)
    parser.epilog = "Without --from the name is that of a public data set, such as Sports or Amazon2023-Video_Games."
    parser.add_argument("--user-core", type=int, help="fewest interactions of a user (default 5, or as published)")
    parser.add_argument("--item-core", type=int, help="fewest interactions of an item (default 5, or as published)")
    parser.add_argument("--shuffle-ties", type=int, metavar="SEED", help="shuffle equal times by this seed")
    public = parser.add_argument_group("a public data set")
    public.add_argument("--raw_dir", type=Path, metavar="FOLDER", help="raw files, fetched by hand or to be fetched")
    public.add_argument("--as", dest="written", metavar="NAME", help="name of the data set to write")
    own = parser.add_argument_group("your own data")
    own.add_argument("--from", dest="interactions", type=Path, metavar="FILE", help="table of interactions")
    own.add_argument("--items", type=Path, metavar="FILE", help="table of items")
    own.add_argument("--images", type=Path, metavar="FOLDER", help="folder with <item id>.jpg, .png or .webp")
    for field, flag in COLUMN_FLAGS.items():
        what = "the item, in the table of items" if field == "token" else field.replace("_", " ")
        own.add_argument(flag, dest=field, metavar="NAME", help=f"column of {what}, where it is not found by itself")
    own.add_argument("--on-bad", choices=("skip", "error"), help="bad rows: list them, or stop (default skip)")


def _no_settings(command: str, settings: list[str]) -> None:
    if settings:
        raise InputError(
            f"argument {settings[0]!r}: {command} takes no settings; bbqrec {command} --help lists its options"
        )


def _prepare(given: argparse.Namespace, settings: list[str]) -> int:
    _no_settings("prepare", settings)
    both = {key: getattr(given, key) for key in ("user_core", "item_core", "shuffle_ties")}
    both = {key: value for key, value in both.items() if value is not None}
    if given.interactions is None:
        wrong = {"--items": given.items, "--images": given.images, "--on-bad": given.on_bad}
        wrong |= {flag: getattr(given, field) for field, flag in COLUMN_FLAGS.items()}
        _refuse(wrong, "without --from, which names your table of interactions")
        from .preparation.obtain import advice, obtain
        from .preparation.public import describe

        report = obtain(given.name, given.data_path, written=given.written, raw_dir=given.raw_dir, **both)
        print(f"{describe(report)}\n{advice(given.name, report)}")
        return 0
    _refuse({"--raw_dir": given.raw_dir, "--as": given.written}, "with --from, but it is for public data sets; drop it")
    from .preparation.own_data import describe, prepare_own

    report = prepare_own(
        given.name,
        given.interactions,
        given.items,
        given.data_path,
        images=given.images,
        columns={field: getattr(given, field) for field in COLUMN_FLAGS if getattr(given, field) is not None},
        on_bad=given.on_bad or "skip",
        **both,
    )
    print(describe(report))
    return 0


def _refuse(flags: Mapping[str, object], why: str) -> None:
    for flag, value in flags.items():
        if value is not None:
            raise InputError(f"{flag}: found {str(value)!r} {why}")


def _images(given: argparse.Namespace, settings: list[str]) -> int:
    _no_settings("images", settings)
    from .preparation.obtain import describe_images, obtain_images

    print(describe_images(obtain_images(given.data_path / given.name)))
    return 0


def _features_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the data set")
    parser.epilog = SETTINGS


def _features(given: argparse.Namespace, settings: list[str]) -> int:
    from .config import Config
    from .experiments.feature_report import describe, feature_report

    print(describe(feature_report(Config("BBQRec", given.name, arguments=settings))))
    return 0


COMMANDS = {
    "ablate": Command("BBQRec with one part changed at a time, over seeds", _ablate_arguments, _ablate),
    "cost": Command("time and memory of scoring, with and without the codes", _cost_arguments, _cost),
    "features": Command("which item features there are, missing or stale", _features_arguments, _features),
    "ids": Command("the item tokenizer's report cards over seeds, with and without CLUB", _ids_arguments, _ids),
    "leaderboard": Command("models side by side, from their records", _leaderboard_arguments, _leaderboard),
    "prepare": Command("a data set from public files or your own tables", _prepare_arguments, _prepare),
    "images": Command("fetch the items' images from their addresses", _place_arguments, _images),
    "recommend": Command("recommend items after a history, from a run's folder", _recommend_arguments, _recommend),
    "tune": Command("choose a model's settings on validation, within a budget of CPU time", _tune_arguments, _tune),
}
"""All sub-commands by name."""


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: --row would be taken for --rows, and a mistyped setting for an option.
    description = "Experiments on top of single runs, data sets, and recommendations from a finished run."
    parser = argparse.ArgumentParser("bbqrec", description=description, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help, description=command.help, allow_abbrev=False)
        own.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        command.arguments(own)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 where a run failed, 2 where the user has something to mend."""
    given, settings = _parser().parse_known_args(arguments)
    return _answer(lambda: COMMANDS[given.command].run(given, settings), given.debug)


def run(arguments: Sequence[str]) -> int:
    """Run one command line of `run_recbole_bbqrec.py`; return the exit code as `main` does.

    Several models or data sets, or `--seeds`, ask for many runs, see `experiments.many`. `--debug` is read here: with
    it, the traceback stands before the error's one line.
    """
    from . import quick_start
    from .experiments import many

    debug = any(argument in ("--debug", "--debug=True") for argument in arguments)
    arguments = [argument for argument in arguments if argument.partition("=")[0] != "--debug"]

    def started() -> int:
        if many.asked_for(arguments):
            return many.run_many(arguments)
        quick_start.run(arguments)
        return 0

    return _answer(started, debug)


def _answer(work: Callable[[], int], debug: bool) -> int:
    """Exit code of `work`, errors told in one line."""
    keep_freed_memory()
    try:
        code = work()
        sys.stdout.flush()
        return code
    except InputError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what read the output, such as head, has had enough; nothing is left to flush into
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
