"""Images for the VQ-VAE, from a store that `scripts/prepare_images.py` made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.core.data import ResumableDataModule
from experiments.core.errors import ConfigError, DataError
from experiments.vqvae.store import SPLITS, Store


class Tiles(Dataset[Tensor]):
    """One split's tiles as uint8 (B, 3, size, size), a batch at a time.

    Index n + i, with n tiles in the split, is tile i mirrored left to right: which tiles are mirrored is thereby part
    of the batches, and so a function of the step.
    """

    def __init__(self, store: Store, rows: npt.NDArray[np.int64]) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        wanted = np.asarray(indices)
        tiles = self.store.tiles[self.rows[wanted % len(self.rows)]]  # (B, size, size, 3), a copy
        mirrored = wanted >= len(self.rows)
        tiles[mirrored] = tiles[mirrored, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)))


class Labelled(NamedTuple):
    """Tiles (B, 3, size, size) uint8, and for each the number (B,) of its photograph within the split."""

    tiles: Tensor
    photographs: Tensor


class LabelledTiles(Dataset[Labelled]):
    """One split's tiles with their photographs, a batch at a time."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        images, numbers = np.unique(tiles.store.images[tiles.rows], return_inverse=True)
        self.images = images.tolist()
        self.numbers = numbers.astype(np.int64)

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitems__(self, indices: Sequence[int]) -> Labelled:
        return Labelled(self.tiles.__getitems__(indices), torch.from_numpy(self.numbers[np.asarray(indices)]))

    def names(self) -> list[str]:
        """Of the photographs, by their numbers."""
        found = self.tiles.store.names(self.images)
        return [found[image] for image in self.images]


def _as_is(batch: Any) -> Any:
    """`Tiles` gives whole batches: nothing is left to collate."""
    return batch


class ImageData(ResumableDataModule):
    """Batches of images (B, 3, size, size) uint8; in evaluation `Labelled`.

    Args:
        root: the store, a folder that `scripts/prepare_images.py` made.
        batch_size: images of a training batch, per process.
        eval_batch_size: the same in evaluation.
        mirror: mirror half of the training images, drawn anew each epoch.
        num_workers: processes that load batches; 0: none.

    Raises:
        ConfigError: an option is out of range, or a training split smaller than a batch.
        DataError: there is no store at `root`.
    """

    def __init__(
        self,
        root: str,
        batch_size: int,
        eval_batch_size: int = 64,
        mirror: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ConfigError(f"data.{name} must be at least {least}, got {value}")
        self.root = Path(root)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.mirror, self.num_workers = mirror, num_workers
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store(self.root)
        return self._store

    def prepare_data(self) -> None:
        store = Store(self.root)
        # Asked for after the training, but wrong before it.
        LabelledTiles(Tiles(store, store.rows("test"))).names()

    def setup(self, stage: str) -> None:
        n = self.store.manifest["tiles"]["train"]
        if n < self.batch_size:
            raise ConfigError(f"data.batch_size must be at most {n}, the tiles of {self.root}, got {self.batch_size}")

    @property
    def image_size(self) -> int:
        return int(self.store.manifest["size"])

    def split(self, name: str) -> Tiles:
        """The tiles of "train", "val" or "test"."""
        if name not in SPLITS:
            raise ConfigError(f"the split must be one of {', '.join(SPLITS)}, got {name!r}")
        return Tiles(self.store, self.store.rows(name))

    def labelled(self, name: str) -> LabelledTiles:
        """The tiles of a split with their photographs."""
        return LabelledTiles(self.split(name))

    def epoch_batches(self, epoch: int) -> list[list[int]]:
        """All training batches of one epoch: a new order, and new images mirrored; the remainder is dropped."""
        n = self.store.manifest["tiles"]["train"]
        random = np.random.default_rng([self.data_seed, epoch])
        order = random.permutation(n)
        if self.mirror:
            order = order + n * random.integers(0, 2, size=n)
        whole = n // self.batch_size * self.batch_size
        return order[:whole].reshape(-1, self.batch_size).tolist()

    def _loader(self, tiles: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            tiles,
            collate_fn=_as_is,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            **options,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.split("train"), batch_sampler=self.step_sampler(self.epoch_batches))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> DataLoader[Any]:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        world_size = self.trainer.world_size if self.trainer is not None else 1
        tiles = self.labelled(split)
        if len(tiles) < world_size:
            raise DataError(f"{self.root}: {len(tiles)} {split} tiles for {world_size} processes")
        # Each process its own tiles, none of them twice: metrics are sums over the whole split.
        mine = range(rank, len(tiles), world_size)
        if world_size == 1:
            return self._loader(tiles, sampler=mine, batch_size=self.eval_batch_size)
        # And each as many batches, since a sharded model is gathered by all of them together.
        least, most = len(tiles) // world_size, -(-len(tiles) // world_size)
        batches = min(-(-most // self.eval_batch_size), least)
        return self._loader(tiles, batch_sampler=[part.tolist() for part in np.array_split(mine, batches)])

    @property
    def fingerprint(self) -> str:
        return self.store.fingerprint

    @property
    def description(self) -> dict[str, Any]:
        manifest = self.store.manifest
        return {
            "name": manifest["name"],
            "size": manifest["size"],
            "tiles": manifest["tiles"],
            "images": manifest["sources"],
            "origin": manifest["origin"],
        }

    @property
    def problems(self) -> dict[str, int]:
        return dict(self.store.manifest["problems"])
