"""Templates: the text of an item from its cells, and what is no template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_bbqrec.data.feature_sources import Template, template_of
from recbole_bbqrec.errors import InputError


def parse(key: str, fields: str | list[str] | None) -> Template:
    return template_of({key: fields}, key.removesuffix("_fields"))


PLACES = "{title}[ by {brand}][, in {tags}]"


@pytest.mark.parametrize(
    ("template", "cells", "expected"),
    [
        (PLACES, ("lamp", "Acme", "home"), "lamp by Acme, in home"),
        (PLACES, ("lamp", "", "home"), "lamp, in home"),
        (PLACES, ("", "Acme", ""), "by Acme"),
        (PLACES, ("", "", ""), ""),
        ("A {title} of {brand}.", ("lamp", "", ""), "A lamp of ."),
        ("A {title} of {brand}.", ("", "", "home"), ""),
        ("Film: [{title} ({brand})]", ("lamp", "", ""), ""),  # words alone are no text
        ("[{title} by {brand} and {title}]", ("x", "y", ""), "x by y and x"),
        ("{title}{brand}", ("a", "b", ""), "ab"),
        ("  {title}\n  {brand} ", ("a", "b", ""), "a b"),
        ("{title}, {title}", ("{brand}[", "", ""), "{brand}[, {brand}["),  # cells are never read as templates
    ],
)
def test_templates_are_filled(template: str, cells: tuple[str, ...], expected: str) -> None:
    found = parse("text_fields", template)
    assert found.fill(dict(zip(("title", "brand", "tags"), cells, strict=True))) == expected


CELL = st.text("ab \t", max_size=4)


@given(st.lists(CELL, min_size=1, max_size=4))
def test_a_list_of_columns_is_joined_by_blanks(values: list[str]) -> None:
    columns = list("wxyz"[: len(values)])
    found = parse("text_fields", columns)
    assert found.columns == columns and found == parse("text_fields", " ".join(columns))
    cells = dict(zip(columns, (" ".join(value.split()) for value in values), strict=True))
    assert found.fill(cells) == " ".join(" ".join(values).split())


def test_columns_are_named_once_in_order() -> None:
    assert parse("text_fields", "{b}[ {a} {b}]{c}").columns == ["b", "a", "c"]
    assert parse("text_fields", ["{a}", "b"]).columns == ["{a}", "b"]
    assert parse("text_fields", "").columns == parse("text_fields", None).columns == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{title", r"found a \{ without its other half"),
        ("{title}}", r"found a \} without its other half"),
        ("{ti{tle}}", r"found a \{"),
        ("{title} [by {brand}", r"found a \[ without its other half"),
        ("{title}] by {brand}", r"found a \] without its other half"),
        ("{title}[ by {brand}[ in {tags}]]", r"found a \[ .*brackets and braces within one another"),
        ("{tit[le}]", r"found a \{ .*brackets and braces within one another"),
        ("{}", "found {} without the name of a column"),
        ("{title}[ by hand]", r"found \[ by hand\] without a column"),
    ],
)
def test_what_is_no_template(template: str, message: str) -> None:
    with pytest.raises(InputError, match=f"image_fields: {message}.*expected columns as .*correct the template"):
        parse("image_fields", template)
