"""What is published, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.core.plan import Planner, plan_all
from experiments.core.records import Records
from experiments.study.__main__ import main
from experiments.study.publish import publish
from tests.made_up import content, main_part, put, write


def test_planned_records_are_copied_once_and_others_named(tmp_path: Path) -> None:
    p, runs, to = main_part("asr"), tmp_path / "runs", tmp_path / "published"
    stages = plan_all([Planner(p, Records([runs]), lambda *_: False)])
    first, second, third, fourth = stages[0].runs[:4]
    for run in (first, second, third, fourth):
        write(runs, run, 0.5)
    for run, changes in (
        (first, {"commit": "abc"}),
        (second, {"commit": "abc", "dirty": True}),
        (fourth, {"commit": "abc"}),
    ):
        content = json.loads((runs / run.record).read_text()) | changes
        if run is fourth:
            content["config"]["optimizer"]["lr"] = 123.0
        (runs / run.record).write_text(json.dumps(content))
    (runs / "asr" / "stray.json").write_text("{}")

    done = publish(stages, [p], runs, to)
    assert (done.copied, done.kept) == (1, 0)
    assert sorted(to.rglob("*.json")) == [to / first.record]
    reasons = {line.split(": ")[0]: line for line in done.refused}
    assert "no commit" in reasons[str(runs / second.record)]
    assert "no commit" in reasons[str(runs / third.record)]
    assert "other settings" in reasons[str(runs / fourth.record)]

    assert publish(stages, [p], runs, to).kept == 1
    changed = (runs / first.record).read_text().replace("0.5", "0.4")
    (runs / first.record).write_text(changed)
    assert "published already" in " ".join(publish(stages, [p], runs, to).refused)
    assert (to / first.record).read_text() != changed


def test_plain_comparisons_of_other_scales_are_copied_with_the_first_seeds_pictures(tmp_path: Path) -> None:
    runs, to = tmp_path / "runs", tmp_path / "published"
    for seed in (1, 2):
        picture = f"main-s{seed}.png"
        record = content("vqvae", "fadam", seed, {"test/psnr": 20.0}, scale="gpu", commit="abc", artifacts=[picture])
        (put(runs, record).parent / picture).write_bytes(b"png")
    put(runs, content("asr", "fadam", 1, {"test-clean/wer": 0.1}, scale="cpu", commit="abc"))  # declared, not planned
    put(runs, content("llm", "fadam", 1, {"val/loss": 1.0}, scale="smoke", commit="abc"))
    put(runs, content("llm", "fadam", 1, {"val/loss": 1.0}, scale="gpu", trial="try", commit="abc"))
    done = publish([], [main_part("asr")], runs, to)
    assert (done.copied, done.refused) == (2, ())
    assert sorted(path.name for path in to.rglob("*.*")) == ["main-s1.json", "main-s1.png", "main-s2.json"]


def test_naming_one_study_leaves_the_others_runs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are declared, so that they are checked against their plan or not published at all."""
    runs, to = tmp_path / "runs", tmp_path / "published"
    put(runs, content("asr", "lion", 201, {"test-clean/wer": 0.1}, scale="cpu", commit="abc"))
    put(runs, content("asr", "lion", 1, {"test-clean/wer": 0.1}, scale="gpu", commit="abc"))
    assert main(["publish", "llm", "--runs", str(runs), "--published", str(to)]) == 0
    assert capsys.readouterr().out == "1 records published, 0 were there, 0 refused\n"
    assert [path.parent.parent.name for path in to.rglob("*.json")] == ["gpu"]


def test_pictures_are_of_the_first_seed_of_their_place_and_come_later_too(tmp_path: Path) -> None:
    """Another variant's lower seed takes none away, and a copy that was broken off is made whole."""
    runs, to = tmp_path / "runs", tmp_path / "published"
    for variant, seed in (("", 201), ("", 202), ("vit", 1)):
        stem = f"{variant}-main-s{seed}".lstrip("-")
        record = content("vqvae", "fadam", seed, {"test/psnr": 20.0}, scale="gpu", commit="abc", variant=variant)
        (put(runs, record | {"artifacts": [f"{stem}.png"]}).parent / f"{stem}.png").write_bytes(b"png")
    assert publish([], [], runs, to).copied == 3
    pictures = ["main-s201.png", "vit-main-s1.png"]
    assert sorted(path.name for path in to.rglob("*.png")) == pictures
    next(to.rglob("main-s201.png")).unlink()
    assert publish([], [], runs, to).kept == 3
    assert sorted(path.name for path in to.rglob("*.png")) == pictures
