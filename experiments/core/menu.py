"""What `experiments.train` offers, read from the comments at the head of the configs. Imports no torch."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.core import catalogue
from experiments.core.choices import CONFIGS
from experiments.core.command import MISTAKE

COST = ("Costs ", "Takes ", "Cost and results ", "Never run")
GIVES = ("Gives ",)
# What is shown, in the order in which a newcomer wants it.
SCALES = tuple(name for name, scale in catalogue.SCALES.items() if scale.shown)
WIDEST = 100
# With one of these, Hydra shows something and trains nothing.
_HYDRAS_OWN = re.compile(r"--(hydra-help|version|cfg|info|shell-completion|config-name)\b|-(c|i|sc|cn)\b")


def header(path: Path) -> list[str]:
    """The comment lines at the head of a config, without their marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return lines


def commands(lines: Sequence[str]) -> list[str]:
    """Those of the lines that are commands."""
    return [line.strip() for line in lines if re.match(r"\s*(python -m|make) ", line)]


def sentences(lines: Sequence[str]) -> list[str]:
    """The text of the lines, commands left out, cut into sentences."""
    text = " ".join(line for line in lines if not commands([line]))
    return [part.strip() for part in re.split(r"(?<=[.)])\s+(?=[A-Z][a-z])", text) if part.strip()]


@dataclass(frozen=True)
class Entry:
    """A choice: its name, what it is, and what it costs and gives, where its config says so."""

    name: str
    what: str
    cost: str
    gives: str


def entry(path: Path) -> Entry:
    found = sentences(header(path))

    def those(starts: tuple[str, ...]) -> str:
        return " ".join(sentence for sentence in found if sentence.startswith(starts))

    return Entry(path.stem, found[0], those(COST), those(GIVES))


def entries(group: str) -> list[Entry]:
    """The choices of a config group: experiments by scale, all else by name."""
    found = [entry(path) for path in sorted((CONFIGS / group).glob("*.yaml"))]
    if group != "experiment":
        return found
    return [each for scale in SCALES for each in found if scale in each.name.split("_")]


def _wrapped(text: str, indent: int, width: int) -> str:
    space = " " * indent
    return textwrap.fill(text, width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False)


def menu(doc: str, width: int) -> Iterator[str]:
    """The lines to show: what the command is for, experiments, optimizers, examples.

    Args:
        doc: the command's docstring, which holds the examples.
    """
    paragraphs = [part.splitlines() for part in doc.strip().split("\n\n")]
    yield _wrapped(" ".join(paragraphs[0]), 0, width)
    yield "\nexperiment=<name>, one of"
    for each in entries("experiment"):
        yield f"\n  {each.name}"
        yield from (_wrapped(text, 4, width) for text in (each.what, each.cost, each.gives) if text)
    yield "\noptimizer=<name>, one of\n"
    found = entries("optimizer")
    longest = max(len(each.name) for each in found)
    for each in found:
        lines = textwrap.wrap(each.what, width - longest - 4, break_on_hyphens=False)
        yield f"  {each.name:<{longest}}  {lines[0]}"
        yield from (" " * (longest + 4) + line for line in lines[1:])
    yield "\nExamples:\n"
    yield from (f"  {line}" for part in paragraphs for line in commands(part))
    yield "\nEvery option of a run: add --cfg job to its command."


def show_if_asked(doc: str | None, words: Sequence[str]) -> None:
    """Shows the menu and leaves, where help is asked for or no experiment is named.

    Args:
        words: of the command line.
    """
    asked = bool({"-h", "--help"} & set(words))
    if not asked and any(re.match(r"\+{0,2}experiment=", word) or _HYDRAS_OWN.match(word) for word in words):
        return
    width = min(WIDEST, shutil.get_terminal_size().columns)
    print("\n".join(menu(doc or "", width)), flush=True)
    if not asked:
        print("error: name an experiment of the list above: experiment=<name>", file=sys.stderr)
    sys.exit(0 if asked else MISTAKE)
