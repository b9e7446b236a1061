"""A tiny tree in LibriSpeech's layout: tones instead of speech."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

SENTENCES = ("THE PEOPLE", "OF THE UNITED STATES", "IT'S A GOOD YEAR", "WE WILL SEE", "GREAT NATIONS", "LET US BE")

WriteUtterance = Callable[..., Path]


def write_utterance(
    root: Path, split: str, number: int, text: str | None, seconds: float = 1.6, rate: int = 16_000, speaker: int = 7
) -> Path:
    """One tone of its own pitch, and its line of transcript unless `text` is None. Returns the FLAC file."""
    chapter = root / split / str(speaker) / f"{speaker}0"
    chapter.mkdir(parents=True, exist_ok=True)
    key = f"{speaker}-{speaker}0-{number:04d}"
    rng = np.random.default_rng([speaker, number])
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 37 * number) * time) + 0.01 * rng.standard_normal(len(time))
    soundfile.write(chapter / f"{key}.flac", wave, rate, subtype="PCM_16")
    if text is not None:
        with (chapter / f"{speaker}-{speaker}0.trans.txt").open("a", encoding="utf-8") as file:
            file.write(f"{key} {text}\n")
    return chapter / f"{key}.flac"


def write_split(root: Path, split: str, count: int, speaker: int = 7) -> None:
    for number in range(count):
        text = SENTENCES[number % len(SENTENCES)]
        write_utterance(root, split, number, text, seconds=1.0 + 0.15 * (number % 7), speaker=speaker)


@pytest.fixture
def speech_root(tmp_path: Path) -> Path:
    """Five splits under the names of the embedded data set: 20 training utterances of 1 to 1.9 s, 4 in each other."""
    root = tmp_path / "speech"
    write_split(root, "train-clean", 20)
    for speaker, split in enumerate(("dev-clean", "dev-other", "test-clean", "test-other"), start=8):
        write_split(root, split, 4, speaker)
    return root
