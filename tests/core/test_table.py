"""A table is written as Markdown, as HTML and for terminals of any width."""

from __future__ import annotations

import pytest

from experiments.core.table import Cell, Table, fill, listed, word

TABLE = Table(
    "A <caption>",
    ("arm", "value", "word"),
    (
        (Cell("FAdam", href="tables/llm.md"), Cell("1.5 | 2"), word("better")),
        (Cell("AdamW with a long name"), Cell("make x", code=True), word("undecided after 12 pairs")),
    ),
    ("A note that is rather long, so that it must be wrapped.",),
)


def test_markdown() -> None:
    lines = TABLE.markdown("../").splitlines()
    assert lines[:2] == ["| arm | value | word |", "| --- | --- | --- |"]
    assert lines[2] == r"| [FAdam](../tables/llm.md) | 1.5 \| 2 | **better** |"
    assert lines[3] == "| AdamW with a long name | `make x` | **undecided after 12 pairs** |"
    assert lines[4:] == ["", TABLE.notes[0]]


def test_html() -> None:
    text = TABLE.html()
    assert "<caption>A &lt;caption&gt;</caption>" in text
    assert '<th scope="row"><a href="tables/llm.md">FAdam</a></th>' in text
    assert '<td data-label="word"><span class="word good">better</span></td>' in text
    assert '<span class="word open">undecided after 12 pairs</span>' in text
    assert text.count("<th scope") == 3 + 2


@pytest.mark.parametrize("width", [25, 40, 60, 80, 200])
def test_terminal_fits_and_breaks_no_word(width: int) -> None:
    text = TABLE.terminal(width)
    assert max(map(len, text.splitlines())) <= width
    for token in ("FAdam", "1.5 | 2", "better", "undecided", "wrapped."):
        assert token in text


def test_terminal_has_columns_where_they_fit_and_blocks_where_not() -> None:
    assert TABLE.terminal(80).splitlines()[2] == f"FAdam                   1.5 | 2  {'better':>24}"
    assert TABLE.terminal(40).splitlines()[:3] == ["FAdam", "  value: 1.5 | 2", "  word: better"]


def test_an_empty_table_is_its_notes() -> None:
    empty = Table("Nothing", ("a",), (), ("None yet.",))
    assert (empty.markdown(), empty.terminal(30)) == ("None yet.", "None yet.")
    assert empty.html() == '<p class="note">None yet.</p>'


def test_long_words_are_kept_whole() -> None:
    assert fill("a /very/long/path/that/does/not/fit/at/all b", 20)[1] == "/very/long/path/that/does/not/fit/at/all"


def test_lists_of_words() -> None:
    assert listed([]) == "none"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
