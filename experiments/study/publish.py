"""Copy records that we stand behind from a machine's own to the published ones: what a protocol planned, and plain
comparisons at scales that no protocol declares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.core.catalogue import SCALES
from experiments.core.files import write_whole
from experiments.core.plan import Stage
from experiments.core.protocol import Protocol
from experiments.core.records import Record, Records


@dataclass(frozen=True)
class Published:
    """How many records were copied, how many stood there already, and which were refused, with the reason."""

    copied: int
    kept: int
    refused: tuple[str, ...]


def publish(stages: Sequence[Stage], protocols: Sequence[Protocol], runs: Path, published: Path) -> Published:
    """Copy records from `runs` to `published`, and the pictures of the first evaluation seed with them.

    What is planned and has no record is passed over; of a declared task and scale, what was not planned is never looked
    at. Refused are records that belong to other settings than the plan's, were made by code that no commit holds, or
    would replace a published one that differs.
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
    wanted += plain(mine.all(), protocols)
    copied = kept = 0
    first = min((r.seed for r in wanted if r.purpose == "eval"), default=None)
    for record in wanted:
        target = published / record.relative
        if record.dirty or record.commit in ("", "unknown"):
            refused.append(f"{record.path}: made by code that no commit holds")
        elif theirs.at(record.relative) is None:
            write_whole(target, record.path.read_bytes())
            copied += 1
            if record.purpose == "eval" and record.seed == first:
                _copy_pictures(record, target.parent)
        elif target.read_bytes() == record.path.read_bytes():
            kept += 1
        else:
            refused.append(f"{record.path}: another record of the same run is published already")
    return Published(copied, kept, tuple(refused))


def plain(records: Iterable[Record], protocols: Sequence[Protocol]) -> list[Record]:
    """Evaluation runs of scales, tasks and variants that no protocol declares, as `make reproduce-...` makes."""
    declared = {(p.task, p.scale, p.variant) for p in protocols}
    return [
        r for r in records
        if (r.purpose, r.trial) == ("eval", "main") and SCALES[r.scale].shown
        and (r.task, r.scale, r.variant) not in declared
    ]  # fmt: skip


def _copy_pictures(record: Record, folder: Path) -> None:
    for name in record.artifacts:
        source = record.path.parent / name
        if source.suffix == ".png" and source.is_file():
            write_whole(folder / name, source.read_bytes())
