"""The config's own resolvers; importing this module registers them."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf


def stem(variant: str, trial: str, seed: int) -> str:
    """Name of a run's record and folder: `[<variant>-]<trial>-s<seed>`."""
    return f"{variant}-{trial}-s{seed}" if variant else f"{trial}-s{seed}"


def is_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


OmegaConf.register_new_resolver("stem", stem, replace=True)
OmegaConf.register_new_resolver("is_multirun", is_multirun, replace=True)
