"""Rotten speech trees: each oddity is counted under a name, or refused naming the file; nothing ends in a traceback."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from experiments.asr.data import SpeechDataModule
from experiments.asr.librispeech import Split, read_audio, read_split
from experiments.core.errors import ConfigError, DataError
from tests.asr.conftest import write_split, write_utterance

# A case changes a split "train" of utterances 0 to 2 in folder 7/70 (GOOD); what is left, and what is counted.
Spoil = Callable[[Path], object]
GOOD = ["7-70-0000", "7-70-0001", "7-70-0002"]
TEXTS = ["THE PEOPLE", "OF THE UNITED STATES", "IT'S A GOOD YEAR"]


def chapter(root: Path, name: str = "7/70") -> Path:
    return root / "train" / name


def flac(root: Path, number: int = 3) -> Path:
    return chapter(root) / f"7-70-{number:04d}.flac"


def transcripts(root: Path) -> Path:
    return chapter(root) / "7-70.trans.txt"


def more(text: str | None = "ONE MORE", spoil: Callable[[Path], object] | None = None, **options: float) -> Spoil:
    """A fourth utterance, whose file `spoil` changes."""

    def write(root: Path) -> None:
        file = write_utterance(root, "train", 3, text, **options)
        if spoil is not None:
            spoil(file)

    return write


def said(text: str | bytes) -> Spoil:
    """A fourth utterance, of which the transcript file says just this."""

    def write(root: Path) -> None:
        write_utterance(root, "train", 3, None)
        with transcripts(root).open("ab") as file:
            file.write(text if isinstance(text, bytes) else text.encode())

    return write


def texts_as(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda root: transcripts(root).write_bytes(change(transcripts(root).read_bytes()))


def bytes_of(change: Callable[[bytearray], object]) -> Callable[[Path], object]:
    def spoil(file: Path) -> None:
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    return spoil


def promise(samples: int) -> Callable[[Path], object]:
    """STREAMINFO keeps the number of samples in 36 bits of the eight bytes from 18 on."""

    def change(content: bytearray) -> None:
        kept = int.from_bytes(content[18:26], "big") >> 36 << 36
        content[18:26] = (kept | samples).to_bytes(8, "big")

    return bytes_of(change)


def as_format(rate: int = 16_000, channels: int = 1, subtype: str = "PCM_16", form: str = "FLAC") -> Spoil:
    def write(file: Path) -> None:
        rng = np.random.default_rng(1)
        soundfile.write(file, 0.1 * rng.standard_normal((rate, channels)), rate, subtype=subtype, format=form)

    return write


def second_folder(text: str, seconds: float = 1.0) -> Spoil:
    """Folder 7/71 with a file of the same name as one of 7/70."""

    def write(root: Path) -> None:
        other = root / "other"
        file = write_utterance(other, "train", 0, text, seconds=seconds)
        shutil.copytree(file.parent, chapter(root, "7/71"))
        shutil.rmtree(other)

    return write


def link(name: str, to: str) -> Spoil:
    return lambda root: (root / "train" / name).symlink_to(to)


def linked_speaker(root: Path) -> None:
    write_split(root / "elsewhere", "x", 2, speaker=8)
    (root / "train" / "8").symlink_to(root / "elsewhere" / "x" / "8")


def replace(file: Path, by: Callable[[Path], object]) -> None:
    file.unlink()
    by(file)


def cut(share: float) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


FOUR = [*GOOD, "7-70-0003"]
ADDED = "7-70-0003"

CASES: dict[str, tuple[Spoil, list[str], dict[str, int]]] = {
    "nothing-wrong": (lambda root: None, GOOD, {}),
    # ---- audio
    "audio-empty": (more(spoil=lambda f: f.write_bytes(b"")), GOOD, {"unreadable-audio": 1}),
    "audio-words": (more(spoil=lambda f: f.write_bytes(b"words")), GOOD, {"unreadable-audio": 1}),
    "audio-zeros": (more(spoil=lambda f: f.write_bytes(bytes(5000))), GOOD, {"unreadable-audio": 1}),
    "audio-header-alone": (more(spoil=lambda f: f.write_bytes(f.read_bytes()[:42])), GOOD, {"unreadable-audio": 1}),
    "audio-magic-alone": (more(spoil=lambda f: f.write_bytes(b"fLaC")), GOOD, {"unreadable-audio": 1}),
    "audio-cut-early": (more(spoil=cut(0.05)), GOOD, {"unreadable-audio": 1}),
    "audio-cut-in-half": (more(spoil=cut(0.5)), GOOD, {"unreadable-audio": 1}),
    "audio-last-byte-missing": (more(spoil=cut(0.9999)), GOOD, {"unreadable-audio": 1}),
    "audio-byte-flipped": (
        more(spoil=bytes_of(lambda c: c.__setitem__(len(c) // 2, c[len(c) // 2] ^ 255))), GOOD, {"unreadable-audio": 1},
    ),
    "audio-checksum-wrong": (
        more(spoil=bytes_of(lambda c: c.__setitem__(26, c[26] ^ 255))), GOOD, {"unreadable-audio": 1},
    ),
    "audio-without-checksum": (more(spoil=bytes_of(lambda c: c.__setitem__(slice(26, 42), bytes(16)))), FOUR, {}),
    "audio-promises-2^36-samples": (more(spoil=promise(2**36 - 1)), GOOD, {"unreadable-audio": 1}),
    "audio-promises-one-more": (more(spoil=promise(25_601)), GOOD, {"unreadable-audio": 1}),
    "audio-promises-fewer": (more(spoil=promise(100)), GOOD, {"unreadable-audio": 1}),
    "audio-promises-nothing": (more(spoil=promise(0)), GOOD, {"unreadable-audio": 1}),
    "audio-no-samples": (
        more(spoil=lambda f: soundfile.write(f, np.zeros(0), 16_000, subtype="PCM_16")), GOOD, {"unreadable-audio": 1},
    ),
    "audio-one-sample": (
        more(spoil=lambda f: soundfile.write(f, np.zeros(1), 16_000, subtype="PCM_16")), FOUR, {},
    ),
    "audio-silent": (
        more(spoil=lambda f: soundfile.write(f, np.zeros(16_000), 16_000, subtype="PCM_16")), FOUR, {},
    ),
    "audio-trailing-bytes": (more(spoil=lambda f: f.write_bytes(f.read_bytes() + b"x" * 100)), FOUR, {}),
    "audio-is-wav": (more(spoil=as_format(form="WAV")), FOUR, {}),
    "audio-8-khz": (more(rate=8_000), FOUR, {"resampled": 1}),
    "audio-48-khz": (more(spoil=as_format(rate=48_000)), FOUR, {"resampled": 1}),
    "audio-stereo": (more(spoil=as_format(channels=2)), FOUR, {}),
    "audio-eight-channels": (more(spoil=as_format(channels=8)), FOUR, {}),
    "audio-24-bit": (more(spoil=as_format(subtype="PCM_24")), FOUR, {}),
    "audio-8-bit": (more(spoil=as_format(subtype="PCM_S8")), FOUR, {}),
    "audio-broken-link": (
        more(spoil=lambda f: replace(f, lambda p: p.symlink_to("gone.flac"))), GOOD,
        {"unreadable-audio": 1, "missing-audio": 1},
    ),
    "audio-link-to-itself": (
        more(spoil=lambda f: replace(f, lambda p: p.symlink_to(p.name))), GOOD,
        {"unreadable-audio": 1, "missing-audio": 1},
    ),
    "audio-a-pipe": (
        more(spoil=lambda f: replace(f, os.mkfifo)), GOOD, {"unreadable-audio": 1, "missing-audio": 1},
    ),
    "audio-a-folder": (more(spoil=lambda f: replace(f, Path.mkdir)), GOOD, {"missing-audio": 1}),
    "audio-missing": (more(spoil=Path.unlink), GOOD, {"missing-audio": 1}),
    "audio-in-capitals": (more(spoil=lambda f: f.rename(f.with_suffix(".FLAC"))), GOOD, {"missing-audio": 1}),
    "audio-linked": (
        more(spoil=lambda f: (f.rename(f.parents[3] / "a"), f.symlink_to(f.parents[3] / "a"))), FOUR, {},
    ),
    "audio-of-a-mac": (
        lambda root: (chapter(root) / "._7-70-0000.flac").write_bytes(b"\x00\x05\x16\x07"), GOOD, {"hidden-file": 1},
    ),
    "transcripts-of-a-mac": (
        lambda root: (chapter(root) / "._7-70.trans.txt").write_bytes(b"\x00\x05\x16\x07"), GOOD, {"hidden-file": 1},
    ),
    "a-hidden-folder": (
        lambda root: shutil.copytree(chapter(root), root / "train" / ".copy"), GOOD, {"hidden-file": 1},
    ),
    "other-files": (lambda root: (chapter(root) / "Thumbs.db").write_bytes(b"x"), GOOD, {}),
    # ---- transcripts
    "text-missing": (more(None), GOOD, {"missing-transcript": 1}),
    "text-empty": (more(""), GOOD, {"empty-transcript": 1}),
    "text-blank": (said("7-70-0003 \t \n"), GOOD, {"empty-transcript": 1}),
    "text-digits": (more("IN 1850"), GOOD, {"outside-alphabet": 1}),
    "text-foreign": (more("NAÏVE ÉTÉ"), GOOD, {"outside-alphabet": 1}),
    "text-lower-case": (more("one more"), FOUR, {}),
    "text-curly-quotes": (more("IT\u2019S"), FOUR, {}),
    "text-full-width": (more("\uff2f\uff2e\uff25"), FOUR, {}),
    "text-tab-behind-the-id": (said("7-70-0003\tONE MORE\n"), FOUR, {}),
    "text-spaces-before-the-id": (said("  7-70-0003  ONE   MORE \n"), FOUR, {}),
    "text-windows-line-ends": (texts_as(lambda raw: raw.replace(b"\n", b"\r\n")), GOOD, {}),
    "text-no-last-line-end": (said("7-70-0003 ONE MORE"), FOUR, {}),
    "text-blank-lines": (said("\n\n7-70-0003 ONE MORE\n\n"), FOUR, {}),
    "text-byte-order-mark": (texts_as(lambda raw: b"\xef\xbb\xbf" + raw), GOOD, {}),
    "text-mark-within": (said("\ufeff7-70-0003 ONE MORE\n"), FOUR, {}),
    "text-utf-16": (
        texts_as(lambda raw: raw.decode().encode("utf-16")), [],
        {"unreadable-transcripts": 1, "missing-transcript": 3},
    ),
    "text-latin-1": (said(b"7-70-0003 CAF\xc9\n"), GOOD, {"outside-alphabet": 1}),
    "text-a-folder": (
        lambda root: replace(transcripts(root), Path.mkdir), [], {"missing-transcript": 3},
    ),
    "text-broken-link": (
        lambda root: replace(transcripts(root), lambda p: p.symlink_to("gone")), [],
        {"unreadable-transcripts": 1, "missing-transcript": 3},
    ),
    "text-a-pipe": (
        lambda root: replace(transcripts(root), os.mkfifo), [], {"unreadable-transcripts": 1, "missing-transcript": 3},
    ),
    "text-file-missing": (lambda root: transcripts(root).unlink(), [], {"missing-transcript": 3}),
    "text-file-empty": (texts_as(lambda raw: b""), [], {"missing-transcript": 3}),
    "text-nul-bytes": (said(b"7-70-0003 ONE\x00MORE\n"), GOOD, {"outside-alphabet": 1}),
    "text-old-mac-line-ends": (
        texts_as(lambda raw: raw.replace(b"\n", b"\r")), [], {"outside-alphabet": 1, "missing-transcript": 2},
    ),
    "id-twice-alike": (texts_as(lambda raw: raw + raw[: raw.index(b"\n") + 1]), GOOD, {"doubled-line": 1}),
    "id-twice-unlike": (said("7-70-0003 ONE\n7-70-0003 MORE\n"), GOOD, {"two-transcripts": 1}),
    "id-thrice": (said("7-70-0003 ONE\n7-70-0003 MORE\n7-70-0003 ONE\n"), GOOD, {"two-transcripts": 1}),
    "id-in-two-files-alike": (
        lambda root: shutil.copy(transcripts(root), chapter(root) / "copy.trans.txt"), GOOD, {"doubled-line": 3},
    ),
    "id-of-no-audio": (said("7-70-0003 ONE MORE\n7-70-0099 NOBODY\n"), FOUR, {"missing-audio": 1}),
    "same-names-in-two-folders": (second_folder("GREAT NATIONS"), ["7-70-0000", *GOOD], {"doubled-id": 1}),
    "transcript-in-another-folder": (
        lambda root: (more(None)(root), second_folder("x")(root), flac(root).rename(chapter(root, "7/71") / "a.flac")),
        ["7-70-0000", *GOOD], {"doubled-id": 1, "missing-transcript": 1},
    ),
    # ---- folders
    "speaker-linked": (linked_speaker, [*GOOD, "8-80-0000", "8-80-0001"], {}),
    "folders-in-a-circle": (link("7/70/loop", ".."), GOOD, {"linked-again": 1}),
    "two-circles": (lambda root: (link("a", ".")(root), link("b", ".")(root)), GOOD, {"linked-again": 2}),
    "a-folder-linked-twice": (link("again", "7/70"), GOOD, {"linked-again": 1}),
    "a-folder-linked-to-nothing": (link("9", "gone"), GOOD, {}),
    "an-empty-folder": (lambda root: chapter(root, "9/90").mkdir(parents=True), GOOD, {}),
    "audio-in-the-split-itself": (
        lambda root: (
            shutil.move(flac(root, 2), root / "train"),
            (root / "train" / "x.trans.txt").write_text("7-70-0002 IT'S A GOOD YEAR\n"),
        ),
        GOOD, {"missing-audio": 1},
    ),
}  # fmt: skip


def spoilt(root: Path, spoil: Spoil) -> Split:
    write_split(root, "train", 3)
    spoil(root)
    return read_split(root, "train")


@pytest.mark.parametrize("case", CASES)
def test_rotten_speech_is_counted_by_name_and_reason(case: str, tmp_path: Path) -> None:
    spoil, left, problems = CASES[case]
    split = spoilt(tmp_path, spoil)
    assert [u.id for u in split.utterances] == left
    assert {kind: len(entries) for kind, entries in split.problems.items()} == problems
    assert read_split(tmp_path, "train") == split  # also from the cache
    for u in split.utterances:
        assert len(read_audio(split.folder / u.path)) == u.samples_16k


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ONE\u2028MORE", "ONE MORE"),
        ("ONE\u2029MORE", "ONE MORE"),
        ("ONE\x85MORE", "ONE MORE"),
        ("ONE\x0bMORE", "ONE MORE"),
        ("ONE\x0cMORE", "ONE MORE"),
        ("ONE\x1cMORE", "ONE MORE"),
        ("ONE\rMORE", "ONE MORE"),
    ],
)
def test_what_looks_like_a_line_end_cuts_no_transcript(tmp_path: Path, text: str, expected: str) -> None:
    split = spoilt(tmp_path, said(f"7-70-0003 {text}\n"))
    assert [u.text for u in split.utterances] == [*TEXTS, expected]
    assert split.problems == {}


def test_each_of_two_files_of_one_name_has_its_own_folders_transcript(tmp_path: Path) -> None:
    split = spoilt(tmp_path, second_folder("GREAT NATIONS", seconds=1.4))
    assert {(u.path, u.text) for u in split.utterances if u.id == "7-70-0000"} == {
        ("7/70/7-70-0000.flac", "THE PEOPLE"),
        ("7/71/7-70-0000.flac", "GREAT NATIONS"),
    }


def test_a_mark_at_the_beginning_loses_no_utterance(tmp_path: Path) -> None:
    split = spoilt(tmp_path, texts_as(lambda raw: b"\xef\xbb\xbf" + raw))
    assert [u.text for u in split.utterances] == TEXTS


def test_what_leaves_nothing_out_is_no_bad_share(tmp_path: Path) -> None:
    split = spoilt(tmp_path, lambda root: [(chapter(root) / f"._{i}.flac").write_bytes(b"x") for i in range(9)])
    assert split.problems.keys() == {"hidden-file"}
    assert split.bad == []


# ---- the data module -----------------------------------------------------------------------------------------------


def module(root: Path, **options: object) -> SpeechDataModule:
    data = SpeechDataModule(str(root), batch_seconds=6.0, max_seconds=5.0, n_mels=20, max_utterances=4, **options)
    data.configure(train_batches=2, data_seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.prepare_data()
        data.setup("fit")
    next(iter(data.train_dataloader()))
    return data


def only(root: Path, pattern: str) -> Path:
    (found,) = (root / ".cache").glob(pattern)
    return found


REFUSED: dict[str, tuple[Spoil, str]] = {
    "split-empty": (lambda root: shutil.rmtree(root / "dev-clean" / "8"), r"dev-clean, and no audio file"),
    "split-without-transcripts": (
        lambda root: next(root.glob("train-clean/*/*/*.txt")).unlink(),
        r"train-clean holds no usable utterance of train-clean: .*7-70-0000\.flac",
    ),
    "split-missing": (lambda root: shutil.rmtree(root / "test-clean"), r"has no split 'test-clean'"),
    "split-a-file": (
        lambda root: (shutil.rmtree(root / "test-clean"), (root / "test-clean").write_text("")),
        r"has no split 'test-clean'",
    ),
    "feature-cache-empty": (
        lambda root: (module(root), only(root, "features-train*").write_bytes(b"")),
        r"features-train-clean-.*\.npy cannot be read: .*; delete it, and it is made again",
    ),
    "feature-cache-cut-off": (
        lambda root: (module(root), cut(0.5)(only(root, "features-train*"))),
        r"features-train-clean-.*\.npy cannot be read",
    ),
    "feature-cache-words": (
        lambda root: (module(root), only(root, "features-train*").write_bytes(b"words")),
        r"features-train-clean-.*\.npy cannot be read",
    ),
    "feature-cache-of-another-shape": (
        lambda root: (module(root), np.save(only(root, "features-train*"), np.zeros((3, 20), np.float16))),
        r"features-train-clean-.*\.npy does not hold the features that its name says; delete it",
    ),
    "feature-cache-a-folder": (
        lambda root: (module(root), replace(only(root, "features-train*"), Path.mkdir)),
        r"features-train-clean-.*\.npy cannot be written",
    ),
    "cache-a-file": (lambda root: (root / ".cache").write_text(""), r"\.cache cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_rotten_speech_data_are_refused_by_name(case: str, speech_root: Path) -> None:
    spoil, message = REFUSED[case]
    spoil(speech_root)
    with pytest.raises(DataError, match=message) as error:
        module(speech_root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mean": [0], "std": [1]}', '{"mean": null, "std": null}'])
def test_damaged_statistics_are_made_again(speech_root: Path, content: str) -> None:
    before = module(speech_root).train_set.normalisation
    only(speech_root, "normalisation*").write_text(content)
    assert module(speech_root).train_set.normalisation == before


@pytest.mark.parametrize("content", [b"", b"words"])
def test_a_damaged_model_of_sentence_pieces_is_named(speech_root: Path, content: bytes) -> None:
    options = {"tokenizer": "sentencepiece", "vocab_size": 30}
    module(speech_root, **options)
    only(speech_root, "sentencepiece*").write_bytes(content)
    with pytest.raises((DataError, ConfigError), match=r"sentencepiece-30-.*\.model cannot be read"):
        module(speech_root, **options)
