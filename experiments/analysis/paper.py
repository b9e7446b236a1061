"""`results/paper.yaml`: the numbers and claims of others, each with its mark and its source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.analysis.records import AnalysisError

DEFAULT = Path("results/paper.yaml")
TASKS = ("asr", "llm", "vqvae")
UNITS = ("percent", "number")


@dataclass(frozen=True)
class Claim:
    id: str
    task: str
    text: str
    mark: str
    source: str


@dataclass(frozen=True)
class Reference:
    """Reported numbers of one system; `values` is metric key -> number, in `unit`."""

    task: str
    name: str
    setting: str
    optimizer: str
    unit: str
    mark: str
    source: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Paper:
    title: str
    source: str
    marks: Mapping[str, str]
    claims: tuple[Claim, ...]
    references: tuple[Reference, ...]

    def claims_of(self, task: str) -> list[Claim]:
        return [c for c in self.claims if c.task == task]

    def references_of(self, task: str) -> list[Reference]:
        return [r for r in self.references if r.task == task]


def load_paper(path: str | Path = DEFAULT) -> Paper:
    """Read and check the file.

    Raises:
        AnalysisError: the file is missing or an entry of it is not as it must be; the sentence names both.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnalysisError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise AnalysisError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error

    def fail(where: str, what: str) -> AnalysisError:
        return AnalysisError(f"{path}: {where}: {what}")

    def entry(node: Any, where: str, keys: set[str]) -> dict[str, Any]:
        if not isinstance(node, dict) or set(node) != keys:
            got = sorted(map(str, node)) if isinstance(node, dict) else type(node).__name__
            raise fail(where, f"must have exactly the keys {sorted(keys)}, has {got}")
        for key in keys - {"values", "marks"}:
            if not isinstance(node[key], str) or not (node[key].strip() or key == "optimizer"):
                raise fail(where, f'"{key}" must be a text')
        return node

    top = {"schema", "paper", "marks", "claims", "references"}
    if not isinstance(content, dict) or set(content) != top or content["schema"] != 1:
        raise AnalysisError(f"{path}: must have schema 1 and exactly the keys {sorted(top)}")
    head = entry(content["paper"], "paper", {"authors", "title", "source"})
    marks = content["marks"]
    if not isinstance(marks, dict) or not all(isinstance(v, str) for v in marks.values()):
        raise fail("marks", "must be texts by mark")
    for part in ("claims", "references"):
        if not isinstance(content[part], list):
            raise fail(part, "must be a list")

    def check(node: Mapping[str, Any], where: str) -> None:
        if node["mark"] not in marks:
            raise fail(where, f"mark {node['mark']!r} is none of {sorted(marks)}")
        if node["task"] not in TASKS:
            raise fail(where, f"task {node['task']!r} is none of {', '.join(TASKS)}")

    claims = []
    for i, node in enumerate(content["claims"]):
        where = f"claims[{i}]"
        check(entry(node, where, {"id", "task", "text", "mark", "source"}), where)
        claims.append(Claim(**node))
    references = []
    for i, node in enumerate(content["references"]):
        where = f"references[{i}]"
        keys = {"task", "name", "setting", "optimizer", "unit", "mark", "source", "values"}
        check(entry(node, where, keys), where)
        if node["unit"] not in UNITS:
            raise fail(where, f"unit {node['unit']!r} is none of {', '.join(UNITS)}")
        values = node["values"]
        if not isinstance(values, dict) or not values:
            raise fail(where, "values must be numbers by metric")
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise fail(where, f"value of {key!r} is no finite number")
        references.append(Reference(**node))
    return Paper(head["title"], head["source"], marks, tuple(claims), tuple(references))
