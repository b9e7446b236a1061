"""Made-up run records for the tests of the study and of the analysis."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments.analysis.comparisons import decider
from experiments.core.plan import Planner, plan_all, wanted
from experiments.core.protocol import FOLDER, Protocol, Run, names, protocol
from experiments.core.records import Records

Value = Callable[[Run], float]
# Protocols that are not in configs/study, by name.
DECLARED: dict[str, Protocol] = {}


def content(task: str, arm: str, seed: int, metrics: dict[str, float | None], **changes: Any) -> dict[str, Any]:
    """What a record file holds; `changes` are top-level keys."""
    found = {
        "schema": 1, "task": task, "scale": "cpu", "arm": arm, "variant": "", "trial": "main", "purpose": "eval",
        "experiment_name": f"{task}_cpu", "seed": seed, "data_seed": seed, "optimizer": {"lr": 0.001}, "searched": {},
        "data": {"name": "toy", "fingerprint": "sha256:1"}, "config_hash": "0", "steps": 20, "seen": {"items": 160.0},
        "metrics": metrics, "diverged": False, "wall_time_s": 60.0, "step_time_s": 0.1, "peak_memory_bytes": 10**9,
        "parameters": 1_000_000, "samples": [], "artifacts": [], "commit": "", "dirty": False, "device": "CPU",
        "threads": 1, "finished": "2026-11-26T00:00:00+00:00",
        "history": [{"step": step, "seconds": 3.0 * step, **metrics} for step in (10, 20)],
    } | changes  # fmt: skip
    config = {"experiment_name": found["experiment_name"], "purpose": found["purpose"], "seed": seed}
    return {"config": {**config, "optimizer": found["optimizer"], "trainer": {"max_steps": found["steps"]}}} | found


def put(root: Path, record: dict[str, Any]) -> Path:
    """Write a record where it belongs; returns its path."""
    stem = "-".join(part for part in (record["variant"], record["trial"], f"s{record['seed']}") if part)
    path = root / str(record["task"]) / str(record["scale"]) / str(record["arm"]) / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def of_run(run: Run, value: float, data: str = "sha256:1", **changes: Any) -> dict[str, Any]:
    """The record of a planned run, which diverged if its value is not finite."""
    p = DECLARED.get(run.protocol) or protocol(run.protocol)
    # A diverged run is not tested.
    metrics = {p.metric.name: value, p.tuning.name: value} if math.isfinite(value) else {p.tuning.name: None}
    record = content(
        run.task, run.arm, run.seed, metrics, scale=run.scale, variant=run.variant, trial=run.trial,
        purpose=run.purpose, experiment_name=run.experiment, diverged=not math.isfinite(value),
        data={"name": "toy", "fingerprint": data},
    )  # fmt: skip
    for key, setting in run.settings:
        node = record["config"]
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = setting
    record["optimizer"] = dict(record["config"]["optimizer"])
    return record | changes


def write(root: Path, run: Run, value: float, data: str = "sha256:1", **changes: Any) -> None:
    path = root / run.record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(of_run(run, value, data, **changes)))


def complete(root: Path, studies: Sequence[Protocol], value: Value, limit: int = 10_000) -> list[Run]:
    """Make up results until nothing is wanted, or `limit` runs are made."""
    DECLARED.update({p.name: p for p in studies})
    results = Records([root])
    decided = decider(studies, results)
    planners = [Planner(p, results, decided) for p in studies]
    made: list[Run] = []
    while due := list(wanted(plan_all(planners), results)):
        for run in itertools.islice(due, limit - len(made)):
            write(root, run, value(run))
            results.forget(run)
            made.append(run)
        if len(made) >= limit:
            break
    return made


def main_part(name: str) -> Protocol:
    """A declared study without what follows its main comparison."""
    p = protocol(name)
    return replace(p, switches=None, epsilon=None, context=None, comparisons=p.comparisons[:1])


def bowl_value(best: float, floor: float = 1.6, sd: float = 0.004, gain: float = 0.0) -> Value:
    """A bowl over the learning rate, each arm's bottom at `best`; seeds and arms differ by `sd`, FAdam by `gain`."""

    def value(run: Run) -> float:
        rng = np.random.default_rng([run.seed, *run.arm.encode()])
        lr = dict(run.settings)["optimizer.lr"]
        lower = gain if run.arm.startswith("fadam") else 0.0
        return floor - lower + 0.05 * math.log(lr / best) ** 2 + sd * float(rng.standard_normal())

    return value


def small_studies(folder: Path) -> list[str]:
    """Write the declared studies in small: fewer rates, seeds, looks, points and context; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names():
        content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        content.setdefault("evaluation", {"first": 201, "count": 8})["count"] = 8
        if content.get("size"):
            content["evaluation"]["count"] = 4
        if bowl := content.get("bowl"):
            bowl.update(first=-15, last=-11, seeds=[301, 302, 303])
            if bowl.get("decays"):
                bowl["decays"] = {"decoupled": [0.1, 0.3], "natural": [1e-3, 1e-2]}
        for comparison in content["comparisons"]:
            comparison["looks"] = [4] if content.get("size") else [4, 8]
        if epsilon := content.get("epsilon"):
            epsilon.update(eps=[1e-4, 1e-8], gradient_scale=[2.0**-20, 1.0], seeds={"adamw": 2, "fadam": 3})
        if context := content.get("context"):
            context.update(arms=["muon"], first=-14, last=-12)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return names(folder)
