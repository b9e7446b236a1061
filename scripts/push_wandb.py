"""Push run records to Weights & Biases, and offline runs with them, once there is a network.

    python -m scripts.push_wandb --runs results/runs --project fadam [--task llm] [--scale cpu] [--dry-run]

Every record becomes one W&B run, grouped by study (task and scale) and arm, with its config, learning curve and final
metrics. Its id is made from what it is, so that pushing twice changes nothing. Runs that `logger=wandb` wrote offline
are synced from the same folder, all parts of an interrupted one together; W&B remembers which it has. A run that was
logged, online or offline, has the id of its record, which is then not pushed a second time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.progress import track

from experiments.core.files import runs_dir
from experiments.core.loggers import run_id, unreachable
from experiments.core.records import Record, Records, one_line_warnings


def identity(record: Record) -> str:
    """An id for W&B, the same for the same run on every machine."""
    names = (record.task, record.scale, record.variant, record.arm, record.trial)
    return run_id(*names, record.seed, record.config_hash)


def settings(record: Record, project: str) -> dict[str, Any]:
    """What `wandb.init` is told of a record."""
    config = dict(record.config) | {"data_fingerprint": record.fingerprint, "commit": record.commit}
    tags = [record.task, record.scale, record.arm, record.purpose]
    return {
        "project": project,
        "id": identity(record),
        "name": "-".join(part for part in (record.arm, record.variant, record.trial, f"s{record.seed}") if part),
        "group": f"{record.task}-{record.scale}",
        "job_type": record.arm,
        "tags": tags + ([record.variant] if record.variant else []),
        "config": config,
        "resume": "allow",
        "reinit": "finish_previous",
    }


def push(record: Record, project: str, folder: Path, mode: Literal["online", "offline"] = "online") -> None:
    """One record as one W&B run; a run that is there already gets the same values again."""
    import wandb

    quiet = wandb.Settings(console="off")
    run = wandb.init(**settings(record, project), mode=mode, dir=str(folder), settings=quiet)
    for entry in record.history:
        run.log({k: v for k, v in entry.items() if k != "step" and v is not None}, step=int(entry["step"]))
    run.summary.update({name: value for name, value in record.metrics.items() if value is not None})
    run.summary.update({"diverged": record.diverged, "wall_time_s": record.wall_time_s})
    run.finish()


def logged(root: Path) -> set[str]:
    """The ids of the runs that were logged while they trained, online or offline."""
    return {path.name.rsplit("-", 1)[1] for path in root.rglob("wandb/*run-*-*") if path.is_dir()}


def offline_runs(root: Path) -> list[Path]:
    """Folders of runs that were logged offline and have not been synced."""
    found = sorted(path for path in root.rglob("offline-run-*") if path.is_dir())
    return [path for path in found if not list(path.glob("*.wandb.synced"))]


def sync(folders: Sequence[Path]) -> bool:
    """Upload the parts of one run, in the order of their start; whether that worked."""
    words = [sys.executable, "-m", "wandb", "sync", "--yes", *map(str, folders)]
    return subprocess.run(words, check=False).returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.push_wandb", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=Path, default=runs_dir(), help="root of the run records (default: %(default)s)")
    parser.add_argument("--project", default="fadam", help="W&B project (default: fadam)")
    parser.add_argument("--task", help="only this task")
    parser.add_argument("--scale", help="only this scale")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be pushed")
    options = parser.parse_args(argv)
    one_line_warnings()
    records = [
        r
        for r in Records([options.runs]).all()
        if options.task in (None, r.task) and options.scale in (None, r.scale) and r.scale != "smoke"
    ]
    folders = offline_runs(options.runs)
    known = logged(options.runs)
    records = [record for record in records if identity(record) not in known]
    if not records and not folders:
        if known:
            print(f"{len(known)} runs in {options.runs} were logged while they trained; nothing is left to push")
            return 0
        print(f"error: no run records and no offline runs in {options.runs}", file=sys.stderr)
        return 2
    groups = sorted({(f"{r.task}-{r.scale}", r.arm) for r in records})
    for group, arm in groups:
        count = sum((f"{r.task}-{r.scale}", r.arm) == (group, arm) for r in records)
        print(f"{group}, {arm}: {count} records")
    print(f"{len(records)} records, {len({folder.name.rsplit('-', 1)[1] for folder in folders})} offline runs")
    if options.dry_run:
        return 0
    reason = unreachable()
    if reason:
        print(f"error: W&B: {reason}; nothing was pushed, the same command does it later", file=sys.stderr)
        return 2
    scratch = options.runs / ".wandb"
    scratch.mkdir(parents=True, exist_ok=True)
    for record in track(records, description="records"):
        push(record, options.project, scratch)
    parts: dict[str, list[Path]] = {}
    for folder in folders:
        parts.setdefault(folder.name.rsplit("-", 1)[1], []).append(folder)
    failed = sum(not sync(runs) for runs in track(list(parts.values()), description="offline runs"))
    if failed:
        print(f"error: {failed} of {len(parts)} offline runs could not be synced", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
