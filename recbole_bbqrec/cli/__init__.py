"""The command lines: `bbqrec train`, which `run_recbole_bbqrec.py` also is, and the commands around a run."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from ..errors import InputError, RefusedKeyError, did_you_mean, nearest
from ..training.allocation import keep_freed_memory

# The order of these imports is that of the commands in the help.
from . import data, train, studies, use  # noqa: F401  # isort: skip
from .parser import COMMANDS, PARSER  # isort: skip

SHARED = "give the command several times without it, and each takes runs that no other has taken"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 1 if a run failed, 2 if the input is wrong, 130 or 141 if cut short."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"] and not {"-h", "--help"} & set(arguments):
        return run(arguments[1:])  # settings alone, with the short options of RecBole's scripts
    if not arguments:
        PARSER.print_help()
        return 0
    if (name := arguments[0]) not in COMMANDS.choices and not name.startswith("-"):
        meant = did_you_mean(name, COMMANDS.choices, "").replace("?", "; ")
        print(f"error: {name}: no such command; {meant}bbqrec --help lists them", file=sys.stderr)
        return 2
    given, settings = PARSER.parse_known_args(arguments)
    given.settings = settings

    def work() -> int | None:
        from .. import distributed

        if distributed.is_asked_for():
            raise InputError(
                f"torchrun: found bbqrec {given.command}, which cannot be shared among processes; {SHARED}"
            )
        if settings and not given.takes_settings:
            options = re.findall(r"--[\w-]+", COMMANDS.choices[given.command].format_usage())
            near = nearest(settings[0].partition("=")[0], options, likeness=0.7)
            why = f"did you mean {near[0]}" if near else f"{given.command} takes no settings"
            why += f"; bbqrec {given.command} --help lists its options"
            if not settings[0].startswith("-"):
                why = "not expected; a value with blanks needs quotes"
            raise InputError(f"argument {settings[0]!r}: {why}")
        return given.work(given)

    return _answer(work, settings, given.debug)


def run(arguments: Sequence[str]) -> int:
    """Run one command line of `bbqrec train`; return the exit code as `main` does.

    Several models or data sets, or `--seeds`, ask for many runs, see `experiments.many`. `--debug` is read here: with
    it, the traceback stands before the error's one line.
    """
    from .. import distributed, quick_start
    from ..experiments import many

    debug = any(argument in ("--debug", "--debug=True") for argument in arguments)
    arguments = [argument for argument in arguments if argument.partition("=")[0] != "--debug"]

    def work() -> int | None:
        distributed.start()
        if many.asked_for(arguments):
            if distributed.world() > 1:
                raise InputError(
                    f"torchrun: found a command of many runs, which cannot be shared among processes; {SHARED}"
                )
            return many.run_many(arguments)
        quick_start.run(arguments)
        distributed.stop()
        return None

    return _answer(work, arguments, debug)


def _place_of(error: InputError, settings: Sequence[str]) -> str:
    """Return the file that a refused key stands in, as the beginning of the message; empty where there is none."""
    if not isinstance(error, RefusedKeyError):
        return ""
    from ..layers import file_with

    file = file_with(error.key, settings)
    return f"{file}: " * bool(file)


def _answer(work: Callable[[], int | None], settings: Sequence[str], debug: bool) -> int:
    """Run `work` and return its exit code; an error is printed in one line, once for all processes.

    settings : the arguments that may hold the key, or the file with the key, that an error is about.
    """
    from .. import distributed

    keep_freed_memory()
    try:
        code = work()
        sys.stdout.flush()
        return code or 0
    except InputError as error:
        if debug:
            traceback.print_exc()
        if distributed.is_first_to_say(str(error)):
            print(f"error: {_place_of(error, settings)}{error}", file=sys.stderr, flush=True)
        distributed.leave()
        return 2
    except KeyboardInterrupt:
        if distributed.is_first_to_say("interrupted"):
            print("interrupted; give the same command again to resume", file=sys.stderr)
        distributed.leave()
        return 130
    except BrokenPipeError:  # the reader of the output, such as head, has stopped; there is nothing to flush to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        distributed.leave()
        return 141
    except Exception:
        if not distributed.others_failed():
            raise
        return 1
