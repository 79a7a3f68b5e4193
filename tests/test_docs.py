"""Pages that people read: links that lead somewhere, and a README of a length that is read."""

import re
from pathlib import Path

import pytest

import recbole_bbqrec

ROOT = Path(recbole_bbqrec.__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("results/*.md"))]
SITE_ONLY = {"commands.md", "changes.md"}  # pages that the site makes

pytestmark = pytest.mark.skipif(not PAGES, reason="needs a source checkout")


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may end with, as GitHub names it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(((?!https?:|mailto:)[^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        there = page if not path else page.parent / path
        assert there.exists() or path in SITE_ONLY, target
        assert not anchor or anchor in anchors(there), target


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
