"""The declared search space of the study, `configs/study/<task>.yaml`, and its points. Imports no torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.core.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "study_first"
TUNED = FOLDER.parent / "tuned"
# The dimensions of the search space, in the order of the low-discrepancy sequence.
_DIMENSIONS = ("lr", "weight_decay")


@functools.cache
def protocol(task: str, folder: Path = FOLDER) -> Mapping[str, Any]:
    """What `configs/study/<task>.yaml` declares.

    Raises:
        ConfigError: there is no such file.
    """
    path = folder / f"{task}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ConfigError(f"no study is declared for {task!r} ({path} is missing); declared are {known}")
    content: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def afterwards(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """What was done otherwise than declared, or beside it, in sentences that were written after the runs."""
    return tuple(plan.get("afterwards", ()))


def look_up(node: Any, key: str) -> Any:
    """The value of a dotted key.

    Raises:
        ConfigError: naming the key that is missing.
    """
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise ConfigError(f"the study's protocol has no {key!r} (nothing is called {part!r} there)")
        node = node[part]
    return node


def radical_inverse(index: int) -> float:
    """The binary digits of `index` mirrored at the point, in [0, 1): van der Corput's sequence."""
    value, share = 0.0, 0.5
    while index:
        value, share, index = value + share * (index & 1), share / 2, index >> 1
    return value


def unit_point(index: int, points: int) -> tuple[float, float]:
    """Point `index` of Hammersley's set of `points` (a power of two) in the unit square, in the middle of its strata.

    The first coordinate grows with the index, the second follows van der Corput: each of the `points` strata of either
    coordinate holds one point. Indices below 0 and from `points` on go on at the same distance beyond the ends of the
    first coordinate; that is how the space is widened.
    """
    return (index + 0.5) / points, radical_inverse(index % points) + 0.5 / points


def point_value(space: Mapping[str, Any], key: str, index: int, points: int) -> float:
    """The log-uniform value of the dimension `key` (`lr`, `weight_decay.decoupled`, ...) at a point, to four digits."""
    limits = look_up(space, key)
    low, high = float(limits["low"]), float(limits["high"])
    share = unit_point(index, points)[_DIMENSIONS.index(key.split(".")[0])]
    return float(f"{low * math.exp(share * math.log(high / low)):.4g}")


def tuned(experiment: str, arm: str, key: str, folder: Path = TUNED) -> Any:
    """A hyperparameter that was chosen for an experiment and an arm.

    Raises:
        ConfigError: it has not been tuned yet.
    """
    path = folder / f"{experiment}-{arm}.yaml"
    if not path.is_file():
        raise ConfigError(f"{path} is missing: tune the arm {arm} of {experiment} first (make study-<task>)")
    return look_up(yaml.safe_load(path.read_text(encoding="utf-8")), key)
