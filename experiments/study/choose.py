"""Which settings `configs/tuned` names: what the studies chose, or what the runs of `make tune-<task>` say.

There is one file an experiment, which `experiments.train` reads by itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from experiments.core.catalogue import in_order
from experiments.core.errors import UserError
from experiments.core.files import write_whole
from experiments.core.plan import CONFIGS, RATE, Planner
from experiments.core.protocol import names, protocol
from experiments.core.records import Record, Records, check_one_kind

TUNED = CONFIGS / "tuned"


@dataclass(frozen=True)
class Choice:
    """The rate with the best value of one arm. `end`: of the rates, "lowest" or "highest", if it lies there."""

    arm: str
    values: dict[float, float]
    best: float
    end: str


def declared_steps(experiment: str) -> int:
    """How long the experiment's runs are."""
    from experiments.core.choices import composed

    if not (CONFIGS / "experiment" / f"{experiment}.yaml").is_file():
        raise UserError(f"there is no experiment {experiment!r} in configs/experiment")
    return int(composed(f"experiment={experiment}").trainer.max_steps)


def choose(records: Sequence[Record], experiment: str) -> list[Choice]:
    """Each arm's best rate, by the mean over the seeds that every arm ran at every rate.

    Raises:
        UserError: the arms tried different rates, no seed ran at all of them, or every rate of one diverged.
    """
    check_one_kind(records, f"the search of {experiment}")
    mode = str(records[0].objective["mode"])
    by_arm: dict[str, dict[float, dict[int, float]]] = {}
    for r in records:
        value = r.value(str(r.objective["metric"]), "min" if mode == "min" else "max")
        by_arm.setdefault(r.arm, {}).setdefault(float(r.searched[RATE]), {})[r.seed] = value
    rates = {arm: tuple(sorted(values)) for arm, values in by_arm.items()}
    if len(set(rates.values())) > 1:
        raise UserError(f"{experiment}: every arm must try the same rates, but they tried {rates}")
    seeds = set.intersection(*(set(ran) for tried in by_arm.values() for ran in tried.values()))
    if not seeds:
        raise UserError(f"{experiment}: no seed has been run by every arm at every rate")
    found = []
    for arm, ran_at in by_arm.items():
        values = {rate: statistics.fmean(ran[seed] for seed in seeds) for rate, ran in ran_at.items()}
        best = (min if mode == "min" else max)(values, key=lambda rate: values[rate])
        if not math.isfinite(values[best]):
            raise UserError(f"{experiment}: {arm} diverged at every rate")
        tried = sorted(values)
        found.append(Choice(arm, values, best, {tried[0]: "lowest", tried[-1]: "highest"}.get(best, "")))
    return found


def choose_experiment(experiment: str, runs: Path, folder: Path = TUNED, steps: int | None = None) -> list[str]:
    """Choose, write, and say it in lines. Shortened runs, edges and what a declared study tunes are never written.

    Args:
        steps: of the experiment's runs, if it is known.
    """
    steps = declared_steps(experiment) if steps is None else steps
    searched = [r for r in Records([runs]).all() if (r.experiment_name, r.purpose) == (experiment, "tune")]
    records = [r for r in searched if set(r.searched) == {RATE}]
    short = [r for r in records if r.setting("trainer.max_steps") != steps]
    records = [r for r in records if r not in short]
    lines = [f"{len(short)} shortened runs are left out, such as {short[0].path}"] if short else []
    if not records:
        raise UserError(f"no run of the search of {experiment} with all its {steps} steps in {runs}")
    found = choose(records, experiment)
    for c in found:
        tried = ", ".join(f"{rate:g}: {value:.6g}" for rate, value in sorted(c.values.items()))
        lines.append(f"{experiment}, {c.arm}: {c.best:g} is best of {tried}")
    owner = next((n for n in names() if protocol(n).experiment == experiment and not protocol(n).prefix), None)
    edges = [f"{c.arm} at its {c.end} rate" for c in found if c.end]
    if owner is not None:
        lines.append(f"nothing written: configs/study/{owner}.yaml declares how {experiment} is tuned")
    elif edges:
        lines.append(f"nothing written: {' and '.join(edges)}; widen `rates`, which stand in configs/base")
    else:
        chosen = {c.arm: {"lr": c.best} for c in found}
        by = f"python -m experiments.study choose {experiment}"
        lines.append(f"wrote {write_settings(experiment, by, chosen, folder)}")
    return lines


def write_settings(experiment: str, by: str, chosen: Mapping[str, Mapping[str, float]], folder: Path = TUNED) -> Path:
    """Put the settings of some arms, such as {"fadam": {"lr": 0.002}}, into an experiment's file; other arms stay.

    Args:
        by: the command that chose them.
    """
    path = folder / f"{experiment}.yaml"
    there = yaml.safe_load(path.read_text(encoding="utf-8"))["tuned"] if path.is_file() else {}
    settings = {**there, **chosen}
    lines = ["# @package _global_", f"# Written by: {by}", "tuned:"]
    for arm in in_order(settings):
        lines.append(f"  {arm}: {{{', '.join(f'{key}: {value:g}' for key, value in settings[arm].items())}}}")
    write_whole(path, "\n".join(lines) + "\n")
    return path


def write_tuned(planners: Sequence[Planner], folder: Path = TUNED) -> list[Path]:
    """Write what the studies have chosen so far. Studies of another size than the experiment's are left out."""
    written = []
    for planner in planners:
        p = planner.protocol
        chosen = {
            arm: {key.removeprefix("optimizer."): float(value) for key, value in tuned.settings}
            for arm, tuned in planner.tuned().items()
        }
        if chosen and not p.prefix:
            written.append(write_settings(p.experiment, f"python -m experiments.study tuned {p.name}", chosen, folder))
    return written
