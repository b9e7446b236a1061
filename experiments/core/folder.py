"""A run's folder: whose it is, who is at work in it, and from where an interrupted run goes on."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only

from experiments.core import records as rec
from experiments.core.checkpoint import BEFORE, LAST
from experiments.core.errors import ConfigError
from experiments.core.files import write_whole

# Loader workers notice after 5 s that a killed run is gone, and hold its lock until then.
WORKERS_END_S = 15.0
SHOWN_KEYS = 4


@rank_zero_only
def rank_zero_print(text: str) -> None:
    print(text, flush=True)


@dataclass(frozen=True)
class Identity:
    """What makes a run this one: its configuration and its data.

    Attributes:
        digest: hash of the plain configuration.
        fingerprint: checksum of the data.
        config: the plain configuration, to tell differences by.
    """

    digest: str
    fingerprint: str
    config: Mapping[str, Any] = field(compare=False)

    def state(self) -> dict[str, Any]:
        return {"config_hash": self.digest, "fingerprint": self.fingerprint, "config": dict(self.config)}

    @staticmethod
    def of(state: Any) -> Identity | None:
        """The identity that `state` was made from; None where it is none."""
        if not isinstance(state, Mapping) or not isinstance(state.get("config"), Mapping):
            return None
        return Identity(str(state.get("config_hash")), str(state.get("fingerprint")), state["config"])

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> Identity | None:
        data = record.get("data")
        return Identity.of({**record, "fingerprint": data.get("fingerprint") if isinstance(data, Mapping) else None})

    def differences(self, other: Identity | None) -> str:
        """The keys in which two runs differ, with both values, in words."""
        if other is None:
            return "which one is not known"
        mine, theirs = rec.flat(self.config), rec.flat(other.config)
        mine["the data's fingerprint"], theirs["the data's fingerprint"] = self.fingerprint, other.fingerprint
        keys = [k for k in sorted(mine.keys() | theirs.keys()) if mine.get(k, ...) != theirs.get(k, ...)]
        words = [f"{k} is {_shown(mine, k)} here and {_shown(theirs, k)} there" for k in keys[:SHOWN_KEYS]]
        if len(keys) > SHOWN_KEYS:
            words.append(f"{len(keys) - SHOWN_KEYS} more differ")
        return ", ".join(words)


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


class CarryIdentity(Callback):
    """Writes the run's identity into each of its checkpoints, so that none is taken for another run's."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["identity"] = self.identity.state()


@dataclass(frozen=True)
class Found:
    """A checkpoint in a folder: whose it is, and its step."""

    path: Path
    identity: Identity | None
    step: int


def read_checkpoint(path: Path) -> Found:
    """What a checkpoint says of itself; its tensors stay on the disk.

    Raises:
        Exception: whatever torch raises for a file that is no whole checkpoint.
    """
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return Found(path, Identity.of(content.get("identity")), int(content["global_step"]))


class RunFolder:
    """The folder and the record of one run, which belong to one configuration.

    Args:
        stem: the folder.
        identity: of the run that wants them.
    """

    def __init__(self, stem: Path, identity: Identity) -> None:
        self.stem, self.identity = stem, identity
        self.record = Path(f"{stem}.json")
        self._holder = stem / ".holder.json"

    def finished(self) -> dict[str, Any] | None:
        """The run's own record, if there is one."""
        found = rec.read_json(self.record)
        return found if found is not None and Identity.of_record(found) == self.identity else None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the folder for this process; with several processes, the first one keeps it for all.

        Raises:
            ConfigError: somebody else is at work in it. Names who, and the keys that differ.
        """
        if getattr(rank_zero_only, "rank", 0):
            yield
            return
        self.stem.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.stem / ".lock")
        self._acquire(lock)
        try:
            now = datetime.datetime.now(datetime.timezone.utc)
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": now.isoformat(timespec="seconds")}
            write_whole(self._holder, json.dumps(holder | self.identity.state()))
            yield
        finally:
            self._holder.unlink(missing_ok=True)
            lock.release()

    def _acquire(self, lock: FileLock) -> None:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            return
        holder = rec.read_json(self._holder) or {}
        if holder.get("host") == socket.gethostname() and not _alive(holder.get("pid")):
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=WORKERS_END_S)
                return
        who = "another process"
        if holder:
            who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
        other = Identity.of(holder)
        what = "this very run" if other == self.identity else f"another one ({self.identity.differences(other)})"
        raise ConfigError(f"{self.stem} is in use: {who} makes {what} there; {_advice('wait for its end')}")

    def claim(self, resume: str, overwrite: bool) -> str | None:
        """The checkpoint from which the run goes on; None where it starts anew. Changes nothing.

        Args:
            resume: "auto", or "never": to start anew where the run was interrupted.
            overwrite: replace what another configuration left here.

        Raises:
            ConfigError: another configuration has a record or a checkpoint here. Names the keys that differ.
        """
        record = rec.read_json(self.record)
        if record is not None and not overwrite:
            other = Identity.of_record(record)
            if other != self.identity:
                raise ConfigError(
                    f"{self.record} is the record of another run ({self.identity.differences(other)}); "
                    + _advice("replace it with overwrite=true")
                )
        found = self._last_whole()
        if found is not None and found.identity == self.identity:
            if resume == "auto":
                return str(found.path)
        elif found is not None and not overwrite:
            raise ConfigError(
                f"{self.stem} holds another run, which was interrupted at step {found.step} "
                f"({self.identity.differences(found.identity)}); " + _advice("replace it with overwrite=true")
            )
        return None

    def _last_whole(self) -> Found | None:
        """The last checkpoint that can be read. Says which cannot."""
        for path in (self.stem / LAST, self.stem / BEFORE):
            if not path.exists():
                continue
            try:
                return read_checkpoint(path)
            except Exception as error:  # torch has many for a file that is no whole checkpoint
                reason = str(error).partition("\n")[0]
                rank_zero_print(
                    f"{path} cannot be read ({type(error).__name__}: {reason}), so an earlier state is taken"
                )
        return None

    def tidy(self) -> None:
        """Removes what killed processes have left half written, and checkpoints that Lightning would take by itself."""
        for pattern in (".*.tmp", "hpc_ckpt_*.ckpt"):
            for stray in self.stem.glob(pattern):
                stray.unlink()
        for stray in self.stem.parent.glob(f".{self.record.name}.*.tmp"):
            stray.unlink()

    def done(self) -> None:
        """Removes what only an interrupted run needs."""
        (self.stem / BEFORE).unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes the checkpoints that are here. Another run's record stays until this one's replaces it."""
        for old in self.stem.glob("*.ckpt"):
            old.unlink()


def _advice(other: str) -> str:
    return f"give this run a name of its own with trial=<name>, or {other}"


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True
