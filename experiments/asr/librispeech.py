"""LibriSpeech's folder layout: `<split>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac` and, in each chapter,
`<speaker>-<chapter>.trans.txt` with one `<id> <TRANSCRIPT>` a line. A recording's transcript is looked for in its own
folder; links are followed.

A split's manifest is built once, with every file decoded, and cached; it is built again when a file's size or time of
change differs. Its fingerprint covers audio samples and transcripts, not paths, times or encoder versions, so that the
same data have the same fingerprint everywhere.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from filelock import FileLock

from experiments.asr.text import normalise, outside_alphabet
from experiments.core.errors import DataError
from experiments.core.files import write_whole

SAMPLE_RATE = 16_000
_VERSION = 2  # of the cached manifest
_BLOCK = 1 << 20  # samples read at once

# What can be wrong with an utterance, which is then left out of the split.
UNREADABLE = "unreadable-audio"
NO_TRANSCRIPT = "missing-transcript"
TWO_TRANSCRIPTS = "two-transcripts"
UNREADABLE_TRANSCRIPTS = "unreadable-transcripts"
NO_AUDIO = "missing-audio"
EMPTY = "empty-transcript"
OUTSIDE = "outside-alphabet"
# What is odd and leaves nothing out.
OTHER_RATE = "resampled"
DOUBLED_ID = "doubled-id"
DOUBLED_LINE = "doubled-line"
HIDDEN = "hidden-file"
LINKED_AGAIN = "linked-again"
_TORN = "\n"  # in the place of a transcript, which is none of two
ODD = frozenset([OTHER_RATE, DOUBLED_ID, DOUBLED_LINE, HIDDEN, LINKED_AGAIN])


@dataclass(frozen=True)
class Utterance:
    """One recording. `path` is relative to the split's folder; `md5` is of the samples; `text` is normalised."""

    id: str
    path: str
    text: str
    samples: int
    sample_rate: int
    md5: str

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    @property
    def samples_16k(self) -> int:
        """Number of samples after resampling to 16 kHz."""
        return -(-self.samples * SAMPLE_RATE // self.sample_rate)


@dataclass
class Split:
    """One split's good utterances, sorted by id, and what was wrong with the others.

    `problems`: kind -> files, each with a reason. Kinds of `ODD` leave nothing out.
    """

    name: str
    folder: Path
    utterances: list[Utterance]
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """ "sha256:<hex>" of ids, samples and transcripts."""
        lines = (f"{u.id}\t{u.samples}\t{u.sample_rate}\t{u.md5}\t{u.text}" for u in self.utterances)
        return checksum(lines)

    @property
    def bad(self) -> list[str]:
        """The problems for which something was left out."""
        return [entry for kind, entries in self.problems.items() if kind not in ODD for entry in entries]

    @property
    def hours(self) -> float:
        return sum(u.seconds for u in self.utterances) / 3600


def checksum(lines: Iterable[str]) -> str:
    """ "sha256:<hex>" of lines of text."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def combined_fingerprint(splits: Iterable[Split]) -> str:
    """One fingerprint for several splits, whatever their order."""
    return checksum(sorted(f"{split.name}\t{split.fingerprint}" for split in splits))


def split_folder(root: Path, split: str) -> Path | None:
    """Where a split lies, if anywhere: under `root`, or under `root/LibriSpeech`, where torchaudio unpacks it."""
    return next((f for f in (root / split, root / "LibriSpeech" / split) if f.is_dir()), None)


def read_split(root: str | Path, split: str, cache_dir: str | Path | None = None) -> Split:
    """The manifest of one split, from the cache if nothing changed.

    Args:
        root: folder that holds the split.
        split: the split's name, such as "train-clean-100".
        cache_dir: where manifests are kept; `root/.cache` by default.

    Raises:
        DataError: the root or the split is missing, or the cache cannot be written.
    """
    root = Path(root)
    if not root.is_dir() and _LIBRISPEECH_TRAINING(split):
        raise DataError(
            f"no LibriSpeech at {root}: data.download=true fetches it, `make data-asr SCALE=gpu` does so ahead of a "
            "run, or name your copy's folder with data.root"
        )
    if not root.is_dir():
        raise DataError(
            f"no speech data at {root}: make it with `make data-asr` or "
            f"`python -m scripts.prepare_speech --out {root}`, or name LibriSpeech's folder with data.root"
        )
    folder = split_folder(root, split)
    if folder is None:
        present = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        hint = ""
        if _LIBRISPEECH_TRAINING(split):  # its other splits are named as in synthesised speech
            hint = "; data.download=true fetches it, or name your copy's folder with data.root"
        raise DataError(f"{root} has no split {split!r}; there is: {', '.join(present) or 'nothing'}{hint}")

    found = _scan(folder)
    stamp = found.stamp
    cache = Path(cache_dir or root / ".cache") / f"manifest-{split}-{stamp[:16]}.json"
    cached = _load(cache, stamp)
    if cached is not None:
        return Split(split, folder, *cached)
    result = _build(split, folder, found)
    document = {
        "version": _VERSION,
        "stamp": stamp,
        "problems": result.problems,
        "utterances": [asdict(u) for u in result.utterances],
    }
    try:
        write_whole(cache, json.dumps(document))
    except OSError as error:
        raise DataError(
            f"{cache.parent} cannot be written ({error}): name another folder with data.cache_dir"
        ) from error
    return result


@dataclass
class _Found:
    """Audio and transcript files of a folder, sorted; what is odd about others; a checksum of names, sizes, times."""

    audio: list[Path] = field(default_factory=list)
    transcripts: list[Path] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    stamp: str = ""

    def problem(self, kind: str, path: Path | str, why: str = "") -> None:
        self.problems.setdefault(kind, []).append(f"{path}: {why}" if why else str(path))


def _scan(folder: Path) -> _Found:
    found = _Found()
    seen: dict[tuple[int, int], Path] = {}  # folders by device and number: links may lead in circles
    states: list[tuple[str, int, int]] = []

    def visit(parent: Path) -> None:
        status = os.stat(parent)
        if (first := seen.setdefault((status.st_dev, status.st_ino), parent)) != parent:
            found.problem(LINKED_AGAIN, parent, f"the same folder as {first}")
            return
        try:
            with os.scandir(parent) as listing:
                entries = sorted(listing, key=lambda entry: (entry.is_symlink(), entry.name))  # real ones first
        except OSError as error:
            found.problem(UNREADABLE, parent, f"the folder cannot be read: {error.strerror}")
            return
        for entry in entries:
            path = parent / entry.name
            ours = entry.name.endswith((".flac", ".trans.txt"))
            directory = os.path.isdir(path)
            if entry.name.startswith("."):
                if ours or directory:
                    found.problem(HIDDEN, path, "its name begins with a dot")
                continue
            if directory:
                visit(path)
                continue
            if not ours:
                continue
            kind = UNREADABLE if entry.name.endswith(".flac") else UNREADABLE_TRANSCRIPTS
            try:
                status = os.stat(path)
            except OSError as error:
                found.problem(kind, path, "a broken link" if entry.is_symlink() else str(error.strerror))
                continue
            if not stat.S_ISREG(status.st_mode):
                found.problem(kind, path, "no regular file")
                continue
            states.append((os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
            (found.audio if kind == UNREADABLE else found.transcripts).append(path)

    visit(folder)
    found.audio.sort()
    found.transcripts.sort()
    told = json.dumps([sorted(states), found.problems], sort_keys=True)
    found.stamp = hashlib.sha256(told.encode()).hexdigest()
    return found


def _transcripts(found: _Found) -> dict[tuple[Path, str], str]:
    """(folder, id) -> normalised transcript. An id with two different ones has none, and is told of."""
    texts: dict[tuple[Path, str], str] = {}
    torn: set[tuple[Path, str]] = set()
    for file in found.transcripts:
        try:
            raw = file.read_bytes()
        except OSError as error:
            found.problem(UNREADABLE_TRANSCRIPTS, file, str(error.strerror))
            continue
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            found.problem(UNREADABLE_TRANSCRIPTS, file, "UTF-16, not UTF-8")
            continue
        # At \n alone: `splitlines` also cuts at U+2028 and its like, which may stand inside a transcript.
        for line in raw.decode("utf-8", errors="replace").split("\n"):
            key, *rest = line.lstrip("\ufeff").split(maxsplit=1) or [""]
            if not key:
                continue
            place, text = (file.parent, key), normalise("".join(rest))
            if texts.get(place, text) != text:
                torn.add(place)
            elif place in texts:
                found.problem(DOUBLED_LINE, file, key)
            texts[place] = text
    for folder, key in sorted(torn):
        found.problem(TWO_TRANSCRIPTS, folder / f"{key}.flac", "its id has two in this folder, which differ")
        texts[folder, key] = _TORN
    return texts


def _load(cache: Path, stamp: str) -> tuple[list[Utterance], dict[str, list[str]]] | None:
    try:
        document = json.loads(cache.read_text(encoding="utf-8"))
        if document["version"] != _VERSION or document["stamp"] != stamp:
            return None
        return [Utterance(**u) for u in document["utterances"]], document["problems"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or not ours: it is built again


def _build(split: str, folder: Path, found: _Found) -> Split:
    from rich.console import Console
    from rich.progress import track

    texts = _transcripts(found)
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        infos = list(
            track(
                pool.map(_inspect, found.audio),
                total=len(found.audio),
                description=f"reading {split}",
                transient=True,
                disable=not Console().is_terminal,
            )
        )
    utterances: list[Utterance] = []
    places: dict[str, Path] = {}
    for path, info in zip(found.audio, infos, strict=True):
        key, name = path.stem, str(path.relative_to(folder))
        text = texts.pop((path.parent, key), None)
        if text == _TORN:
            continue  # told of already
        if isinstance(info, str):
            found.problem(UNREADABLE, path, info)
        elif text is None:
            found.problem(NO_TRANSCRIPT, path)
        elif not text:
            found.problem(EMPTY, path)
        elif outside_alphabet(text):
            found.problem(OUTSIDE, path, repr(outside_alphabet(text)))
        else:
            samples, rate, md5 = info
            if rate != SAMPLE_RATE:
                found.problem(OTHER_RATE, path, f"{rate} Hz")
            if (first := places.setdefault(key, path)) != path:
                found.problem(DOUBLED_ID, path, f"{first} has the same")
            utterances.append(Utterance(key, name, text, samples, rate, md5))
    told = {file.name for file in found.audio}
    for parent, key in sorted(place for place, text in texts.items() if text != _TORN):
        elsewhere = f"{key}.flac" in told
        found.problem(
            NO_AUDIO, parent / key if elsewhere else key, "" if not elsewhere else "it lies in another folder"
        )
    utterances.sort(key=lambda u: (u.id, u.md5, u.text))  # not by path, which is no part of the fingerprint
    return Split(split, folder, utterances, found.problems)


def _inspect(path: Path) -> tuple[int, int, str] | str:
    """(samples, sample rate, MD5 of the samples), or in words why the file cannot be read to its end."""
    digest, count = hashlib.md5(), 0
    try:
        with soundfile.SoundFile(path) as file:
            rate, promised, subtype = file.samplerate, file.frames, file.subtype
            # In blocks: a header may promise more samples than any memory holds.
            while len(block := file.read(_BLOCK, dtype="int16", always_2d=True)):  # (T, channels)
                digest.update(block.astype("<i2").tobytes())
                count += len(block)
        with path.open("rb") as raw:
            header = raw.read(42)
    except (OSError, soundfile.LibsndfileError) as error:
        return str(error)
    if count == 0 or count != promised:
        return f"holds {count} of {promised} samples"
    md5 = digest.hexdigest()
    kept = header[26:42].hex()  # STREAMINFO, the first block of every FLAC file, ends with the MD5 of the samples
    if header[:4] == b"fLaC" and subtype == "PCM_16" and int(kept, 16) != 0 and kept != md5:
        return "its samples do not match the checksum in its header"
    return count, rate, md5


def read_audio(path: Path) -> npt.NDArray[np.float32]:
    """(samples,) in [-1, 1] at 16 kHz, mono; other rates are resampled, channels averaged.

    Raises:
        DataError: the file cannot be read; the message names it.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (T, channels)
    except (OSError, soundfile.LibsndfileError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    mono: npt.NDArray[np.float32] = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if rate != SAMPLE_RATE:
        import torch
        from torchaudio.functional import resample

        mono = resample(torch.from_numpy(np.ascontiguousarray(mono)), rate, SAMPLE_RATE).numpy()
    return mono


_LIBRISPEECH_TRAINING = re.compile(r"train-(clean-(100|360)|other-500)").fullmatch
# LibriSpeech's own splits: speakers and utterances, of its SPEAKERS.TXT and its transcripts.
_WHOLE = {
    "train-clean-100": (251, 28_539),
    "train-clean-360": (921, 104_014),
    "train-other-500": (1_166, 148_688),
    "dev-clean": (40, 2_703),
    "dev-other": (33, 2_864),
    "test-clean": (40, 2_620),
    "test-other": (33, 2_939),
}


def download(root: str | Path, split: str) -> None:
    """Fetch one of LibriSpeech's own splits through torchaudio, unless it is there and whole.

    It is unpacked beside its place and moved there by one rename: what lies there was unpacked to its end.

    Raises:
        DataError: the name is none of LibriSpeech's, what lies there is not whole, or the download fails.
    """
    from torchaudio.datasets import LIBRISPEECH

    if split not in _WHOLE:
        raise DataError(
            f"LibriSpeech's {split} cannot be downloaded: its splits are {', '.join(_WHOLE)}; "
            "set data.download=false for a tree of your own"
        )
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{split}.lock"):
        folder = split_folder(root, split)
        if folder is not None:
            _check_whole(folder, split)
            return
        scratch = root / f".{split}.download"
        # The archive of an interrupted run is kept, torchaudio sees whether it is whole; what it had unpacked is not.
        shutil.rmtree(scratch / "LibriSpeech", ignore_errors=True)
        scratch.mkdir(exist_ok=True)
        try:
            LIBRISPEECH(scratch, url=split, download=True)
            _check_whole(scratch / "LibriSpeech" / split, split)
            (root / "LibriSpeech").mkdir(exist_ok=True)
            os.rename(scratch / "LibriSpeech" / split, root / "LibriSpeech" / split)
        except DataError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"LibriSpeech's {split} cannot be downloaded to {root}: {error}") from error
        shutil.rmtree(scratch, ignore_errors=True)


def _check_whole(folder: Path, split: str) -> None:
    """Raises DataError where a copy of one of LibriSpeech's splits lacks speakers or utterances."""
    found = _scan(folder).audio
    speakers, utterances = len({path.name.split("-")[0] for path in found}), len(found)
    if speakers < _WHOLE[split][0] or utterances < _WHOLE[split][1]:
        raise DataError(
            f"{folder} holds {speakers} of {_WHOLE[split][0]} speakers and {utterances} of {_WHOLE[split][1]} "
            "utterances, as after an interrupted unpacking: delete it, and data.download=true fetches it again"
        )


def describe(split: Split) -> dict[str, Any]:
    """What a data set's description file says of a split."""
    return {
        "fingerprint": split.fingerprint,
        "utterances": len(split.utterances),
        "hours": round(split.hours, 3),
        "speakers": len({u.id.split("-")[0] for u in split.utterances}),
    }
