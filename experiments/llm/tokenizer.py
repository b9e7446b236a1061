"""Byte-level tokenizers: plain bytes, or byte-pair encoding by `tokenizers`. Every token stands for a known number
of bytes, so bits per byte are exact."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.core.errors import ConfigError, DataError

END = "<|end|>"
KINDS = ("bpe", "bytes", "file")


class Tokenizer(ABC):
    """Text to tokens and back.

    Attributes:
        vocab_size: number of tokens, the end token included.
        end: the token that ends, and precedes, every document.
    """

    vocab_size: int
    end: int

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Each text's tokens, without end tokens; their bytes add up to the text's.

        Raises:
            ConfigError: they do not, since the tokenizer loses text or adds some.
        """

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens; end tokens are left out, bytes that are no UTF-8 become U+FFFD."""

    @property
    @abstractmethod
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """(V,) number of bytes that each token stands for; 0 for the end token."""

    @abstractmethod
    def dumps(self) -> str:
        """The whole tokenizer as text; `load` reads it."""

    @property
    def digest(self) -> str:
        """SHA-256 of the tokenizer, in hexadecimal digits."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()


class Bytes(Tokenizer):
    """256 bytes and the end token."""

    vocab_size = 257
    end = 256

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(t for t in tokens if t < 256).decode("utf-8", errors="replace")

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        return np.array([1] * 256 + [0], dtype=np.int64)

    def dumps(self) -> str:
        return "bytes"


class BytePairs(Tokenizer):
    """Byte-level byte-pair encoding, a `tokenizers.Tokenizer` inside.

    Args:
        inner: the tokenizer.
        end: text of its end token.

    Raises:
        ConfigError: it is not byte-level, or has no such end token.
    """

    def __init__(self, inner: Any, end: str = END) -> None:
        from tokenizers import decoders

        if not isinstance(inner.decoder, decoders.ByteLevel) or inner.normalizer is not None:
            raise ConfigError(
                "the tokenizer must be byte-level and without normaliser: else bits per byte are not those of the text"
            )
        number = inner.token_to_id(end)
        if number is None:
            raise ConfigError(f"the tokenizer has no end token {end!r}: name it with data.tokenizer.end")
        # An end token that a text spells out is text: only the tokens between documents are end tokens.
        inner.add_special_tokens([end])
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        self.inner, self.end = inner, number
        self.vocab_size = inner.get_vocab_size(with_added_tokens=True)
        self._token_bytes = np.zeros(self.vocab_size, dtype=np.int64)
        added = inner.get_added_tokens_decoder()
        for token, place in inner.get_vocab(with_added_tokens=True).items():
            # In the byte-level alphabet one character is one byte; added tokens are written as they are.
            self._token_bytes[place] = len(token.encode()) if place in added else len(token)
        self._token_bytes[number] = 0

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BytePairs:
        """A tokenizer for these texts.

        Raises:
            ConfigError: `vocab_size` is below 257 or the texts are too few for it.
        """
        from tokenizers import Tokenizer as Inner
        from tokenizers import decoders, models, pre_tokenizers, trainers

        if vocab_size < 257:
            raise ConfigError(f"data.tokenizer.vocab_size must be at least 257 (256 bytes, one end), got {vocab_size}")
        inner = Inner(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        trained = cls(inner)
        if trained.vocab_size < vocab_size:
            raise ConfigError(
                f"data.tokenizer.vocab_size={vocab_size} is more than the training text fills: "
                f"it gave {trained.vocab_size} tokens"
            )
        return trained

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        found = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        tokens = [np.array(e.ids, dtype=np.uint32) for e in found]
        for text, mine in zip(texts, tokens, strict=True):
            have, want = int(self.token_bytes[mine].sum()), len(text.encode())
            if have != want:
                raise ConfigError(
                    f"the tokenizer makes {have} bytes of a text of {want}, so that bits per byte are not the text's: "
                    f"it must know every byte and neither drop nor add any, a space in front included ({text[:40]!r})"
                )
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        return str(self.inner.decode([int(t) for t in tokens if t != self.end], skip_special_tokens=False))

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        return self._token_bytes

    def dumps(self) -> str:
        return str(self.inner.to_str())


def check_choice(kind: str, vocab_size: int, file: str | None) -> None:
    """Refuse a choice of tokenizer that cannot be.

    Raises:
        ConfigError: naming the option.
    """
    if kind not in KINDS:
        raise ConfigError(f"data.tokenizer.kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "bytes" and vocab_size != Bytes.vocab_size:
        raise ConfigError(f"data.tokenizer.vocab_size must be {Bytes.vocab_size} for bytes, got {vocab_size}")
    if (kind == "file") != (file is not None):
        raise ConfigError(f"data.tokenizer.file goes with kind=file and with nothing else, got {kind=} and {file=}")


def load(file: Path, end: str = END) -> Tokenizer:
    """The tokenizer that `dumps` wrote, or any byte-level `tokenizer.json`.

    Raises:
        DataError: the file is missing or is no tokenizer.
        ConfigError: see `BytePairs`.
    """
    from tokenizers import Tokenizer as Inner

    try:
        text = file.read_text(encoding="utf-8")
        if text == "bytes":
            return Bytes()
        inner = Inner.from_str(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a tokenizer: {error}") from None
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{file} is no tokenizer of the tokenizers library: {error}") from None
    return BytePairs(inner, end)
