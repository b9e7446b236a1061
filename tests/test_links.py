"""Links of the written pages: to a file that is there, and to a heading that it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")))
# Fewer links than these mean that the pattern no longer finds them.
LEAST = {"README.md": 1, "docs/fadam.md": 1, "docs/use.md": 11}


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of `page`."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def local_links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in local_links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_all_it_links_to_is_there(page: str) -> None:
    assert len(local_links(ROOT / page)) >= LEAST.get(page, 0)
    assert broken_links(ROOT / page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other\n\n## Learning rate: `lr`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#learning-rate-lr) [b](other.md#gone) [c](gone.md) [d](#page) [e](https://x.y/gone)\n# Page\n"
    )
    assert broken_links(page) == ["other.md#gone", "gone.md"]
