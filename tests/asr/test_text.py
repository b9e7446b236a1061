from pathlib import Path

import pytest

from experiments.asr.text import (
    ALPHABET,
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    ctc_frames,
    normalise,
    outside_alphabet,
)
from experiments.core.errors import ConfigError, DataError

TEXTS = ["THE PEOPLE OF THE UNITED STATES", "IT'S A GREAT NATION", "WE THE PEOPLE", "THE STATE OF THE UNION"] * 5


def test_normalise_gives_capitals_one_apostrophe_and_single_spaces() -> None:
    assert normalise("  it\u2019s\ta  g\u014dod\u00a0day ") == "IT'S A GŌOD DAY"
    assert outside_alphabet(normalise("gōod 4 all")) == "4Ō"
    assert outside_alphabet(ALPHABET) == ""


@pytest.mark.parametrize(
    ("labels", "frames"), [([], 0), ([5], 1), ([5, 6], 2), ([5, 5], 3), ([5, 5, 5, 6], 6), ([5, 6, 5], 3)]
)
def test_ctc_needs_a_blank_between_equal_neighbours(labels: list[int], frames: int) -> None:
    assert ctc_frames(labels) == frames


def test_characters_are_29_labels_behind_the_blank_and_come_back() -> None:
    tokenizer = CharTokenizer()
    assert tokenizer.vocab_size == 29
    assert tokenizer.encode(ALPHABET) == list(range(1, 29))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([0, 3, 0, 0, 4]) == "AB"
    with pytest.raises(ValueError, match="'4é'"):
        tokenizer.encode("é4")


def test_sentence_pieces_come_back_and_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Tokenizer = SentencePieceTokenizer.train(TEXTS, 25, tmp_path)
    assert tokenizer.vocab_size == 25
    labels = [tokenizer.encode(text) for text in TEXTS]
    assert all(0 < label < 25 for line in labels for label in line)
    assert [tokenizer.decode(line) for line in labels] == TEXTS
    assert tokenizer.decode([tokenizer.blank, *labels[0]]) == TEXTS[0]
    assert max(map(len, labels)) < max(map(len, TEXTS))

    def never(**options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("sentencepiece.SentencePieceTrainer.train", never)
    assert SentencePieceTokenizer.train(TEXTS, 25, tmp_path).encode(TEXTS[0]) == labels[0]
    assert len(list(tmp_path.iterdir())) == 1


def test_sentence_pieces_of_other_texts_are_another_model(tmp_path: Path) -> None:
    SentencePieceTokenizer.train(TEXTS, 25, tmp_path)
    SentencePieceTokenizer.train(TEXTS[:-1], 25, tmp_path)
    assert len(list(tmp_path.glob("*.model"))) == 2


def test_too_many_pieces_for_the_texts_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size=5000 does not suit 20 transcripts"):
        SentencePieceTokenizer.train(TEXTS, 5000, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.model").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"bad\.model"):
        SentencePieceTokenizer(tmp_path / "bad.model")
