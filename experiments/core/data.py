"""The base of all data modules: training batches are a pure function of the step, so that runs resume exactly."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Sampler

from experiments.core.errors import ConfigError, DataError


class StepBatchSampler(Sampler[list[int]]):
    """Exactly `steps` batches of indices, epoch after epoch.

    The k-th batch depends only on k and on `epoch_batches`; a run that resumes at batch `start` therefore sees
    the batches that an uninterrupted run would have seen.

    Args:
        epoch_batches: epoch number -> all batches of that epoch, in order; must be a pure function.
        steps: number of batches of the whole run, counted from batch 0.
        start: first batch to yield, for a run that resumes.
        rank, world_size: with several processes, process `rank` takes every `world_size`-th batch; an epoch's
            remainder is dropped so that all processes take the same number.

    Raises:
        ConfigError: a count is out of range.
        DataError: an epoch has fewer batches than processes.
    """

    def __init__(
        self,
        epoch_batches: Callable[[int], Sequence[Sequence[int]]],
        steps: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, got {steps}")
        if not 0 <= start <= steps:
            raise ConfigError(f"start must be between 0 and steps={steps}, got {start}")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank must be between 0 and world_size-1={world_size - 1}, got {rank}")
        self.epoch_batches, self.steps, self.start = epoch_batches, steps, start
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        # The whole run's length, also when resuming: Lightning counts the batches before `start` as done.
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        position = epoch = 0
        while position < self.steps:
            batches = self.epoch_batches(epoch)
            usable = len(batches) // self.world_size
            if usable == 0:
                raise DataError(f"epoch {epoch} has {len(batches)} batches, fewer than the {self.world_size} processes")
            skip = max(0, min(usable, self.start - position))
            for k in range(skip, min(usable, self.steps - position)):
                yield list(batches[k * self.world_size + self.rank])
            position += usable
            epoch += 1


class ResumableDataModule(LightningDataModule):
    """Base of every task's data module.

    `configure` is called by `experiments.train` before fitting. The number of training batches already taken is part
    of Lightning's checkpoint; after loading one, `train_dataloader` must start at `start_batch`.
    """

    train_batches: int = 0
    start_batch: int = 0
    data_seed: int = 0

    def configure(self, *, train_batches: int, data_seed: int) -> None:
        self.train_batches, self.data_seed = train_batches, data_seed

    def step_sampler(self, epoch_batches: Callable[[int], Sequence[Sequence[int]]]) -> StepBatchSampler:
        """The sampler of this run's training batches, for this process."""
        rank = self.trainer.global_rank if self.trainer is not None else 0
        world_size = self.trainer.world_size if self.trainer is not None else 1
        return StepBatchSampler(epoch_batches, self.train_batches, self.start_batch, rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        if self.trainer is None:
            return {}
        # Batches finished, not handed out: a loader's workers may be ahead.
        return {"batches": self.trainer.fit_loop.epoch_loop.batch_progress.current.completed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start_batch = int(state_dict.get("batches", 0))

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Checksum of the data's manifest, "sha256:<hex>"; known after `setup`."""

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Name and size of the data, for the run record."""

    @property
    def problems(self) -> dict[str, int]:
        """Number of bad items left out, by kind."""
        return {}


def checksum(parts: Any) -> str:
    """A checksum of tensors, arrays, texts and numbers in sequences and mappings, "sha256:<hex>"."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        elif isinstance(value, Mapping):
            add(sorted(value.items()))
        elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
            digest.update(b"(")
            for part in value:
                add(part)
            digest.update(b")")
        else:
            digest.update(repr(value).encode())

    add(parts)
    return f"sha256:{digest.hexdigest()}"
