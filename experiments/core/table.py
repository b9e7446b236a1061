"""A table is made once, as cells; it is written as Markdown, as HTML and for a terminal."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

# The words that a reader looks for, and the class that colours them on the page.
KINDS = {"better": "good", "worse": "bad", "equivalent": "same", "supported": "good", "contradicted": "bad"}


@dataclass(frozen=True)
class Cell:
    """What stands in one place.

    Attributes:
        text: shown.
        href: a file below results/, where it leads to in Markdown and on the page.
        kind: `good`, `bad`, `same` or `open` for a word that is looked for; else "".
        code: whether the text is a command or a name.
    """

    text: str
    href: str = ""
    kind: str = ""
    code: bool = False

    def markdown(self, base: str) -> str:
        text = f"`{self.text}`" if self.code else f"**{self.text}**" if self.kind else self.text
        return (f"[{text}]({base}{self.href})" if self.href else text).replace("|", r"\|")

    def html(self, base: str) -> str:
        text = html.escape(self.text)
        if self.code:
            text = f"<code>{text}</code>"
        if self.kind:
            text = f'<span class="word {self.kind}">{text}</span>'
        return f'<a href="{html.escape(base + self.href)}">{text}</a>' if self.href else text


def word(text: str) -> Cell:
    """A verdict's word."""
    return Cell(text, kind=KINDS.get(text.split(" ")[0], "open"))


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header. The first column names the row. `notes` stand below."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self, base: str = "") -> str:
        """Without the caption; notes as paragraphs. `base` leads from the page to results/."""
        if not self.rows:
            return "\n\n".join(self.notes)
        lines = [_pipe(self.header), _pipe(["---"] * len(self.header))]
        lines += [_pipe([cell.markdown(base) for cell in row]) for row in self.rows]
        return "\n".join(["\n".join(lines), *(f"\n{note}" for note in self.notes)])

    def html(self, base: str = "") -> str:
        """With the caption, inside a box that scrolls by itself; notes as paragraphs."""
        notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in self.notes)
        if not self.rows:
            return notes
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.header)
        body = []
        for first, *rest in self.rows:
            cells = "".join(
                f'<td data-label="{html.escape(name)}">{cell.html(base)}</td>'
                for name, cell in zip(self.header[1:], rest, strict=True)
            )
            body.append(f'<tr><th scope="row">{first.html(base)}</th>{cells}</tr>')
        caption = html.escape(self.caption)
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table><caption>{caption}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{notes}"
        )

    def terminal(self, width: int) -> str:
        """Columns where they fit into `width` characters; else each row as a block of its own. No word is broken."""
        if not self.rows:
            return "\n".join(line for note in self.notes for line in fill(note, width))
        texts = [[cell.text for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.header, *texts, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= width:
            rows = [
                "  ".join(
                    text.ljust(size) if i == 0 else text.rjust(size)
                    for i, (text, size) in enumerate(zip(row, widths, strict=True))
                )
                for row in [list(self.header), *texts]
            ]
            rows.insert(1, "  ".join("-" * size for size in widths))
            lines = [row.rstrip() for row in rows]
        else:
            lines = []
            for row in texts:
                lines += [*fill(row[0], width), *_block(self.header[1:], row[1:], width), ""]
            lines = lines[:-1]
        for note in self.notes:
            lines += ["", *fill(note, width)]
        return "\n".join(lines)


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def listed(names: Sequence[str]) -> str:
    """ "a, b and c", or "none"."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names) or "none"


def fill(text: str, width: int, indent: str = "", later: str | None = None) -> list[str]:
    """Lines of at most `width` characters, broken only between words."""
    return textwrap.wrap(
        text, max(width, 20), initial_indent=indent, subsequent_indent=indent if later is None else later,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _block(names: Sequence[str], values: Sequence[str], width: int) -> list[str]:
    """Name and value, a line each; a value that does not fit beside its name stands below it."""
    lines = []
    for name, value in zip(names, values, strict=True):
        if len(name) + len(value) + 4 <= width:
            lines.append(f"  {name}: {value}")
        else:
            lines += [*fill(f"{name}:", width, "  "), *fill(value, width, "    ")]
    return lines
