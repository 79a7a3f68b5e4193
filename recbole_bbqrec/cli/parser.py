"""The parser of `bbqrec`, how a command comes into it, and the options that several share.

The parts behind a command are imported when it is called: `bbqrec --help` needs neither torch nor RecBole.
"""

import argparse
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InputError

SETTINGS = "Further --key=value arguments are settings, as for bbqrec train; docs/settings.md has them all."
Work = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as those of the commands are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")


# No abbreviations: --row would be taken for --rows, and a mistyped setting for an option.
ABOUT = "Prepare data sets, train and evaluate models, compare many runs, and recommend with a finished one."
PARSER = Parser(
    "bbqrec",
    usage="bbqrec [-h] [--debug] command ...",
    description=ABOUT,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
)
PARSER.add_argument("--debug", action="store_true", help="show the traceback of an error")
COMMANDS = PARSER.add_subparsers(
    dest="command", required=True, prog="bbqrec", metavar="command", help=argparse.SUPPRESS
)
"""All sub-commands, in the order in which people work."""
GROUPS: dict[str, list[str]] = {"data": [], "train": [], "studies": [], "use": []}
"""Lines of the help by what people are about to do; a command stands with those of its module."""


def command(help: str, *options: Any, settings: bool = False, note: str = "") -> Callable[[Work], Work]:
    """Turn a function into the sub-command of its name; settings that follow the options go into `given.settings`."""

    def enter(work: Work) -> Work:
        name = work.__name__.removeprefix("_").replace("_", "-")
        about: dict[str, Any] = {"description": help, "epilog": note or SETTINGS * settings}
        parser = COMMANDS.add_parser(name, **about, allow_abbrev=False)
        lines = textwrap.wrap(help, 78, initial_indent=f"  {name:14}", subsequent_indent=" " * 16)
        GROUPS[work.__module__.rpartition(".")[2]] += lines
        PARSER.epilog = "\n\n".join("\n".join([f"{title}:", *found]) for title, found in GROUPS.items())
        parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        for add in options:
            add(parser)
        parser.set_defaults(work=work, takes_settings=settings)
        return work

    return enter


def names(text: str) -> list[str]:
    """Return what stands between commas."""
    return [name for name in map(str.strip, text.split(",")) if name]


def lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{path}: {why}; expected a text file with one item token a line") from error


def option(*flags: str, **about: Any) -> Callable[[argparse.ArgumentParser], argparse.Action]:
    """Return a function that adds an option to a parser, given the arguments of `add_argument`."""
    return lambda parser: parser.add_argument(*flags, **about)


NAME = option("name", help="name of the data set")
DATASET = option("--dataset", required=True, help="name of the data set")
RESULTS = option("--results", type=Path, default=Path("results"), help="folder of pages and records (default results)")
DATA_PATH = option("--data_path", type=Path, default=Path("dataset"), help="folder of data sets (default dataset)")
STUDY = DATASET, RESULTS
