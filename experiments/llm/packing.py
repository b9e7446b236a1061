"""Tokens on disk: each split is one flat array of documents, each between end tokens, read through a memory map.

A folder is written whole or not at all, and never changed: `meta.json` holds what it was made from and its checksums.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.core.errors import DataError
from experiments.llm import tokenizer as tok
from experiments.llm.text import ROLES, Role, Source

VERSION = 1
CHUNK = 256  # documents tokenised at once

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every token."""
    return np.dtype(np.uint16) if vocab_size <= 2**16 else np.dtype(np.uint32)


def chunks(documents: Iterable[str], size: int = CHUNK) -> Iterator[list[str]]:
    iterator = iter(documents)
    while chunk := list(islice(iterator, size)):
        yield chunk


def identity(source: Source, tokenizer: Mapping[str, Any], limits: Mapping[Role, int | None]) -> dict[str, Any]:
    """What a folder of tokens depends on."""
    spec = dict(tokenizer)
    if spec.get("file") is not None:
        path = Path(spec["file"])
        if not path.is_file():
            raise DataError(f"no tokenizer at data.tokenizer.file={path}")
        spec["file"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"version": VERSION, "source": source.identity, "tokenizer": spec, "limits": dict(limits)}


def folder_for(cache_dir: Path, source: Source, made_from: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir / f"{source.name}-{made_from['tokenizer']['kind']}-{key}"


def pack(
    folder: Path,
    source: Source,
    tokenizer: Mapping[str, Any],
    limits: Mapping[Role, int | None],
    roles: Iterable[Role] = ROLES,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Tokenise a source into `folder`, training the tokenizer first if it is one to be trained.

    Args:
        tokenizer: kind ("bpe", "bytes" or "file"), vocab_size, file, end, train_documents.
        limits: role -> most documents to take, or None for all.
        roles: splits to write.
        report: told of each step.

    Raises:
        DataError: the source cannot be read, a split has no text, or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        made_from = identity(source, tokenizer, limits)
        chosen = _tokenizer(source, tokenizer, limits, report)
        (temporary / "tokenizer.json").write_text(chosen.dumps(), encoding="utf-8")
        dtype = token_dtype(chosen.vocab_size)
        splits = {}
        for role in roles:
            report(f"{source.name}: tokenising {role}")
            documents = islice(source.documents(role), limits.get(role))
            splits[role] = _write(temporary / f"{role}.bin", documents, chosen, dtype)
            if splits[role]["bytes"] == 0:
                raise DataError(
                    f"{source.name} holds no text for {role}: the corpus is empty or the split's share too small"
                )
        meta = {
            "made_from": made_from,
            "dtype": dtype.name,
            "vocab_size": chosen.vocab_size,
            "tokenizer_sha256": chosen.digest,
            "end": tokenizer.get("end") or tok.END,
            "splits": splits,
            "problems": source.problems,
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        os.chmod(temporary, 0o755)
        try:
            os.replace(temporary, folder)
        except OSError:
            # Another process was first; its folder holds the same.
            if not (folder / "meta.json").is_file():
                raise DataError(f"{folder} is in the way and holds no tokens: delete it") from None
    except OSError as error:
        raise DataError(f"{folder.parent} cannot be written ({error.strerror}): move it with FADAM_DATA") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _tokenizer(
    source: Source, spec: Mapping[str, Any], limits: Mapping[Role, int | None], report: Callable[[str], None]
) -> tok.Tokenizer:
    if spec["kind"] == "bytes":
        return tok.Bytes()
    if spec["kind"] == "file":
        return tok.load(Path(spec["file"]), spec.get("end") or tok.END)
    report(f"{source.name}: training a tokenizer of {spec['vocab_size']} tokens")
    wanted = [n for n in (spec.get("train_documents"), limits.get("train")) if n is not None]
    texts = filter(None, islice(source.documents("train"), min(wanted) if wanted else None))
    first = next(texts, None)
    if first is None:
        raise DataError(f"{source.name} holds no text for train: the corpus is empty or the split's share too small")
    return tok.BytePairs.train(chain([first], texts), spec["vocab_size"])


def _write(path: Path, documents: Iterable[str], tokenizer: tok.Tokenizer, dtype: np.dtype[Any]) -> dict[str, Any]:
    """One split's file: `end doc end doc ... end`; returns its counts and the checksum of its text."""
    counts = {"documents": 0, "empty": 0, "bytes": 0, "tokens": 1}
    digest = hashlib.sha256()
    end = np.array([tokenizer.end], dtype=dtype)
    with path.open("wb") as file:
        end.tofile(file)
        for chunk in chunks(documents):
            texts = [text for text in chunk if text]
            counts["empty"] += len(chunk) - len(texts)
            for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
                raw = text.encode()
                digest.update(len(raw).to_bytes(8, "little") + raw)
                tokens.astype(dtype).tofile(file)
                end.tofile(file)
                counts["documents"] += 1
                counts["bytes"] += len(raw)
                counts["tokens"] += len(tokens) + 1
    return {**counts, "sha256": digest.hexdigest()}


class PackedFolder:
    """A folder that `pack` wrote.

    Args:
        folder: where it lies.
        made_from: what it must have been made from, if that is known.

    Raises:
        DataError: it is missing, damaged, or was made from something else.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            self.splits: dict[str, dict[str, Any]] = self.meta["splits"]
            self.dtype = np.dtype(self.meta["dtype"])
            recorded, digest = self.meta["made_from"], self.meta["tokenizer_sha256"]
        except FileNotFoundError:
            raise DataError(f"no packed text at {folder}: make it with `python -m scripts.prepare_text`") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}/meta.json is damaged ({error}): delete the folder") from None
        if made_from is not None and json.loads(json.dumps(made_from)) != recorded:
            raise DataError(f"{folder} holds tokens of other text or of another tokenizer: delete the folder")
        self.tokenizer = tok.load(folder / "tokenizer.json", self.meta["end"])
        if self.tokenizer.digest != digest:
            raise DataError(
                f"{folder}/tokenizer.json is not the tokenizer that made the tokens beside it: delete the folder"
            )
        for role, counts in self.splits.items():
            path = folder / f"{role}.bin"
            if not path.is_file() or path.stat().st_size != counts["tokens"] * self.dtype.itemsize:
                raise DataError(
                    f"{path} does not hold the {counts['tokens']} tokens of its meta.json: delete the folder"
                )

    def tokens(self, role: Role) -> Tokens:
        """(N,) all tokens of a split, mapped from disk."""
        return np.memmap(self.folder / f"{role}.bin", dtype=self.dtype, mode="r")

    @property
    def fingerprint(self) -> str:
        """Checksum of texts and tokenizer, wherever and whenever they were packed."""
        parts = {role: counts["sha256"] for role, counts in self.splits.items()}
        text = json.dumps([parts, self.meta["tokenizer_sha256"]], sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    @property
    def problems(self) -> dict[str, int]:
        """What was odd about the text, by kind."""
        empty = sum(int(counts["empty"]) for counts in self.splits.values())
        others: dict[str, int] = self.meta.get("problems", {})
        return ({"empty-document": empty} if empty else {}) | others


def windows(tokens: int, length: int) -> int:
    """Number of whole sequences of `length` targets; each token but the first is the target of at most one."""
    return max(0, (tokens - 1) // length)


def window(tokens: Tokens, first: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """(B, length + 1) tokens from each position in `first` (B,): inputs and, one later, targets."""
    rows: npt.NDArray[np.int64] = tokens[first[:, None] + np.arange(length + 1)].astype(np.int64)
    return rows


def evaluation_windows(tokens: int, length: int, batch_size: int) -> list[tuple[npt.NDArray[np.int64], int]]:
    """Batches that have each token but the first as a target exactly once: (first positions (B,), length).

    All are of `length` but the last, which holds what is left over.
    """
    whole = windows(tokens, length)
    starts = np.arange(whole, dtype=np.int64) * length
    batches = [(part, length) for part in np.array_split(starts, math.ceil(whole / batch_size))] if whole else []
    if rest := tokens - 1 - whole * length:
        batches.append((np.array([whole * length], dtype=np.int64), rest))
    return batches
