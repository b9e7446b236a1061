"""The figure of originals and reconstructions, made from runs' own pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from experiments.analysis import pictures
from experiments.vqvae.pictures import codebook_plot, reconstruction_picture
from tests.analysis.conftest import record

ORIGINALS = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SHADES = {"adamw_clip": 60, "fadam": 200}


def write(root: Path, arm: str, seed: int = 1, variant: str = "gaussian", **changes: Any) -> Path:
    stem = f"{variant}-main-s{seed}"
    folder = root / "vqvae/cpu" / arm
    folder.mkdir(parents=True, exist_ok=True)
    reconstructions = torch.full_like(ORIGINALS, SHADES.get(arm, 120))
    reconstruction_picture(str(folder / f"{stem}.png"), changes.pop("originals", ORIGINALS), reconstructions)
    content = record(arm, seed, 0.1, task="vqvae", variant=variant, artifacts=[f"{stem}.png"], **changes)
    (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder / f"{stem}.png"


def test_rows_are_originals_and_each_optimizers_reconstructions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant in ("gaussian", "discretized_logistic"):
        for arm in SHADES:
            for seed in (2, 3):
                write(tmp_path, arm, seed, variant)
    write(tmp_path, "adamw_clip", 1)  # a seed that only one arm has
    assert pictures.main(["vqvae", "--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "wrote" in capsys.readouterr().out
    image = np.asarray(Image.open(tmp_path / "out/vqvae_reconstructions.png"))
    size = pictures.TILE
    step, left = size + pictures.GAP, pictures.LABEL_WIDTH
    block = pictures.TITLE_HEIGHT + 3 * step + pictures.MARGIN
    assert image.shape[0] == 2 * block
    for top in (pictures.TITLE_HEIGHT, block + pictures.TITLE_HEIGHT):
        for c, original in enumerate(ORIGINALS.permute(0, 2, 3, 1).numpy()):
            columns = slice(left + c * step, left + c * step + size)
            assert np.array_equal(image[top : top + size, columns][4::8, 4::8], original)
            assert (image[top + step : top + step + size, columns] == SHADES["adamw_clip"]).all()
            assert (image[top + 2 * step : top + 2 * step + size, columns] == SHADES["fadam"]).all()


def test_pictures_of_different_originals_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "adamw_clip")
    write(tmp_path, "fadam", originals=ORIGINALS.flip(0))
    assert pictures.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "show different originals" in capsys.readouterr().err


def test_nothing_to_show_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "adamw_clip", 1)
    write(tmp_path, "fadam", 2)
    assert pictures.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "no runs to show pictures of" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_other_tasks_have_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert pictures.main(["asr"]) == 2
    assert "no pictures for task 'asr'; choose from vqvae" in capsys.readouterr().err


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
def test_bad_pictures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil, words: str) -> None:
    write(tmp_path, "adamw_clip")
    path = write(tmp_path, "fadam")
    spoil(path)
    assert pictures.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert re.search(words, said)


def resave(path: Path, size: tuple[int, int] | None = None, **text: str) -> None:
    with Image.open(path) as image:
        fields = dict(image.text) | text  # type: ignore[attr-defined]
        changed = image.resize(size) if size else image.copy()
    info = PngImagePlugin.PngInfo()
    for key, value in fields.items():
        info.add_text(key, value)
    changed.save(path, pnginfo=info)


def test_codebook_plot_is_the_same_file_for_the_same_counts(tmp_path: Path) -> None:
    counts = np.array([5, 0, 9, 1])
    for name in ("a.png", "b.png"):
        codebook_plot(str(tmp_path / name), counts, 2.5)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").size == (500, 300)
