"""Files of the page, read once: what is not among them cannot be asked for. And the list of all requests, as HTML."""

import json
import re
from collections.abc import Iterator
from html import escape
from importlib import resources
from typing import Any, NamedTuple

PAGE = "page"
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
LIMITS = {
    "minimum": ("at least", ""),
    "maximum": ("at most", ""),
    "maxLength": ("at most", " characters"),
    "maxItems": ("at most", " entries"),
    "maxProperties": ("at most", " entries"),
}
"""Limits in a schema -> words before and after the number."""


class File(NamedTuple):
    content: bytes
    media_type: str


def page_files() -> dict[str, File]:
    """Content of the page's files by name."""
    files = resources.files("recbole_bbqrec.serving").joinpath(PAGE).iterdir()
    kinds = [(file, KINDS.get(file.name.rpartition(".")[2])) for file in files]
    return {file.name: File(file.read_bytes(), f"{kind}; charset=utf-8") for file, kind in kinds if kind}


def docs_page(frame: File, openapi: dict[str, Any]) -> str:
    """What OpenAPI says of each request, on one plain page; Swagger's own comes from other people's servers.

    `frame` is the page without them, with a mark where they belong.
    """
    models, parts = openapi["components"]["schemas"], []
    for path, methods in openapi["paths"].items():
        for method, about in methods.items():
            what = _marked(about.get("description", ""))
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{what}</p>")
            rows = [(each["name"], each["schema"], each.get("required")) for each in about.get("parameters", ())]
            body = about.get("requestBody", {}).get("content", {}).get("application/json", {})
            rows += _fields(models, body.get("schema", {}))
            if rows:
                cells = "".join(_row(name, schema, needed) for name, schema, needed in rows)
                parts.append(f"<table><thead><tr><th>Name<th>What<th>Default<tbody>{cells}</table>")
    page = frame.content.decode().replace("[about]", _marked(openapi["info"]["description"]), 1)
    return page.replace("[requests]", "".join(parts), 1)


Field = tuple[str, dict[str, Any], bool | None]


def _fields(models: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> Iterator[Field]:
    """Name, schema and whether it is required of each field of a model, and of those of the objects in its lists."""
    model = models.get(_model(schema), {})
    for name, about in model.get("properties", {}).items():
        each = about.get("items", {})
        described = {"description": models[_model(each)]["description"]} if _model(each) else {}
        yield f"{prefix}{name}", {**about, **described}, name in model.get("required", ())
        yield from _fields(models, each, f"{prefix}{name}[].")


def _model(schema: dict[str, Any]) -> str:
    return schema.get("$ref", "").rpartition("/")[2]


def _row(name: str, schema: dict[str, Any], required: bool | None) -> str:
    default = "required" if required else f"<code>{escape(json.dumps(schema.get('default')))}</code>"
    what = ": ".join(filter(None, (_words(schema), schema.get("description"))))
    return f"<tr><td><code>{escape(name)}</code><td>{_marked(what)}<td>{default}"


def _marked(text: str) -> str:
    """A text as HTML, with code where it has backticks."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _words(schema: dict[str, Any]) -> str:
    """A type in words, with its limits."""
    kind = " or ".join(map(_words, schema.get("anyOf", ()))) or schema.get("type", "object")
    if "items" in schema:
        kind += f" of {_words(schema['items'])}"
    limits = [f"{words} {schema[name]:.15g}{unit}" for name, (words, unit) in LIMITS.items() if name in schema]
    return ", ".join([kind, *limits])
