"""Settle the hyperparameters of a study's arms from their tuning records, or widen the space for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.analysis.choose import Choice, choose_arm, config_text, setting_text, write_text
from experiments.analysis.plan import Planned, widened, widened_path
from experiments.analysis.records import AnalysisError, Record, check_one_kind
from experiments.analysis.tasks import arm_label
from experiments.core import study
from experiments.core.errors import ConfigError
from experiments.core.study import TUNED

# One point of the declared space is a factor of 1.7 in the learning rate, one of the switches' factors is 2.
MOST = 4
RATE = "optimizer.lr"


@dataclass(frozen=True)
class Settled:
    """What became of one part: the choices, and for what reasons the space must be widened (then nothing is chosen)."""

    choices: dict[str, Choice]
    widen: tuple[str, ...]


def end(choice: Choice) -> str:
    """ "low" or "high" where the best learning rate is the least or the greatest that was tried, else "". An arm that
    diverged everywhere may do better below."""
    if choice.lost:
        return "low"
    rates = sorted(trial.settings[RATE] for trial in choice.trials)
    return {rates[0]: "low", rates[-1]: "high"}.get(choice.best.settings[RATE], "")


def own(run: Planned, records: dict[Path, Record]) -> Record:
    """The record of a planned run.

    Raises:
        AnalysisError: there is none, or it diverged from the plan.
    """
    record = records.get(run.record)
    if record is None:
        raise AnalysisError(f"{run.record} is missing: the tuning of {run.arm} is not complete")
    if record.purpose != run.purpose or record.experiment_name != run.experiment:
        raise AnalysisError(f"{record.path} is not the planned run of {run.experiment} ({run.purpose})")
    return record


def current(run: Planned, record: Record, tuned: Path = TUNED) -> bool:
    """Whether the record of a planned run was made with the hyperparameters that are chosen now.

    Points of the declared space depend on no choice. What a run varies itself is left out; of batches that is the
    learning rate, which goes with them.
    """
    words = dict(word.split("=", 1) for word in run.overrides)
    if run.purpose == "tune" and "factor" not in words:
        return True
    try:
        chosen = dict(study.tuned(run.experiment, "fadam" if run.purpose == "tune" else run.arm, "optimizer", tuned))
    except ConfigError:  # nothing is chosen yet
        return True
    chosen["lr"] *= float(words.get("factor", 1))
    if run.purpose == "tune":  # the decay is that of another arm where its kind is
        del chosen["weight_decay"]
    elif words.get("vary") in ("lr", "batch"):
        del chosen["lr"]
    # Products with a factor are rounded to four digits.
    return all(math.isclose(record.setting(f"optimizer.{k}"), v, rel_tol=1e-3) for k, v in chosen.items())


def settle(runs: Sequence[Planned], records: Sequence[Record], tuned: Path = TUNED) -> Settled:
    """Choose every arm's point from the planned tuning runs of one part, and write `configs/tuned`.

    The best learning rate of an arm must lie inside the space. Where one lies at an end, that end is widened by two
    points for every arm, `configs/tuned/widened` says so, and nothing is chosen until they have run. The decay needs no
    widening of its own: its highest value belongs to the point with the highest learning rate (see
    `experiments.core.study.unit_point`), and below its lowest value it does nothing. An arm that has diverged
    everywhere widens the low end, as far as it may be; its evaluation runs are then made with the lowest learning rate,
    and count as they come out.

    Raises:
        AnalysisError: a record is missing, or the space was widened too often.
        MixedRecordsError: the records are of two data sets or configurations.
    """
    by_path = {record.relative: record for record in records}
    first = runs[0]
    mine = {run: own(run, by_path) for run in runs}
    check_one_kind(list(mine.values()), f"tuning of {first.experiment}, {first.part}")
    choices = {
        arm: choose_arm([record for run, record in mine.items() if run.arm == arm], lost=True)
        for arm in dict.fromkeys(run.arm for run in runs)
    }
    low, _ = widened(first.experiment, first.part, tuned)
    ends = {
        arm: found for arm, choice in choices.items() if (found := end(choice)) and not (choice.lost and low >= MOST)
    }
    reasons = [f"{arm_label(arm)}: {_reason(choices[arm], found)}" for arm, found in ends.items()]
    if reasons:
        _widen(first, set(ends.values()), reasons, tuned)
        return Settled({}, tuple(reasons))
    for choice in choices.values():
        record = choice.best.records[0]
        text = config_text(
            choice, record.task, record.scale, record.variant, f"python -m experiments.study {record.task}"
        )
        write_text(tuned / f"{first.experiment}-{choice.arm}.yaml", text)
    return Settled(choices, ())


def _reason(choice: Choice, found: str) -> str:
    trials, rate = len(choice.trials), setting_text(choice.best.settings[RATE])
    if choice.lost:
        return f"diverged at all of {trials} learning rates, of which {rate} is the smallest"
    return f"the best learning rate, {rate}, is the {'smallest' if found == 'low' else 'largest'} of {trials} tried"


def _widen(run: Planned, ends: set[str], reasons: Sequence[str], tuned: Path) -> None:
    low, high = widened(run.experiment, run.part, tuned)
    low, high = low + 2 * ("low" in ends), high + 2 * ("high" in ends)
    if max(low, high) > MOST:
        raise AnalysisError(
            f"{run.experiment}, {run.part}: widened by {MOST} points and still at an end: {'; '.join(reasons)}"
        )
    path = widened_path(run.experiment, run.part, tuned)
    old = [line for line in path.read_text().splitlines() if line.startswith("#")] if path.is_file() else []
    lines = old or ["# Points added at the ends of the declared space, for every arm."]
    lines += [f"# {reason}." for reason in reasons]
    write_text(path, "\n".join([*lines, f"low: {low}", f"high: {high}"]) + "\n")
