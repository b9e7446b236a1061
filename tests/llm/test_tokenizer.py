"""Tokenizers: text and back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.core.errors import ConfigError, DataError
from experiments.llm import tokenizer
from tests.llm.conftest import documents

TEXTS = ["naïve — “quoted” 日本\n\ttabs", "plain words, plain words", "a", " lead and trail  ", "\r\n\x00"]


@pytest.fixture(params=["bytes", "bpe"])
def made(request: pytest.FixtureRequest) -> tokenizer.Tokenizer:
    return tokenizer.Bytes() if request.param == "bytes" else tokenizer.BytePairs.train(documents(60), 300)


def test_tokens_give_the_text_back_and_count_its_bytes(made: tokenizer.Tokenizer) -> None:
    for text, tokens in zip(TEXTS, made.encode(TEXTS), strict=True):
        assert made.decode([made.end, *tokens.tolist(), made.end]) == text
        assert made.token_bytes[tokens].sum() == len(text.encode())
        assert tokens.max() < made.vocab_size
    assert made.token_bytes.shape == (made.vocab_size,)
    assert made.token_bytes[made.end] == 0


WRITTEN_OUT = ["<|end|>", "<|e<|end|>nd|>", "a <|end|> b", "<|end|><|end|>", "<|e" * 50 + "<|end|>" + "nd|>" * 50]


@pytest.mark.parametrize("text", WRITTEN_OUT)
def test_an_end_token_that_a_text_spells_out_is_text(made: tokenizer.Tokenizer, text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(made.dumps(), encoding="utf-8")
    for one in (made, tokenizer.load(tmp_path / "tokenizer.json")):
        (tokens,) = one.encode([text])
        assert one.end not in tokens
        assert one.decode(tokens) == text
        assert one.token_bytes[tokens].sum() == len(text.encode())


def test_an_end_token_that_a_foreign_tokenizer_does_not_call_special_is_text_too(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer

    inner = Tokenizer.from_str(tokenizer.BytePairs.train(documents(60), 300).dumps())
    inner.add_tokens([AddedToken("<eod>", special=False)])
    (tmp_path / "foreign.json").write_text(inner.to_str(), encoding="utf-8")
    one = tokenizer.load(tmp_path / "foreign.json", end="<eod>")
    assert (one.vocab_size, one.end) == (301, 300)
    (tokens,) = one.encode(["of <e<eod>od> the"])
    assert 300 not in tokens
    assert one.decode(tokens) == "of <e<eod>od> the"


def test_tokenizer_is_read_back_as_it_was(made: tokenizer.Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(made.dumps(), encoding="utf-8")
    again = tokenizer.load(tmp_path / "tokenizer.json")
    assert type(again) is type(made)
    assert again.digest == made.digest
    assert (again.vocab_size, again.end) == (made.vocab_size, made.end)
    assert all(np.array_equal(a, b) for a, b in zip(again.encode(TEXTS), made.encode(TEXTS), strict=True))


def test_training_is_deterministic_and_merges() -> None:
    first, second = (tokenizer.BytePairs.train(documents(60), 300) for _ in range(2))
    assert first.digest == second.digest
    assert first.vocab_size == 300
    assert first.digest != tokenizer.BytePairs.train(documents(60, seed=1, words=9), 300).digest
    assert len(first.encode(["the people of Congress"])[0]) < len("the people of Congress")


def test_tokenizers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size must be at least 257 .* got 100"):
        tokenizer.BytePairs.train(["a"], 100)
    with pytest.raises(ConfigError, match="vocab_size=5000 is more than the training text fills"):
        tokenizer.BytePairs.train(documents(5), 5000)
    with pytest.raises(ConfigError, match="kind must be one of bpe, bytes, file, got 'words'"):
        tokenizer.check_choice("words", 300, None)
    with pytest.raises(ConfigError, match="must be 257 for bytes, got 256"):
        tokenizer.check_choice("bytes", 256, None)
    with pytest.raises(ConfigError, match="file goes with kind=file"):
        tokenizer.check_choice("bpe", 300, "x.json")
    with pytest.raises(DataError, match=r"none\.json cannot be read as a tokenizer"):
        tokenizer.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json is no tokenizer"):
        tokenizer.load(tmp_path / "bad.json")

    from tokenizers import Tokenizer, models

    (tmp_path / "words.json").write_text(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    with pytest.raises(ConfigError, match="must be byte-level"):
        tokenizer.load(tmp_path / "words.json")
    (tmp_path / "ours.json").write_text(tokenizer.BytePairs.train(documents(60), 300).dumps())
    with pytest.raises(ConfigError, match="no end token '<eos>'"):
        tokenizer.load(tmp_path / "ours.json", end="<eos>")


def test_a_tokenizer_that_loses_or_adds_text_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    text = "Zebras: naïve 1790\n"
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for splitting, alphabet, made in (
        (byte_level, False, r"\d+"),
        (pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), byte_level]), True, "17"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), True, "21"),
    ):
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer, inner.decoder = splitting, decoders.ByteLevel()
        known = sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet else []
        inner.train_from_iterator(
            ["a nation"], trainers.BpeTrainer(special_tokens=[tokenizer.END], initial_alphabet=known)
        )
        with pytest.raises(ConfigError, match=rf"the tokenizer makes {made} bytes of a text of 20, .*'Zebras"):
            tokenizer.BytePairs(inner).encode([text])
