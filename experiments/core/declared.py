"""The config of somebody's own task (docs/own-task.md): what trains, and under `study` how it is compared.

It is read twice: by Hydra, as an experiment without its study, and here, as a protocol. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.core import catalogue, protocol
from experiments.core.errors import ConfigError

KINDS = {"own": "task", "lightning": "lightning"}
BASELINE, CHALLENGER = "adamw_clip", "fadam"
FIRST_SEED, FIRST_TUNING_SEED = 201, 301
SMOKE_STEPS = 4
LEAST_PAIRS = 5  # with fewer, nothing can be said of what a comparison detects


@dataclass(frozen=True)
class Study:
    """How a task is compared.

    Attributes:
        matters: the smallest difference in the objective that would matter, in its own unit (0.01 of a fraction is 1%).
        lowest, highest: learning rate at the ends of the grid, whose rates lie a factor of 1.6 apart; it grows by two
            rates, at most twice, where the best of some optimizer lies at its end.
        tuning_seeds: how many runs each rate gets.
        looks: after so many pairs the comparison is looked at, and ended where it is decided.
        optimizers: names of configs/optimizer; all others are compared with the first.
        weight_decay: where tuning starts, by kind: `natural` (FAdam's, in the metric) and `decoupled` (AdamW's).
        decays: the weight decays that are tried at the best rate, by kind; none by default.
        title: in headings; metrics: how they are shown, as `experiments.core.catalogue.Metric` without the split.
            What a task's class says of them counts first.
    """

    matters: float
    lowest: float = 1e-3
    highest: float = 6.3e-3
    tuning_seeds: int = 2
    looks: tuple[int, ...] = (8, 16, 24)
    optimizers: tuple[str, ...] = (BASELINE, CHALLENGER)
    weight_decay: Mapping[str, float] = field(default_factory=lambda: {"decoupled": 0.01, "natural": 1e-3})
    decays: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    title: str = ""
    metrics: tuple[catalogue.Metric, ...] = ()


@dataclass(frozen=True)
class Declared:
    """One config file.

    Attributes:
        experiment: what Hydra composes, with the defaults of configs/own.
        target: what is imported: the task's class, or the LightningModule.
        code: checksum of what trains: the file without its study, and the Python files beside it.
    """

    path: Path
    name: str
    experiment: Mapping[str, Any]
    target: str
    objective: protocol.Metric
    study: Study
    code: str

    @property
    def words(self) -> list[str]:
        """The words that let `experiments.train` find it; those of a run come after."""
        # As it was named: a record's command then holds no folder of this machine that was not typed.
        return [f"hydra.searchpath=['own://{self.path.parent}']"]

    def protocol(self, smoke: bool = False) -> protocol.Protocol:
        """The comparison as the declared studies are written.

        Args:
            smoke: only to see that the parts fit: few rates, seeds and steps.
        """
        s, mode = self.study, self.objective.mode
        metric = self.objective.name.partition("/")[2]
        for name in ("lowest", "highest"):
            if not getattr(s, name) > 0:
                raise ConfigError(f"{self.path}: study.{name} must be above 0, got {getattr(s, name)}")
        first, last = map(protocol.step_of, (s.lowest, s.highest))
        looks = (LEAST_PAIRS,) if smoke else s.looks
        if not looks or looks[0] < LEAST_PAIRS:
            raise ConfigError(
                f"{self.path}: study.looks must begin with at least {LEAST_PAIRS} pairs, got {list(looks)}"
            )
        arms = list(dict.fromkeys(s.optimizers))
        for arm in arms:
            if not (protocol.FOLDER.parent / "optimizer" / f"{arm}.yaml").is_file():
                raise ConfigError(f"{self.path}: study.optimizers: there is no configs/optimizer/{arm}.yaml")
        overrides: dict[str, Any] = {"code": self.code}
        if smoke:
            overrides |= {"scale": "smoke", "trainer.max_steps": SMOKE_STEPS, "eval_every": SMOKE_STEPS}
            overrides |= {"scheduler.warmup_steps": 1}
        found: protocol.Protocol = protocol.built(
            protocol.Protocol,
            {
                "name": self.name, "task": self.name, "experiment": self.path.stem, "priority": 0,
                "scale": "smoke" if smoke else "cpu", "matters": s.matters,
                "metric": {"name": f"test/{metric}", "mode": mode}, "tuning": {"name": f"val/{metric}", "mode": mode},
                "evaluation": list(range(FIRST_SEED, FIRST_SEED + max(looks, default=0))),
                "bowl": {
                    "arms": arms, "first": first, "last": first + 2 if smoke else last, "growth": 0 if smoke else 2,
                    "seeds": list(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + (1 if smoke else s.tuning_seeds))),
                    "start": dict(s.weight_decay),
                    "decays": {} if smoke else {kind: list(values) for kind, values in s.decays.items()},
                },
                "comparisons": [
                    {"id": arm, "claim": "", "family": self.name, "challenger": arm, "baseline": arms[0],
                     "looks": list(looks)}
                    for arm in arms[1:]
                ],
                "overrides": overrides,
            },
            str(self.path),
        )  # fmt: skip
        return found

    def entry(self, title: str = "", metrics: tuple[catalogue.Metric, ...] = ()) -> catalogue.Task:
        """How the task and its metrics are called: by its class, else by the study, else by their keys."""
        objective = self.objective.name.partition("/")[2]
        shown = {m.key: m for m in (*self.study.metrics, *metrics)}
        shown = {objective: catalogue.Metric(objective, objective, self.objective.mode), **shown}
        by_key = {}
        for split, word in (("test", "test"), ("val", "validation")):
            for m in shown.values():
                mode = self.objective.mode if m.key == objective else m.mode
                key, label = f"{split}/{m.key}", f"{word} {m.label}"
                by_key[key] = replace(m, key=key, label=label, mode=mode)
        title = title or self.study.title or self.name
        curves = (f"val/{objective}",) if self.experiment.get("eval_every") else ()
        return catalogue.Task(self.name, title, title.lower(), by_key, (f"test/{objective}",), curves, "")


def read(path: Path) -> Declared:
    """A config file, checked.

    Raises:
        ConfigError: it is missing, or a key in it is; names both.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; docs/own-task.md says what a task's config holds") from None
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping")
    kinds = [kind for kind in KINDS if kind in content]
    if len(kinds) != 1:
        raise ConfigError(f"{path} must have one of the keys own, a task in one file, and lightning, a module")
    kind = kinds[0]
    node = content[kind].get("module") if kind == "lightning" and isinstance(content[kind], dict) else content[kind]
    where = "lightning.module" if kind == "lightning" else "own"
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(f"{path}: {where} must have a _target_, such as examples.own_task.textures.Textures")
    study = protocol.built(Study, content.pop("study", None), f"{path}: study")
    objective = protocol.built(protocol.Metric, _objective(content, path), f"{path}: objective")
    name = str(content.setdefault("task", path.stem))
    if name in catalogue.OURS:
        raise ConfigError(f"{path}: task must be a name of its own, and {name} is one of this project's")
    if not isinstance(content.get("trainer"), dict) or "max_steps" not in content["trainer"]:
        raise ConfigError(f"{path} must say trainer.max_steps, the optimizer steps of a run")
    code = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    for source in sorted(path.parent.glob("*.py")):
        code.update(source.name.encode() + source.read_bytes())
    if kind == "lightning":
        content[kind].setdefault("data", "${lightning.module}")  # its own loaders
    content["defaults"] = [{"/own": KINDS[kind]}, *content.get("defaults", ())]
    return Declared(path, name, content, node["_target_"], objective, study, f"c{code.hexdigest()[:12]}")


def _objective(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The experiment's `objective`, as a metric of the protocol."""
    found = content.get("objective")
    if not isinstance(found, dict) or not str(found.get("metric", "")).startswith("val/"):
        raise ConfigError(f"{path} must have objective: {{metric: val/<name>, mode: min or max}}, got {found!r}")
    return {"name": found["metric"], "mode": found.get("mode", "min")}
