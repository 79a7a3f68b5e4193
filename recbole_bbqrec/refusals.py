"""RecBole's refusals of settings, told apart from errors of a wrong call of ours, as one line."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import recbole

from .config import Config
from .data.dataset import SEMANTIC_ID
from .errors import InputError

OURS, RECBOLES = (Path(str(package)).parent for package in (__file__, recbole.__file__))
HAND_OVER = ("registry.py", "dataloader.py", "interactions.py")
"""Modules that hand the settings to classes of RecBole; an override does so by calling what it overrides."""
NAMES_AND_PLACES = ("model", "dataset", "load_col", "data_path", "checkpoint_dir", "config_files", "benchmark_filename")
"""Settings whose values may stand in an error without being its cause."""


@contextlib.contextmanager
def recbole_refusals(config: Config) -> Iterator[None]:
    """Turn errors by which RecBole refuses settings while data and model are built into `InputError`.

    RecBole reads many settings only then. An error is its refusal where its own code, left to itself with the settings,
    raises it on purpose, or trips over something that the run has named. Errors about columns that we have loaded and
    everything else may well come from a wrong call of ours, and keep their traceback.
    """
    try:
        yield
    except (ValueError, KeyError, NotImplementedError) as error:
        if isinstance(error, InputError) or not _is_refusal(error, config):
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"RecBole refuses these settings ({text}); --debug shows where") from error


def _is_refusal(error: Exception, config: Config) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    last_of_ours = max(at for at, frame in enumerate(frames) if Path(frame.filename).is_relative_to(OURS))
    if not Path(frames[-1].filename).is_relative_to(RECBOLES):
        return False
    caller, called = frames[last_of_ours : last_of_ours + 2]
    if Path(caller.filename).name not in HAND_OVER and caller.name != called.name:
        return False
    columns = _strings(list((config["load_col"] or {}).values())) | {SEMANTIC_ID}
    defaults = config.internal_config_dict
    given = {
        key: value
        for key, value in config.external_config_dict.items()
        if key not in NAMES_AND_PLACES and value != defaults.get(key)
    }
    words = set(re.findall(r"\w+", str(error)))
    on_purpose = str(frames[-1].line).startswith("raise ")
    return bool(words & (_strings(given) - columns)) or (on_purpose and not words & columns)


def _strings(value: Any) -> set[str]:
    """All strings in nested settings, keys included."""
    if isinstance(value, dict):
        return _strings([*value, *value.values()])
    if isinstance(value, list | tuple | set):
        return {text for part in value for text in _strings(part)}
    return {value} if isinstance(value, str) else set()
