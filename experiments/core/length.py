"""A run of another length than its experiment's: what must change with `trainer.max_steps`. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.core.choices import CONFIGS

STEPS, EVERY, WARMUP = "trainer.max_steps", "eval_every", "scheduler.warmup_steps"
# A warm-up that would take more of a run than half takes this share of it.
WARMUP_SHARE = 0.1


def declared_steps(experiment: str, folder: Path = CONFIGS / "experiment") -> int | None:
    """The steps that an experiment's config declares, itself or by those it is made from; None where none does."""
    path = folder / f"{experiment}.yaml"
    if not path.is_file():
        return None
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    own: int | None = content.get("trainer", {}).get("max_steps")
    parents = [each for each in content.get("defaults", []) if isinstance(each, str) and each != "_self_"]
    return own or next((found for each in parents if (found := declared_steps(each, folder))), None)


def nearest_divisor(total: int, wanted: float) -> int:
    """The divisor of `total` that is nearest to `wanted` by ratio; of two, the larger."""
    divisors = (d for d in range(1, total + 1) if total % d == 0)
    return min(divisors, key=lambda d: (abs(math.log(d / wanted)), -d))


def fit_length(cfg: DictConfig, words: Sequence[str] | None = None) -> str:
    """Make a run fit the `trainer.max_steps` that the command line gives it, in place; says how, or "".

    What the command line names as well stays. A run of another length than its experiment's gets a trial of its own,
    so that no table takes it for the real one; those of scale smoke are in none.

    Args:
        words: of the command line; Hydra's by default.
    """
    if words is None:
        words = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    given = {word.lstrip("+").partition("=")[0] for word in words}
    steps = cfg.trainer.max_steps
    if STEPS not in given or not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        return ""
    changes = []
    every = cfg.eval_every
    if EVERY not in given and isinstance(every, int) and every > 0 and steps % every:
        cfg.eval_every = nearest_divisor(steps, every if every < steps else steps / 2)
        changes.append(f"{EVERY}={cfg.eval_every}")
    warmup = cfg.scheduler.get("warmup_steps")
    if WARMUP not in given and isinstance(warmup, int) and 2 * warmup > steps:
        cfg.scheduler.warmup_steps = math.ceil(WARMUP_SHARE * steps) if steps > 1 else 0
        changes.append(f"{WARMUP}={cfg.scheduler.warmup_steps}")
    declared = declared_steps(str(cfg.experiment_name))
    if "trial" not in given and cfg.scale != "smoke" and declared is not None and steps != declared:
        cfg.trial = f"steps{steps}" if cfg.trial == "main" else f"{cfg.trial}-steps{steps}"
        changes.append(f"trial={cfg.trial}, which no table takes for the run of {declared} steps")
    return f"with {STEPS}={steps} come {', '.join(changes)}" if changes else ""
