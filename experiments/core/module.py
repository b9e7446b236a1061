"""Base of the three tasks' Lightning modules."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import LightningModule
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from experiments.core.errors import ConfigError
from experiments.core.optim import Decay, embedding_parameters, parameter_groups
from experiments.core.sharding import FullySharded


class TaskModule(LightningModule):
    """A model with its optimizer and schedule; a task adds the steps and the metrics.

    Evaluation metrics are reported under `<split>/<metric>` by `report`, once per evaluation of a whole split.

    Args:
        model: the network.
        optimizer: called with parameter groups, gives the optimizer.
        scheduler: called with the optimizer and `total_steps`, gives the schedule.
        decay: which parameters are decayed, see `experiments.core.optim.parameter_groups`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        decay: Decay = "all",
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer, self.make_scheduler, self.decay = optimizer, scheduler, decay

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves and casts, but for the double-precision sums of evaluations: `bf16-true` is for the model alone."""

        @functools.wraps(fn)
        def apply(tensor: Tensor) -> Tensor:
            exact = tensor.dtype == torch.float64 and not isinstance(tensor, nn.Parameter)
            return tensor.to(fn(tensor).device) if exact else fn(tensor)

        return super()._apply(apply, recurse)  # type: ignore[no-untyped-call]

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, FullySharded):
            strategy.shard(self.model)  # type: ignore[arg-type]

    def build_optimizer(self) -> Optimizer:
        """The optimizer over this model's parameter groups.

        Raises:
            ConfigError: it refused an option, or has no option of that name.
        """
        groups = parameter_groups(self.model, self.decay)
        target = getattr(self.make_optimizer, "func", self.make_optimizer)
        parameters = list(inspect.signature(target).parameters.values())[1:]
        names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        # Some treat embeddings apart.
        more = {"embeddings": embedding_parameters(self.model)} if "embeddings" in names else {}
        try:
            return self.make_optimizer(groups, **more)
        except (TypeError, ValueError) as error:
            options = ", ".join(name for name in names if name not in more)
            told = "" if options in str(error) else f"; its options are {options}"
            raise ConfigError(f"optimizer: {error}{told}") from error

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = self.make_scheduler(optimizer, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def report(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Log final values of an evaluation, each computed over a whole split."""
        self.log_dict(
            {name: torch.as_tensor(value, dtype=torch.float32) for name, value in metrics.items()},
            add_dataloader_idx=False,
            rank_zero_only=True,
        )

    def seen(self, batch: Any) -> dict[str, float]:
        """What one training batch holds, in the units of the run record, such as `{"hours": 0.01}`."""
        return {"items": float(items(batch))}

    @abstractmethod
    def probe(self, data: DictConfig) -> Tensor:
        """The loss of a made-up training batch, of the largest size that a `data` config allows; for counting memory.

        No trainer and no data are needed, and the tensors need not have any memory.
        """

    def samples(self) -> list[dict[str, Any]]:
        """A few results to look at, kept in the run record; asked for after testing."""
        return []

    def save_artifacts(self, stem: str) -> list[str]:
        """Write files that belong beside the record, under `stem` plus a suffix; returns their paths."""
        return []

    def flags(self) -> dict[str, bool]:
        """Further marks on the run record, such as a collapsed codebook."""
        return {}


def items(batch: Any) -> int:
    """How many items a batch holds: the length of the first tensor in it; 1 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((items(part) for part in parts if isinstance(part, Tensor | Mapping | list | tuple)), 1)


def scalar(loss: Any, who: str) -> Tensor:
    """`loss`, if it is one number with a gradient.

    Raises:
        ConfigError: it is not; names `who` gave it.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(f"{who} must give the loss as a scalar tensor, got {got}")
    if not loss.requires_grad:
        raise ConfigError(f"{who} must give a loss that depends on the model's parameters; this one has no gradient")
    return loss.reshape(())
