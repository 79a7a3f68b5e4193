"""Texts of items from columns: a plain list of columns, or a template such as `{title}[ by {brand}][, in {tags}]`."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import InputError


class Template(NamedTuple):
    """How the cells of an item become its text.

    Each part is words and columns in turn, words first, and whether it stood in brackets, which makes it optional.
    """

    parts: list[tuple[list[str], bool]]

    @property
    def columns(self) -> list[str]:
        """Names of the columns, each once, in the order they are met."""
        return list(dict.fromkeys(name for pieces, _ in self.parts for name in pieces[1::2]))

    def fill(self, cells: Mapping[str, str]) -> str:
        """Return the text of an item with these cells, blanks joined; "" where no cell that is shown says anything."""
        shown = [pieces for pieces, optional in self.parts if not optional or all(map(cells.get, pieces[1::2]))]
        if not any(cells[name] for pieces in shown for name in pieces[1::2]):
            return ""
        text = "".join(cells[piece] if at % 2 else piece for pieces in shown for at, piece in enumerate(pieces))
        return " ".join(text.split())


def parse(key: str, fields: str | list[str] | None) -> Template:
    """Return the template of a setting: names of columns, which is one with blanks between them, or a text with `{`.

    Raises
    ------
    InputError : brackets or braces do not pair, are nested or empty, or there is no column. `key` is the setting.
    """
    if not isinstance(fields, str) or "{" not in fields:
        names = fields.split() if isinstance(fields, str) else fields or []
        return Template([([piece for name in names for piece in (" ", str(name))] + [""], False)])
    parts = []
    for at, part in enumerate(re.split(r"\[([^][]*)\]", fields)):  # what stood in brackets has the odd places
        pieces, found = re.split(r"\{([^{}]*)\}", part), ""
        if wrong := re.search(r"[][{}]", "".join(pieces[::2])):
            found = f"a {wrong[0]} without its other half, or brackets and braces within one another"
        elif "" in pieces[1::2]:
            found = "{} without the name of a column"
        elif at % 2 and len(pieces) == 1:
            found = f"[{part}] without a column"
        if found:
            raise InputError(
                f"{key}: found {found} in {fields!r}, expected columns as {{title}}, and parts that go when one of "
                "their columns is blank as [ by {brand}]; correct the template"
            )
        parts.append((pieces, at % 2 == 1))
    return Template(parts)
