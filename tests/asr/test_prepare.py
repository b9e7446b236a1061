import hashlib
import io
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console

from experiments.asr import human, prepare
from experiments.asr.librispeech import combined_fingerprint, read_split
from experiments.asr.prepare import OPTIONS, SPLITS, Settings, plan, render_all, shards
from experiments.asr.synthesis import CLEAN_VOICES, Line, Voice
from experiments.core.errors import ConfigError, DataError
from tests.conftest import ROOT

SMALL = Settings(**dict.fromkeys(OPTIONS.values(), 4) | {"train_utterances": 28})


class Made:
    """A small data set that was really synthesised, and what was printed."""

    def __init__(self, out: Path) -> None:
        self.out, self.said = out, io.StringIO()
        self.lines = plan(SMALL)
        self.document = self.run(SMALL)

    def run(self, settings: Settings, **options: Any) -> dict[str, Any]:
        console = Console(file=self.said, width=80)
        return prepare.prepare(self.out, settings, **({"with_human": False, "console": console} | options))

    def last_words(self) -> str:
        return self.said.getvalue().strip().splitlines()[-1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("data") / "speech")


@pytest.fixture
def phrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbered phrases, where the words do not matter."""
    monkeypatch.setattr(prepare, "choose_phrases", lambda **_: [f"phrase {i}" for i in range(20_000)])


@pytest.fixture
def silent_renderer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is synthesised; the paths of the lines that would have been."""
    asked: list[str] = []

    def record(root: Path, lines: dict[str, list[Line]], *rest: object) -> list[object]:
        asked.extend(line.path for wanted in lines.values() for line in wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "render_all", record)
    return asked


@pytest.mark.usefixtures("phrases")
def test_no_phrase_is_in_two_splits_and_no_id_occurs_twice() -> None:
    lines = [line for wanted in plan(Settings(train_utterances=3000)).values() for line in wanted]
    assert len({line.text for line in lines}) == len({line.id for line in lines}) == len(lines) == 3000 + 5300


@pytest.mark.usefixtures("phrases")
def test_splits_have_their_sizes_voices_and_noise() -> None:
    settings = Settings(train_utterances=3000, dev_utterances=290, test_other_utterances=200)
    lines = plan(settings)
    assert {split: len(wanted) for split, wanted in lines.items()} == settings.sizes
    assert settings.sizes == {
        "train-clean": 3000, "dev-clean": 290, "dev-other": 300, "test-clean": 3000, "test-other": 200,
    }  # fmt: skip
    heard = {line.voice for line in lines["train-clean"]}
    assert heard == set(CLEAN_VOICES)
    for split in ("dev-clean", "test-clean"):
        assert {line.voice for line in lines[split]} == heard
        assert not any(line.noisy for line in lines[split])
    for split in ("dev-other", "test-other"):
        assert not {line.voice for line in lines[split]} & heard
        assert all(line.noisy for line in lines[split])


@pytest.mark.usefixtures("phrases")
def test_more_training_data_leaves_the_evaluation_splits_as_they_are() -> None:
    few, many = plan(Settings(train_utterances=100)), plan(Settings(train_utterances=2000))
    for split in SPLITS[1:]:
        assert few[split] == many[split]


@pytest.mark.usefixtures("phrases")
def test_shards_hold_every_line_once_and_never_two_splits() -> None:
    lines = plan(Settings(train_utterances=1000))
    groups = shards(lines)
    assert [line for group in groups for line in group] == [line for wanted in lines.values() for line in wanted]
    assert all(len({line.path.split("/")[0] for line in group}) == 1 for group in groups)


def test_training_utterances_are_those_of_the_first_version() -> None:
    """Line by line, what version 1 trained on: its fingerprint, 4accd17f, was found again in a whole data set."""
    lines = plan(Settings())["train-clean"]
    assert len(lines) == 6000
    told = json.dumps([asdict(line) for line in lines]).encode()
    assert hashlib.sha256(told).hexdigest().startswith("a4324e514628a45e")
    assert [len(group) for group in shards({"train-clean": lines})] == [500] * 12


@pytest.mark.usefixtures("phrases")
def test_more_than_there_are_phrases_is_refused() -> None:
    with pytest.raises(ConfigError, match="20500 phrases are needed, and 1000 words give 20000: raise vocab"):
        plan(Settings(train_utterances=20_500 - 5300))
    plan(Settings(train_utterances=20_000 - 5300))


@pytest.mark.parametrize("option", [*OPTIONS.values(), "vocabulary_size"])
def test_a_setting_out_of_range_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be at least .*, got 0"):
        Settings(**{option: 0})


def test_the_data_set_is_librispeechs_layout_and_describes_itself(made: Made) -> None:
    splits = [read_split(made.out, split) for split in SPLITS]
    assert [len(split.utterances) for split in splits] == [28, 4, 4, 4, 4]
    assert all(split.problems == {} for split in splits)
    for split in splits:
        for u in split.utterances:
            speaker, chapter, _ = u.id.split("-")
            assert u.path == f"{speaker}/{chapter}/{u.id}.flac"
            assert u.text == u.text.upper()
            assert 3 <= len(u.text.split()) <= 7
            assert u.sample_rate == 16_000
            assert u.seconds >= 0.05 * len(u.text)
    document = json.loads((made.out / "dataset.json").read_text())
    assert document == made.document
    assert document["fingerprint"] == combined_fingerprint(splits)
    assert document["splits"]["train-clean"]["utterances"] == 28
    assert "eSpeak NG" in (made.out / "LICENSE.TXT").read_text()
    assert len((made.out / "SPEAKERS.TXT").read_text().splitlines()) == 1 + 28 + 4 * 4


def test_a_fresh_process_makes_the_same_samples(made: Made, tmp_path: Path) -> None:
    lines = made.lines
    # Voices of both engines, clean and noisy; one process now, where there were two.
    again = {split: lines[split] for split in ("train-clean", "dev-other")}
    advanced: list[int] = []
    sums = {m.id: m.md5 for m in render_all(tmp_path, again, SMALL.seed, 1, advanced.append)}
    assert {line.voice.engine for wanted in again.values() for line in wanted} == {"espeak", "pico"}
    assert sums == {u.id: u.md5 for split in again for u in read_split(made.out, split).utterances}
    assert sum(advanced) == len(sums) == 32


def test_a_complete_data_set_is_left_alone(made: Made, silent_renderer: list[str]) -> None:
    assert made.run(SMALL) == made.document
    assert "is complete, nothing to synthesise" in made.last_words()
    assert silent_renderer == []


def test_other_settings_need_force(made: Made, silent_renderer: list[str]) -> None:
    with pytest.raises(DataError, match=r"was made with other settings.*--force"):
        made.run(replace(SMALL, train_utterances=29))
    assert silent_renderer == []


@pytest.mark.usefixtures("phrases")
def test_data_of_an_older_version_are_made_again_and_it_is_said(made: Made, silent_renderer: list[str]) -> None:
    old = made.document | {"settings": {"train_utterances": 28, "eval_utterances": 4, "version": 1}}
    prepare.write_description(made.out, old)
    try:
        with pytest.raises(KeyboardInterrupt):
            made.run(SMALL)
        said = made.said.getvalue()
    finally:
        prepare.write_description(made.out, made.document)
    assert silent_renderer
    assert f"{made.out} holds version 1 of the speech data; version 2 is made in its place" in said
    assert made.run(SMALL) == made.document  # the old one stays until the new one is whole


def test_a_damaged_data_set_is_noticed(made: Made, silent_renderer: list[str]) -> None:
    file = next(made.out.glob("train-clean/*/*/*.flac"))
    content = file.read_bytes()
    file.write_bytes(content[:500])
    try:
        with pytest.raises(DataError, match=r"no longer holds what its dataset\.json says; add --force"):
            made.run(SMALL)
    finally:
        file.write_bytes(content)
    made.run(SMALL)
    assert silent_renderer == []


@pytest.mark.usefixtures("phrases")
def test_a_folder_with_something_else_in_it_is_never_touched(tmp_path: Path, silent_renderer: list[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(DataError, match="holds something that is no finished speech data set"):
            prepare.prepare(tmp_path, SMALL, force=force)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert silent_renderer == []


@pytest.mark.usefixtures("phrases")
def test_an_interrupted_run_leaves_nothing_and_the_next_one_starts_over(
    tmp_path: Path, silent_renderer: list[str]
) -> None:
    left = tmp_path / "speech.partial"
    left.mkdir()  # as after a kill
    (left / "old.flac").write_text("")
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(tmp_path / "speech", SMALL, with_human=False, console=Console(file=io.StringIO()))
    assert len(silent_renderer) == 28 + 4 * 4
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []


@pytest.mark.usefixtures("phrases")
def test_force_keeps_the_old_data_set_until_the_new_one_is_whole(made: Made, silent_renderer: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        made.run(SMALL, force=True)
    assert silent_renderer
    assert made.run(SMALL) == made.document


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    bad = Line("1-1-0000", "train-clean/1/1/1-1-0000.flac", Voice("espeak", "no-such-voice", 50, 150), "a b c", False)
    with pytest.raises(DataError, match="eSpeak NG has no voice no-such-voice"):
        render_all(tmp_path, {"train-clean": [bad]}, 0, 1, lambda count: None)


# ---- test-human ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Agent logged in.", "AGENT LOGGED IN"),
        ("Press 1 for yes, or 10 for no...", "PRESS ONE FOR YES OR TEN FOR NO"),
        ("You\u2019re non-administrator", "YOU'RE NON ADMINISTRATOR"),
        ("'quoted' word", "QUOTED WORD"),
        ("[descending tones]", None),
        ("(1 second of silence)", None),
        ("3D audio", None),
        ("press 1850", None),
        ("the # key", None),
        ("...", None),
    ],
)
def test_a_prompts_description_becomes_a_transcript_or_nothing(said: str, expected: str | None) -> None:
    assert human.transcript(said) == expected


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """What the two Debian packages unpack to, in small."""
    root = tmp_path / "unpacked"
    documents, sounds = (
        root / "usr/share/doc/asterisk-core-sounds-en",
        root / "usr/share/asterisk/sounds/en_US_f_Allison",
    )
    documents.mkdir(parents=True)
    (sounds / "digits").mkdir(parents=True)
    (documents / "core-sounds-en.txt").write_text(
        "; Core Sounds\n\nhello: Hello there.\ndigits/1: one\nbeep: [a beep]\nlost: No such file.\n"
        "brief: Too brief.\npress: Press 2 now.\n"
    )
    (documents / "copyright").write_text("CC-BY-SA-3.0")
    for name, seconds in (("hello", 1.0), ("digits/1", 1.0), ("beep", 1.0), ("brief", 0.2), ("press", 2.0)):
        wave = 0.3 * np.sin(2 * np.pi * 500 * np.arange(round(8000 * seconds)) / 8000)
        soundfile.write(sounds / f"{name}.wav", wave, 8000, subtype="PCM_16")
    return root


def test_human_prompts_become_a_split_with_attribution(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "speech"
    out.mkdir()
    assert human.write_split(out, packages) == 2
    split = read_split(out, "test-human")
    assert [(u.text, u.seconds, u.sample_rate) for u in split.utterances] == [
        ("HELLO THERE", 1.0, 16_000),
        ("PRESS TWO NOW", 2.0, 16_000),
    ]
    assert split.problems == {}
    attribution = (split.folder / "ATTRIBUTION.TXT").read_text()
    assert "Allison Smith" in attribution
    assert "ShareAlike 3.0" in attribution
    assert (split.folder / "COPYRIGHT.TXT").read_text() == "CC-BY-SA-3.0"


def test_packages_that_changed_are_said_to_have(packages: Path, tmp_path: Path) -> None:
    next(packages.glob("usr/share/doc/*/core-sounds-en.txt")).unlink()
    with pytest.raises(human.UnavailableError, match="do not hold what they held before"):
        human.write_split(tmp_path, packages)


def test_where_the_packages_cannot_be_had_one_sentence_says_so(
    made: Made, silent_renderer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    assert made.run(SMALL, with_human=True) == made.document
    assert made.last_words() == "test-human is left out: its Debian packages need apt-get, which is not on this machine"
    assert not (made.out / "test-human").exists()
    assert not list(made.out.glob(".human-*"))


def test_a_failing_download_is_tried_with_lists_of_its_own_and_then_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def fail(words: list[str], folder: Path, timeout: float) -> str:
        commands.append(words)
        return "E: no network"

    monkeypatch.setattr(human, "_run", fail)
    monkeypatch.setattr("shutil.which", lambda tool: tool)
    with pytest.raises(human.UnavailableError, match=r"cannot be fetched \(E: no network\)"):
        human.fetch(tmp_path)
    assert [next(w for w in words if w in ("download", "update")) for words in commands] == [
        "download",
        "update",
        "download",
    ]
    assert any(word.startswith(f"Dir::State::Lists={tmp_path}") for word in commands[1])


def test_test_human_is_added_without_touching_the_other_splits(
    made: Made, silent_renderer: list[str], packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = human.write_split
    monkeypatch.setattr(human, "write_split", lambda root: write(root, packages))
    document = made.run(SMALL, with_human=True)
    assert document["fingerprint"] == made.document["fingerprint"]
    assert document["splits"]["test-human"]["licence"] == "CC-BY-SA-3.0"
    assert document["splits"]["test-human"]["utterances"] == 2
    monkeypatch.setattr(human, "write_split", None)  # calling it again would fail
    assert made.run(SMALL, with_human=True) == document
    assert made.last_words() == "test-human is there already"
    assert silent_renderer == []


def test_the_script_explains_itself_and_fails_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "-m", "scripts.prepare_speech"]
    told = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--train-utterances" in told
    failed = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.strip().splitlines()) == 1
