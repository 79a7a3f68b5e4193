"""What a search chooses from: keys with their values, from a YAML file, and the order in which settings are drawn."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import InputError
from ..settings import EXTENDS, PROPERTIES
from .records import comparable_settings
from .runner import Planned, say

SPACES = PROPERTIES / "tune"
"""Folder of the spaces that come with the program, `<Model>.yaml`."""

# What all trials share, or they could not be compared.
PROTOCOL = (
    *("model", "dataset", "seed", "eval_args", "metrics", "topk", "valid_metric", "repeatable", "shuffle_ties"),
    *("epochs", "stopping_step", "eval_step", "load_col"),
)

Space = dict[str, list[Any]]
"""Key -> its values."""


def space_file(model: str, given: Path | None = None) -> Path:
    """Return the file of a model's space: the given one, or the one that comes with the program.

    Raises
    ------
    InputError : there is none; it says where to put one.
    """
    path = given or SPACES / f"{model}.yaml"
    if not path.is_file():
        where = f"--space={given}: no such file" if given else f"--model={model}: found no space to search"
        raise InputError(f"{where}; write lines key: [value, value] into a file for --space=FILE, or into {path}")
    return path


def read_space(path: Path, loader: Any = yaml.SafeLoader) -> Space:
    """Read a space; the keys of the model whose space it `extends` come first.

    Raises
    ------
    InputError : the file cannot be read, or something in it is no list of different values.
    """
    space, files = {}, [path]
    for file in files:
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{file}: not a readable YAML file ({' '.join(str(error).split())})") from error
        if not isinstance(content, dict) or not content:
            raise InputError(f"{file}: found no keys, expected lines of the form key: [value, value]")
        if (base := content.pop(EXTENDS, None)) is not None:
            below = SPACES / f"{base}.yaml"
            if not below.is_file() or below in files:
                raise InputError(f"{file}: {EXTENDS} {base!r}, expected another model that has a file in {SPACES}")
            files.append(below)
        for key, values in content.items():
            if not isinstance(values, list) or not values or any(values.count(value) > 1 for value in values):
                wanted = "a list of different values, such as [0.1, 0.3]"
                raise InputError(f"{file}: {key}: found {values!r}, expected {wanted}")
        space = {**content, **space}
    return space


def checked_space(path: Path, space: Space, run: Planned) -> Space:
    """Return the keys of a space that the command leaves open, every value in the type of its key.

    Parameters
    ----------
    path : its file, for messages.
    run : the settings that all trials share.

    Raises
    ------
    InputError : a key that the model does not know, that no result depends on or that belongs to the protocol, a value
        that the key does not take, or nothing is left to search.
    """
    fixed = ", ".join(key for key in space if key in run.given)
    checked: Space = {key: [] for key in space if key not in run.given}
    if not checked:
        raise InputError(f"{path}: the command fixes all of its keys ({fixed}); nothing is left to search")
    if fixed:
        say(f"not searched, for the command fixes it: {fixed}")
    deciding = comparable_settings(run.config())
    for key, found in checked.items():
        if key in PROTOCOL:
            raise InputError(f"{path}: {key}: all trials share it; take it out of the space")
        for value in space[key]:
            try:
                found.append(Planned(run.name, {**run.given, str(key): value}, run.files).config()[key])
            except InputError as error:
                raise InputError(f"{path}: {key}: {error}") from error
        if key not in deciding:
            raise InputError(f"{path}: {key}: no result depends on it; take it out of the space")
    return checked


def drawn(space: Mapping[str, list[Any]], defaults: Mapping[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    """Yield the defaults, then settings drawn evenly from the space, none of them twice, until all have been.

    Equal spaces give equal settings in equal order, whatever the order of their keys.

    Parameters
    ----------
    defaults : a value for every key of the space; it need not be one of the key's values.
    """
    generator = np.random.default_rng(seed)
    keys = sorted(space)
    yield {key: defaults[key] for key in keys}
    size, known = math.prod(len(space[key]) for key in keys), set[tuple[int, ...]]()
    while len(known) < size:
        places = tuple(int(generator.integers(len(space[key]))) for key in keys)
        settings = {key: space[key][place] for key, place in zip(keys, places, strict=True)}
        if places not in known and any(settings[key] != defaults[key] for key in keys):
            yield settings
        known.add(places)
