"""What the site takes from beside its folder: pages of results, the notebook, the changelog, the help of the commands.

Pages link to files of the repository as they do on its own page, by `../results/Beauty.md`; here those links are turned
to where the site has them. A file that the site does not have is named without a link.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/tutorial.ipynb": "tutorial.ipynb",
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^]]*)\]\((?P<target>(?!https?:|#|mailto:)[^)\s]+)\)")


def _results() -> list[Path]:
    """Pages of `results/` and the files that go with them; records stay out of the site."""
    return sorted(path for kind in ("*.md", "files/*") for path in (ROOT / "results").glob(kind))


@event_priority(50)  # before the plugin of notebooks, which looks for them among the files
def on_files(files: Any, config: Any) -> Any:
    """Add to the pages of `docs/` what lies elsewhere or is made here."""
    for path in _results():
        place = _place_of(path.relative_to(ROOT).as_posix())
        files.append(File.generated(config, place, abs_src_path=str(path)))
    for name, place in MOVED.items():
        if name.endswith(".ipynb"):  # the plugin reads it from its folder
            files.append(File(place, str((ROOT / name).parent), config.site_dir, config.use_directory_urls))
        elif name != "README.md":
            files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "commands.md", content=_commands()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository to where the site has them; pages of results get the whole width."""
    source = page.file.src_uri
    home = "docs"
    if source.startswith("results/"):
        home = "results"
        page.meta["hide"] = ["navigation"]  # there is none below their tab, and their tables are wide
    if source in ("changes.md", "contributing.md", "security.md"):
        home = "."

    def turned(match: re.Match[str]) -> str:
        path, hash_, anchor = match["target"].partition("#")
        place = (ROOT / home / path).resolve()
        if not place.is_relative_to(ROOT):
            return match[0]
        found = _place_of(place.relative_to(ROOT).as_posix())
        if files.get_file_from_path(found) is None:
            return f"`{match['text'].strip('`')}`"
        up = "../" * source.count("/")
        return f"[{match['text']}]({up}{found}{hash_}{anchor})"

    return LINK.sub(turned, markdown)


def _place_of(path: str) -> str:
    """Where the site has a file of the repository."""
    path = MOVED.get(path, path)
    if path in ("results", "results/README.md"):
        return "results/index.md"
    return path.removeprefix("docs/")


def _commands() -> str:
    """The help of every command, as a page."""
    from recbole_bbqrec.cli.parser import COMMANDS, PARSER

    import recbole_bbqrec.cli  # noqa: F401  # isort: skip (enters the commands)

    parts = [
        "# Commands\n\nIn a checkout, `run_recbole_bbqrec.py` is `bbqrec train`. Settings, `--key=value`, are in "
        f"[settings](settings.md).\n\n{_help(PARSER)}"
    ]
    parts += [f"## bbqrec {name}\n\n{_help(parser)}" for name, parser in COMMANDS.choices.items()]
    return "\n".join(parts)


def _help(parser: Any) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        parser.print_help()
    return f"```text\n{text.getvalue().rstrip()}\n```\n"
