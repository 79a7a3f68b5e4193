"""The command lines: `run_recbole_bbqrec.py` for runs, `bbqrec` for everything on top of them."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError
from .preparation.raw import COLUMN_FLAGS
from .training.allocation import keep_freed_memory

# The parts behind a command are imported when it is called: `bbqrec --help` needs neither torch nor RecBole.

SETTINGS = "Further --key=value arguments are settings, as for run_recbole_bbqrec.py; docs/settings.md has them all."
Work = Callable[[argparse.Namespace, list[str]], int | None]


class Command(NamedTuple):
    """A sub-command: its help, its options, whether settings may follow, and what it does with both."""

    help: str
    options: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]
    takes_settings: bool
    run: Work
    note: str


COMMANDS: dict[str, Command] = {}
"""All sub-commands by name, in the order in which people work: data, studies, use."""


def _option(*flags: str, **how: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """One option or argument, as `add_argument` takes it."""
    return flags, how


def _command(name: str, help: str, *options: Any, settings: bool = False, note: str = "") -> Callable[[Work], Work]:
    def enter(work: Work) -> Work:
        COMMANDS[name] = Command(help, options, settings, work, note or SETTINGS * settings)
        return work

    return enter


NAME = _option("name", help="name of the data set")
DATASET = _option("--dataset", required=True, help="name of the data set")
RESULTS = _option("--results", type=Path, default=Path("results"), help="folder of pages and records")
DATA_PATH = _option("--data_path", type=Path, default=Path("dataset"), help="folder of data sets (default dataset)")

# Data


@_command(
    "prepare",
    "a data set from public files or your own tables",
    _option("name", help="name of a public data set, or with --from the name of a new one"),
    DATA_PATH,
    _option("--user-core", type=int, help="fewest interactions of a user (default 5, or as published)"),
    _option("--item-core", type=int, help="fewest interactions of an item (default 5, or as published)"),
    _option("--shuffle-ties", type=int, metavar="SEED", help="shuffle equal times by this seed"),
    _option("--raw_dir", type=Path, metavar="FOLDER", help="public: raw files, fetched by hand or to be fetched"),
    _option("--as", dest="written", metavar="NAME", help="public: name of the data set to write"),
    _option("--from", dest="interactions", type=Path, metavar="FILE", help="own: table of interactions"),
    _option("--items", type=Path, metavar="FILE", help="own: table of items"),
    _option("--images", type=Path, metavar="FOLDER", help="own: folder with <item id>.jpg, .png or .webp"),
    *(
        _option(flag, dest=field, metavar="NAME", help=f"own: this column, where it is not found by itself ({field})")
        for field, flag in COLUMN_FLAGS.items()
    ),
    _option("--on-bad", choices=("skip", "error"), help="own: list bad rows, or stop at one (default skip)"),
    note="Without --from the name is that of a public data set, such as Sports or Amazon2023-Video_Games.",
)
def _prepare(given: argparse.Namespace, settings: list[str]) -> None:
    both = {key: getattr(given, key) for key in ("user_core", "item_core", "shuffle_ties")}
    both = {key: value for key, value in both.items() if value is not None}
    columns = {field: getattr(given, field) for field in COLUMN_FLAGS if getattr(given, field) is not None}
    if given.interactions is None:
        from .preparation.obtain import advice, obtain
        from .preparation.public import describe

        wrong = {"--items": given.items, "--images": given.images, "--on-bad": given.on_bad}
        wrong |= {COLUMN_FLAGS[field]: column for field, column in columns.items()}
        _refuse(wrong, "without --from, which names your table of interactions")
        report = obtain(given.name, given.data_path, written=given.written, raw_dir=given.raw_dir, **both)
        print(f"{describe(report)}\n{advice(given.name, report)}")
    else:
        from .preparation.own_data import describe, prepare_own

        public = {"--raw_dir": given.raw_dir, "--as": given.written}
        _refuse(public, "with --from, but it is for public data sets; drop it")
        more = {"images": given.images, "columns": columns, "on_bad": given.on_bad or "skip", **both}
        print(describe(prepare_own(given.name, given.interactions, given.items, given.data_path, **more)))


def _refuse(flags: Mapping[str, object], why: str) -> None:
    for flag, value in flags.items():
        if value is not None:
            raise InputError(f"{flag}: found {str(value)!r} {why}")


@_command("images", "fetch the items' images from their addresses", NAME, DATA_PATH)
def _images(given: argparse.Namespace, settings: list[str]) -> None:
    from .preparation.image_download import fetch_images

    print(fetch_images(given.data_path / given.name))


@_command("features", "which item features there are, missing or stale", NAME, settings=True)
def _features(given: argparse.Namespace, settings: list[str]) -> None:
    from .config import Config
    from .experiments.feature_report import feature_report

    print(feature_report(Config("BBQRec", given.name, arguments=settings)))


# Studies


@_command(
    "leaderboard",
    "models side by side, from their records",
    DATASET,
    RESULTS,
    _option("--final", action="store_true", help="show the test split instead of validation"),
    _option("--models", default="", help="rows, separated by commas (default: all that have a record)"),
    _option("--keys", default="", help="run keys to show instead of the latest of their models"),
    _option("--against", metavar="MODEL", help="compare with this row (default: the best one)"),
    note="Records are made by run_recbole_bbqrec.py --model=A,B --dataset=X,Y --seeds=3, see there.",
)
def _leaderboard(given: argparse.Namespace, settings: list[str]) -> None:
    from .experiments import leaderboard

    models, keys = _names(given.models), _names(given.keys)
    print(leaderboard.write(given.dataset, given.results, given.final, models, keys, given.against))


@_command(
    "ablate",
    "BBQRec with one part changed at a time, over seeds",
    DATASET,
    RESULTS,
    _option("--seeds", type=int, default=3, help="runs of each row (default 3; 1 screens)"),
    _option("--rows", default="", help="names of rows, separated by commas (default: all that apply)"),
    _option("--final", action="store_true", help="also evaluate the test split"),
    _option("--table-only", action="store_true", help="make page and figure again from the records"),
    settings=True,
)
def _ablate(given: argparse.Namespace, settings: list[str]) -> int | None:
    from .experiments import ablation

    if not given.table_only:
        rows = _names(given.rows)
        return ablation.ablate(given.dataset, rows, given.seeds, settings, given.final, given.results)
    if settings or given.rows:
        raise InputError("--table-only reads records alone: give --dataset, --results and --final, nothing else")
    return ablation.remake(given.dataset, given.final, given.results)


@_command(
    "tune",
    "choose a model's settings on validation, within a budget of CPU time",
    _option("--model", required=True, help="name of the model"),
    DATASET,
    RESULTS,
    _option("--minutes", type=float, default=60.0, help="CPU time of all trials together (default 60)"),
    _option("--space", type=Path, metavar="FILE", help="keys and their values (default: the model's own)"),
    settings=True,
)
def _tune(given: argparse.Namespace, settings: list[str]) -> int:
    from .experiments.tune import tune

    return tune(given.model, given.dataset, given.minutes, settings, given.space, given.results)


@_command(
    "cost",
    "time and memory of scoring, with and without the codes",
    DATASET,
    RESULTS,
    _option("--users", type=int, default=1000, help="histories that are scored (default 1000)"),
    _option("--rounds", type=int, default=5, help="times each way of scoring is timed (default 5)"),
    settings=True,
)
def _cost(given: argparse.Namespace, settings: list[str]) -> None:
    from .experiments.cost import cost

    cost(given.dataset, given.users, given.rounds, settings, given.results)


@_command(
    "ids",
    "the item tokenizer's report cards over seeds, with and without CLUB",
    DATASET,
    RESULTS,
    _option("--seeds", type=int, default=5, help="fits of each tokenizer (default 5)"),
    settings=True,
)
def _ids(given: argparse.Namespace, settings: list[str]) -> None:
    from .experiments.ids import study

    study(given.dataset, given.seeds, settings, given.results)


# Use


@_command(
    "recommend",
    "recommend items after a history, from a run's folder",
    _option("folder", help="folder of a finished run, such as saved/BBQRec-ml-100k-2020-..."),
    _option(
        "--history",
        required=True,
        action="append",
        metavar="TOKEN,TOKEN",
        help="item tokens in time order, separated by commas; may be given several times",
    ),
    _option("-k", type=int, default=10, help="number of items (default 10)"),
)
def _recommend(given: argparse.Namespace, settings: list[str]) -> None:
    from .evaluation.report import markdown_table
    from .serving.bundle import load_bundle

    found = load_bundle(given.folder).recommend([_names(text) for text in given.history], given.k)
    for text, (items, scores, unknown) in zip(given.history, found, strict=True):
        print(f"after {text}" + (f" (unknown, ignored: {', '.join(unknown)})" if unknown else ""))
        rows = [[str(at), item, f"{score:.4f}"] for at, (item, score) in enumerate(zip(items, scores, strict=True), 1)]
        print(markdown_table(["rank", "item", "score"], rows) if rows else "no known item in it")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: --row would be taken for --rows, and a mistyped setting for an option.
    description = "Data sets, experiments on top of single runs, and recommendations from a finished run."
    parser = argparse.ArgumentParser("bbqrec", description=description, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (help, options, _, _, note) in COMMANDS.items():
        own = commands.add_parser(name, help=help, description=help, epilog=note, allow_abbrev=False)
        own.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        for flags, how in options:
            own.add_argument(*flags, **how)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 where a run failed, 2 where the user has something to mend."""
    given, settings = _parser().parse_known_args(arguments)
    name, command = given.command, COMMANDS[given.command]

    def work() -> int | None:
        if settings and not command.takes_settings:
            raise InputError(
                f"argument {settings[0]!r}: {name} takes no settings; bbqrec {name} --help lists its options"
            )
        return command.run(given, settings)

    return _answer(work, given.debug)


def run(arguments: Sequence[str]) -> int:
    """Run one command line of `run_recbole_bbqrec.py`; return the exit code as `main` does.

    Several models or data sets, or `--seeds`, ask for many runs, see `experiments.many`. `--debug` is read here: with
    it, the traceback stands before the error's one line.
    """
    from . import quick_start
    from .experiments import many

    debug = any(argument in ("--debug", "--debug=True") for argument in arguments)
    arguments = [argument for argument in arguments if argument.partition("=")[0] != "--debug"]

    def work() -> int | None:
        if many.asked_for(arguments):
            return many.run_many(arguments)
        quick_start.run(arguments)
        return None

    return _answer(work, debug)


def _answer(work: Callable[[], int | None], debug: bool) -> int:
    """Exit code of `work`, errors told in one line."""
    keep_freed_memory()
    try:
        code = work()
        sys.stdout.flush()
        return code or 0
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
