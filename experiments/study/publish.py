"""Copy records from a machine's own to the published ones: planned runs, and plain comparisons at undeclared scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.core.files import write_whole
from experiments.core.plan import Stage, undeclared
from experiments.core.protocol import Protocol
from experiments.core.records import Record, Records


@dataclass(frozen=True)
class Published:
    """How many records were copied, how many stood there already, and which were refused, with the reason."""

    copied: int
    kept: int
    refused: tuple[str, ...]


def publish(stages: Sequence[Stage], protocols: Sequence[Protocol], runs: Path, published: Path) -> Published:
    """Copy records from `runs` to `published`, with the pictures of the first evaluation seed of a task and scale.

    Planned runs without a record are passed over. Where one of `protocols` declares runs, only those of `stages` are
    considered. A record is refused if it was made with other settings than planned, if no commit holds the code that
    made it, or if it would replace a published record that differs.
    """
    mine, theirs = Records([runs]), Records([published])
    refused: list[str] = []
    wanted: list[Record] = []
    for run in {run.record: run for stage in stages for run in stage.runs}.values():
        if not (runs / run.record).is_file():
            continue
        record = mine.of(run)
        if record is None:
            refused.append(f"{runs / run.record}: made with other settings than are planned")
        else:
            wanted.append(record)
    wanted += undeclared(mine.all(), protocols)
    copied = kept = 0
    first = {(r.task, r.scale, r.variant): r.seed for r in sorted(wanted, key=lambda r: -r.seed) if r.purpose == "eval"}
    for record in wanted:
        target = published / record.relative
        if record.dirty or record.commit in ("", "unknown"):
            refused.append(f"{record.path}: made by code that no commit holds")
        elif (there := theirs.at(record.relative) is not None) and target.read_bytes() != record.path.read_bytes():
            refused.append(f"{record.path}: another record of the same run is published already")
        else:
            if there:
                kept += 1
            else:
                write_whole(target, record.path.read_bytes())
                copied += 1
            if record.purpose == "eval" and record.seed == first[record.task, record.scale, record.variant]:
                _copy_pictures(record, target.parent)
    return Published(copied, kept, tuple(refused))


def _copy_pictures(record: Record, folder: Path) -> None:
    for name in record.artifacts:
        source = record.path.parent / name
        if source.suffix == ".png" and source.is_file() and not (folder / name).exists():
            write_whole(folder / name, source.read_bytes())
