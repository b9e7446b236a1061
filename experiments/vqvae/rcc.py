"""Reading Qt's binary resource files (`*.rcc`): a small file system in one file.

The layout is that of Qt's resource compiler, format versions 1 to 3, all numbers big-endian: a header (magic "qres",
version, offsets of the tree, the data and the names), a tree of nodes, a block of names in UTF-16 and a block of data.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from experiments.core.errors import DataError

_COMPRESSED, _DIRECTORY, _ZSTANDARD = 1, 2, 4
_MAX_DEPTH = 64


class UnreadableResource(ValueError):
    """One file in a resource cannot be unpacked; the others can."""


class ResourceFile:
    """The files in one resource, by path.

    Raises:
        DataError: `path` is no resource file, or its tree points outside it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._content = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if self._content[:4] != b"qres":
            raise DataError(f"{path} is no Qt resource file: it does not begin with 'qres'")
        try:
            version, self._tree, self._data, self._names = struct.unpack_from(">4I", self._content, 4)
            if version not in (1, 2, 3):
                raise DataError(f"{path} is a Qt resource file of version {version}; versions 1 to 3 can be read")
            self._node_size = 14 if version == 1 else 22
            self._seen: set[int] = set()
            self._files = dict(self._walk(0, "", 0))
        except (struct.error, UnicodeDecodeError) as error:
            raise DataError(f"{path} is a damaged Qt resource file: {error}") from error

    def _name(self, offset: int) -> str:
        (length,) = struct.unpack_from(">H", self._content, self._names + offset)
        start = self._names + offset + 6  # length and hash
        return self._content[start : start + 2 * length].decode("utf-16-be")

    def _walk(self, node: int, parent: str, depth: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """Path -> (flags, offset of the data), for every file under `node`."""
        if depth > _MAX_DEPTH:
            raise DataError(f"{self.path} is a damaged Qt resource file: folders deeper than {_MAX_DEPTH}")
        if node in self._seen:
            raise DataError(f"{self.path} is a damaged Qt resource file: an entry is in two folders")
        self._seen.add(node)
        at = self._tree + node * self._node_size
        name, flags = struct.unpack_from(">IH", self._content, at)
        path = f"{parent}/{self._name(name)}" if node else ""
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">II", self._content, at + 6)
            for child in range(first, first + count):
                yield from self._walk(child, path, depth + 1)
        else:
            (data,) = struct.unpack_from(">I", self._content, at + 10)
            yield path.lstrip("/"), (flags, data)

    def names(self) -> list[str]:
        """Paths of all files, sorted."""
        return sorted(self._files)

    def read(self, name: str) -> bytes:
        """Content of one file.

        Raises:
            UnreadableResource: it lies outside the resource, is damaged or compressed in a way that is not supported.
        """
        flags, offset = self._files[name]
        start = self._data + offset
        if start + 4 > len(self._content):
            raise UnreadableResource(f"{name} lies outside {self.path}")
        (size,) = struct.unpack_from(">I", self._content, start)
        content = self._content[start + 4 : start + 4 + size]
        if len(content) != size:
            raise UnreadableResource(f"{name} lies outside {self.path}")
        if flags & _ZSTANDARD:
            raise UnreadableResource(f"{name} in {self.path} is compressed with Zstandard, which is not supported")
        if flags & _COMPRESSED:
            try:
                return zlib.decompress(content[4:])  # after the length of the result
            except zlib.error as error:
                raise UnreadableResource(f"{name} in {self.path} is damaged: {error}") from error
        return content
