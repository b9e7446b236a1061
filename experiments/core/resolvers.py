"""The config's own resolvers; importing this module registers them."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


def stem(variant: str, trial: str, seed: int) -> str:
    """Name of a run's record and folder: `[<variant>-]<trial>-s<seed>`."""
    return f"{variant}-{trial}-s{seed}" if variant else f"{trial}-s{seed}"


def is_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def tuned(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """The setting `key` that was chosen for this arm in this experiment (configs/tuned), else `default`."""
    chosen = _root_.get("tuned") or {}
    return chosen.get(_root_.arm, {}).get(key, default)


def mode_of(launcher: str) -> str | None:
    """Hydra's mode where the command line names none: a launcher runs only sweeps, even of a single run."""
    return "MULTIRUN" if "submitit" in launcher else None


def named(experiment: str | None) -> str:
    """The experiment, or a name that none has: a sweep over experiments is composed without one first."""
    return experiment or "none"


OmegaConf.register_new_resolver("stem", stem, replace=True)
OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
OmegaConf.register_new_resolver("is_multirun", is_multirun, replace=True)
OmegaConf.register_new_resolver("named", named, replace=True)
OmegaConf.register_new_resolver("tuned", tuned, replace=True)
