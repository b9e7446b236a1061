"""Fetching and unpacking Debian packages without root, where `apt-get` and `dpkg` are there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
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


def _present(package: str, cache: Path) -> Path | None:
    return max(cache.glob(f"{package}_*.deb"), default=None)


def _download(packages: Sequence[str], cache: Path, say: Callable[[str], None]) -> None:
    """`apt-get download` with the machine's package lists, or with our own where those are missing or old.

    A package comes into `cache` when it is whole. An interrupted download leaves its part in `cache`/partial, where apt
    goes on from it.
    """
    partial, lists = (cache / "partial").resolve(), (cache / "lists").resolve()
    partial.mkdir(parents=True, exist_ok=True)
    own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={lists}"]
    options: list[str] = []
    for number, package in enumerate(packages, 1):
        say(f"fetching the Debian package {package} ({number} of {len(packages)})")
        try:
            _run(["apt-get", "-q", *options, "download", package], partial)
        except PackageUnavailable:
            if options or shutil.which("apt-get") is None:
                raise
            (lists / "partial").mkdir(parents=True, exist_ok=True)
            _run(["apt-get", "-q", *own, "update"], partial)
            options = own
            _run(["apt-get", "-q", *options, "download", package], partial)
        file = _present(package, partial)
        if file is None:
            raise PackageUnavailable(f"apt-get left no file of {package} in {partial}")
        file.rename(cache / file.name)


def _unpack(package: str, cache: Path) -> tuple[Path, str]:
    file = _present(package, cache)
    assert file is not None
    folder = cache / file.stem
    if not folder.exists():
        unfinished = cache / f".{file.stem}.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            _run(["dpkg", "-x", str(file.resolve()), str(unfinished.resolve())], cache)
        except PackageUnavailable as error:
            raise PackageUnavailable(f"{file} cannot be unpacked ({error}): remove it and run this again") from error
        unfinished.rename(folder)
    return folder, file.stem.split("_")[1]


def fetch(
    packages: Sequence[str], cache: str | Path, say: Callable[[str], None] = lambda _: None
) -> dict[str, tuple[Path, str]]:
    """Download packages into `cache`, those excepted that are there, and unpack them.

    Args:
        packages: their names.
        cache: a folder.
        say: called with a sentence before each download.

    Returns:
        For each package the folder with its files, and its version.

    Raises:
        PackageUnavailable: one cannot be downloaded or unpacked.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if _present(package, cache) is None]
    try:
        _download(missing, cache, say)
    except PackageUnavailable as error:
        missing = [package for package in packages if _present(package, cache) is None]
        raise PackageUnavailable(
            f"{', '.join(missing)} cannot be had here ({error}); on a machine with Debian's package archive "
            f"`apt-get download {' '.join(missing)}` gets them, and their .deb files belong into {cache}"
        ) from error
    return {package: _unpack(package, cache) for package in packages}
