"""The error for wrong input, and the names that a wrong one may have been meant for."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """The user's input is wrong: a key, a name, a file, a value.

    The message is one line that names the place, what was found, what was expected and what to do next. The run
    script prints it without a traceback and exits with code 2. Every other exception is a bug of the program.
    """


class RefusedKeyError(InputError):
    """A run does not know or does not use the key `key`."""

    def __init__(self, message: str, key: str = "") -> None:  # a copy is made from the message and then given its key
        super().__init__(message)
        self.key = key


class MissingDataSetError(InputError):
    """The data set `name` is not in `folder`, the folder of data sets; `unused` is that of the `Config`."""

    def __init__(self, message: str, name: str, folder: Path, unused: dict[str, RefusedKeyError]) -> None:
        super().__init__(message)
        self.name, self.folder, self.unused = name, folder, unused


def nearest(name: str, known: Iterable[str], n: int = 1, likeness: float = 0.6) -> list[str]:
    """Return at most `n` of `known` that `name` may be a misspelling of, likeliest first; case does not matter.

    likeness : least similarity, from 0 to 1.
    """
    spelt = {entry.lower(): entry for entry in known}
    return [spelt[near] for near in difflib.get_close_matches(name.lower(), spelt, n, likeness)]


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a message's question, which names the likeliest of `known`, or `otherwise` where none is like `name`."""
    near = nearest(name, known)
    return f"did you mean {near[0]}?" if near else otherwise


def listed(name: str, known: Iterable[str]) -> str:
    """Return `known` as a sentence for an error message, with the one most like `name` first."""
    known = list(known)
    there = f"present: {', '.join(known) if known else 'none'}"
    return f"{meant} {there}" if (meant := did_you_mean(name, known, "")) else there
