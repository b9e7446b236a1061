import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from experiments.asr import librispeech
from experiments.asr.librispeech import combined_fingerprint, download, read_audio, read_split
from experiments.core.errors import DataError
from tests.asr.conftest import SENTENCES, write_split, write_utterance


def test_a_split_is_read_with_durations_and_transcripts(speech_root: Path) -> None:
    split = read_split(speech_root, "train-clean")
    assert [u.id for u in split.utterances] == [f"7-70-{i:04d}" for i in range(20)]
    assert split.utterances[2].text == SENTENCES[2]
    assert split.utterances[2].seconds == pytest.approx(1.3)
    assert split.utterances[2].path == "7/70/7-70-0002.flac"
    assert split.problems == {}


def test_the_manifest_is_built_once_and_again_when_a_file_changes(
    speech_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_split(speech_root, "dev-clean")
    inspect = librispeech._inspect
    calls: list[Path] = []
    monkeypatch.setattr(librispeech, "_inspect", lambda path: calls.append(path) or inspect(path))
    assert read_split(speech_root, "dev-clean") == first
    assert calls == []
    write_utterance(speech_root, "dev-clean", 9, "ONE MORE", speaker=8)
    again = read_split(speech_root, "dev-clean")
    assert len(calls) == 5
    assert len(again.utterances) == 5
    assert again.fingerprint != first.fingerprint


def test_a_damaged_cache_is_built_again(speech_root: Path) -> None:
    first = read_split(speech_root, "dev-clean")
    (cache,) = (speech_root / ".cache").iterdir()
    for content in ("", "{", "[]", json.dumps({"version": 0})):
        cache.write_text(content)
        assert read_split(speech_root, "dev-clean") == first


def test_the_fingerprint_is_of_samples_and_texts_alone(speech_root: Path, tmp_path: Path) -> None:
    split = read_split(speech_root, "dev-clean")
    copy = tmp_path / "copy"
    shutil.copytree(speech_root, copy, ignore=shutil.ignore_patterns(".cache"))
    file = copy / "dev-clean" / split.utterances[0].path
    samples, rate = soundfile.read(file, dtype="int16")
    soundfile.write(file, samples, rate, subtype="PCM_16", compression_level=0.0)  # another encoder setting
    assert file.stat().st_size != (split.folder / split.utterances[0].path).stat().st_size
    os.utime(file, (0, 0))
    same = read_split(copy, "dev-clean")
    assert same.fingerprint == split.fingerprint
    others = [read_split(copy, name) for name in ("test-clean", "test-other")]
    assert combined_fingerprint([same, *others]) == combined_fingerprint([*others, same])

    samples[0] += 1
    soundfile.write(file, samples, rate, subtype="PCM_16")
    assert read_split(copy, "dev-clean").fingerprint != split.fingerprint


def test_everything_bad_is_sorted_out_and_named(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 3)
    truncated = write_utterance(tmp_path, "train", 3, "CUT OFF")
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    flipped = write_utterance(tmp_path, "train", 4, "ONE BYTE IS WRONG")
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 0xFF
    flipped.write_bytes(content)
    write_utterance(tmp_path, "train", 5, "NO FLAC AT ALL").write_bytes(b"")
    silent = write_utterance(tmp_path, "train", 6, None)
    empty = write_utterance(tmp_path, "train", 7, "")
    digits = write_utterance(tmp_path, "train", 8, "IN 1850")
    lost = write_utterance(tmp_path, "train", 9, "NO AUDIO")
    lost.unlink()
    slow = write_utterance(tmp_path, "train", 10, "ANOTHER RATE", rate=8000)

    split = read_split(tmp_path, "train")
    assert [u.id for u in split.utterances] == ["7-70-0000", "7-70-0001", "7-70-0002", "7-70-0010"]
    named = {kind: [entry.split(": ")[0] for entry in entries] for kind, entries in split.problems.items()}
    assert named == {
        "unreadable-audio": [str(truncated), str(flipped), str(truncated.with_stem("7-70-0005"))],
        "missing-transcript": [str(silent)],
        "empty-transcript": [str(empty)],
        "outside-alphabet": [str(digits)],
        "missing-audio": ["7-70-0009"],
        "resampled": [str(slow)],
    }
    assert split.problems["outside-alphabet"][0].endswith("'0158'")
    assert read_split(tmp_path, "train").problems == split.problems  # also from the cache


def test_samples_that_differ_from_the_header_are_unreadable(tmp_path: Path) -> None:
    file = write_utterance(tmp_path, "train", 0, "WRONG SUM")
    content = bytearray(file.read_bytes())
    content[26] ^= 0xFF  # in STREAMINFO's checksum of the samples
    file.write_bytes(content)
    assert "checksum" in read_split(tmp_path, "train").problems["unreadable-audio"][0]


def test_a_missing_root_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"make data-asr.*--out .*/nowhere") as error:
        read_split(tmp_path / "nowhere", "train-clean")
    assert "\n" not in str(error.value)


def test_a_missing_split_names_those_there_are(speech_root: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'train-clean-100'; there is: dev-clean, dev-other, test-clean"):
        read_split(speech_root, "train-clean-100")


@pytest.fixture
def small_librispeech(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A dev-clean of 4 utterances by 2 speakers, which torchaudio "unpacks"; where it was asked to."""
    asked: list[Path] = []

    def unpack(root: Path, url: str, download: bool) -> None:
        asked.append(root)
        for speaker in (8, 9):
            write_split(root / "LibriSpeech", url, 2, speaker)

    monkeypatch.setattr("torchaudio.datasets.LIBRISPEECH", unpack)
    monkeypatch.setitem(librispeech._WHOLE, "dev-clean", (2, 4))
    return asked


def test_librispeech_is_found_where_torchaudio_unpacks_it(tmp_path: Path, small_librispeech: list[Path]) -> None:
    download(tmp_path, "dev-clean")
    assert len(read_split(tmp_path, "dev-clean").utterances) == 4
    assert len(small_librispeech) == 1
    download(tmp_path, "dev-clean")  # is there: nothing is fetched
    assert len(small_librispeech) == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [".cache", "LibriSpeech"]


def test_an_interrupted_unpacking_is_not_taken_for_a_split(
    tmp_path: Path, small_librispeech: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(root: Path, url: str, download: bool) -> None:
        write_split(root / "LibriSpeech", url, 1, 8)
        (root / f"{url}.tar.gz").write_bytes(b"archive")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("torchaudio.datasets.LIBRISPEECH", broken_off)
        with pytest.raises(KeyboardInterrupt):
            download(tmp_path, "dev-clean")
    assert librispeech.split_folder(tmp_path, "dev-clean") is None
    assert (tmp_path / ".dev-clean.download" / "dev-clean.tar.gz").read_bytes() == b"archive"  # not fetched again
    download(tmp_path, "dev-clean")
    assert len(read_split(tmp_path, "dev-clean").utterances) == 4


@pytest.mark.parametrize("folder", ["LibriSpeech", "."])
def test_a_copy_that_lacks_speakers_is_refused_where_a_download_was_asked_for(
    tmp_path: Path, small_librispeech: list[Path], folder: str
) -> None:
    write_split(tmp_path / folder, "dev-clean", 3, 8)
    with pytest.raises(DataError, match=r"dev-clean holds 1 of 2 speakers and 3 of 4 utterances, .*: delete it"):
        download(tmp_path, "dev-clean")
    assert small_librispeech == []


def test_an_archive_that_lacks_utterances_is_not_put_in_place(
    tmp_path: Path, small_librispeech: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(librispeech._WHOLE, "dev-clean", (2, 5))
    with pytest.raises(DataError, match="holds 2 of 2 speakers and 4 of 5 utterances"):
        download(tmp_path, "dev-clean")
    assert librispeech.split_folder(tmp_path, "dev-clean") is None


def test_only_librispeechs_own_splits_can_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="my-split"):
        download(tmp_path, "my-split")


def test_audio_is_mono_at_16_khz(tmp_path: Path) -> None:
    time = np.arange(8000) / 8000
    wave = np.stack([np.sin(2 * np.pi * 300 * time), np.zeros(8000)], axis=1)  # (T, 2)
    soundfile.write(tmp_path / "a.flac", 0.5 * wave, 8000, subtype="PCM_16")
    samples = read_audio(tmp_path / "a.flac")
    expected = 0.25 * np.sin(2 * np.pi * 300 * np.arange(16_000) / 16_000)
    assert samples.shape == (16_000,)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples[500:-500], expected[500:-500], atol=2e-3)


def test_audio_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.flac").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad\.flac"):
        read_audio(tmp_path / "bad.flac")
