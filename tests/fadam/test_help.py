"""What is told about the optimizer: its help is one page that knows every option, and its page can be published."""

from __future__ import annotations

import inspect
import re

import pytest

from fadam import FAdam
from fadam.options import DEFAULTS
from tests.conftest import ROOT

HELP = inspect.getdoc(FAdam) or ""
PAGE = ROOT / "fadam" / "README.md"


def test_help_is_one_page() -> None:
    assert HELP.count("\n") < 60


@pytest.mark.parametrize("name", DEFAULTS)
def test_help_has_one_or_two_lines_an_option(name: str) -> None:
    about = re.search(rf"^    (?:\w+, )*{name}(?:, \w+)*: .*(?:\n {{8}}.*)*", HELP, re.MULTILINE)
    assert about is not None
    assert about[0].count("\n") < 2


def test_the_packages_page_can_be_published() -> None:
    """An index shows it alone, so that all it links to must be elsewhere."""
    links = re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert links
    assert all(link.startswith("https://") for link in links)
    assert 'readme = "fadam/README.md"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
