"""Texts of items from columns: a plain list of columns, or a template such as `{title}[ by {brand}][, in {tags}]`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import InputError

EXPECTED = "expected columns as {title}, and parts that go when one of their columns is blank as [ by {brand}]"


class Part(NamedTuple):
    """A piece of a template: words around columns, one more of them than columns; an optional one stood in brackets."""

    words: tuple[str, ...]
    columns: tuple[str, ...]
    optional: bool


@dataclass(frozen=True)
class Template:
    """How the cells of an item become its text."""

    parts: tuple[Part, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, each once, in the order they are met."""
        return tuple(dict.fromkeys(column for part in self.parts for column in part.columns))

    def fill(self, cells: Mapping[str, str]) -> str:
        """Return the text of an item with these cells, blanks joined; "" where no cell that is shown says anything."""
        shown = [part for part in self.parts if not part.optional or all(cells[name] for name in part.columns)]
        if not any(cells[name] for part in shown for name in part.columns):
            return ""
        return " ".join("".join(_fill(part, cells) for part in shown).split())


def is_template(fields: Sequence[str]) -> bool:
    """Whether the fields of a modality are a template: a single entry that holds `{`."""
    return len(fields) == 1 and "{" in fields[0]


def parse(key: str, fields: Sequence[str]) -> Template:
    """Return the template of a modality's fields; a list of columns is one with blanks between them.

    Parameters
    ----------
    key : setting the fields come from, for error messages.
    fields : names of columns, or a template as the only entry.

    Raises
    ------
    InputError : brackets or braces do not pair, are nested or empty, or there is no column.
    """
    if not is_template(fields):
        return Template((Part(("", *[" "] * (len(fields) - 1), ""), tuple(fields), False),))
    text = fields[0]
    parts: list[Part] = []
    rest = 0
    for found in re.finditer(r"\[([^][]*)\]", text):
        parts += [_part(key, text, text[rest : found.start()]), _part(key, text, found[1], optional=True)]
        rest = found.end()
    parts.append(_part(key, text, text[rest:]))
    return Template(tuple(part for part in parts if part.columns or any(part.words)))


def _part(key: str, template: str, text: str, optional: bool = False) -> Part:
    pieces = re.split(r"\{([^{}]*)\}", text)
    part = Part(tuple(pieces[::2]), tuple(pieces[1::2]), optional)
    wrong = re.search(r"[][{}]", "".join(part.words))
    found = ""
    if wrong and wrong[0] in "[]":
        found = f"a {wrong[0]} without its other half, or brackets within brackets"
    elif wrong:
        found = f"a {wrong[0]} without its other half, or one around another or a bracket"
    elif "" in part.columns:
        found = "{} without the name of a column"
    elif optional and not part.columns:
        found = f"[{text}] without a column"
    if found:
        raise InputError(f"{key}: found {found} in {template!r}, {EXPECTED}; correct the template")
    return part


def _fill(part: Part, cells: Mapping[str, str]) -> str:
    filled = [cells[name] + words for name, words in zip(part.columns, part.words[1:], strict=True)]
    return "".join([part.words[0], *filled])
