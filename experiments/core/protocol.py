"""The declared protocol of a study, `configs/study/<name>.yaml`, read and checked. Imports no torch.

A protocol says what is tuned, on which seeds, what is then compared on fresh ones, and what difference would matter.
`experiments.study` plans and makes its runs; `experiments.analysis` judges them. docs/study.md has the rules in words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from experiments.core.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "study"
# Learning rates are steps of the preferred numbers R5 (ISO 3): five to a decade, a factor of about 1.6 apart.
STEPS_PER_DECADE = 5

Mode = Literal["min", "max"]
Pool = Literal["decoupled", "natural"]
# A run that is not planned in full yet: its study, what it belongs to, and a number.
Key = tuple[str, str, int]


def rate(step: int) -> float:
    """Learning rate number `step`, 10^(step / 5) to two digits: -15 is 0.001, -14 is 0.0016."""
    return float(f"{10 ** (step / STEPS_PER_DECADE):.2g}")


def step_of(learning_rate: float) -> int:
    """The number of a learning rate, see `rate`."""
    return round(STEPS_PER_DECADE * math.log10(learning_rate))


@dataclass(frozen=True)
class Metric:
    """A measured quantity, by its key in the run record, and which direction is better."""

    name: str
    mode: Mode


@dataclass(frozen=True)
class Bowl:
    """Learning rates for each of `arms`, then weight decays at the chosen one.

    Attributes:
        first, last: the rates' steps, see `rate`; the grid grows by two at an end that holds some arm's best.
        growth: how often an end may grow.
        seeds: of tuning, `seeds[:decay_seeds]` for the weight decays.
        start: weight decay during the learning rates, by kind of decay.
        decays: the weight decays tried at the chosen rate, `start` among them, by kind of decay.
        cliff: how many times `matters` a neighbour in learning rate may be worse than a rate that is chosen, and that
            rate worse than the best.
    """

    arms: tuple[str, ...]
    first: int
    last: int
    seeds: tuple[int, ...]
    start: Mapping[str, float]
    decays: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    decay_seeds: int = 2
    growth: int = 2
    cliff: float = 10.0

    @property
    def planned(self) -> int:
        """How many learning rates each arm runs before the grid grows."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Switches:
    """FAdam with parts turned back: learning rates around FAdam's own, FAdam's or AdamW + clip's weight decay.

    Attributes:
        reach: rates on either side of the chosen one of `centre`; the grid grows as a bowl's does.
        decay_from: the arm whose tuned weight decay is taken, by kind of decay.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    decay_from: Mapping[str, str]
    centre: str = "fadam"
    reach: int = 2
    growth: int = 2
    cliff: float = 10.0


@dataclass(frozen=True)
class Comparison:
    """`challenger` against `baseline` on the first `looks[0]`, `looks[1]`, ... evaluation seeds.

    Attributes:
        claim: of results/claims.yaml, or "" where none rests on it.
        family: comparisons of one family, over all studies, share the chance of a false word (Holm).
    """

    id: str
    claim: str
    family: str
    challenger: str
    baseline: str
    looks: tuple[int, ...]


@dataclass(frozen=True)
class Epsilon:
    """Claim C4: tuned arms on a grid of epsilon, scale of the gradients, and precision of the weights.

    Attributes:
        like: the arm whose tuned settings an arm takes, where it was not tuned itself.
        seeds: how many evaluation seeds, by arm.
    """

    arms: tuple[str, ...]
    eps: tuple[float, ...]
    gradient_scale: tuple[float, ...]
    precision: tuple[str, ...]
    seeds: Mapping[str, int]
    like: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """One study.

    Attributes:
        name: of the file; what the runner is called with.
        scale, experiment, variant: as in the run record and `configs/experiment`.
        metric, matters: what is judged, and the smallest difference in it that would matter to a person.
        tuning: what tuning looks at, in the same unit.
        evaluation: seeds of the evaluation, never used before; initial weights and data order are the seed's.
        priority: of the same kind of part, lower ones run first; context and the grid of epsilon run late.
        bowl, switches, epsilon, context, comparisons: the parts; context arms are tuned like a bowl's, with fewer
            seeds, and are part of no verdict.
        power: what the pilot found and the number of pairs that follow from it, for the reader.
        overrides: further words for every run.
        prefix: begins the name of each trial, to keep sizes of one task apart.
        afterwards: what was done otherwise than declared, with date and reason; added after the first run.
    """

    name: str
    task: str
    experiment: str
    metric: Metric
    tuning: Metric
    matters: float
    evaluation: tuple[int, ...]
    bowl: Bowl
    comparisons: tuple[Comparison, ...]
    priority: int
    scale: str = "cpu"
    variant: str = ""
    switches: Switches | None = None
    epsilon: Epsilon | None = None
    context: Bowl | None = None
    power: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    size: float | None = None
    afterwards: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tuned = {*self.bowl.arms, *(self.switches.arms if self.switches else ())}
        if self.matters <= 0:
            raise ConfigError(f"{self.name}: matters must be above 0, got {self.matters}")
        for bowl in (self.bowl, self.context):
            if bowl is not None:
                tuned |= set(bowl.arms)
                self._check_seeds("tuning seeds", bowl.seeds)
                if bowl.planned < 3:
                    raise ConfigError(
                        f"{self.name}: a bowl needs at least 3 rates, got steps {bowl.first} to {bowl.last}"
                    )
                for kind, decays in bowl.decays.items():
                    if bowl.start.get(kind) not in decays:
                        raise ConfigError(
                            f"{self.name}: decays.{kind} must hold start.{kind}={bowl.start.get(kind)}, "
                            f"got {list(decays)}"
                        )
        for comparison in self.comparisons:
            looks = comparison.looks
            if not looks or list(looks) != sorted(set(looks)) or looks[0] < 2 or looks[-1] > len(self.evaluation):
                raise ConfigError(
                    f"{self.name}: looks of {comparison.id} must rise from at least 2 to at most "
                    f"{len(self.evaluation)}, the number of evaluation seeds, got {list(looks)}"
                )
            for arm in (comparison.challenger, comparison.baseline):
                if arm not in tuned:
                    raise ConfigError(f"{self.name}: {comparison.id} compares {arm!r}, which no part tunes")
        ids = [comparison.id for comparison in self.comparisons]
        if len(set(ids)) < len(ids):
            raise ConfigError(f"{self.name}: comparisons must have ids of their own, got {ids}")
        if self.switches is not None:
            self._check_seeds("tuning seeds", self.switches.seeds)

    def _check_seeds(self, what: str, seeds: tuple[int, ...]) -> None:
        both = sorted(set(seeds) & set(self.evaluation))
        if not seeds or len(set(seeds)) < len(seeds) or both:
            raise ConfigError(
                f"{self.name}: {what} must be distinct and none of the evaluation's, got {list(seeds)}"
                + (f" ({both} are in both)" if both else "")
            )


@dataclass(frozen=True)
class Run:
    """One planned run.

    Attributes:
        settings: dotted keys of the config and their values; a record with others is not this run's.
        choices: config groups, such as `vary=gradient_scale`.
    """

    protocol: str
    stage: str
    task: str
    scale: str
    experiment: str
    arm: str
    variant: str
    trial: str
    seed: int
    purpose: str
    settings: tuple[tuple[str, Any], ...]
    choices: tuple[tuple[str, str], ...] = ()

    @property
    def record(self) -> Path:
        """Path of its record inside a folder of runs."""
        stem = "-".join(part for part in (self.variant, self.trial, f"s{self.seed}") if part)
        return Path(self.task) / self.scale / self.arm / f"{stem}.json"

    @property
    def key(self) -> Key:
        """What it was called while it was to come; runs of a comparison go by arm and seed."""
        return self.protocol, self.arm if self.trial.endswith("main") else str(self.record), self.seed

    @property
    def words(self) -> list[str]:
        """The words for `experiments.train`."""
        return [
            f"experiment={self.experiment}", f"optimizer={self.arm}", f"seed={self.seed}", f"trial={self.trial}",
            f"purpose={self.purpose}", *(f"{key}={value}" for key, value in (*self.choices, *self.settings)),
        ]  # fmt: skip


def built(kind: Any, value: Any, where: str) -> Any:
    """`value`, as YAML gives it, as an object of `kind`.

    Raises:
        ConfigError: naming the key that is unknown, missing or of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping, got {value!r}")
        hints = get_type_hints(kind)
        names = {f.name for f in fields(kind)}
        if unknown := sorted(set(value) - names):
            raise ConfigError(f"{where} has no {', '.join(unknown)}; its keys are {', '.join(sorted(names))}")
        make: Any = kind
        try:
            return make(**{key: built(hints[key], item, f"{where}.{key}") for key, item in value.items()})
        except TypeError as error:
            raise ConfigError(f"{where}: {error}") from None
    if type(None) in arguments:
        return None if value is None else built(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        return tuple(built(arguments[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if isinstance(kind, type(Mapping)) or origin is not None:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping, got {value!r}")
        return {str(key): built(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is Any or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise ConfigError(f"{where} must be of type {kind.__name__}, got {value!r}")


def _content(name: str, folder: Path) -> dict[str, Any]:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no study {name!r} is declared ({path} is missing); declared are {', '.join(names(folder))}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping")
    # `base` names a protocol whose keys hold where this one says nothing: they are replaced whole.
    base = content.pop("base", None)
    return {**_content(base, folder), **content} if base else content


def _with_context(content: dict[str, Any], path: Path) -> None:
    """Add the optimizers that every study shows, `configs/context.yaml`, to a study's own."""
    arms = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("arms") if path.is_file() else None
    if arms and content.get("size") is None:
        bowl = content["bowl"]
        middle = (bowl["first"] + bowl["last"]) // 2
        usual = {"first": middle - 2, "last": middle + 2, "seeds": bowl["seeds"][:2], "start": bowl["start"]}
        own = content.get("context") or {"arms": [], **usual}
        content["context"] = {**own, "arms": list(dict.fromkeys([*own["arms"], *arms]))}


@functools.cache
def protocol(name: str, folder: Path = FOLDER) -> Protocol:
    """What `configs/study/<name>.yaml` declares, and the optimizers that `configs/context.yaml` adds to every study.

    Raises:
        ConfigError: there is no such file, or a key in it is unknown, missing or out of range.
    """
    content = _content(name, folder)
    seeds = content.get("evaluation")
    if isinstance(seeds, Mapping) and set(seeds) == {"first", "count"}:
        content["evaluation"] = list(range(seeds["first"], seeds["first"] + seeds["count"]))
    _with_context(content, folder.parent / "context.yaml")
    found: Protocol = built(Protocol, {"name": name, **content}, name)
    return found


def names(folder: Path = FOLDER) -> list[str]:
    """The declared studies, in the order of their priority."""
    found = [path.stem for path in folder.glob("*.yaml")]
    return sorted(found, key=lambda name: (_content(name, folder).get("priority", 0), name))
