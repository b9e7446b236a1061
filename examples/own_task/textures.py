"""Brick, grass or gravel? Patches of three photographs that scikit-image carries, and a small convolutional network."""

from __future__ import annotations

import numpy as np
import torch
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.own import Metric, OwnTask

SIZE = 8  # pixels along a patch's side, of photographs with 512
Batch = list[Tensor]


class Textures(OwnTask):
    title = "Textures"
    metrics = (
        Metric("loss", "loss (nats)", "min", amount="{} nats", fewer="needs {} fewer nats", more="needs {} more nats"),
        Metric("error", "wrong patches (%)", "min", digits=2, percent=True),
    )

    def __init__(self, width: int = 16) -> None:
        self.width = width

    def data(self) -> dict[str, tuple[Tensor, Tensor]]:
        pictures = [getattr(data, name)() for name in ("brick", "grass", "gravel")]
        splits: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
        for picture in pictures:
            patches = picture.reshape(64, SIZE, 64, SIZE).swapaxes(1, 2)  # (row, column, SIZE, SIZE)
            # Columns of the photograph: what is tested was seen in no part.
            for split, columns in (("train", slice(0, 32)), ("val", slice(32, 44)), ("test", slice(44, 64))):
                splits[split].append(patches[:, columns].reshape(-1, 1, SIZE, SIZE))
        return {split: self._tensors(parts) for split, parts in splits.items()}

    def _tensors(self, parts: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return torch.from_numpy(np.concatenate(parts)).float() / 64 - 2, torch.from_numpy(labels)

    def model(self) -> nn.Module:
        w = self.width
        return nn.Sequential(
            nn.Conv2d(1, w, 3, padding=1), nn.GroupNorm(4, w), nn.GELU(),  # (B, w, 8, 8)
            nn.Conv2d(w, 2 * w, 3, padding=1, stride=2), nn.GroupNorm(4, 2 * w), nn.GELU(),  # (B, 2w, 4, 4)
            nn.Conv2d(2 * w, 2 * w, 3, padding=1, stride=2), nn.GroupNorm(4, 2 * w), nn.GELU(),  # (B, 2w, 2, 2)
            nn.Flatten(), nn.Linear(8 * w, 3),
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        patches, labels = batch
        return F.cross_entropy(model(patches), labels)

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        patches, labels = batch
        logits = model(patches)
        wrong = logits.argmax(dim=1) != labels
        return {"loss": F.cross_entropy(logits, labels), "error": wrong.float().mean()}
