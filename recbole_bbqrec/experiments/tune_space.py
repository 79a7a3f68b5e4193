"""What a search chooses from: files of keys with their values, checked, and settings drawn from them."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors import InputError
from ..settings import EXTENDS, PROPERTIES
from .records import comparable_settings
from .runner import Planned

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
    if path.is_file():
        return path
    if given:
        raise InputError(f"--space={given}: no such file; give the path of a YAML file with lines key: [value, value]")
    raise InputError(
        f"--model={model}: found no space to search; write lines key: [value, value] into a file for --space=FILE, "
        f"or into {path}"
    )


def read_space(path: Path, loader: Any = yaml.SafeLoader) -> Space:
    """Read a space; the keys of the model whose space it `extends` come first.

    Raises
    ------
    InputError : the file cannot be read, or something in it is no list of different values.
    """
    return _read(path, loader, ())


def _read(path: Path, loader: Any, readers: tuple[Path, ...]) -> Space:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: found no keys, expected lines of the form key: [value, value]")
    base, space = content.pop(EXTENDS, None), {}
    if base is not None:
        below = SPACES / f"{base}.yaml"
        if not below.is_file() or below in (path, *readers):
            raise InputError(f"{path}: {EXTENDS} {base!r}, expected another model that has a file in {SPACES}")
        space = _read(below, loader, (path, *readers))
    for key, values in content.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: {key}: found {values!r}, expected a list of values, such as [0.1, 0.3]")
        if any(value in values[:at] for at, value in enumerate(values)):
            raise InputError(f"{path}: {key}: found a value twice in {values!r}, expected different ones")
    return {**space, **content}


def checked_space(path: Path, space: Space, run: Planned) -> Space:
    """Return a space with every value in the type of its key.

    Parameters
    ----------
    path : its file, for messages.
    run : the settings that all trials share.

    Raises
    ------
    InputError : a key that the model does not know, that decides no result or that belongs to the protocol, or a value
        that the key does not take.
    """
    base = comparable_settings(run.config())
    checked: Space = {}
    for key, values in space.items():
        if key in PROTOCOL:
            raise InputError(f"{path}: {key}: all trials share it; take it out of the space")
        checked[key] = []
        for value in values:
            try:
                config = Planned(run.name, {**run.given, str(key): value}, run.files).config()
            except InputError as error:
                raise InputError(f"{path}: {key}: {error}") from error
            if key not in base:
                raise InputError(f"{path}: {key}: no result depends on it; take it out of the space")
            checked[key].append(config[key])
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
        if places in known:
            continue
        known.add(places)
        settings = {key: space[key][place] for key, place in zip(keys, places, strict=True)}
        if any(settings[key] != defaults[key] for key in keys):
            yield settings
