"""Run records: reading, checking, choosing. Everything in this package starts from here; nothing here imports torch.

A record is one JSON file, `<root>/<task>/<scale>/<arm>/<trial>-s<seed>.json`. A file that cannot be used is named in a
`RecordWarning` and left out; a set of records that must not stand in one table is refused with a `MixedRecordsError`.
"""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1
SCALES = ("smoke", "study", "cpu", "gpu", "paper")
# Scales of plain comparisons. A study has tables of its own; smoke runs are in none.
COMPARED = ("cpu", "gpu", "paper")
PURPOSES = ("eval", "tune", "pilot")
Mode = Literal["min", "max"]

_FILE_NAME = re.compile(r".+-s\d+\.json")
# What a record cannot do without, and the type that JSON must give it.
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "scale": str,
    "arm": str,
    "trial": str,
    "purpose": str,
    "seed": int,
    "optimizer": dict,
    "data": dict,
    "config_hash": str,
    "config": dict,
    "steps": int,
    "metrics": dict,
    "history": list,
    "diverged": bool,
}
_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "data_seed": int,
    "variant": str,
    "seen": dict,
    "target": dict,
    "wall_time_s": (int, float),
    "step_time_s": (int, float),
    "peak_memory_bytes": (int, float),
    "parameters": int,
    "problems": dict,
    "samples": list,
    "artifacts": list,
    "versions": dict,
    "commit": str,
    "device": str,
    "threads": int,
    "started": str,
    "finished": str,
    "objective": dict,
    "searched": dict,
    "dirty": bool,
    "collapsed": bool,
    "command": str,
    "experiment_name": str,
}
# Settings in which runs of one table may differ: who runs, where, and with which optimizer.
_FREE_SECTIONS = frozenset(
    {
        "optimizer",
        "arm",
        "seed",
        "data_seed",
        "trial",
        "purpose",
        "variant",
        "paths",
        "logger",
        "callbacks",
        "hydra",
        "tags",
        "name",
        "tuned",
        "objective",
        "searched",
        "threads",
        "resume",
        "label",
        "progress",
        "multirun",
        "tune",
        "point",
        "factor",
        "value",
        "command",
    }
)
_FREE_KEYS = frozenset(
    {
        "gradient_clip_val",
        "gradient_clip_algorithm",
        "clip_norm",
        "num_workers",
        "pin_memory",
        "persistent_workers",
        "prefetch_factor",
        "accelerator",
        "devices",
        "download",
        "enable_progress_bar",
        "seed",
        "data_seed",
    }
)
# Arms for which a constant learning rate is part of the method.
_NO_SCHEDULE = frozenset({"schedule_free"})
_FREE_SUFFIXES = ("_dir", "_root", "_path", "root", "cache")


class AnalysisError(Exception):
    """Something the person can mend; the message is one sentence, shown without a traceback."""


class MixedRecordsError(AnalysisError):
    """Records that must not stand in one table."""


class RecordWarning(UserWarning):
    """A record file that was left out; the message names the file and the reason."""


@dataclass(frozen=True)
class Record:
    """One finished run. `root / relative` is its file."""

    root: Path
    relative: Path
    task: str
    scale: str
    arm: str
    trial: str
    purpose: str
    seed: int
    optimizer: Mapping[str, Any]
    data: Mapping[str, Any]
    config_hash: str
    config: Mapping[str, Any]
    steps: int
    metrics: Mapping[str, float | None]
    history: Sequence[Mapping[str, Any]]
    diverged: bool
    data_seed: int | None = None
    variant: str = ""
    seen: Mapping[str, float] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    wall_time_s: float | None = None
    step_time_s: float | None = None
    peak_memory_bytes: float | None = None
    parameters: int | None = None
    problems: Mapping[str, int] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    artifacts: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    device: str = ""
    threads: int | None = None
    started: str = ""
    finished: str = ""
    objective: Mapping[str, Any] = field(default_factory=dict)
    searched: Mapping[str, Any] = field(default_factory=dict)
    dirty: bool = False
    collapsed: bool = False
    command: str = ""
    experiment_name: str = ""

    @property
    def path(self) -> Path:
        return self.root / self.relative

    @property
    def fingerprint(self) -> str:
        return str(self.data["fingerprint"])

    def value(self, keys: Sequence[str], mode: Mode) -> float | None:
        """The final value of the first of `keys` that the record has; a diverged run and a value that is not finite
        are infinitely bad (`inf` where lower is better, else `-inf`), None where the metric was not measured."""
        worst = math.inf if mode == "min" else -math.inf
        if self.diverged:
            return worst
        for key in keys:
            if key in self.metrics:
                return finite(self.metrics[key], worst)
        return None

    def objective_value(self) -> float:
        """What tuning looks at, infinitely bad for a diverged run.

        Raises:
            AnalysisError: the record has no objective, so it cannot have been a tuning run.
        """
        mode = self.objective.get("mode")
        if mode not in ("min", "max") or "metric" not in self.objective:
            raise AnalysisError(f'{self.path}: no "objective" with a metric and a mode "min" or "max"')
        worst = math.inf if mode == "min" else -math.inf
        return worst if self.diverged else finite(self.objective.get("value"), worst)

    def setting(self, key: str) -> Any:
        """The value of a dotted configuration key such as `optimizer.lr`; None where it is not set."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if node is None and key.startswith("optimizer."):
            return self.optimizer.get(key.removeprefix("optimizer."))
        return node


def finite(value: Any, otherwise: float) -> float:
    """`value` as a float if it is a finite number, else `otherwise`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return otherwise


def _wrong_type(value: Any, kind: type | tuple[type, ...]) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # JSON's true is Python's 1: a flag is no number.
    return not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)


def parse_record(content: Any, root: Path, relative: Path) -> Record:
    """Check the content of one record file.

    Raises:
        ValueError: what is wrong, in words, without the file's name.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a record is a JSON object, this is a {type(content).__name__}")
    if content.get("schema") != SCHEMA:
        raise ValueError(f"schema {content.get('schema')!r}, this code reads {SCHEMA}")
    fields: dict[str, Any] = {}
    for key, kind in _REQUIRED.items():
        if key not in content:
            raise ValueError(f'key "{key}" is missing')
        if _wrong_type(content[key], kind):
            raise ValueError(f'key "{key}" has a value of type {type(content[key]).__name__}')
        fields[key] = content[key]
    for key, kind in _OPTIONAL.items():
        if content.get(key) is None:
            continue
        if _wrong_type(content[key], kind):
            raise ValueError(f'key "{key}" has a value of type {type(content[key]).__name__}')
        fields[key] = content[key]
    if not isinstance(content["data"].get("fingerprint"), str):
        raise ValueError('key "data.fingerprint" is missing')
    if content["purpose"] not in PURPOSES:
        raise ValueError(f"purpose {content['purpose']!r} is none of {', '.join(PURPOSES)}")
    if content["scale"] not in SCALES:
        raise ValueError(f"scale {content['scale']!r} is none of {', '.join(SCALES)}")
    for key, value in content["metrics"].items():
        if value is not None and _wrong_type(value, (int, float)):
            raise ValueError(f'metric "{key}" is no number')
    for key in ("history", "samples"):
        if any(not isinstance(entry, dict) for entry in content.get(key) or ()):
            raise ValueError(f'key "{key}" has an entry that is no object')
    for name in content.get("artifacts") or ():
        if not isinstance(name, str) or name != Path(name).name or name in ("", ".", ".."):
            raise ValueError(f"artifact {name!r} is no plain file name")
    return Record(root=root, relative=relative, **fields)


def record_files(root: Path) -> list[Path]:
    """Paths, relative to `root`, of all files that are named like a record, in a fixed order."""
    return sorted(
        path.relative_to(root)
        for path in root.glob("*/*/*/*.json")
        if _FILE_NAME.fullmatch(path.name) and not path.name.startswith(".")
    )


def load_records(root: str | Path) -> list[Record]:
    """All usable records under `root`, in the order of their paths; an empty list if there is no such folder.

    Files that cannot be used, and older ones of two records of the same run, are named in a `RecordWarning`.
    """
    root = Path(root)
    found: dict[tuple[str, str, str, str, str, int], Record] = {}
    for relative in record_files(root):
        try:
            content = json.loads((root / relative).read_text(encoding="utf-8"))
            record = parse_record(content, root, relative)
        except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            warnings.warn(RecordWarning(f"{root / relative}: left out: {error}"), stacklevel=2)
            continue
        key = (record.task, record.scale, record.variant, record.arm, record.trial, record.seed)
        other = found.get(key)
        if other is not None:
            old, new = sorted((other, record), key=lambda r: (r.finished, str(r.relative)))
            reason = f"left out: {new.path} is a newer record of the same run"
            warnings.warn(RecordWarning(f"{old.path}: {reason}"), stacklevel=2)
            record = new
        found[key] = record
    return sorted(found.values(), key=lambda r: str(r.relative))


def select(
    records: Iterable[Record],
    *,
    task: str | None = None,
    scale: str | None = None,
    variant: str | None = None,
    arm: str | None = None,
    purpose: str | None = None,
    trial: str | None = None,
) -> list[Record]:
    """The records that have every value given."""
    wanted = {"task": task, "scale": scale, "variant": variant, "arm": arm, "purpose": purpose, "trial": trial}
    chosen = {name: value for name, value in wanted.items() if value is not None}
    return [r for r in records if all(getattr(r, name) == value for name, value in chosen.items())]


def evaluation(records: Iterable[Record]) -> list[Record]:
    """The runs of the comparison: tuned, on evaluation seeds."""
    return select(records, purpose="eval", trial="main")


def by_arm(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Arm -> its records by seed; the arms in the order of the tables, FAdam last."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.arm, []).append(record)
    ordered = sorted(groups, key=lambda arm: (arm.startswith("fadam"), arm))
    return {arm: sorted(groups[arm], key=lambda r: (r.seed, str(r.relative))) for arm in ordered}


def sections(records: Iterable[Record]) -> list[tuple[str, str]]:
    """The (scale, variant) pairs there are, in the order of the tables."""
    return sorted({(r.scale, r.variant) for r in records}, key=lambda pair: (SCALES.index(pair[0]), pair[1]))


def config_family(record: Record) -> dict[str, Any]:
    """The part of a configuration that all runs of one table must share, as dotted key -> value.

    Left out are the optimizer, seeds, paths and whatever only says where and how a run is executed.
    """

    def flatten(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(node, Mapping):
            yield prefix, node
            return
        for key in sorted(node):
            if key in (_FREE_KEYS if prefix else _FREE_SECTIONS | _FREE_KEYS) or key.endswith(_FREE_SUFFIXES):
                continue
            yield from flatten(node[key], f"{prefix}.{key}" if prefix else str(key))

    return dict(flatten(record.config, ""))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def family_difference(one: Record, other: Record) -> str:
    """The first settings in which two configurations differ, in words; "" where they are of one family."""
    a, b = config_family(one), config_family(other)
    keys = [k for k in sorted(a.keys() | b.keys()) if _canonical(a.get(k)) != _canonical(b.get(k))]
    if _NO_SCHEDULE & {one.arm, other.arm}:
        keys = [key for key in keys if key != "scheduler.shape"]
    words = [f"{key} is {a.get(key)!r} in {one.path} and {b.get(key)!r} in {other.path}" for key in keys[:2]]
    if len(keys) > 2:
        words.append(f"and {len(keys) - 2} more settings differ")
    return "; ".join(words)


def check_one_kind(records: Sequence[Record], what: str) -> None:
    """Refuse records that must not stand in one table.

    Raises:
        MixedRecordsError: two data fingerprints, two config families, or, among evaluation runs of one arm, two
            settings of the optimizer. The sentence names both sides.
    """
    if not records:
        return
    first = records[0]
    for other in records[1:]:
        if other.fingerprint != first.fingerprint:
            counts = [sum(r.fingerprint == f for r in records) for f in (first.fingerprint, other.fingerprint)]
            raise MixedRecordsError(
                f"{what} would mix two data sets: {first.fingerprint} ({counts[0]} records, such as {first.path}) and "
                f"{other.fingerprint} ({counts[1]} records, such as {other.path})."
            )
        difference = family_difference(first, other)
        if difference:
            raise MixedRecordsError(f"{what} would mix two configurations: {difference}.")
    for arm, runs in by_arm(r for r in records if r.purpose == "eval").items():
        for other in runs[1:]:
            if _canonical(other.optimizer) != _canonical(runs[0].optimizer):
                raise MixedRecordsError(
                    f"{what} would average over two optimizer settings of arm {arm}: "
                    f"{_canonical(runs[0].optimizer)} in {runs[0].path} and "
                    f"{_canonical(other.optimizer)} in {other.path}."
                )


def one_line_warnings() -> None:
    """Show warnings of a command-line tool as one line each, all of them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    warnings.simplefilter("always", RecordWarning)
    warnings.showwarning = show
