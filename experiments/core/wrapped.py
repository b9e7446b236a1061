"""Somebody's LightningModule and LightningDataModule as they are: only `configure_optimizers` is replaced, and
`configure_callbacks` is not asked.

The module is called by its own hooks. What it logs while it is validated and tested is the record's `val/<metric>` and
`test/<metric>`: `val_loss` or `valid/loss` becomes `val/loss`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning import LightningDataModule, LightningModule
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from experiments.core.data import ResumableDataModule, checksum
from experiments.core.errors import ConfigError, DataError
from experiments.core.module import TaskModule, items, scalar
from experiments.core.optim import Decay

# Whatever the module says of these, the comparison has its own.
REPLACED = frozenset(
    (
        "configure_optimizers", "configure_callbacks", "prepare_data", "train_dataloader", "val_dataloader",
        "test_dataloader", "predict_dataloader", "log", "log_dict", "print",
    )
)  # fmt: skip
_SPLIT = re.compile(r"^(training|train|validation|valid|val|testing|test|eval)[/_-](?=.)")
FINGERPRINTED = 64  # batches of a split


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _overrides(thing: object, base: type, method: str) -> bool:
    return getattr(type(thing), method, None) is not getattr(base, method, None)


class WrappedModule(TaskModule):
    """Trains somebody's module.

    A module without a `validation_step` is validated by the loss of its `training_step`, and one without a `test_step`
    is tested as it is validated.

    Raises:
        ConfigError: it is no LightningModule, or steps its optimizers itself.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        decay: Decay = "all",
    ) -> None:
        super().__init__(model, optimizer, scheduler, decay)
        self.name = _name(model)
        if not isinstance(model, LightningModule):
            raise ConfigError(f"lightning.module must be a LightningModule of the package lightning, got {self.name}")
        if not model.automatic_optimization or _overrides(model, LightningModule, "optimizer_step"):
            raise ConfigError(
                f"{self.name} steps its optimizers itself (automatic_optimization is False, or it has an "
                "optimizer_step): no other optimizer can be put into it"
            )
        for name, method in inspect.getmembers(LightningModule, inspect.isfunction):
            ours = name.startswith("_") or name in REPLACED or hasattr(nn.Module, name)
            if not ours and getattr(type(model), name) is not method:
                setattr(self, name, getattr(model, name))
        self.by_loss = not _overrides(model, LightningModule, "validation_step")
        self._wrap_steps(model)
        model.log = self._log  # type: ignore[method-assign]

    def _wrap_steps(self, model: LightningModule) -> None:
        step: Any = model.training_step

        def loss(found: Any) -> Any:
            return found.get("loss") if isinstance(found, dict) else found

        @functools.wraps(step)
        def training_step(*words: Any, **named: Any) -> Any:
            found = step(*words, **named)
            scalar(loss(found), f"{self.name}.training_step")
            return found

        @functools.wraps(step)
        def by_loss(batch: Any, *words: Any) -> None:
            self.log(f"{self._split()}/loss", loss(step(batch, *words)), batch_size=items(batch))

        vars(self)["training_step"] = training_step
        if self.by_loss:
            vars(self)["validation_step"] = by_loss
        if not _overrides(model, LightningModule, "test_step"):
            for name in [n for n in vars(self) if n == "validation_step" or n.startswith("on_validation_")]:
                vars(self)[name.replace("validation", "test")] = vars(self)[name]

    def _split(self) -> str:
        """What is gone through now: train, val or test."""
        stage = self.trainer.state.stage
        return str(stage.dataloader_prefix) if stage is not None else "train"

    def _log(self, name: str, value: Any, *words: Any, **options: Any) -> None:
        """What the module logs. Where its training loss stands for a metric, that alone is logged."""
        split = self._split()
        if split == "train" or not self.by_loss:
            self.log(f"{split}/{_SPLIT.sub('', name)}", value, *words, **options)

    def probe(self, data: DictConfig) -> Tensor:
        raise ConfigError(f"the memory of {self.name} cannot be counted before it runs")


def _states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


class Stream:
    """Random numbers of the loader alone: what a model draws changes no batch, and no batch what a model draws."""

    def __init__(self, *seed: int) -> None:
        outer = _states()
        seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(3)]
        torch.manual_seed(seeds[0])
        np.random.seed(seeds[1])  # noqa: NPY002
        random.seed(seeds[2])
        self.states = _states()
        _restore(outer)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        outer = _states()
        _restore(self.states)
        try:
            yield
        finally:
            self.states = _states()
            _restore(outer)


class Steps:
    """Exactly `steps` batches of somebody's loader, epoch after epoch, from batch `start` on.

    The k-th batch depends on `seed` and k alone; those before `start` are drawn and dropped.
    """

    def __init__(self, loader: Any, steps: int, start: int, seed: int) -> None:
        self.loader, self.steps, self.start, self.seed = loader, steps, start, seed

    def __len__(self) -> int:
        # The whole run's length, also when resuming: Lightning counts the batches before `start` as done.
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        position = epoch = 0
        while position < self.steps:
            stream, begun = Stream(self.seed, epoch), position
            with stream.used():
                batches = iter(self.loader)
            while position < self.steps:
                with stream.used():
                    batch = next(batches, None)
                if batch is None:
                    break
                position += 1
                if position > self.start:
                    yield batch
            if position == begun:
                raise DataError("the training loader gives no batch")
            epoch += 1


class WrappedData(ResumableDataModule):
    """Somebody's data module, or the loaders of a LightningModule.

    Args:
        source: it, or a mapping with its `_target_`: then what it makes up on the spot is the same in every run.

    Raises:
        ConfigError: it has no loader for training or validation.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        if isinstance(source, Mapping):
            with Stream(0).used():
                source = instantiate(source)
        self.source, self.name = source, _name(source)
        base = LightningDataModule if isinstance(source, LightningDataModule) else LightningModule
        if not isinstance(source, base):
            raise ConfigError(f"lightning.data must be a LightningDataModule of the package lightning, got {self.name}")
        for loader in ("train_dataloader", "val_dataloader"):
            if not _overrides(source, base, loader):
                raise ConfigError(f"{self.name} has no {loader}; name data that has one as lightning.data")
        self.tested = _overrides(source, base, "test_dataloader")
        for hook in ("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer"):
            if base is LightningDataModule and _overrides(source, base, hook):
                setattr(self, hook, getattr(source, hook))
        self._fingerprint, self._counts = "", dict[str, int]()

    def prepare_data(self) -> None:
        self.source.prepare_data()

    def setup(self, stage: str) -> None:
        if self._fingerprint:
            return
        parts = []
        with Stream(0).used():
            for each in ("fit", "test"):
                self.source.setup(each)
            for split in ("train", "val", "test"):
                loader = self._loader(split)
                with contextlib.suppress(TypeError):  # a loader of a stream has no length
                    self._counts[f"{split} batches"] = len(loader)
                parts.append([split, list(islice(loader, FINGERPRINTED))])
        self._fingerprint = checksum([parts, sorted(self._counts.items())])

    def _loader(self, split: str) -> Any:
        return getattr(self.source, f"{split if split != 'test' or self.tested else 'val'}_dataloader")()

    def train_dataloader(self) -> Any:
        if self.trainer is not None and self.trainer.world_size > 1:
            raise ConfigError("somebody else's loader cannot be shared among processes: train with one device")
        with Stream(self.data_seed).used():
            loader = self._loader("train")
        return Steps(loader, self.train_batches, self.start_batch, self.data_seed)

    def val_dataloader(self) -> Any:
        return self._loader("val")

    def test_dataloader(self) -> Any:
        return self._loader("test")

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def description(self) -> dict[str, Any]:
        return {"name": self.name, **self._counts}
