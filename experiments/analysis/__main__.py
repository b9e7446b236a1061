"""Tables, figures, verdicts and the page, from run records alone.

    python -m experiments.analysis tables                   # README's answer, results/tables, figures, verdicts.json
    python -m experiments.analysis report                   # results/report.html, everything on one page
    python -m experiments.analysis compare asr --scale cpu  # own runs beside the published ones

Leaves with status 2 where something is missing or not as it must be.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.core.catalogue import TASKS
from experiments.core.errors import UserError
from experiments.core.files import runs_dir, write_whole
from experiments.core.records import one_line_warnings

MADE = (("results/tables", "*.md"), ("results/figures", "*.png"))


def write_tables(published: Path, results: Path, out: Path) -> None:
    """Write all that `make tables` makes below `out`; what it once made and makes no more is removed."""
    from experiments.analysis.pages import everything

    files = everything([published], results).files(Path("README.md").read_text(encoding="utf-8"))
    for name, content in files.items():
        write_whole(out / name, content)
    for folder, pattern in MADE:
        for path in sorted((out / folder).glob(pattern)):
            if f"{folder}/{path.name}" not in files:
                path.unlink()
                print(f"removed {path}")
    print(f"wrote README's answer, {len(files) - 1} tables and figures")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("tables", "report"):
        command = commands.add_parser(name)
        command.add_argument("--published", type=Path, default=Path("results/runs"), help="default: results/runs")
        command.add_argument("--results", type=Path, default=Path("results"), help="where claims.yaml is")
        command.add_argument("--out", type=Path, default=Path(), help="root of what is written (default: here)")
    command = commands.add_parser("compare")
    command.add_argument("task", choices=list(TASKS))
    command.add_argument("--scale", default="cpu", help="default: cpu")
    command.add_argument("--runs", type=Path, default=runs_dir(), help="the own records (default: %(default)s)")
    command.add_argument("--published", type=Path, default=Path("results/runs"), help="default: results/runs")
    command.add_argument("--seeds", default="201,202,203", help="of the comparison (default: 201,202,203)")
    command.add_argument("--optimizers", default="adamw_clip,fadam", help="default: adamw_clip,fadam")
    command.add_argument("--width", type=int, help="of the text (default: the terminal's)")
    options = parser.parse_args(argv)
    one_line_warnings()
    try:
        if options.command == "tables":
            write_tables(options.published, options.results, options.out)
        elif options.command == "report":
            from experiments.analysis.pages import everything

            path = options.out / "results" / "report.html"
            write_whole(path, everything([options.published], options.results).report())
            print(f"wrote {path}")
        else:
            from experiments.analysis.compare import comparisons

            width = options.width or min(shutil.get_terminal_size().columns, 100)
            if not options.seeds.replace(",", "").isdigit():
                raise UserError(f"--seeds must be whole numbers with commas between, got {options.seeds!r}")
            seeds = [int(seed) for seed in options.seeds.split(",") if seed]
            roots = (options.published, options.runs)
            for found in comparisons(options.task, options.scale, roots, seeds, options.optimizers.split(",")):
                print(f"\n{found.text(width)}")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
