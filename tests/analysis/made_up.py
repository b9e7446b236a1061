"""Made-up records of a whole study, with known answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.analysis.plan import TIERS, Planned, planned
from experiments.analysis.records import Record, parse_record
from experiments.core.study import protocol
from tests.analysis.conftest import record

# What an evaluation of a planned run comes to; None where it diverged.
Value = Callable[[Planned], float | None]
# No tuned value and no widened space of this repository's own study.
TUNED = Path("no-such-folder")
STEPS = 800


def seed_part(run: Planned) -> float:
    """What a seed does to every arm alike."""
    return 0.001 * (run.seed % 10)


def made_up(task: str, value: Value, *, tiers: tuple[str, ...] = TIERS) -> list[Record]:
    """A record of every planned run of a task's study; the best trial of every arm is `tune-p3` or `tune-f1`."""
    plan = protocol(task)
    continuous = plan["tiers"]["why"].get("continuous")
    made = []
    for run in planned(task, tiers, tuned=TUNED):
        declared = continuous if run.part == "continuous" else plan
        result = _trial_value(run) if run.purpose == "tune" else value(run)
        made.append(_record(run, declared, result))
    return made


def _trial_value(run: Planned) -> float:
    # Both directions: no metric of a made-up trial says more than which one is best.
    best = {"tune-p3": 0.0, "tune-f1": 0.0}.get(run.trial, 1.0)
    return 10.0 - best if run.variant == "gaussian" else 1.0 + best


def _record(run: Planned, declared: dict[str, Any], result: float | None) -> Record:
    words = dict(word.split("=", 1) for word in run.overrides)
    order = float(words.get("point", words.get("factor", 0)))
    settings = {"lr": 0.001 * 1.7**order, "weight_decay": 0.01}
    metric, tuning = declared["metric"]["name"], declared["tuning"]
    content = record(
        run.arm,
        run.seed,
        None,
        task=run.task,
        scale="study",
        variant=run.variant,
        trial=run.trial,
        purpose=run.purpose,
        experiment_name=run.experiment,
        optimizer={"_target_": f"some.{run.arm}", **(settings if run.purpose == "tune" else chosen(run))},
        searched={f"optimizer.{k}": v for k, v in settings.items()} if run.purpose == "tune" else {},
        objective={"metric": tuning["metric"], "mode": tuning["mode"], "value": result},
        # The VQ-VAE measures the continuous metric on both sides; here, with the value of the main one.
        metrics={metric: result, tuning["metric"]: result, **({"test/psnr": result} if run.task == "vqvae" else {})},
        diverged=result is None,
        steps=STEPS,
        # Linear from 3 at the start, so that the target is known.
        history=[
            {"step": step, "seconds": step / 10, tuning["metric"]: _curve(step, result)}
            for step in range(100, 801, 100)
        ],
        target={},
        samples=[],
    )
    content["config"] = {"task": run.task, "optimizer": dict(content["optimizer"])}
    relative = run.record
    return parse_record(content, Path("runs"), relative)


def _curve(step: int, result: float | None) -> float | None:
    return None if result is None else 3 + (result - 3) * step / STEPS


def chosen(run: Planned) -> dict[str, float]:
    """The setting of the best trial of the arm."""
    return {"lr": 0.001 * 1.7 ** (1 if run.part in ("switches", "clipping") else 3), "weight_decay": 0.01}
