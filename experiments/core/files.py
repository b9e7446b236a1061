"""Files that are written whole or not at all, and texts of which a part is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from experiments.core.errors import AnalysisError

END = "<!-- end -->"  # of a part that is made


def data_dir() -> Path:
    """Where data lie, as configs/paths says."""
    return Path(os.environ.get("FADAM_DATA") or "data")


def runs_dir() -> Path:
    """Where this machine's records lie, as configs/paths says."""
    return Path(os.environ.get("FADAM_RUNS") or "runs")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) beside `path`, then put it in its place; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def between(text: str, begin: str, content: Callable[[], str], missing: str) -> str:
    """`text` with `content`, on lines of its own, between the mark `begin` and the next `END`. Nothing is made in vain.

    Raises:
        AnalysisError: a mark is not there; with the sentence `missing`.
    """
    head, found, rest = text.partition(begin)
    _, end, tail = rest.partition(END)
    if not found or not end:
        raise AnalysisError(missing)
    return f"{head}{begin}\n{content()}\n{end}{tail}"
