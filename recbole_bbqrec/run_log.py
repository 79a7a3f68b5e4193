"""What a run says: on the screen what people follow, in the log file everything."""

import logging
from pathlib import Path
from typing import Any

import recbole
from recbole.utils import init_logger

from .errors import InputError

DETAIL = {"detail": True}
"""As `extra` of a log call: its message goes into the file, and on the screen with `verbose` alone."""

_RECBOLE = Path(str(recbole.__file__)).parent


class _ForPeople(logging.Filter):
    """Lets pass what this project says of a run, and warnings of anybody."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_detail = getattr(record, "detail", False) or Path(record.pathname).is_relative_to(_RECBOLE)
        return record.levelno > logging.INFO or not is_detail


class _Plain(logging.Formatter):
    """The time and the message; warnings and errors are marked as such."""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return f"{self.formatTime(record, '%H:%M:%S')}  {level}{super().format(record)}"


_FILTER = _ForPeople()


def open_file(config: Any) -> None:
    """Have RecBole log to the screen and to a new file under `log/`; an `InputError` if that cannot be written."""
    try:
        init_logger(config)
    except OSError as error:
        where = "the log goes to log/ in the current folder; start the run in a folder that can be written"
        raise InputError(f"{error.filename}: {error.strerror}; {where}") from error


def start(config: Any) -> None:
    """Log to the screen and, whole, to a file under `log/`, which the first line names."""
    open_file(config)
    handlers = logging.getLogger().handlers
    for handler in handlers:
        if type(handler) is logging.StreamHandler:
            handler.removeFilter(_FILTER)  # of an earlier run in this process
            if not config["verbose"]:
                handler.setFormatter(_Plain())
                handler.addFilter(_FILTER)
    files = [Path(handler.baseFilename) for handler in handlers if isinstance(handler, logging.FileHandler)]
    where = f"; everything is in {_short(files[0])}" + "; --verbose shows it here" * (not config["verbose"])
    title = f"{config['model']} on {config['dataset']}, seed {config['seed']}"
    logging.getLogger().info(title + where * bool(files))


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
