"""Sections of docstrings as lists in words: what stands behind a name's colon here is a sentence, not a type."""

import re
from typing import Any

import griffe

SECTION = re.compile(
    r"^(Parameters|Attributes|Returns|Raises)\n-+\n(.*?)(?=^\w+\n-{3,}\n|\Z)", re.MULTILINE | re.DOTALL
)
ENTRY = re.compile(r"^(?P<names>[*\w, ]+?) : ", re.MULTILINE)


def as_list(match: re.Match[str]) -> str:
    """Return a section as a Markdown list, an entry each."""
    title, text = match.groups()
    if not ENTRY.search(text):
        return f"**{title}**: {' '.join(text.split())}\n\n"
    named = ENTRY.sub(
        lambda entry: f"- {', '.join(f'`{name}`' for name in entry['names'].split(', '))}: ", text.strip()
    )
    return f"**{title}**\n\n{named}\n\n"


class Words(griffe.Extension):
    """Turns every docstring before the site reads it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SECTION.sub(as_list, obj.docstring.value)
