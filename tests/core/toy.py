"""The smallest task: linear regression with dropout, so that the random state matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.core.data import ResumableDataModule
from experiments.core.module import TaskModule

ITEMS, BATCH = 20, 4


class ToyData(ResumableDataModule):
    def __init__(self, root: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(ITEMS, 3, generator=generator)
        self.items = TensorDataset(x, x.sum(dim=1, keepdim=True))

    def epoch(self, epoch: int) -> list[list[int]]:
        order = np.random.default_rng([self.data_seed, epoch]).permutation(ITEMS)
        return [part.tolist() for part in np.split(order, ITEMS // BATCH)]

    def train_dataloader(self) -> Any:
        return DataLoader(self.items, batch_sampler=self.step_sampler(self.epoch))

    def val_dataloader(self) -> Any:
        return DataLoader(self.items, batch_size=BATCH)

    test_dataloader = val_dataloader

    @property
    def fingerprint(self) -> str:
        return "sha256:toy"

    @property
    def description(self) -> dict[str, Any]:
        return {"name": "toy", "items": ITEMS}


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # (B, 3) -> (B, 1)


class ToyModule(TaskModule):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return (self.model(x) - y).square().mean()

    def _evaluate(self, batch: list[Tensor], split: str) -> None:
        x, y = batch
        self.log(f"{split}/loss", (self.model(x) - y).square().mean(), batch_size=len(x))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def seen(self, batch: list[Tensor]) -> dict[str, float]:
        return {"items": float(len(batch[0]))}

    def samples(self) -> list[dict[str, Any]]:
        return [{"split": "test", "id": "0", "reference": "a", "hypothesis": "b"}]

    def save_artifacts(self, stem: str) -> list[str]:
        from pathlib import Path

        Path(f"{stem}.txt").write_text("to look at")
        return [f"{stem}.txt"]
