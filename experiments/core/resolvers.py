"""The config's own resolvers; importing this module registers them."""

from __future__ import annotations

import math
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiments.core import study
from experiments.core.errors import ConfigError


def stem(variant: str, trial: str, seed: int) -> str:
    """Name of a run's record and folder: `[<variant>-]<trial>-s<seed>`."""
    return f"{variant}-{trial}-s{seed}" if variant else f"{trial}-s{seed}"


def is_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def declared(task: str, key: str) -> Any:
    """A value of the study's protocol."""
    return study.look_up(study.protocol(task), key)


def point(task: str, key: str, index: int) -> float:
    """The value of one dimension of the study's search space at the point `index`."""
    protocol = study.protocol(task)
    return study.point_value(protocol["space"], key, index, protocol["points"])


def scaled(experiment: str, arm: str, key: str, factor: float) -> float:
    """A tuned hyperparameter times `factor`, to four digits."""
    return float(f"{factor * study.tuned(experiment, arm, key):.4g}")


def whole(total: int, parts: int) -> int:
    """`total` / `parts`.

    Raises:
        ConfigError: it is no whole number.
    """
    if parts < 1 or total % parts:
        raise ConfigError(f"value={parts} must divide {total}")
    return total // parts


def nearest(total: int, parts: int) -> int:
    """`total` / `parts`, to the nearest whole number."""
    return round(total / parts)


def batch_lr(experiment: str, arm: str, batch: int, tuned_batch: int) -> float:
    """The tuned learning rate times the square root of the batch's growth, to four digits."""
    return scaled(experiment, arm, "optimizer.lr", math.sqrt(batch / tuned_batch))


def mode_of(launcher: str) -> str | None:
    """Hydra's mode where the command line says none: launchers run sweeps alone, be they of one run."""
    return "MULTIRUN" if "submitit" in launcher else None


OmegaConf.register_new_resolver("stem", stem, replace=True)
OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
OmegaConf.register_new_resolver("is_multirun", is_multirun, replace=True)
OmegaConf.register_new_resolver("study", declared, replace=True)
OmegaConf.register_new_resolver("point", point, replace=True)
OmegaConf.register_new_resolver("scaled", scaled, replace=True)
OmegaConf.register_new_resolver("whole", whole, replace=True)
OmegaConf.register_new_resolver("nearest", nearest, replace=True)
OmegaConf.register_new_resolver("batch_lr", batch_lr, replace=True)
