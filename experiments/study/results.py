"""What the run records hold of planned runs. A record made with other settings, or on other data, is not taken."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.core.errors import UserError
from experiments.core.protocol import Metric

if TYPE_CHECKING:
    from experiments.study.plan import Run


class MixedResultsError(UserError):
    """Records of one protocol that were made on different data."""


@dataclass(frozen=True)
class Result:
    """A record, read."""

    path: Path
    content: Mapping[str, Any]

    @property
    def diverged(self) -> bool:
        return bool(self.content["diverged"])

    @property
    def seconds(self) -> float:
        return float(self.content.get("wall_time_s") or 0.0)

    @property
    def fingerprint(self) -> str:
        return str(self.content["data"]["fingerprint"])

    def value(self, metric: Metric) -> float:
        """The final value of `metric`; infinitely bad where the run diverged or the value is not finite.

        Raises:
            UserError: the record has no such metric.
        """
        worst = math.inf if metric.mode == "min" else -math.inf
        if self.diverged:
            return worst
        if metric.name not in self.content["metrics"]:
            raise UserError(f"{self.path} has no metric {metric.name!r}")
        value = self.content["metrics"][metric.name]
        return worst if value is None or not math.isfinite(value) else float(value)


class Results:
    """The records of planned runs in some folders of run records, the first folder that has one counting.

    Each file is read once; `forget` makes it be read again.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = list(roots)
        self._read: dict[Path, Result | None] = {}
        self._data: dict[str, tuple[str, Path]] = {}

    def _load(self, relative: Path) -> Result | None:
        for root in self.roots:
            try:
                content = json.loads((root / relative).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(content, dict) and {"diverged", "metrics", "config", "data"} <= set(content):
                return Result(root / relative, content)
        return None

    def forget(self, run: Run) -> None:
        self._read.pop(run.record, None)

    def of(self, run: Run) -> Result | None:
        """The result of a planned run, or None where no record belongs to it.

        Raises:
            MixedResultsError: it was made on other data than the protocol's other runs.
        """
        if run.record not in self._read:
            self._read[run.record] = self._load(run.record)
        found = self._read[run.record]
        if found is None or not belongs(run, found.content):
            return None
        data, path = self._data.setdefault(run.protocol, (found.fingerprint, found.path))
        if data != found.fingerprint:
            raise MixedResultsError(
                f"{found.path} was made on other data than {path} ({found.fingerprint} and {data}): move one of them "
                "away"
            )
        return found


def belongs(run: Run, content: Mapping[str, Any]) -> bool:
    """Whether a record was made by the planned run: same experiment, seed, purpose and settings."""
    config = content["config"]
    if (config.get("experiment_name"), config.get("purpose")) != (run.experiment, run.purpose):
        return False
    return all(_same(_setting(config, key), value) for key, value in (("seed", run.seed), *run.settings))


def _setting(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, int | float) and not isinstance(wanted, bool):
        return isinstance(found, int | float) and math.isclose(found, wanted, rel_tol=1e-9)
    return bool(found == wanted)
