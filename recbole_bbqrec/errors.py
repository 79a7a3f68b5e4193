"""The one error a user is meant to read."""


class InputError(ValueError):
    """Something the user gave is wrong: a key, a name, a file, a value.

    The message is one line that names the place, what was found, what was expected and what to do next. The run
    script prints it without a traceback and exits with code 2; every other exception is a fault of the program.
    """
