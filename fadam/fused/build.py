"""C++ compiled for this machine on first use, kept, and looked at before it is loaded.

The folder is the one that the environment variable ``FADAM_CACHE`` names, by default ``$XDG_CACHE_HOME/fadam`` or
``~/.cache/fadam``. A library's name says what it was made for (source, flags, processor) and what is in it (its hash),
so that one that is ready needs no compiler. It is loaded only if the file and the folder belong to this user or to
root, nobody else can write them, and the content has that hash. The compiler is ``$CXX``, or else the first of c++, g++
and clang++ that is there.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

_FLAGS = ("-O3", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_NATIVE = ("-march=native",)
_COMPILERS = ("c++", "g++", "clang++")
_NOT_HERE = "does not load"
_HINT = "the environment variable FADAM_CACHE can name another folder"


class BuildError(RuntimeError):
    """The library could not be built or loaded; the message is a clause that says why."""


def load(source: Path) -> ctypes.CDLL:
    """The compiled library of a source file: one that is kept, or else a new one.

    A warning says why one that is kept was not used, or why the new one is not kept.

    Raises:
        BuildError: if there is none to be had.
    """
    parts = (source.read_text(), *_FLAGS, *_NATIVE, _processor())
    name = f"{source.stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:24]}"
    folder, unkept = _folder()
    spoilt: dict[Path, str] = {}
    for path in _newest_first(folder, f"{name}-*.so"):
        problem = _problem(path)
        if problem is None:
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:  # made for another C library, say
                problem = f"{_NOT_HERE} ({error})"
        spoilt[path] = problem
    found = "; ".join(f"{path} {problem}" for path, problem in spoilt.items())
    try:
        compiler = _compiler()
        if not unkept:
            try:
                return _kept(compiler, source, folder, name, spoilt)
            except OSError as error:
                unkept = f"it cannot be written ({error.strerror or error})"
        library = _passing(compiler, source, f"{folder}: {unkept}")
    except BuildError as error:
        raise BuildError(f"{error}; {found}" if found else str(error)) from None
    finally:
        if found:
            warnings.warn(f"FAdam: compiled code was not loaded: {found}", stacklevel=2)
    warnings.warn(
        f"FAdam: its C++ was compiled for this process alone, because it cannot be kept in {folder}: {unkept}; {_HINT}",
        stacklevel=2,
    )
    return library


def _kept(compiler: Sequence[str], source: Path, folder: Path, name: str, spoilt: dict[Path, str]) -> ctypes.CDLL:
    # Another process may be at it too: each writes a file of its own, and the last one renamed stays.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fresh = Path(scratch) / "library.so"
        _compile(compiler, source, fresh)
        library = _loaded(fresh)
        fresh.chmod(0o755)  # whatever the umask
        target = folder / f"{name}-{_digest(fresh.read_bytes())}.so"
        fresh.replace(target)
    for path, problem in spoilt.items():
        if path != target and not problem.startswith(_NOT_HERE):
            path.unlink(missing_ok=True)
    return library


def _passing(compiler: Sequence[str], source: Path, unkept: str) -> ctypes.CDLL:
    """A library that is gone from the disk as soon as it is loaded."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "library.so"
            _compile(compiler, source, target)
            return _loaded(target)
    except OSError as error:
        raise BuildError(
            f"compiled code can be kept neither in {unkept}, nor in a temporary folder: {error}; {_HINT}"
        ) from None


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"the compiled library does not load ({error})") from None


def _folder() -> tuple[Path, str]:
    """The folder of compiled libraries, made if it is not there, and why none can be kept there, or ""."""
    named, caches = os.environ.get("FADAM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named) if named else Path(caches or Path.home() / ".cache") / "fadam"
    except RuntimeError:
        return Path("~/.cache/fadam"), "there is no home folder"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = os.stat(folder)
    except OSError as error:
        return folder, f"it cannot be made ({error.strerror or error})"
    return folder, _stranger(found)


def _newest_first(folder: Path, pattern: str) -> list[Path]:
    found = []
    if folder.is_dir() and not _stranger(os.stat(folder)):
        for path in folder.glob(pattern):
            try:
                found.append((path.lstat().st_mtime, path))
            except OSError:  # gone meanwhile
                continue
    return [path for _, path in sorted(found, reverse=True)]


def _stranger(found: os.stat_result) -> str:
    """Why what lies there may be somebody else's, or ""."""
    if found.st_uid not in (0, os.geteuid()):
        return f"it belongs to another user ({found.st_uid})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write it (mode {stat.S_IMODE(found.st_mode):o})"
    return ""


def _problem(path: Path) -> str | None:
    """Why a library must not be loaded: whose it is, or what is in it."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            if problem := _stranger(os.fstat(file.fileno())):
                return f"is not used: {problem}"
            content = file.read()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if path.stem.rpartition("-")[2] != _digest(content):
        return f"is damaged: its {len(content)} bytes have not the hash in its name"
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    for command in [shlex.split(named)] if named else [[name] for name in _COMPILERS]:
        if command and shutil.which(command[0]):
            return command
    wanted = named or ", ".join(_COMPILERS[:-1]) + " or " + _COMPILERS[-1]
    raise BuildError(f"there is no C++ compiler to build it with ({wanted} is not on the PATH)")


def _processor() -> str:
    """What -march=native depends on: the processor's features, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    keys = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join([platform.machine(), *(line for line in lines if line.partition("\t")[0].strip() in keys)])


def _compile(compiler: Sequence[str], source: Path, target: Path) -> None:
    # Not every compiler knows the processor that it runs on.
    for native in (_NATIVE, ()):
        command = [*compiler, *native, *_FLAGS, str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
    raise BuildError(f"{shlex.join(compiler)} does not compile it: {last}")
