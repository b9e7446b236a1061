"""The place of a run in its sweep, and about how long the others will take. Imports no torch.

Runs of a sweep are made in processes of their own. The sweep tells them of itself in their environment, and each adds a
line to a file in the sweep's folder when it ends.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.core.durations import duration

VARIABLE = "FADAM_SWEEP"
ENDED = "ended.txt"


@dataclass(frozen=True)
class Sweep:
    """A sweep: how many runs, how many at a time, and its folder."""

    runs: int
    jobs: int
    folder: str

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """Processes that start in here know of the sweep."""
        os.environ[VARIABLE] = json.dumps(asdict(self))
        try:
            yield
        finally:
            del os.environ[VARIABLE]

    def end(self, seconds: float | None) -> str:
        """Counts a run that ended, and says how many have, and about how long the rest takes.

        Args:
            seconds: what it took; None where it was done before or was refused.
        """
        path = Path(self.folder) / ENDED
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{'-' if seconds is None else f'{seconds:.1f}'}\n")
        lines = path.read_text(encoding="utf-8").split()
        took = [float(line) for line in lines if line != "-"]
        left = self.runs - len(lines)
        said = f"{len(lines)} of {self.runs} runs are done"
        if left <= 0 or not took:
            return said
        return f"{said}; about {duration(left * sum(took) / len(took) / self.jobs / 60)} left"


def current() -> Sweep | None:
    """The sweep that this run belongs to, if it belongs to one; of a run's processes, the first tells of it."""
    told = os.environ.get(VARIABLE)
    first = {"0"} >= {os.environ.get(name, "0") for name in ("SLURM_PROCID", "LOCAL_RANK")}
    return Sweep(**json.loads(told)) if told and first else None


class Watch:
    """Says at its start and end where a run stands in its sweep. A single run says nothing."""

    def __init__(self, label: str, number: int) -> None:
        self.label, self.sweep, self.started = label, current(), time.time()
        if self.sweep is not None:
            print(f"{label}: run {number} of {self.sweep.runs}", flush=True)

    def end(self, record: Mapping[str, Any] | None) -> None:
        """To be called with the run's record, which may be older, or with None where it was refused."""
        if self.sweep is None:
            return
        begun = datetime.datetime.fromisoformat(record["started"]).timestamp() if record else 0.0
        anew = begun >= int(self.started)  # the record has whole seconds
        print(f"{self.label}: {self.sweep.end(time.time() - self.started if anew else None)}", flush=True)
