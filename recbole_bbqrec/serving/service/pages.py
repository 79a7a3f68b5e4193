"""Files of the page, read once: what is not among them cannot be asked for. And the list of all requests, as HTML."""

from html import escape
from importlib import resources
from typing import Any, NamedTuple

PAGE = "page"
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


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
    parts = []
    for path, methods in openapi["paths"].items():
        for method, about in methods.items():
            what = escape(about.get("description", ""))
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{what}</p>")
            rows = [(each["name"], each["schema"], each.get("required")) for each in about.get("parameters", ())]
            rows += _fields(openapi, about.get("requestBody", {}))
            if rows:
                cells = "".join(_row(name, schema, needed) for name, schema, needed in rows)
                parts.append(f"<table><thead><tr><th>Name<th>What<th>Default<tbody>{cells}</table>")
    page = frame.content.decode().replace("[about]", escape(openapi["info"]["description"]), 1)
    return page.replace("[requests]", "".join(parts), 1)


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
