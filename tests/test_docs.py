"""Pages that people read: links that lead somewhere, figures that come from there, a short README."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import recbole_bbqrec

ROOT = Path(recbole_bbqrec.__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("results/*.md"))]
SITE_ONLY = {"commands.md", "changes.md"}  # pages that the site makes
WITH_FIGURES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "results" / "README.md"]
LINK = re.compile(r"\]\(((?!https?:|mailto:)[^)\s]+)\)")
FIGURE = re.compile(r"(?<![\w.])0?(\.\d{4})(?![\w%])")
NO_TEXT = re.compile(r"^ *```\w+\n.*?^ *```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)  # code of a language, code in a line

pytestmark = pytest.mark.skipif(not PAGES, reason="needs a source checkout")


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end with, as GitHub names it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        there = page if not path else page.parent / path
        assert there.exists() or path in SITE_ONLY, target
        assert not anchor or anchor in anchors(there), target


def sections(page: Path) -> Iterator[str]:
    """The parts of a page from heading to heading, with links and output of programs, without code."""
    text = NO_TEXT.sub("", page.read_text(encoding="utf-8"))
    return iter(re.split(r"^#+ ", text, flags=re.MULTILINE))


def known(file: Path) -> set[str]:
    """Figures of four decimals in a page of results, its JSON included, or in a text beside the pages."""
    found = set(FIGURE.findall(file.read_text(encoding="utf-8")))
    content = file.parent / "files" / f"{file.stem}.json"
    if file.suffix == ".md" and content.is_file():
        json.loads(
            content.read_text(encoding="utf-8"), parse_float=lambda text: found.add(f"{abs(float(text)):.4f}"[-5:])
        )
    return found


@pytest.mark.parametrize("page", WITH_FIGURES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_figures_stand_in_the_results_that_their_section_links_to(page: Path) -> None:
    """A number of four decimals, such as .0648, stands in a page or a text of `results/` that its own section links to.

    A section goes from heading to heading. Code is left out, so settings such as `0.0003` are no figures; what a
    program has printed, a block without a language, is not.
    """
    for section in sections(page):
        files = [(page.parent / target.partition("#")[0]).resolve() for target in LINK.findall(section)]
        results = [file for file in files if ROOT / "results" in file.parents and file.suffix in (".md", ".txt")]
        missing = set(FIGURE.findall(section)).difference(*map(known, results))
        assert not missing, f"{section.splitlines()[0]}: not in {[file.name for file in results]}"


def test_a_figure_that_no_linked_page_has_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n`rate: 0.0001` 12.3456 .12 p 3e-4\n```yaml\nrate: 0.0002\n```\n## Two\n```\nndcg 0.0003\n```\n-.0004\n"
    )
    one, two = [set(FIGURE.findall(section)) for section in sections(page)][1:]
    assert (one, two) == (set(), {".0003", ".0004"})
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "page.json").write_text('{"mean": [-0.06484]}')
    assert known(page) >= {".0648", ".0003"}


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
