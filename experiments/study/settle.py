"""Which settings `configs/tuned` names: one file an experiment, which `experiments.train` reads by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from experiments.core.catalogue import in_order
from experiments.core.files import write_whole
from experiments.core.plan import CONFIGS, Planner

TUNED = CONFIGS / "tuned"


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
