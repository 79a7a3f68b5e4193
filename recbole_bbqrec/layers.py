"""What a run is given: the command line, files of settings, and which of them wins."""

import ast
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config as RecBoleConfig

from .errors import InputError

SHORT = {"-m": "--model", "-d": "--dataset", "-p": "--config_files"}
"""Options of RecBole's own scripts."""

SWITCHES = ("--final", "--verbose")
"""Options that may stand without a value."""

MERGED = ("eval_args", "load_col")
"""Dicts of which a layer of settings may give a part: the rest stays that of the layers below."""


def joined(arguments: Sequence[str]) -> list[str]:
    """Bring arguments to the form `--key=value`, from `--key value` and the short options of RecBole's scripts too."""
    found: list[str] = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        waits = bool(found) and found[-1].startswith("--") and "=" not in found[-1]
        if waits and (not argument.startswith("-") or re.match(r"-\.?\d", argument)):
            found[-1] += f"={argument}"
        else:
            found.append(SHORT.get(key, key) + equals + text)
    return [f"{argument}=True" if argument in SWITCHES else argument for argument in found]


def parse_command_line(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn arguments into a dict, see `joined`; values are Python or YAML-like literals, never evaluated code."""
    parsed: dict[str, Any] = {}
    for argument in joined(arguments):
        key, equals, text = argument[2:].partition("=")
        if not argument.startswith("--") or not equals or not key:
            raise InputError(f"argument {argument!r}: expected --key=value or --key value")
        if key in parsed and parsed[key] != _literal(text):
            raise InputError(f"--{key} is given twice, with {parsed[key]!r} and {text!r}; keep one")
        parsed[key] = _literal(text)
    return parsed


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None, "null": None, "~": None}.get(text.lower(), text)


def files_of(given: Mapping[str, Any]) -> list[str]:
    """Return the names of the files that a parsed command line has as `config_files`."""
    return str(given.get("config_files") or "").split()


def read_files(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings in the files that `--config_files` names among the arguments, later ones over earlier."""
    return layered(*map(read_yaml, files_of(parse_command_line(arguments))))


def file_with(key: str, arguments: Sequence[str]) -> str:
    """Return the file of `--config_files` that decides `key`, which is not among the arguments itself, or nothing."""
    given = parse_command_line(arguments)
    names = [] if key in given else files_of(given)
    return next((name for name in reversed(names) if key in read_yaml(name)), "")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the settings in a file."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=plain_loader())
    except OSError as error:
        raise InputError(f"config file {path}: {error.strerror}; give the path of a YAML file") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"config file {path}: no valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, (dict, type(None))):
        raise InputError(f"config file {path}: found {type(content).__name__}, expected lines of the form key: value")
    return content or {}


@functools.cache
def plain_loader() -> Any:
    """RecBole's loader makes any Python object that a file names; this one makes plain data, with its floats."""
    resolvers = RecBoleConfig.__dict__["_build_yaml_loader"](None).yaml_implicit_resolvers
    return type("PlainLoader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return layers of settings as one, later ones over earlier; of the dicts `MERGED`, part by part."""
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key == "eval_args" and value is None:  # there is no evaluation without
                continue
            below = found.get(key)
            if key in MERGED and isinstance(value, dict) and isinstance(below, dict):
                value = {**below, **value}
            found[key] = value
    return found
