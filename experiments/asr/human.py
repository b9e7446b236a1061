"""`test-human`: telephone prompts spoken by a person, from two Debian packages, in LibriSpeech's layout.

One professional speaker at 8 kHz, in a vocabulary of telephony: far from the synthesised training data, and reported
as just that.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import soundfile

from experiments.asr.synthesis import resample, write_flac
from experiments.asr.text import normalise, outside_alphabet

SPLIT = "test-human"
PACKAGES = ("asterisk-core-sounds-en-wav", "asterisk-core-sounds-en")
ATTRIBUTION = "Allison Smith, for Digium: Asterisk core sounds, through Debian"

_SPEAKER, _CHAPTER = 901, 901000
_MIN_WORDS, _MAX_WORDS = 2, 25
_MIN_SECONDS, _MAX_SECONDS = 0.5, 15.0
_UP_TO_TEN = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN"]
_SPELLED = {str(number): word for number, word in enumerate(_UP_TO_TEN)}


class UnavailableError(Exception):
    """The recordings cannot be had here; the message is the reason."""


def transcript(text: str) -> str | None:
    """A prompt's description as a transcript, or None where it does not say word for word what is spoken.

    Descriptions of sounds stand in brackets; small numbers are spelled out; other digits and signs give None.
    """
    if re.search(r"[\[\](){}<>]", text):
        return None
    words = re.sub(r"[.,;:!?\"-]+", " ", normalise(text)).split()
    words = [_SPELLED.get(word, word).strip("'") for word in words]
    result = " ".join(word for word in words if word)
    return result if result and not outside_alphabet(result) else None


def _run(words: list[str], folder: Path, timeout: float) -> str | None:
    """Run a command; None if it went well, else the last line it said."""
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = [line for line in (done.stderr or done.stdout).strip().splitlines() if not line.startswith("W:")]
    return None if done.returncode == 0 else (said or [f"status {done.returncode}"])[-1]


def fetch(folder: Path) -> None:
    """Download and unpack the packages below `folder`, without root. Where apt has no lists, a private copy is made.

    Raises:
        UnavailableError: this is no Debian, or its packages cannot be reached.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"its Debian packages need {tool}, which is not on this machine")
    limits = ["-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1"]
    failure = _run(["apt-get", *limits, "download", *PACKAGES], folder, 180)
    if failure is not None:
        lists, cache = folder / "lists", folder / "cache"
        for path in (lists / "partial", cache / "archives" / "partial"):
            path.mkdir(parents=True)
        private = [*limits, "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        _run(["apt-get", *private, "update"], folder, 180)  # one bad source of many is no failure
        failure = _run(["apt-get", *private, "download", *PACKAGES], folder, 180)
    packages = sorted(folder.glob("*.deb"))
    if failure is not None or len(packages) != len(PACKAGES):
        raise UnavailableError(f"its Debian packages cannot be fetched ({failure})")
    for package in packages:
        failure = _run(["dpkg", "-x", package.name, "unpacked"], folder, 60)
        if failure is not None:
            raise UnavailableError(f"{package.name} cannot be unpacked ({failure})")


def write_split(root: Path, source: Path | None = None) -> int:
    """Write `root/test-human` and return the number of utterances.

    Args:
        root: an existing folder.
        source: where the packages are unpacked already; fetched by default.

    Raises:
        UnavailableError: the packages cannot be had, or hold no usable prompt.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if source is None:
            fetch(Path(scratch))
            source = Path(scratch) / "unpacked"
        return _convert(source, root / SPLIT)


def _convert(source: Path, out: Path) -> int:
    documents = source / "usr/share/doc/asterisk-core-sounds-en"
    sounds = next(iter(sorted((source / "usr/share/asterisk/sounds").glob("en_US_*"))), None)
    listing = next((p for p in sorted(documents.glob("core-sounds-en.txt*")) if p.is_file()), None)
    if sounds is None or listing is None:
        raise UnavailableError("its Debian packages do not hold what they held before")
    raw = listing.read_bytes()
    text = (gzip.decompress(raw) if listing.suffix == ".gz" else raw).decode("utf-8", errors="replace")

    folder = out / str(_SPEAKER) / str(_CHAPTER)
    folder.mkdir(parents=True)
    lines: list[str] = []
    names: list[str] = []
    for entry in sorted(set(text.splitlines())):
        name, _, said = entry.partition(":")
        wav = sounds / f"{name.strip()}.wav"
        words = transcript(said)
        if entry.startswith(";") or words is None or not wav.is_file():
            continue
        samples, rate = soundfile.read(wav, dtype="int16")
        seconds = len(samples) / rate
        if not (_MIN_WORDS <= len(words.split()) <= _MAX_WORDS and _MIN_SECONDS <= seconds <= _MAX_SECONDS):
            continue
        key = f"{_SPEAKER}-{_CHAPTER}-{len(lines):04d}"
        write_flac(folder / f"{key}.flac", resample(samples, rate))
        lines.append(f"{key} {words}\n")
        names.append(f"{key} {name.strip()}\n")
    if not lines:
        raise UnavailableError("its Debian packages hold no prompt that can be used")
    (folder / f"{_SPEAKER}-{_CHAPTER}.trans.txt").write_text("".join(lines), encoding="utf-8")
    (out / "PROMPTS.TXT").write_text("".join(names), encoding="utf-8")
    (out / "ATTRIBUTION.TXT").write_text(
        f"{ATTRIBUTION} (packages {' and '.join(PACKAGES)}; http://downloads.asterisk.org/pub/telephony/asterisk/).\n"
        "Licence: Creative Commons Attribution-ShareAlike 3.0, https://creativecommons.org/licenses/by-sa/3.0/\n"
        "Changed: resampled from 8 to 16 kHz, written as FLAC; transcripts in capitals, without punctuation, numbers\n"
        "spelled out; prompts of one word, of sounds, or with a doubtful transcript are left out.\n",
        encoding="utf-8",
    )
    if (documents / "copyright").is_file():
        shutil.copyfile(documents / "copyright", out / "COPYRIGHT.TXT")
    return len(lines)
