"""Fetching and unpacking Debian packages without root, where `apt-get` and `dpkg` are there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from experiments.core.errors import DataError


class PackageUnavailable(DataError):
    """A package cannot be had on this machine."""


def _run(command: Sequence[str], cwd: Path) -> str:
    """Raises PackageUnavailable with the program's last line of complaint."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)
    except FileNotFoundError as error:
        raise PackageUnavailable(f"{command[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise PackageUnavailable(f"{command[0]} did not finish in 15 minutes") from error
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise PackageUnavailable(f"{command[0]} failed: {said[-1] if said else 'no message'}")
    return done.stdout


def _download(package: str, cache: Path) -> None:
    """`apt-get download` with the machine's package lists, or with our own where those are missing or old."""
    try:
        _run(["apt-get", "-q", "download", package], cache)
        return
    except PackageUnavailable:
        if shutil.which("apt-get") is None:
            raise
    lists = cache / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    private = [
        "-o", f"Dir::State::Lists={lists.resolve()}",
        "-o", f"Dir::Cache={lists.resolve()}",
    ]  # fmt: skip
    _run(["apt-get", "-q", *private, "update"], cache)
    _run(["apt-get", "-q", *private, "download", package], cache)


def fetch(package: str, cache: str | Path) -> tuple[Path, str]:
    """Download a package into `cache`, unless it is there, and unpack it.

    Returns:
        The folder with the package's files, and its version.

    Raises:
        PackageUnavailable: it cannot be downloaded or unpacked.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob(f"{package}_*.deb")):
        _download(package, cache)
    file = max(cache.glob(f"{package}_*.deb"), default=None)
    if file is None:
        raise PackageUnavailable(f"apt-get left no file of {package} in {cache}")
    folder = cache / file.stem
    if not folder.exists():
        partial = cache / f".{file.stem}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _run(["dpkg", "-x", str(file.resolve()), str(partial.resolve())], cache)
        partial.rename(folder)
    return folder, file.stem.split("_")[1]
