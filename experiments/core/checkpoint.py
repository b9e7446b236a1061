"""Checkpoints that are whole on the disk, and that know the best one wherever their folder lies."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from experiments.core.errors import StorageError

LAST, BEFORE = "last.ckpt", "last-before.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, down to the disk, and then renames it.

    Lightning's own writes it into TMPDIR and moves it from there, which on another file system is a copy that can break
    off. The last checkpoint is kept until the next but one is written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.exists():
                self._keep(path)
            os.replace(temporary, path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {os.strerror(error.errno or 0).lower()}") from error
        finally:
            temporary.unlink(missing_ok=True)
        # The rename too is to outlive a loss of power; some file systems cannot promise it.
        with contextlib.suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @staticmethod
    def _keep(last: Path) -> None:
        before = last.with_name(BEFORE)
        before.unlink(missing_ok=True)
        try:
            os.link(last, before)
        except OSError:  # no hard links here
            os.replace(last, before)


class Checkpoint(ModelCheckpoint):
    """Lightning's, with two differences. In a folder that was moved it still knows the best score, where Lightning's
    takes the next checkpoint for the best. With `save_on_exception` it saves when SIGTERM ends the run after a step,
    and at nothing else: in the middle of a step there is no state to go on from.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        between_steps = trainer.training and batches % trainer.accumulate_grad_batches == 0
        # Several processes would have to save together, and one alone may be ended.
        if isinstance(exception, SIGTERMException) and between_steps and trainer.world_size == 1:
            super().on_exception(trainer, pl_module, exception)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        old, new = state_dict.get("dirpath"), self.dirpath

        def moved(path: str) -> str:
            inside = old is not None and new is not None and Path(path).parent == Path(old)
            return str(Path(str(new)) / Path(path).name) if inside else path

        paths = {
            name: moved(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        models = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": models, "dirpath": new})
        self.current_score = state_dict["current_score"]
