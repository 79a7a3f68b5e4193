"""The error for wrong input."""

from pathlib import Path


class InputError(ValueError):
    """The user's input is wrong: a key, a name, a file, a value.

    The message is one line that names the place, what was found, what was expected and what to do next. The run
    script prints it without a traceback and exits with code 2. Every other exception is a bug of the program.
    """


class RefusedKeyError(InputError):
    """A run does not know or does not use the key `key`."""

    def __init__(self, message: str, key: str = "") -> None:  # a copy is made of the message, and given its key then
        super().__init__(message)
        self.key = key


class MissingDataSetError(InputError):
    """The data set `name` is not in `folder`, the folder of data sets; `unused` is that of the `Config`."""

    def __init__(self, message: str, name: str, folder: Path, unused: dict[str, RefusedKeyError]) -> None:
        super().__init__(message)
        self.name, self.folder, self.unused = name, folder, unused
