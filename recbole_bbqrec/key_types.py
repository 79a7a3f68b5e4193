"""What is said of a key of a run: its type, its bounds and when it is used; and how written values are read."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Allowed:
    """What the values of a key may be, in words and as a check; of a list, what its elements may be."""

    words: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Use:
    """When a run uses a key: in words, as a check of the run's settings and the key's value, and what else to do."""

    words: str
    holds: Callable[[Settings, Any], bool]
    instead: str = "drop it"


@dataclass(frozen=True)
class Key:
    """A key of a run: the type of its values, what it means, what it may be, and whether it may be empty (`~`).

    `used` are the conditions under which a run uses it, all of them; `form` turns what people write into the form that
    is read; `parts` are the keys of a dict, where they are known.
    """

    type: type
    meaning: str
    allowed: Allowed | None = None
    may_be_empty: bool = False
    used: tuple[Use, ...] = ()
    form: Callable[[Any], Any] | None = None
    parts: tuple[str, ...] = ()


POSITIVE = Allowed("a number above 0", lambda value: value > 0)
NOT_NEGATIVE = Allowed("0 or more", lambda value: value >= 0)
PROBABILITY = Allowed("a probability in [0, 1)", lambda value: 0 <= value < 1)
SEED = Allowed("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32)
FACTOR = Allowed("numbers above 0 and at most 1", lambda value: 0 < value <= 1)


def parts_of(value: Any) -> Any:
    """Return the parts of a list that is written as text, `NDCG,Recall` or `[5,10]`."""
    return [part.strip(" '\"") for part in value.strip("[] ").split(",")] if isinstance(value, str) else value


def whole_parts_of(value: Any) -> Any:
    """As `parts_of`, with whole numbers in any form as `int`."""
    value = parts_of(value)
    if not isinstance(value, (list, tuple, int, float)):
        return value
    parts = value if isinstance(value, (list, tuple)) else [value]
    return [int(float(part)) if re.fullmatch(r"\d+(\.0*)?", str(part)) else part for part in parts]


CUT_OFFS = Allowed("whole numbers above 0", lambda value: isinstance(value, int) and value > 0)


def one_of(*names: str, words: str = "one of {}") -> Allowed:
    """Allow these names alone."""
    return Allowed(words.format(", ".join(names)), lambda value: value in names, names)


def whole(least: int, most: int) -> Allowed:
    """Allow whole numbers from `least` to `most`."""
    return Allowed(f"whole numbers from {least} to {most}", lambda value: value in range(least, most + 1))


def only(words: str, holds: Callable[[Settings], bool], instead: str = "drop it") -> tuple[Use, ...]:
    """Make the condition that looks at the settings alone."""
    return (Use(f"only {words}", lambda run, _: holds(run), instead),)


def never(words: str, instead: str = "drop it") -> tuple[Use, ...]:
    """Make the condition that no run fulfils, for this reason."""
    return (Use(words, lambda *_: False, instead),)
