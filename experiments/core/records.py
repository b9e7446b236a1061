"""The run record: one JSON file a finished run, `<root>/<task>/<scale>/<arm>/[<variant>-]<trial>-s<seed>.json`.

Runs write it; everything that judges, chooses or shows starts from it. A file that cannot be used is named in a
`RecordWarning` and left out. Records that must not be averaged or compared are refused with a `MixedRecordsError`.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.core.catalogue import SCALES, Mode
from experiments.core.errors import StorageError, UserError
from experiments.core.files import write_whole
from experiments.core.protocol import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

SCHEMA = 1
# Says where and how a run is watched, not what is computed.
NOT_HASHED = ("paths", "logger", "progress", "resume", "overwrite", "label", "multirun", "rates", "tuned")
# So do these callbacks; any other may change the result.
WATCHERS = ("history", "nonfinite_gradients", "random_state", "fisher", "progress", "best", "last")
# Options younger than published records, which are hashed only where they are not at their default.
DEFAULTS = {"nonfinite_gradients": "keep"}
PURPOSES = ("eval", "tune", "pilot")
_FILE_NAME = re.compile(r"[^.].*-s\d+\.json")
_NUMBER = (int, float)
# The types that JSON gives the fields of a `Record`.
_KINDS: dict[str, Any] = {
    "str": str, "int": int, "float": _NUMBER, "bool": bool, "Mapping": dict, "Sequence": list,
}  # fmt: skip
# Settings in which runs of one table may differ: who runs, where, and with which optimizer.
_FREE_SECTIONS = frozenset(
    (
        "arm", "callbacks", "command", "data_seed", "eval_every", "experiment_name", "hydra", "label", "logger",
        "multirun", "nonfinite_gradients", "objective", "optimizer", "overwrite", "paths", "progress", "purpose",
        "rates", "resume", "searched", "seed", "threads", "trial", "tune", "tuned", "value", "variant",
    )
)  # fmt: skip
_FREE_KEYS = frozenset(
    (
        "accelerator", "cache_dir", "data_seed", "devices", "download", "enable_progress_bar",
        "gradient_clip_algorithm", "gradient_clip_val", "num_workers", "persistent_workers", "pin_memory",
        "prefetch_factor", "seed",
    )
)  # fmt: skip
_FREE_SUFFIXES = ("_dir", "_root", "_path", "root", "cache")
# Arms for which a constant learning rate is part of the method.
_NO_SCHEDULE = frozenset({"schedule_free"})


# --- writing


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config without what does not change the result, and without this machine's folders."""
    from omegaconf import OmegaConf

    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    folders = {str(path): f"<{name}>" for name, path in container.get("paths", {}).items()}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): clean(v) for k, v in value.items()}
        if isinstance(value, list):
            return [clean(v) for v in value]
        if isinstance(value, str):
            for folder, name in sorted(folders.items(), key=lambda item: -len(item[0])):
                if value == folder or value.startswith(folder + os.sep):
                    return name + value[len(folder) :]
        return value

    callbacks = {k: v for k, v in (container.pop("callbacks", None) or {}).items() if v and k not in WATCHERS}
    kept = {str(k): v for k, v in container.items() if k not in NOT_HASHED and (k, v) not in DEFAULTS.items()}
    kept |= {"callbacks": callbacks} if callbacks else {}
    cleaned: dict[str, Any] = clean(kept)
    return cleaned


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of a plain config, equal for equal configs on any machine."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file of ours; None where there is none, or half of one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def jsonable(value: Any) -> Any:
    """`value` for JSON; a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the whole record or nothing.

    Raises:
        StorageError: naming the file, and why it cannot be written.
    """
    text = json.dumps(jsonable(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        write_whole(path, text)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {os.strerror(error.errno or 0).lower()}") from error


# --- reading


class MixedRecordsError(UserError):
    """Records that must not stand in one table. The message names both sides."""


class RecordWarning(UserWarning):
    """A record file that was left out; the message names the file and the reason."""


@dataclass(frozen=True)
class Record:
    """One finished run. `root / relative` is its file, the other fields its keys, needed where they have no default."""

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
    variant: str = ""
    experiment_name: str = ""
    seen: Mapping[str, float] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    searched: Mapping[str, Any] = field(default_factory=dict)
    wall_time_s: float | None = None
    step_time_s: float | None = None
    peak_memory_bytes: float | None = None
    parameters: int | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    artifacts: Sequence[str] = ()
    commit: str = ""
    dirty: bool = False
    device: str = ""
    threads: int | None = None
    finished: str = ""
    command: str = ""
    collapsed: bool = False

    @property
    def path(self) -> Path:
        return self.root / self.relative

    @property
    def fingerprint(self) -> str:
        return str(self.data["fingerprint"])

    @property
    def seconds(self) -> float:
        return float(self.wall_time_s or 0.0)

    def value(self, key: str, mode: Mode) -> float:
        """The final value of a metric; infinitely bad where the run diverged or the value is not finite.

        Raises:
            UserError: the record has no such metric.
        """
        worst = math.inf if mode == "min" else -math.inf
        if self.diverged:
            return worst
        if key not in self.metrics:
            raise UserError(f"{self.path} has no metric {key!r}")
        value = self.metrics[key]
        return worst if value is None or not math.isfinite(value) else float(value)

    def setting(self, key: str) -> Any:
        """The value of a dotted key of its config; None where it is not set."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node


def _wrong(value: Any, kind: Any) -> bool:
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
    values: dict[str, Any] = {}
    for entry in fields(Record)[2:]:
        key, value = entry.name, content.get(entry.name)
        if value is None:
            if entry.default is entry.default_factory is MISSING:
                raise ValueError(f'key "{key}" is missing')
            continue
        if _wrong(value, _KINDS[re.split(r"\W", str(entry.type))[0]]):
            raise ValueError(f'key "{key}" has a value of type {type(value).__name__}')
        values[key] = value
    if not isinstance(content["data"].get("fingerprint"), str):
        raise ValueError('key "data.fingerprint" is missing')
    for key, known in (("purpose", PURPOSES), ("scale", tuple(SCALES))):
        if content[key] not in known:
            raise ValueError(f"{key} {content[key]!r} is none of {', '.join(known)}")
    for key, value in content["metrics"].items():
        if value is not None and _wrong(value, _NUMBER):
            raise ValueError(f'metric "{key}" is no number')
    for key in ("history", "samples"):
        if any(not isinstance(entry, dict) for entry in content.get(key) or ()):
            raise ValueError(f'key "{key}" has an entry that is no object')
    for name in content.get("artifacts") or ():
        if not isinstance(name, str) or name != Path(name).name or name in ("", ".", ".."):
            raise ValueError(f"artifact {name!r} is no plain file name")
    return Record(root=root, relative=relative, **values)


def read_record(root: Path, relative: Path) -> Record | None:
    """The record in a file; None where there is no file. One that cannot be used is None, and named in a warning."""
    try:
        content = json.loads((root / relative).read_text(encoding="utf-8"))
        return parse_record(content, root, relative)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        warnings.warn(RecordWarning(f"{root / relative}: left out: {error}"), stacklevel=2)
        return None


def record_files(root: Path) -> list[Path]:
    """Paths, relative to `root`, of all files that are named like a record, in a fixed order."""
    found = (path for path in root.glob("*/*/*/*.json") if _FILE_NAME.fullmatch(path.name))
    return sorted(path.relative_to(root) for path in found)


class Records:
    """The records in some folders, the first folder that has one counting. Each file is read once."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = [Path(root) for root in roots]
        self._read: dict[Path, Record | None] = {}
        self._data: dict[str, Record] = {}
        self.forgotten = 0  # how often: while it stays, the same questions have the same answers

    def at(self, relative: Path) -> Record | None:
        """The record of that name, whatever made it."""
        if relative not in self._read:
            found = (read_record(root, relative) for root in self.roots)
            self._read[relative] = next((record for record in found if record is not None), None)
        return self._read[relative]

    def forget(self, run: Run) -> None:
        """Read a run's file again when it is asked for."""
        self.forgotten += 1
        self._read.pop(run.record, None)

    def of(self, run: Run) -> Record | None:
        """The record of a planned run; None where there is none, or one that was made with other settings.

        Raises:
            MixedRecordsError: it was made on other data than the protocol's other runs.
        """
        found = self.at(run.record)
        if found is None or not belongs(run, found):
            return None
        first = self._data.setdefault(run.protocol, found)
        if first.fingerprint != found.fingerprint:
            raise MixedRecordsError(
                f"{found.path} was made on other data than {first.path} ({found.fingerprint} and {first.fingerprint}): "
                "move one of them away"
            )
        return found

    def all(self) -> list[Record]:
        """Every usable record, in the order of their paths."""
        names = sorted({name for root in self.roots for name in record_files(root)})
        return [record for name in names if (record := self.at(name)) is not None]


def belongs(run: Run, record: Record) -> bool:
    """Whether a record was made by the planned run: same experiment, seed, purpose and settings."""
    config = record.config
    if (config.get("experiment_name"), config.get("purpose")) != (run.experiment, run.purpose):
        return False
    return all(_same(record.setting(key), value) for key, value in (("seed", run.seed), *run.settings))


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, _NUMBER) and not isinstance(wanted, bool):
        return isinstance(found, _NUMBER) and math.isclose(found, wanted, rel_tol=1e-9)
    return bool(found == wanted)


# --- refusing to mix


def config_family(record: Record) -> dict[str, Any]:
    """The part of a configuration that all runs of one table share, as dotted key -> value.

    Left out are the optimizer, seeds, paths and whatever only says where and how a run is made.
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


def differing(one: Record, other: Record) -> str:
    """The first settings in which two configurations differ, in words; "" where they may stand in one table."""
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
        MixedRecordsError: two data sets, two configurations, or, among evaluation runs of one arm, two settings of the
            optimizer.
    """
    by_arm: dict[str, Record] = {}
    for other in records:
        first = records[0]
        if other.fingerprint != first.fingerprint:
            raise MixedRecordsError(
                f"{what} would mix two data sets: {first.fingerprint} (such as {first.path}) and {other.fingerprint} "
                f"(such as {other.path})"
            )
        if difference := differing(first, other):
            raise MixedRecordsError(f"{what} would mix two configurations: {difference}")
        mine = by_arm.setdefault(other.arm, other)
        if other.purpose == mine.purpose == "eval" and _canonical(other.optimizer) != _canonical(mine.optimizer):
            raise MixedRecordsError(
                f"{what} would average over two settings of the optimizer {other.arm}: {_canonical(mine.optimizer)} in "
                f"{mine.path} and {_canonical(other.optimizer)} in {other.path}"
            )


def select(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """The records that have every value given, such as `task="llm"`."""
    return [r for r in records if all(getattr(r, name) == value for name, value in wanted.items())]


def one_line_warnings() -> None:
    """Show `RecordWarning`s of a command as one line each, all of them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    warnings.simplefilter("always", RecordWarning)
    warnings.showwarning = show
