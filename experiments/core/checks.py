"""Refuses bad options before anything is built. Imports no torch, so that a sweep can check its runs at its start."""

from __future__ import annotations

import math
import re
import shutil
from typing import Any

from omegaconf import DictConfig

from experiments.core.catalogue import SCALES
from experiments.core.errors import ConfigError
from experiments.core.records import PURPOSES

RESUME = ("auto", "never")
NON_FINITE = ("keep", "error", "skip")
MODES = ("min", "max")
LARGEST_SEED = 2**32 - 1
# Parts of the name of a record: what is written elsewhere is in no table.
_NAME = re.compile(r"[A-Za-z0-9][\w.+=-]*", re.ASCII)


def _refuse(option: str, allowed: str, value: Any) -> None:
    raise ConfigError(f"{option} must be {allowed}, got {value!r}")


def _one_of(option: str, choices: tuple[str, ...], value: Any) -> None:
    if value not in choices:
        _refuse(option, f"{', '.join(choices[:-1])} or {choices[-1]}", value)


def _whole(option: str, low: int, value: Any, high: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        _refuse(option, f"a whole number {f'from {low} to {high}' if high < math.inf else f'of at least {low}'}", value)


def _name(option: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not _NAME.fullmatch(str(value)):
        _refuse(option, "a name of letters, digits and . _ + = - that begins with a letter or a digit", value)


def check_choices(cfg: DictConfig) -> None:
    """Refuse values that the parts would misread or not notice.

    Raises:
        ConfigError: naming the option, its value and what is allowed.
    """
    for name in ("seed", "data_seed"):
        _whole(name, 0, cfg[name], LARGEST_SEED)
    for name in ("task", "arm", "trial"):
        _name(name, cfg[name])
    if cfg.variant != "":
        _name("variant", cfg.variant)
    _one_of("scale", tuple(SCALES), cfg.scale)
    _one_of("purpose", PURPOSES, cfg.purpose)
    _one_of("nonfinite_gradients", NON_FINITE, cfg.nonfinite_gradients)
    _one_of("resume", RESUME, cfg.resume)
    if not isinstance(cfg.overwrite, bool):
        _refuse("overwrite", "true or false", cfg.overwrite)
    for name in ("threads", "eval_every"):
        _whole(name, 1, cfg[name])
    for name in ("max_steps", "accumulate_grad_batches"):
        _whole(f"trainer.{name}", 1, cfg.trainer[name])
    steps = cfg.trainer.max_steps
    if steps % cfg.eval_every:
        raise ConfigError(
            f"eval_every must divide trainer.max_steps={steps}, so that the end is evaluated, got {cfg.eval_every}"
        )
    for name in ("objective", "target"):
        _one_of(f"{name}.mode", MODES, cfg[name].mode)
        if not isinstance(cfg[name].metric, str):
            _refuse(f"{name}.metric", "the name of a metric", cfg[name].metric)
    if not isinstance(cfg.target.value, (int, float, type(None))):
        _refuse("target.value", "a number or null", cfg.target.value)


def check_launcher(target: str) -> None:
    """Refuse to send jobs to SLURM from where there is none.

    Raises:
        ConfigError: naming the option.
    """
    if target.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=slurm sends runs to SLURM, and this machine has no srun: start it on a login node of the "
            "cluster, or leave the option out to run here"
        )
