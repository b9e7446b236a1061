"""LibriSpeech's folder layout: `<split>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac` and, in each chapter,
`<speaker>-<chapter>.trans.txt` with one `<id> <TRANSCRIPT>` a line.

A split's manifest is built once, with every file decoded, and cached; it is built again when a file's size or time of
change differs. Its fingerprint covers audio samples and transcripts, not paths, times or encoder versions, so that the
same data have the same fingerprint everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from experiments.asr.text import normalise, outside_alphabet
from experiments.core.errors import DataError

SAMPLE_RATE = 16_000
_VERSION = 1  # of the cached manifest

# What can be wrong with an utterance. All but the last are left out of the split.
UNREADABLE = "unreadable-audio"
NO_TRANSCRIPT = "missing-transcript"
NO_AUDIO = "missing-audio"
EMPTY = "empty-transcript"
OUTSIDE = "outside-alphabet"
OTHER_RATE = "resampled"


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

    `problems`: kind -> files, each with a reason.
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


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


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
    if not root.is_dir():
        raise DataError(
            f"no speech data at {root}: make it with `make data-asr` or "
            f"`python -m scripts.prepare_speech --out {root}`, or name LibriSpeech's folder with data.root"
        )
    folder = split_folder(root, split)
    if folder is None:
        present = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        hint = ""
        if _LIBRISPEECH_TRAINING(split):  # its other splits are called as those of synthesised speech
            hint = "; data.download=true fetches it, or name your copy's folder with data.root"
        raise DataError(f"{root} has no split {split!r}; there is: {', '.join(present) or 'nothing'}{hint}")

    audio, transcripts, stamp = _scan(folder)
    cache = Path(cache_dir or root / ".cache") / f"manifest-{split}-{stamp[:16]}.json"
    cached = _load(cache, stamp)
    if cached is not None:
        return Split(split, folder, *cached)
    result = _build(split, folder, audio, transcripts)
    document = {
        "version": _VERSION,
        "stamp": stamp,
        "problems": result.problems,
        "utterances": [asdict(u) for u in result.utterances],
    }
    try:
        write_atomic(cache, json.dumps(document).encode())
    except OSError as error:
        raise DataError(
            f"{cache.parent} cannot be written ({error}): name another folder with data.cache_dir"
        ) from error
    return result


def _scan(folder: Path) -> tuple[list[Path], list[Path], str]:
    """Audio files and transcript files, sorted, with a checksum of their names, sizes and times of change."""
    found: list[tuple[str, int, int]] = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in files:
            if name.endswith((".flac", ".trans.txt")):
                status = os.stat(os.path.join(parent, name))
                found.append((os.path.relpath(os.path.join(parent, name), folder), status.st_size, status.st_mtime_ns))
    found.sort()
    stamp = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    paths = [folder / name for name, _, _ in found]
    return [p for p in paths if p.suffix == ".flac"], [p for p in paths if p.suffix == ".txt"], stamp


def _load(cache: Path, stamp: str) -> tuple[list[Utterance], dict[str, list[str]]] | None:
    try:
        document = json.loads(cache.read_text(encoding="utf-8"))
        if document["version"] != _VERSION or document["stamp"] != stamp:
            return None
        return [Utterance(**u) for u in document["utterances"]], document["problems"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or not ours: it is built again


def _build(split: str, folder: Path, audio: Sequence[Path], transcripts: Sequence[Path]) -> Split:
    from rich.console import Console
    from rich.progress import track

    problems: dict[str, list[str]] = {}

    def problem(kind: str, path: Path | str, why: str) -> None:
        problems.setdefault(kind, []).append(f"{path}: {why}" if why else str(path))

    texts: dict[str, str] = {}
    for file in transcripts:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, said = line.strip().partition(" ")
            if key:
                texts[key] = normalise(said)

    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        infos = list(
            track(
                pool.map(_inspect, audio),
                total=len(audio),
                description=f"reading {split}",
                transient=True,
                disable=not Console().is_terminal,
            )
        )
    utterances: list[Utterance] = []
    seen: set[str] = set()
    for path, info in zip(audio, infos, strict=True):
        key, name = path.stem, str(path.relative_to(folder))
        seen.add(key)
        text = texts.get(key)
        if isinstance(info, str):
            problem(UNREADABLE, path, info)
        elif text is None:
            problem(NO_TRANSCRIPT, path, "")
        elif not text:
            problem(EMPTY, path, "")
        elif outside_alphabet(text):
            problem(OUTSIDE, path, repr(outside_alphabet(text)))
        else:
            samples, rate, md5 = info
            if rate != SAMPLE_RATE:
                problem(OTHER_RATE, path, f"{rate} Hz")
            utterances.append(Utterance(key, name, text, samples, rate, md5))
    for key in sorted(texts.keys() - seen):
        problem(NO_AUDIO, key, "")
    utterances.sort(key=lambda u: u.id)
    return Split(split, folder, utterances, problems)


def _inspect(path: Path) -> tuple[int, int, str] | str:
    """(samples, sample rate, MD5 of the samples), or in words why the file cannot be read to its end."""
    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(dtype="int16", always_2d=True)  # (T, channels)
            rate, promised, subtype = file.samplerate, file.frames, file.subtype
        with path.open("rb") as raw:
            header = raw.read(42)
    except (OSError, soundfile.LibsndfileError) as error:
        return str(error)
    if len(samples) == 0 or len(samples) != promised:
        return f"holds {len(samples)} of {promised} samples"
    md5 = hashlib.md5(samples.astype("<i2").tobytes()).hexdigest()
    kept = header[26:42].hex()  # STREAMINFO, the first block of every FLAC file, ends with the MD5 of the samples
    if header[:4] == b"fLaC" and subtype == "PCM_16" and int(kept, 16) != 0 and kept != md5:
        return "its samples do not match the checksum in its header"
    return len(samples), rate, md5


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


def download(root: str | Path, split: str) -> None:
    """Fetch one of LibriSpeech's own splits through torchaudio, unless it is there.

    Raises:
        DataError: the name is none of LibriSpeech's, or the download fails.
    """
    from torchaudio.datasets import LIBRISPEECH

    if split_folder(Path(root), split) is not None:
        return
    Path(root).mkdir(parents=True, exist_ok=True)
    try:
        LIBRISPEECH(root, url=split, download=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"LibriSpeech's {split} cannot be downloaded to {root}: {error}") from error


def describe(split: Split) -> dict[str, Any]:
    """What a data set's description file says of a split."""
    return {
        "fingerprint": split.fingerprint,
        "utterances": len(split.utterances),
        "hours": round(split.hours, 3),
        "speakers": len({u.id.split("-")[0] for u in split.utterances}),
    }
