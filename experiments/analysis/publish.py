"""Copy finished run records, with the files that belong to them, to where published results live.

    python -m experiments.analysis.publish [asr llm vqvae | all] [--runs runs] [--to results/runs]

A file is copied whole or not at all, the record after its artifacts. Records of scale "smoke" are left out. Leaves with
status 1 if a record was refused: made from a changed working tree, broken, or without one of its artifacts.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.analysis.records import AnalysisError, Record, load_records, one_line_warnings
from experiments.analysis.tasks import task_names


def copy_file(source: Path, target: Path) -> str:
    """Copy one file whole or not at all; "copied", "updated" or "unchanged"."""
    content = source.read_bytes()
    existed = target.exists()
    if existed and target.read_bytes() == content:
        return "unchanged"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return "updated" if existed else "copied"


def refusal(record: Record, allow_dirty: bool) -> str:
    """Why a record cannot be published, in words; "" where it can."""
    if record.dirty and not allow_dirty:
        return "made from a changed working tree (commit, run again, or give --allow-dirty)"
    if not record.finished:
        return "the run did not finish"
    missing = [name for name in record.artifacts if not (record.path.parent / name).is_file()]
    return f"artifact {missing[0]} is missing" if missing else ""


def publish(
    records: Sequence[Record], to: Path, allow_dirty: bool = False, say: Callable[[str], None] = print
) -> dict[str, int]:
    """Publish `records` under `to`, in the layout they have.

    Returns:
        How many records were "copied", "updated", "unchanged", "refused", or "smoke" (left out).
    """
    counts = dict.fromkeys(("copied", "updated", "unchanged", "refused", "smoke"), 0)
    for record in records:
        if record.scale == "smoke":
            counts["smoke"] += 1
            continue
        reason = refusal(record, allow_dirty)
        if reason:
            counts["refused"] += 1
            say(f"refused    {record.relative}: {reason}")
            continue
        target = to / record.relative
        outcomes = [copy_file(record.path.parent / name, target.parent / name) for name in record.artifacts]
        outcome = copy_file(record.path, target)
        if outcome == "unchanged" and any(o != "unchanged" for o in outcomes):
            outcome = "updated"
        counts[outcome] += 1
        if outcome != "unchanged":
            say(f"{outcome:<10} {record.relative}")
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.analysis.publish", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("tasks", nargs="*", metavar="task", help="asr, llm, vqvae or all (default: all)")
    parser.add_argument("--runs", default="runs", help="root of the local records (default: runs)")
    parser.add_argument("--to", default="results/runs", help="root of the published records (default: results/runs)")
    parser.add_argument("--scale", help="publish this scale only")
    parser.add_argument("--allow-dirty", action="store_true", help="also publish runs from a changed working tree")
    options = parser.parse_args(argv)
    one_line_warnings()
    try:
        names = task_names(options.tasks)
    except AnalysisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    records = [r for r in load_records(options.runs) if r.task in names and options.scale in (None, r.scale)]
    counts = publish(records, Path(options.to), options.allow_dirty)
    words = [f"{counts[k]} {k}" for k in ("copied", "updated", "unchanged", "refused")]
    if counts["smoke"]:
        words.append(f"{counts['smoke']} of scale smoke left out")
    print(f"{options.to}: {', '.join(words)}")
    return 1 if counts["refused"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
