"""`results/paper.yaml`: the numbers of others, each with its mark and its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from experiments.core.catalogue import TASKS
from experiments.core.errors import AnalysisError

PAPER = Path("results/paper.yaml")
Entry = TypeVar("Entry")
# Whose number it is: FAdam's, Adam's, or not said.
OPTIMIZERS = {"fadam": "FAdam", "adam": "Adam, another paper's model", "": "not said"}


@dataclass(frozen=True)
class Reference:
    """Reported numbers of one system; `values` is metric key -> number, in the unit of the tables.

    Attributes:
        optimizer: a key of `OPTIMIZERS`.
    """

    task: str
    name: str
    setting: str
    optimizer: str
    mark: str
    source: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Paper:
    title: str
    source: str
    marks: Mapping[str, str]
    references: tuple[Reference, ...]

    def of(self, task: str) -> list[Reference]:
        return [r for r in self.references if r.task == task]


def read_yaml(path: Path) -> Any:
    """What a file of results/ holds.

    Raises:
        AnalysisError: the file is missing or no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise AnalysisError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def entries(path: Path, name: str, kind: Callable[..., Entry], nodes: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The nodes below a key of a file as objects.

    Raises:
        AnalysisError: a node has other keys; names it.
    """
    found = []
    for i, node in enumerate(nodes):
        try:
            found.append(kind(**node))
        except TypeError as error:
            raise AnalysisError(f"{path}: {name}[{i}]: {error}") from None
    return found


def load_paper(path: Path = PAPER) -> Paper:
    """Read and check the file.

    Raises:
        AnalysisError: the file is missing or an entry of it is not as it must be; names both.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or set(content) != {"schema", "paper", "marks", "references"}:
        raise AnalysisError(f"{path} must have exactly the keys schema, paper, marks and references")
    references = entries(path, "references", Reference, content["references"])
    for i, found in enumerate(references):
        for key, allowed in (("mark", content["marks"]), ("task", TASKS), ("optimizer", OPTIMIZERS)):
            if getattr(found, key) not in allowed:
                raise AnalysisError(f"{path}: references[{i}]: {key} must be one of {', '.join(map(repr, allowed))}")
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in found.values.values()):
            raise AnalysisError(f"{path}: references[{i}]: values must be finite numbers by metric")
    return Paper(content["paper"]["title"], content["paper"]["source"], content["marks"], tuple(references))
