"""Files of the page, read once: what is not among them cannot be asked for. And the list of all requests, as HTML."""

import mimetypes
from html import escape
from importlib import resources
from typing import Any, NamedTuple

PAGE = "page"


class File(NamedTuple):
    content: bytes
    media_type: str


def page_files() -> dict[str, File]:
    """Content of the page's files by name."""
    folder = resources.files("recbole_bbqrec.serving").joinpath(PAGE)
    if not folder.is_dir():
        return {}
    files = [file for file in folder.iterdir() if file.is_file()]
    return {file.name: File(file.read_bytes(), _media_type(file.name)) for file in files}


def _media_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def docs_page(openapi: dict[str, Any]) -> str:
    """What OpenAPI says of each request, on one plain page; Swagger's own comes from other people's servers."""
    parts = []
    for path, methods in openapi["paths"].items():
        for method, about in methods.items():
            what = escape(about.get("description", ""))
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{what}</p>")
            rows = [(each["name"], each["schema"], each.get("required")) for each in about.get("parameters", ())]
            rows += _fields(openapi, about.get("requestBody", {}))
            if rows:
                cells = "".join(_row(name, schema, needed) for name, schema, needed in rows)
                parts.append(f"<table><tr><th>name<th>what<th>default{cells}</table>")
    style = '<link rel="stylesheet" href="/static/style.css">'
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>bbqrec: requests</title>{style}'
    about = escape(openapi["info"]["description"])
    first = f'<h1>Requests</h1><p>{about} For programs: <a href="/openapi.json">/openapi.json</a>.</p>'
    return f"{head}<body><main>{first}{''.join(parts)}</main></body></html>"


def _fields(openapi: dict[str, Any], body: dict[str, Any]) -> list[tuple[str, dict[str, Any], bool | None]]:
    reference = body.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    schema = openapi["components"]["schemas"].get(reference.rpartition("/")[2], {})
    required = schema.get("required", ())
    return [(name, about, name in required) for name, about in schema.get("properties", {}).items()]


def _row(name: str, schema: dict[str, Any], required: bool | None) -> str:
    default = "required" if required else str(schema.get("default"))
    return f"<tr><td><code>{escape(name)}</code><td>{escape(_words(schema))}<td>{escape(default)}"


def _words(schema: dict[str, Any]) -> str:
    """A type in words, with its limits."""
    kinds = [_words(one) for one in schema.get("anyOf", ())]
    kind = " or ".join(kinds) or schema.get("type") or schema.get("$ref", "").rpartition("/")[2]
    if "items" in schema:
        kind += f" of {_words(schema['items'])}"
    names = {"minimum": "from", "maximum": "to", "maxItems": "at most", "maxLength": "characters, at most"}
    limits = [f"{words} {schema[name]}" for name, words in names.items() if name in schema]
    return ", ".join([kind, *limits, *([schema["description"]] if "description" in schema else [])])
