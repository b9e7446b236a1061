"""Rows of local text, JSON-lines and Parquet files, one after the other; what cannot be read is named with its line."""

from __future__ import annotations

import codecs
import fnmatch
import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.core.errors import DataError

FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SHOWN = 20  # columns in a message

Row = dict[str, str | None]


def matching(pattern: str) -> list[Path]:
    """What a pattern of the shell matches, `**` standing for folders of any depth, linked ones too.

    As `glob.glob`, which however goes round in circles where links to folders do.
    """
    parts = Path(pattern).expanduser().parts
    if "**" not in parts:
        return [Path(found) for found in glob.glob(os.path.join(*parts))] if parts else []
    depth = parts.index("**")
    found: list[Path] = []
    for base in glob.glob(os.path.join(*parts[:depth]) if depth else "."):
        seen: set[tuple[int, int]] = set()
        for folder, folders, files in os.walk(base, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(
                (name for name in folders if not name.startswith(".")), key=lambda n: (_linked(folder, n), n)
            )
            for name in sorted(files):
                path = Path(folder, name)
                if _matches(path.relative_to(base).parts, parts[depth:]):
                    found.append(path)
    return found


def _linked(folder: str, name: str) -> bool:
    return os.path.islink(os.path.join(folder, name))


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        shown = next((i for i, part in enumerate(path) if part.startswith(".")), len(path))
        return any(_matches(path[skipped:], pattern[1:]) for skipped in range(shown + 1))
    if not path or (path[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def rows(paths: list[str], column: str) -> Iterator[Row]:
    """Every row of the files as `{column: text or None}`, in order.

    A list of paths, each a shard: `datasets` hands them out to processes and counts the rows taken from each.

    Raises:
        DataError: naming the file and the line.
    """
    for name in paths:
        path = Path(name)
        read = {"text": _whole, "json": _json_lines, "parquet": _parquet}[FORMATS[path.suffix]]
        try:
            for text in read(path, column):
                yield {column: text}
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _decoded(path: Path, raw: bytes, line: int = 1) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        # In a file read whole the line is that of the byte.
        before = raw[: error.start]
        number, byte = line + before.count(b"\n"), error.start - (before.rfind(b"\n") + 1)
        raise DataError(f"{path} is not UTF-8 text: {error.reason} in line {number}, byte {byte} of it") from None


def _whole(path: Path, column: str) -> Iterator[str]:
    yield _decoded(path, path.read_bytes().removeprefix(codecs.BOM_UTF8))


def _json_lines(path: Path, column: str) -> Iterator[str | None]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
                if path.suffix == ".json" and raw.lstrip().startswith(b"["):
                    yield from _json_array(path, raw + file.read(), column)
                    return
            if raw.strip():
                yield _field(
                    _parsed(path, _decoded(path, raw, number), f"line {number} of {path}"), column, path, number
                )


def _json_array(path: Path, raw: bytes, column: str) -> Iterator[str | None]:
    for number, value in enumerate(_parsed(path, _decoded(path, raw), str(path)), start=1):
        yield _field(value, column, path, number)


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None


def _field(value: Any, column: str, path: Path, number: int) -> str | None:
    if not isinstance(value, dict):
        raise DataError(f"row {number} of {path} is {_kind(value)}, not an object with the text under {column!r}")
    if column not in value:
        raise DataError(
            f"row {number} of {path} has no column {column!r}; data.source.column must be one of {_names(value)}"
        )
    return _text(value[column], column, path, number)


def _parquet(path: Path, column: str) -> Iterator[str | None]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise DataError(f"{path} has no column {column!r}; data.source.column must be one of {_names(names)}")
            number = 0
            for batch in file.iter_batches(columns=[column], batch_size=1024):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _text(value, column, path, number)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0][:200]}") from None


def _text(value: Any, column: str, path: Path, number: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"column {column!r} in row {number} of {path} holds {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"column {column!r} in row {number} of {path} holds half a character (a lone surrogate) at {error.start}"
        ) from None
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _names(names: Any) -> str:
    known = [str(name) for name in names]
    return ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "") if known else "none: it has no columns"
