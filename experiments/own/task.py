"""A task in one file: a class with its data, its model and its loss. What trains, records and judges it is the same as
for the three tasks of this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset

from experiments.core.catalogue import Metric
from experiments.core.data import ResumableDataModule, checksum
from experiments.core.errors import ConfigError
from experiments.core.module import TaskModule, items, scalar
from experiments.core.optim import Decay

EVALUATED = 256  # items a batch where nothing is learned
FINGERPRINTED = 256  # items of a split that is no plain tensors


class OwnTask:
    """Base of a task in one file. `data`, `model` and `loss` must be there.

    Attributes:
        title: in headings.
        metrics: how what `evaluate` gives is shown; `Metric("error", "error (%)", "min", digits=2, percent=True)`.
    """

    title: str = ""
    metrics: Sequence[Metric] = ()

    def data(self) -> Mapping[str, Any]:
        """`train`, `val` and `test`: a tuple of tensors with the items along the first axis, or a Dataset.

        Asked for once a run; it must give the same every time. Without `test`, `val` is judged.
        """
        raise NotImplementedError

    def model(self) -> nn.Module:
        """The untrained network; its random numbers are the seed's."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The training loss of a batch, a scalar; a negative log-likelihood if it can be."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor | float]:
        """Means over a batch, by metric. They are averaged over the split."""
        return {"loss": self.loss(model, batch)}


def checked(task: Any) -> OwnTask:
    """`task`, if it has all that is needed.

    Raises:
        ConfigError: naming the method that is missing.
    """
    name = type(task).__name__
    if not isinstance(task, OwnTask):
        raise ConfigError(f"own: {name} must derive from experiments.own.OwnTask")
    for method in ("data", "model", "loss"):
        if getattr(type(task), method) is getattr(OwnTask, method):
            doc = str(getattr(OwnTask, method).__doc__).partition("\n")[0].rstrip(".")
            raise ConfigError(f"{name} has no method {method!r}: {doc}")
    return task


def network(task: OwnTask) -> nn.Module:
    """The task's model.

    Raises:
        ConfigError: it is no module.
    """
    model = checked(task).model()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{type(task).__name__}.model must give a torch.nn.Module, got {type(model).__name__}")
    return model


class OwnData(ResumableDataModule):
    """The data of a task in one file: each epoch in an order of its own, the last incomplete batch left out.

    Args:
        task: whose `data` is asked.
        batch_size: items in a training batch.
    """

    def __init__(self, task: OwnTask, batch_size: int = 32) -> None:
        super().__init__()
        self.task, self.batch_size = checked(task), batch_size
        self.splits: dict[str, Dataset[Any]] = {}
        self._fingerprint = ""

    def setup(self, stage: str) -> None:
        if self.splits:
            return
        found = self.task.data()
        name = f"{type(self.task).__name__}.data"
        if not isinstance(found, Mapping) or not {"train", "val"} <= set(found):
            raise ConfigError(f"{name} must give a dict with train, val and test")
        splits = {split: self._dataset(found[split], f"{name}: {split}") for split in found}
        if empty := [split for split, items in splits.items() if len(items) == 0]:  # type: ignore[arg-type]
            raise ConfigError(f"{name}: {' and '.join(empty)} must have at least one item")
        if not 1 <= self.batch_size <= len(splits["train"]):  # type: ignore[arg-type]
            have = len(splits["train"])  # type: ignore[arg-type]
            raise ConfigError(f"data.batch_size must be from 1 to {have}, the items of train, got {self.batch_size}")
        self.splits = {"test": splits["val"], **splits}
        self._fingerprint = checksum((name, *_some(self.splits[name])) for name in ("train", "val", "test"))

    def _dataset(self, found: Any, where: str) -> Dataset[Any]:
        if isinstance(found, tuple | list) and found and all(isinstance(t, Tensor) for t in found):
            if len({len(t) for t in found}) > 1:
                raise ConfigError(f"{where} has tensors of {', '.join(str(len(t)) for t in found)} items")
            return TensorDataset(*found)
        if not isinstance(found, Dataset) or not hasattr(found, "__len__"):
            kind = type(found).__name__
            raise ConfigError(f"{where} must be a tuple of tensors or a Dataset with a length, got {kind}")
        return found

    def _epoch(self, epoch: int) -> list[list[int]]:
        count = len(self.splits["train"])  # type: ignore[arg-type]
        order = np.random.default_rng([self.data_seed, epoch]).permutation(count)
        size = self.batch_size
        return [order[i : i + size].tolist() for i in range(0, count - size + 1, size)]

    def train_dataloader(self) -> Any:
        return DataLoader(self.splits["train"], batch_sampler=self.step_sampler(self._epoch))

    def _evaluated(self, split: str) -> Any:
        return DataLoader(self.splits[split], batch_size=max(EVALUATED, self.batch_size))

    def val_dataloader(self) -> Any:
        return self._evaluated("val")

    def test_dataloader(self) -> Any:
        return self._evaluated("test")

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def description(self) -> dict[str, Any]:
        counts = {name: len(split) for name, split in self.splits.items()}  # type: ignore[arg-type]
        return {"name": type(self.task).__name__, **counts}


def _some(split: Any) -> list[Any]:
    """All tensors of a split, or some of its items, evenly spaced."""
    if isinstance(split, TensorDataset):
        return list(split.tensors)
    return [split[int(i)] for i in np.unique(np.linspace(0, len(split) - 1, FINGERPRINTED).astype(int))]


class OwnModule(TaskModule):
    """Trains and evaluates a task in one file."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        task: OwnTask,
        decay: Decay = "all",
    ) -> None:
        super().__init__(model, optimizer, scheduler, decay)
        self.task, self.name = checked(task), type(task).__name__

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return scalar(self.task.loss(self.model, batch), f"{self.name}.loss")

    def _evaluate(self, batch: Any, split: str) -> None:
        found = self.task.evaluate(self.model, batch)
        if not isinstance(found, Mapping) or not found:
            raise ConfigError(f"{self.name}.evaluate must give a dict of metrics, got {type(found).__name__}")
        for key, value in found.items():
            if torch.as_tensor(value).numel() != 1:
                shape = tuple(torch.as_tensor(value).shape)
                raise ConfigError(f"{self.name}.evaluate must give numbers, and {key!r} has shape {shape}")
            self.log(f"{split}/{key}", torch.as_tensor(value).float(), batch_size=items(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def probe(self, data: DictConfig) -> Tensor:
        raise ConfigError("the memory of a task in one file cannot be counted before it runs")
