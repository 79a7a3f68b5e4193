"""The command lines: `run_recbole_bbqrec.py` for runs, `bbqrec` for everything on top of them."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

from .errors import InputError
from .preparation.raw import COLUMN_FLAGS
from .training.allocation import keep_freed_memory

SHOWN = 20  # lists of so many users are read on the screen; more of them are for a file

# The parts behind a command are imported when it is called: `bbqrec --help` needs neither torch nor RecBole.

SETTINGS = "Further --key=value arguments are settings, as for run_recbole_bbqrec.py; docs/settings.md has them all."
Work = Callable[[argparse.Namespace], int | None]

# No abbreviations: --row would be taken for --rows, and a mistyped setting for an option.
ABOUT = "Data sets, experiments on top of single runs, and recommendations from a finished run."
PARSER = argparse.ArgumentParser("bbqrec", description=ABOUT, allow_abbrev=False)
PARSER.add_argument("--debug", action="store_true", help="show the traceback of an error")
COMMANDS = PARSER.add_subparsers(dest="command", required=True, metavar="command")
"""All sub-commands, in the order in which people work: data, studies, use."""


def _command(help: str, *options: Any, settings: bool = False, note: str = "") -> Callable[[Work], Work]:
    """Make a sub-command of the function of its name; settings that follow its options stand in `given.settings`."""

    def enter(work: Work) -> Work:
        about: dict[str, Any] = {"help": help, "description": help, "epilog": note or SETTINGS * settings}
        parser = COMMANDS.add_parser(work.__name__.removeprefix("_").replace("_", "-"), **about, allow_abbrev=False)
        parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        for option in options:
            option(parser)
        parser.set_defaults(work=work, takes_settings=settings)
        return work

    return enter


def _names(text: str) -> list[str]:
    return [name for name in map(str.strip, text.split(",")) if name]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: {why}; expected a text file with one item token a line") from error


_option = partial(methodcaller, "add_argument")
NAME = _option("name", help="name of the data set")
DATASET = _option("--dataset", required=True, help="name of the data set")
RESULTS = _option("--results", type=Path, default=Path("results"), help="folder of pages and records")
DATA_PATH = _option("--data_path", type=Path, default=Path("dataset"), help="folder of data sets (default dataset)")
STUDY = DATASET, RESULTS


@_command(
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
def _prepare(given: argparse.Namespace) -> None:
    said = {key: value for key, value in vars(given).items() if value is not None}
    both = {key: said[key] for key in ("user_core", "item_core", "shuffle_ties") if key in said}
    wrong, why = {"raw_dir": "--raw_dir", "written": "--as"}, "with --from, but it is for public data sets; drop it"
    if given.interactions is None:
        wrong = {"items": "--items", "images": "--images", "on_bad": "--on-bad", **COLUMN_FLAGS}
        why = "without --from, which names your table of interactions"
    for key, flag in wrong.items():
        if key in said:
            raise InputError(f"{flag}: found {str(said[key])!r} {why}")
    if given.interactions is None:
        from .preparation.obtain import advice, obtain
        from .preparation.public import describe

        report = obtain(given.name, given.data_path, written=given.written, raw_dir=given.raw_dir, **both)
        print(f"{describe(report)}\n{advice(given.name, report)}")
    else:
        from .preparation.own_data import describe, prepare_own

        columns = {field: said[field] for field in COLUMN_FLAGS if field in said}
        more = {"images": given.images, "columns": columns, "on_bad": given.on_bad or "skip", **both}
        print(describe(prepare_own(given.name, given.interactions, given.items, given.data_path, **more)))


@_command("fetch the items' images from their addresses", NAME, DATA_PATH)
def _images(given: argparse.Namespace) -> None:
    from .preparation.image_download import fetch_images

    print(fetch_images(given.data_path / given.name))


@_command("which item features there are, missing or stale", NAME, settings=True)
def _features(given: argparse.Namespace) -> None:
    from .config import Config
    from .experiments.feature_report import feature_report

    print(feature_report(Config("BBQRec", given.name, arguments=given.settings)))


@_command(
    "models side by side, from their records",
    *STUDY,
    _option("--final", action="store_true", help="show the test split instead of validation"),
    _option("--models", type=_names, default=[], help="rows, separated by commas (default: all that have a record)"),
    _option("--keys", type=_names, default=[], help="run keys to show instead of the latest of their models"),
    _option("--against", metavar="MODEL", help="compare with this row (default: BBQRec, else the first of --models)"),
    note="Records are made by run_recbole_bbqrec.py --model=A,B --dataset=X,Y --seeds=5, see there.",
)
def _leaderboard(given: argparse.Namespace) -> None:
    from .experiments import leaderboard_page

    rows = given.models, given.keys, given.against
    print(leaderboard_page.write(given.dataset, given.results, given.final, *rows))


@_command(
    "BBQRec with one part changed at a time, over seeds",
    *STUDY,
    _option("--form", default="full", help="full, or with items known by codes alone: codes, codes-dense; generate"),
    _option("--seeds", type=int, default=3, help="runs of each row (default 3; 1 screens)"),
    _option("--rows", type=_names, default=[], help="names of rows, separated by commas (default: all that apply)"),
    _option("--final", action="store_true", help="also evaluate the test split"),
    _option("--table-only", action="store_true", help="make page and figure again from the records"),
    settings=True,
)
def _ablate(given: argparse.Namespace) -> int | None:
    from .experiments import ablation

    if not given.table_only:
        study = given.dataset, given.rows, given.seeds, given.settings, given.final, given.results
        return ablation.ablate(*study, given.form)
    if given.settings or given.rows:
        raise InputError("--table-only reads records alone: give --dataset, --form, --results and --final, no more")
    return ablation.remake(given.dataset, given.final, given.results, given.form)


@_command(
    "how items are ranked that training did not know, and what that costs the others",
    *STUDY,
    _option("--models", type=_names, default=[], help="names, separated by commas (default: all that can)"),
    _option("--seeds", type=int, default=3, help="runs of each model (default 3; 1 screens)"),
    _option("--final", action="store_true", help="also evaluate the test split"),
    settings=True,
)
def _cold(given: argparse.Namespace) -> int:
    from .experiments import cold

    return cold.study(given.dataset, given.models, given.seeds, given.settings, given.final, given.results)


@_command(
    "choose a model's settings on validation, within a budget of CPU time",
    _option("--model", required=True, help="name of the model"),
    *STUDY,
    _option("--minutes", type=float, default=60.0, help="CPU time of all trials together (default 60)"),
    _option("--space", type=Path, metavar="FILE", help="keys and their values (default: the model's own)"),
    _option("--storage", metavar="URL", help="database of the trials, for many processes (default: a file)"),
    settings=True,
)
def _tune(given: argparse.Namespace) -> int:
    from .experiments.tune import tune

    return tune(given.model, given.dataset, given.minutes, given.settings, given.space, given.results, given.storage)


@_command(
    "time and memory of scoring, with and without the codes; or accuracy against bytes of item parameters",
    *STUDY,
    _option("--users", type=int, help="histories that are scored (default 1000)"),
    _option("--rounds", type=int, help="times each way of scoring is timed (default 5)"),
    _option("--table", action="store_true", help="train ID tables of several widths and of codes instead"),
    _option("--seeds", type=int, help="with --table: trainings of each table (default 1)"),
    settings=True,
)
def _cost(given: argparse.Namespace) -> int | None:
    for name in ("users", "rounds") if given.table else ("seeds",):
        if getattr(given, name) is not None:
            raise InputError(f"--{name}: goes {'without' if given.table else 'with'} --table; drop one of the two")
    said = {key: value for key, value in vars(given).items() if value is not None}
    if given.table:
        from .experiments.item_bytes import study

        return study(given.dataset, said.get("seeds", 1), given.settings, given.results)
    from .experiments.cost import cost

    cost(given.dataset, said.get("users", 1000), said.get("rounds", 5), given.settings, given.results)
    return None


@_command(
    "the item tokenizer's report cards over seeds, with and without the probe",
    *STUDY,
    _option("--seeds", type=int, default=5, help="fits of each tokenizer (default 5)"),
    settings=True,
)
def _ids(given: argparse.Namespace) -> None:
    from .experiments.ids import study

    study(given.dataset, given.seeds, given.settings, given.results)


@_command(
    "what the second stage of a model is made of: fitted anew without each group of features",
    _option("--model", help="name of the model; the page has all models with records"),
    *STUDY,
    _option("--seeds", type=int, default=1, help="trainings of the model (default 1)"),
    _option("--table-only", action="store_true", help="make page and figure again from the records"),
    settings=True,
)
def _second_stage(given: argparse.Namespace) -> None:
    from .experiments import second_stage, second_stage_page

    if given.table_only:
        if given.settings or given.model:
            raise InputError("--table-only reads records alone: give --dataset and --results, nothing else")
        print(second_stage_page.write(given.dataset, given.results))
    elif not given.model:
        raise InputError("--model: found no name, expected that of a model, such as --model=BBQRec")
    else:
        print(second_stage.study(given.model, given.dataset, given.seeds, given.settings, given.results))


@_command(
    "recommend items after histories or to users, from a run's folder",
    _option("folder", help="folder of a finished run, such as saved/BBQRec-ml-100k-2020-..."),
    _option(
        "--history",
        action="append",
        metavar="TOKEN,TOKEN",
        help="item tokens in time order, separated by commas; may be given several times",
    ),
    _option("--users", metavar="USER,USER", help="users of the run's data set, or all; all that they did is read"),
    _option("-k", type=int, default=10, help="number of items (default 10)"),
    _option("--allow", type=Path, metavar="FILE", help="items to choose from, one token a line"),
    _option("--keep-seen", action="store_true", help="leave in what is in the history already"),
    _option("--explain", action="store_true", help="also show what spoke for each item (needs --second_stage=gbdt)"),
    _option("--out", type=Path, metavar="FILE", help="with --users: table to write, .csv or .parquet"),
    _option("--data_path", type=Path, metavar="FOLDER", help="with --users: folder of data sets (default: the run's)"),
)
def _recommend(given: argparse.Namespace) -> None:
    from .evaluation.report import markdown_table
    from .serving.bundle import load_bundle
    from .serving.lists import check_table, known_histories, write_lists

    users = _names(given.users or "")
    if bool(given.history) == bool(users):
        raise InputError("recommend: give either --history=TOKEN,TOKEN or --users=all (or USER,USER)")
    if not users and (given.out or given.data_path):
        raise InputError(f"--{'out' if given.out else 'data_path'}: goes with --users, not with --history")
    if given.out:
        if given.explain:
            raise InputError("--explain: goes with lists on the screen, not with --out; drop one of the two")
        check_table(given.out)
    bundle, allow = load_bundle(given.folder), None if given.allow is None else _lines(given.allow)
    if not users:
        histories = {text: _names(text) for text in given.history}
    else:
        histories = known_histories(bundle, given.data_path)
        wanted = list(histories) if users == ["all"] else users
        if strange := [user for user in wanted if user not in histories]:
            there = f"the {len(histories)} users of {bundle.settings['dataset']}"
            raise InputError(f"--users: {', '.join(strange[:3])} not among {there}, such as {next(iter(histories))}")
        histories = {user: histories[user] for user in wanted}
    if given.out:
        rows = write_lists(given.out, bundle, histories, given.k, not given.keep_seen, allow, progress=True)
        print(f"{given.out}: {rows} rows for {len(histories)} users")
        return
    if len(histories) > SHOWN:
        raise InputError(f"--users: {len(histories)} users, at most {SHOWN} are shown; --out=lists.csv writes a table")
    found = bundle.recommend(histories.values(), given.k, not given.keep_seen, allow, given.explain)
    header = ["rank", "item", "score", *(("for it spoke", "by") if given.explain else ())]
    for name, result in zip(histories, found, strict=True):
        items, scores, unknown = result
        ignored = f" (unknown, ignored: {', '.join(unknown)})" if unknown else ""
        print(f"{'user' if users else 'after'} {name}{ignored}")
        rows = [[str(at), item, f"{score:.4f}"] for at, (item, score) in enumerate(zip(items, scores, strict=True), 1)]
        for row, reason in zip(rows, getattr(result, "reasons", ()), strict=False):
            row += [f"{reason.signal} ({reason.share:.0%})", reason.item or ""]
        print(markdown_table(header, rows) if rows else "nothing: no known item in it, or none left")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 where a run failed, 2 where the user has something to mend."""
    given, settings = PARSER.parse_known_args(arguments)
    given.settings = settings

    def work() -> int | None:
        if settings and not given.takes_settings:
            why = f"{given.command} takes no settings; bbqrec {given.command} --help lists its options"
            if not settings[0].startswith("-"):
                why = "found a word too many; a value that holds blanks needs quotes"
            raise InputError(f"argument {settings[0]!r}: {why}")
        return given.work(given)

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
