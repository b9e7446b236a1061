"""Every run that the protocol of a study declares, with the command that makes it and the record it leaves.

Tiers: `who` (who wins), `why` (one switch at a time, epsilon, the continuous loss), `far` (how far it holds), and
`after`: what the results of the others asked for, declared once they were known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.core.study import FOLDER, TUNED, protocol

TIERS = ("who", "why", "far", "after")
# Parts whose points are those of another part: what widens one widens both.
_SHARED = {"clipping": "switches"}


@dataclass(frozen=True)
class Planned:
    """One run of a study.

    Attributes:
        part: what it belongs to inside its tier: `main`, `switches`, `eps`, `continuous`, `lr`, `context`, ...
        arm, variant, trial, seed, purpose: as in the run record.
        overrides: words for `experiments.train`, without `seed` for tuning runs, which take the protocol's.
        needs: arms of the same experiment that must have been tuned before.
    """

    tier: str
    part: str
    task: str
    experiment: str
    arm: str
    variant: str
    trial: str
    seed: int
    purpose: str
    overrides: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def record(self) -> Path:
        """Path of its record inside a folder of runs."""
        stem = "-".join(part for part in (self.variant, self.trial, f"s{self.seed}") if part)
        return Path(self.task) / "study" / self.arm / f"{stem}.json"


@dataclass(frozen=True)
class Multirun:
    """One Hydra multirun: runs of one part that differ in the values of a few words."""

    tier: str
    part: str
    purpose: str
    experiment: str
    needs: tuple[str, ...]
    runs: tuple[Planned, ...]
    words: tuple[str, ...]


def _evaluated(
    tier: str, part: str, task: str, experiment: str, arms: Sequence[str], variant: str, seeds: Sequence[int]
) -> Iterator[Planned]:
    """The evaluation seeds of each arm as tuned."""
    for arm, seed in itertools.product(arms, seeds):
        words = (f"optimizer={arm}", f"seed={seed}")
        yield Planned(tier, part, task, experiment, arm, variant, "main", seed, "eval", words, (arm,))


def _tuned_part(
    plan: Mapping[str, Any], tier: str, part: str, arms: Sequence[str], where: Mapping[str, Any], tuned: Path
) -> Iterator[Planned]:
    """Tuning over the declared points, widened where it had to be, then the evaluation seeds, for each arm."""
    common = (tier, part, plan["task"], where["experiment"])
    low, high = widened(where["experiment"], part, tuned)
    indices = range(-low, plan["points"] + high)
    for arm, index in itertools.product(arms, indices):
        yield Planned(
            *common, arm, where["variant"], f"tune-p{index}", plan["tuning"]["seed"], "tune",
            ("tune=study", f"optimizer={arm}", f"point={index}"),
        )  # fmt: skip
    yield from _evaluated(*common, arms, where["variant"], plan["seeds"])


def _switched(plan: Mapping[str, Any], tier: str, part: str, arms: Sequence[str], tuned: Path) -> Iterator[Planned]:
    """FAdam's kin: tuning over factors of its learning rate, widened where it had to be, then the evaluation seeds."""
    why = plan["tiers"]["why"]
    common = (tier, part, plan["task"], plan["experiment"])
    low, high = widened(plan["experiment"], part, tuned)
    first, last = why["factors"][0], why["factors"][-1]
    factors = [first / 2**i for i in range(low, 0, -1)] + why["factors"] + [last * 2**i for i in range(1, high + 1)]
    needs = tuple(sorted({"fadam", *why["decay_from"].values()}))
    for arm, factor in itertools.product(arms, factors):
        yield Planned(
            *common, arm, plan["variant"], f"tune-f{factor}", plan["tuning"]["seed"], "tune",
            ("tune=study_switch", f"optimizer={arm}", f"factor={factor}"), needs,
        )  # fmt: skip
    yield from _evaluated(*common, arms, plan["variant"], plan["seeds"])


def _varied(
    plan: Mapping[str, Any],
    tier: str,
    name: str,
    arms: Sequence[str],
    seeds: Sequence[int],
    points: Sequence[Any],
    part: str = "",
) -> Iterator[Planned]:
    """The tuned arms with one value changed; a point is a value, or a value with factors of the learning rate. The part
    is called like what varies, unless it has a name of its own."""
    for arm, point in itertools.product(arms, points):
        value, factors = point if isinstance(point, tuple) else (point, (None,))
        for factor, seed in itertools.product(factors, seeds):
            trial = f"{name}{value}" + ("" if factor is None else f"-f{factor}")
            words = [f"vary={name}", f"optimizer={arm}", f"value={value}", f"seed={seed}"]
            words += [] if factor is None else [f"factor={factor}"]
            yield Planned(
                tier, part or name, plan["task"], plan["experiment"], arm, plan["variant"], trial, seed, "eval",
                tuple(words), (arm,),
            )  # fmt: skip


def widened_path(experiment: str, part: str, tuned: Path = TUNED) -> Path:
    return tuned / "widened" / f"{experiment}-{_SHARED.get(part, part)}.yaml"


def widened(experiment: str, part: str, tuned: Path = TUNED) -> tuple[int, int]:
    """By how many points the space of a part was widened at its low and its high end."""
    path = widened_path(experiment, part, tuned)
    if not path.is_file():
        return 0, 0
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return int(content["low"]), int(content["high"])


def planned(task: str, tiers: Sequence[str] = TIERS, folder: Path = FOLDER, tuned: Path = TUNED) -> list[Planned]:
    """All runs of a task's study in the order in which they are to be made.

    Raises:
        ConfigError: no study of that task is declared.
    """
    plan = protocol(task, folder)
    runs: list[Planned] = []
    if "who" in tiers:
        runs += _tuned_part(plan, "who", "main", plan["tiers"]["who"]["arms"], plan, tuned)
    if "why" in tiers:
        why = plan["tiers"]["why"]
        runs += _switched(plan, "why", "switches", why["arms"], tuned)
        eps = why["eps"]
        runs += _varied(plan, "why", "eps", eps["arms"], eps["seeds"], eps["values"])
        if "continuous" in why:
            other = why["continuous"]
            runs += _tuned_part(plan, "why", "continuous", other["arms"], other, tuned)
    if "far" in tiers and "far" in plan["tiers"]:
        far = plan["tiers"]["far"]
        for name, values in far["vary"].items():
            runs += _varied(plan, "far", name, far["arms"], far["seeds"], values)
        rho = [(value, tuple(factors)) for value, factors in far["rho"].items()]
        runs += _varied(plan, "far", "rho", ["fadam"], far["seeds"], rho)
        runs += _tuned_part(plan, "far", "context", far["context"], plan, tuned)
    if "after" in tiers and "after" in plan["tiers"]:
        after = plan["tiers"]["after"]
        runs += _switched(plan, "after", "clipping", [after["clipping"]["arm"]], tuned)
        for part, v in after["vary"].items():
            runs += _varied(plan, "after", v["name"], v["arms"], v["seeds"], v["values"], part)
    return runs


def multiruns(runs: Sequence[Planned]) -> list[Multirun]:
    """The runs as Hydra multiruns, in order: each is the product of the values of its words, no run more or less."""
    groups: dict[tuple[Any, ...], list[Planned]] = {}
    for run in runs:
        keys = tuple(word.partition("=")[0] for word in run.overrides)
        # Values with factors of their own are no product with one another.
        apart = _value(run, "value") if {"value", "factor"} <= set(keys) else ""
        groups.setdefault((run.experiment, run.tier, run.part, run.purpose, keys, apart), []).append(run)
    found = []
    for (experiment, tier, part, purpose, keys, _), members in groups.items():
        values = {key: tuple(dict.fromkeys(_value(run, key) for run in members)) for key in keys}
        assert math.prod(map(len, values.values())) == len(members)
        words = (f"experiment={experiment}", *(f"{key}={','.join(chosen)}" for key, chosen in values.items()))
        needs = tuple(dict.fromkeys(need for run in members for need in run.needs))
        found.append(Multirun(tier, part, purpose, experiment, needs, tuple(members), words))
    return found


def _value(run: Planned, key: str) -> str:
    return next(word.partition("=")[2] for word in run.overrides if word.startswith(f"{key}="))
