"""Transcripts: one alphabet, and two tokenizers with the same protocol for CTC, where label 0 is the blank."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from experiments.core.errors import ConfigError, DataError

ALPHABET = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "`": "'"})


def normalise(text: str) -> str:
    """Upper case, one kind of apostrophe, single spaces. Other characters are left for the caller to judge."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).translate(_QUOTES).upper()).strip()


def outside_alphabet(text: str) -> str:
    """The distinct characters of a normalised text that are not in the alphabet, sorted; "" if there are none."""
    return "".join(sorted(set(text) - set(ALPHABET)))


def ctc_frames(labels: Sequence[int]) -> int:
    """The fewest encoder frames on which CTC can align these labels: one each, and a blank between equal neighbours.

    With fewer frames no path exists and the loss is infinite (Graves et al. 2006, section 3).
    """
    return len(labels) + sum(a == b for a, b in pairwise(labels))


class Tokenizer(Protocol):
    """Text to labels and back. Label 0 is CTC's blank and is never produced by `encode`."""

    @property
    def vocab_size(self) -> int:
        """Number of labels, the blank included."""

    @property
    def blank(self) -> int:
        """The blank's label."""

    def encode(self, text: str) -> list[int]:
        """Labels of a normalised text."""

    def decode(self, labels: Iterable[int]) -> str:
        """Text of labels; blanks are skipped, equal neighbours are *not* merged (that is the CTC decoder's work)."""


class CharTokenizer:
    """29 labels: blank, space, apostrophe, A to Z."""

    blank = 0
    vocab_size = 1 + len(ALPHABET)

    def __init__(self) -> None:
        self._label = {c: i for i, c in enumerate(ALPHABET, start=1)}

    def encode(self, text: str) -> list[int]:
        """Raises ValueError, naming the characters, for text outside the alphabet."""
        try:
            return [self._label[c] for c in text]
        except KeyError:
            raise ValueError(f"characters outside the alphabet: {outside_alphabet(text)!r}") from None

    def decode(self, labels: Iterable[int]) -> str:
        return "".join(ALPHABET[i - 1] for i in labels if i != self.blank).strip()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class SentencePieceTokenizer:
    """Sentence pieces (unigram model) behind the blank: label 0 is the blank, label i + 1 is piece i.

    Args:
        model_file: a trained SentencePiece model.

    Raises:
        DataError: the file is missing or is no SentencePiece model.
    """

    blank = 0

    def __init__(self, model_file: str | Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            # Bytes, not the object: data modules are pickled into loader workers.
            self.model = Path(model_file).read_bytes()
            if not self.model:
                raise RuntimeError("it is empty")
            self._processor = SentencePieceProcessor(model_proto=self.model)
        except (OSError, RuntimeError) as error:
            raise DataError(f"{model_file} cannot be read as a SentencePiece model: {_first_line(error)}") from error

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int, cache_dir: str | Path) -> SentencePieceTokenizer:
        """The tokenizer for these transcripts: trained once, then read from `cache_dir`.

        Args:
            texts: normalised training transcripts; their order and number are part of the cache's key.
            vocab_size: number of labels, the blank included.

        Raises:
            ConfigError: the texts cannot fill that many pieces.
        """
        import sentencepiece

        digest = hashlib.sha256("\n".join([str(vocab_size), *texts]).encode()).hexdigest()
        file = Path(cache_dir) / f"sentencepiece-{vocab_size}-{digest[:16]}.model"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                try:
                    sentencepiece.SentencePieceTrainer.train(
                        sentence_iterator=iter(texts),
                        model_prefix=os.path.join(folder, "model"),
                        vocab_size=vocab_size - 1,
                        model_type="unigram",
                        character_coverage=1.0,
                        normalization_rule_name="identity",
                        bos_id=-1,
                        eos_id=-1,
                        pad_id=-1,
                        num_threads=1,
                        minloglevel=2,
                    )
                except RuntimeError as error:
                    raise ConfigError(
                        f"data.vocab_size={vocab_size} does not suit {len(texts)} transcripts: "
                        f"{str(error).splitlines()[-1].rpartition('] ')[2]}"
                    ) from error
                os.replace(os.path.join(folder, "model.model"), file)
        return cls(file)

    @property
    def vocab_size(self) -> int:
        return int(self._processor.get_piece_size()) + 1

    def encode(self, text: str) -> list[int]:
        return [i + 1 for i in self._processor.encode(text)]

    def decode(self, labels: Iterable[int]) -> str:
        pieces = [i - 1 for i in labels if i != self.blank and i - 1 != self._processor.unk_id()]
        return str(self._processor.decode(pieces)).strip()
