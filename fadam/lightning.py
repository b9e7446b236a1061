"""FAdam in Lightning: a callback that warns of clipping twice and logs what the optimizer is about to do.

    from fadam.lightning import FAdamMonitor

    trainer = Trainer(callbacks=[FAdamMonitor()])

This module alone of the package needs Lightning, `lightning` or the older `pytorch_lightning`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from fadam.clipping import clipped_twice, inner
from fadam.diagnostics import diagnose
from fadam.optimizer import FAdam

# Of two that are installed, the one that is in use.
if TYPE_CHECKING or "lightning" in sys.modules or ("pytorch_lightning" not in sys.modules and find_spec("lightning")):
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    from pytorch_lightning import Callback, LightningModule, Trainer


class FAdamMonitor(Callback):
    """Warns once where the trainer clips gradients too, and logs `fadam.diagnose` every so many steps.

    Nothing is done for other optimizers, and nothing logged without a logger. Where the trainer clips, or the step
    itself divides by an AMP scale, a log costs a copy of the gradients too. Name it after callbacks that change
    gradients.

    Args:
        every_n_steps: a log costs about a step and waits for the device. 0 logs nothing.
        prefix: begins the name of each number, such as `fadam/update_rms`.

    Raises:
        ValueError: `every_n_steps` is below 0.
    """

    def __init__(self, every_n_steps: int = 50, prefix: str = "fadam/") -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must be at least 0, got {every_n_steps}")
        self.every_n_steps, self.prefix = every_n_steps, prefix

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        said = {clipped_twice(each, trainer.gradient_clip_val, "gradient_clip_val") for each in trainer.optimizers}
        for sentence in sorted(said - {""}):
            warnings.warn(sentence, stacklevel=2)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.every_n_steps or trainer.global_step % self.every_n_steps or not trainer.loggers:
            return
        found: Any = inner(optimizer)
        if isinstance(found, FAdam):
            with _as_the_step_sees_them(trainer, pl_module, found):
                numbers = {f"{self.prefix}{name}": value for name, value in diagnose(found).items()}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)


@contextmanager
def _as_the_step_sees_them(trainer: Trainer, pl_module: LightningModule, optimizer: FAdam) -> Iterator[None]:
    """Copies of the gradients in their place, where they are still to be unscaled inside the step, or to be clipped."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = scaler.get_scale() if scaler is not None and optimizer._step_supports_amp_scaling else 1.0
    if scale == 1.0 and not trainer.gradient_clip_val:
        yield
        return
    kept = [(p, p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    try:
        for param, grad in kept:
            param.grad = grad / scale
        if trainer.gradient_clip_val:
            pl_module.clip_gradients(optimizer)
        yield
    finally:
        for param, grad in kept:
            param.grad = grad
