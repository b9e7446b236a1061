"""Pictures, transcripts and continuations of the two optimizers, side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from experiments.analysis import samples
from experiments.core.errors import AnalysisError
from experiments.core.records import Record, Records
from experiments.vqvae.pictures import reconstruction_picture
from tests.made_up import content, put

ORIGINALS = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SHADES = {"adamw_clip": 60, "fadam": 200}


def write(root: Path, arm: str, seed: int = 1, originals: torch.Tensor = ORIGINALS, **changes: Any) -> Path:
    name = f"main-s{seed}.png"
    record = content("vqvae", arm, seed, {"test/psnr": 20.0}, artifacts=[name], **changes)
    path = put(root, record).parent / name
    reconstruction_picture(str(path), originals, torch.full_like(ORIGINALS, SHADES[arm]))
    return path


def both(root: Path, *seeds: int) -> list[Record]:
    for arm in SHADES:
        for seed in seeds:
            write(root, arm, seed)
    return Records([root]).all()


def test_pictures_are_of_the_lowest_seed_that_both_finished(tmp_path: Path) -> None:
    write(tmp_path, "fadam", 1)
    write(tmp_path, "adamw_clip", 2, diverged=True)
    strips = samples.pictures(both(tmp_path, 3, 4))
    assert [s.label for s in strips] == ["Original", "AdamW + clip", "FAdam"]
    assert strips[0].image.size == (4 * 8, 8)
    assert np.array_equal(np.asarray(strips[0].image)[:, :8], ORIGINALS[0].permute(1, 2, 0).numpy())
    assert {int(v) for v in np.unique(np.asarray(strips[2].image))} == {200}
    assert strips[1].uri().startswith("data:image/png;base64,")


def test_a_sheet_holds_them_below_one_another(tmp_path: Path) -> None:
    strips = samples.pictures(both(tmp_path, 1))
    (tmp_path / "sheet.png").write_bytes(samples.sheet(strips))
    image = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert image.shape == (3 * 16 + 2 * 4, 64, 3)
    assert (image[-16:] == 200).all()
    assert samples.sheet(strips) == samples.sheet(strips)


def test_one_arm_alone_has_no_pictures(tmp_path: Path) -> None:
    write(tmp_path, "fadam", 1)
    write(tmp_path, "adamw_clip", 2)
    assert samples.pictures(Records([tmp_path]).all()) == []


def test_different_originals_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "adamw_clip")
    write(tmp_path, "fadam", originals=ORIGINALS.flip(0))
    with pytest.raises(AnalysisError, match="show different originals"):
        samples.pictures(Records([tmp_path]).all())


def resave(path: Path, size: tuple[int, int] | None = None, **text: str) -> None:
    with Image.open(path) as image:
        fields = dict(image.text) | text  # type: ignore[attr-defined]
        changed = image.resize(size) if size else image.copy()
    info = PngImagePlugin.PngInfo()
    for key, value in fields.items():
        info.add_text(key, value)
    changed.save(path, pnginfo=info)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p.unlink(), "cannot be read"),
        (lambda p: p.write_bytes(p.read_bytes()[:60]), "cannot be read"),
        (lambda p: Image.open(p).convert("RGB").save(p), "does not state its layout: 'tile' is missing"),
        (lambda p: resave(p, size=(30, 30)), r"has \(30, 30\) pixels, its layout says \(38, 18\)"),
        (lambda p: resave(p, rows="original,other"), "must have rows original and reconstruction"),
    ],
)
def test_bad_pictures_are_named(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    write(tmp_path, "adamw_clip")
    path = write(tmp_path, "fadam")
    spoil(path)
    with pytest.raises(AnalysisError, match=words) as error:
        samples.pictures(Records([tmp_path]).all())
    assert str(path) in str(error.value)


def test_words_that_are_wrong_or_missing() -> None:
    parts = samples.word_differences("THE OLD CAT SAT", "THE CAT SANG")
    assert parts == (("same", "THE"), ("missing", "OLD"), ("same", "CAT"), ("wrong", "SANG"))


def test_transcripts_of_every_split_and_continuations(tmp_path: Path) -> None:
    for arm in SHADES:
        spoken = [
            {"split": split, "id": f"{split}-{i}", "reference": "A B", "hypothesis": "A <C>"}
            for split in ("test-clean", "test-human")
            for i in range(9)
        ]
        put(tmp_path, content("asr", arm, 1, {}, samples=spoken))
        text = [{"id": "test-0-greedy", "prompt": "Fellow", "hypothesis": " citizens"}]
        put(tmp_path, content("llm", arm, 1, {}, samples=text))
    records = Records([tmp_path]).all()
    found = samples.transcripts([r for r in records if r.task == "asr"])
    assert [s.title for s in found][::4] == ["test-clean, test-clean-0", "test-human, test-human-0"]
    assert "<ins>&lt;C&gt;</ins>" in found[0].html()
    assert found[0].markdown().splitlines()[1] == "  - AdamW + clip: A **<C>**"
    (made,) = samples.continuations([r for r in records if r.task == "llm"])
    assert (made.title, made.given) == ("test 0 greedy", "Fellow")
    assert made.made[1] == ("FAdam", (("same", "citizens"),))
