"""Compare optimizers on somebody's own task: learning rates, then fresh paired seeds, then the page.

    python -m experiments.study own examples/own_task/textures.yaml
    python -m experiments.study own examples/own_task/textures.yaml --smoke    # a minute, to see that the parts fit

What has a record is not run again, unless the config or a Python file beside it has changed. Ctrl-C ends; the same
command goes on. docs/own-task.md has the keys of the config.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.analysis import figures, verdicts
from experiments.analysis.comparisons import Study, decider
from experiments.analysis.pages import CONTEXT, Drawing, Fold, Pages, Section, page
from experiments.analysis.tables import comparisons, headline
from experiments.core import catalogue
from experiments.core.command import MISTAKE, in_a_sentence
from experiments.core.declared import BASELINE, CHALLENGER, Declared, read
from experiments.core.errors import ConfigError, UserError
from experiments.core.files import runs_dir, write_whole
from experiments.core.plan import Planner, plan_all, wanted
from experiments.core.protocol import Protocol
from experiments.core.records import Records, one_line_warnings
from experiments.core.stopping import INTERRUPTED
from experiments.core.table import fill
from experiments.own.task import OwnTask
from experiments.study.pool import execute
from experiments.study.runs import run_all

ROOT = Path(__file__).resolve().parents[2]


def described(declared: Declared) -> catalogue.Task:
    """The catalogue's entry of the task, put into the catalogue.

    Raises:
        ConfigError: what the config names as `_target_` cannot be imported.
    """
    from hydra.utils import get_class

    folder = str(declared.path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        made = get_class(declared.target)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{declared.path}: {declared.target} cannot be imported: {reason}") from error
    own = isinstance(made, type) and issubclass(made, OwnTask) and (made.title, tuple(made.metrics))
    entry = declared.entry(*own) if own else declared.entry()
    catalogue.TASKS[declared.name] = entry
    return entry


def try_two_steps(declared: Declared, words: Sequence[str]) -> None:
    """Two steps and an evaluation, so that a mistake in the task's file is told before any run.

    Raises:
        UserError: what is wrong, in a sentence.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = [*declared.words, f"experiment={declared.path.stem}", f"optimizer={CHALLENGER}", *words]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                execute([*given, "debug=fast", "logger=none", "progress=line", f"paths.runs_dir={folder}"])
        except Exception as error:
            raise _mistake(error, declared.path.parent.resolve()) or error from None


def _mistake(error: BaseException, folder: Path) -> UserError | None:
    """What went wrong, in a sentence, with the line where it was in a file of that folder; None where it was ours."""
    cause: BaseException | None = error
    chain = []
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    for each in reversed(chain):
        frames = [f for f in traceback.extract_tb(each.__traceback__) if Path(f.filename).parent == folder]
        if frames and not isinstance(each, UserError):
            last = frames[-1]
            place = f"{Path(last.filename).name}, line {last.lineno}, in {last.name}"
            return UserError(f"{place}: {type(each).__name__}: {' '.join(str(each).split())}")
    sentence = in_a_sentence(error)
    return None if sentence is None else UserError(sentence)


class OwnPages(Pages):
    """The page of one task, from the records of this machine."""

    runs_are = "made"

    def sections(self, p: Protocol) -> list[Section]:
        """As the pages of the three tasks, the short table of the README first."""
        short = headline(self.study) if {BASELINE, CHALLENGER} <= set(p.bowl.arms) else comparisons(self.study, p)
        return [Section("short", "In short", (short,)), *self.task_sections(p.task)]


def drawings(blocks: Sequence[object]) -> Iterator[Drawing]:
    """All figures, those that are folded away too."""
    for block in blocks:
        if isinstance(block, Drawing):
            yield block
        elif isinstance(block, Fold):
            yield from drawings(block.blocks)


def report(p: Protocol, runs: Path, width: int) -> str:
    """Write the page and its figures below `runs`; returns what is shown in the terminal."""
    study = Study([runs], protocols=[p])
    pages = OwnPages(study, ROOT / "results")
    sections = pages.sections(p)
    folder = runs / p.task
    title = catalogue.task(p.task).title
    title += f": {', '.join(catalogue.arm(name).label for name in p.bowl.arms)}"
    path = folder / "tables" / f"{p.task}.md"
    write_whole(path, page(title, sections))
    for drawing in drawings([block for s in sections for block in s.blocks]):
        write_whole(folder / "figures" / f"{drawing.name}.png", figures.png(drawing.figure))
    words = [verdicts.sentence(c) for c in study.comparisons]
    mains = verdicts.main_comparisons(study)
    words += [verdicts.easier(mains, pages.bowls)] if mains else []
    words += [f"{CONTEXT} {verdicts.context_sentence(study.contexts, p)}"] if p.context else []
    shown = ["\n".join(fill(sentence, width)) for sentence in words]
    table = sections[0].blocks[0]
    return "\n\n".join(["", *shown, table.terminal(width), f"wrote {path}"])  # type: ignore[union-attr]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.study own", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", type=Path, help="YAML file of the task")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--minutes", type=float, help="start no run after so many minutes")
    runs = runs_dir() / "own"
    parser.add_argument("--runs", type=Path, default=runs, help=f"folder of the records (default: {runs})")
    parser.add_argument("--smoke", action="store_true", help="few rates, seeds and steps: no result")
    parser.add_argument("--set", nargs="+", default=[], dest="words", metavar="key=value", help="for every run")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    one_line_warnings()
    try:
        return compare(options)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    except Exception as error:
        mistake = _mistake(error, options.config.parent.resolve())
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        return MISTAKE


def compare(options: argparse.Namespace) -> int:
    """Make the runs that are missing, then the page."""
    declared = read(options.config)
    p = declared.protocol(options.smoke)
    described(declared)
    results = Records([options.runs])
    planners = [Planner(p, results, decider([p], results))]
    failed = 0
    if any(wanted(plan_all(planners), results)):
        print("two steps first, to see that the parts fit", flush=True)
        try_two_steps(declared, options.words)
        # What an earlier version of the file left is replaced.
        words = [*declared.words, "overwrite=true", *options.words]
        failed = run_all(planners, results, options.runs, words, options.jobs, options.minutes)
    print(report(p, options.runs, min(shutil.get_terminal_size().columns, 100)))
    return failed
