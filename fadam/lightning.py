"""FAdam in Lightning: a callback that warns of clipping twice and logs what the optimizer is about to do.

    from fadam.lightning import FAdamMonitor

    trainer = Trainer(callbacks=[FAdamMonitor()])

This module alone of the package needs Lightning, `lightning` or the older `pytorch_lightning`.
"""

from __future__ import annotations

import sys
import warnings
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

    Nothing is done for other optimizers, and nothing logged without a logger.

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
            numbers = {f"{self.prefix}{name}": value for name, value in diagnose(found).items()}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)
