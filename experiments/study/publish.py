"""Copy what a declared protocol planned from a machine's own records to the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.core.files import write_whole
from experiments.study.plan import Stage
from experiments.study.results import Results


@dataclass(frozen=True)
class Published:
    """How many records were copied, how many stood there already, and which were refused, with the reason."""

    copied: int
    kept: int
    refused: tuple[str, ...]


def publish(stages: Sequence[Stage], runs: Path, published: Path) -> Published:
    """Copy the records of planned runs from `runs` to `published`.

    What is planned and has no record is passed over, what was not planned is never looked at. Refused are records that
    belong to other settings than the plan's, were made by code that no commit holds, or would replace a published one
    that differs.
    """
    mine, theirs = Results([runs]), Results([published])
    copied = kept = 0
    refused: list[str] = []
    for run in {run.record: run for stage in stages for run in stage.runs}.values():
        source, target = runs / run.record, published / run.record
        if not source.is_file():
            continue
        result = mine.of(run)
        if result is None:
            refused.append(f"{source}: made with other settings than are planned")
        elif result.content.get("dirty") or result.content.get("commit") in (None, "unknown"):
            refused.append(f"{source}: made by code that no commit holds")
        elif theirs.of(run) is not None:
            if target.read_bytes() == source.read_bytes():
                kept += 1
            else:
                refused.append(f"{source}: another record of the same run is published already")
        else:
            write_whole(target, source.read_bytes())
            copied += 1
    return Published(copied, kept, tuple(refused))
