"""A person's own runs beside the published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.analysis.__main__ import main
from experiments.analysis.compare import Comparison, comparisons, line
from experiments.analysis.comparisons import interval
from experiments.core.catalogue import task
from experiments.core.errors import ConfigError
from tests.made_up import content, put

SEEDS, ARMS = (201, 202, 203), ("adamw_clip", "fadam")


def write(root: Path, arm: str, seed: int, value: float, scale: str = "cpu", **changes: object) -> None:
    put(root, content("llm", arm, seed, {"test/bits_per_byte": value}, scale=scale, **changes))


def fill(root: Path, shift: float = 0.0, seeds: range = range(201, 213)) -> None:
    rng = np.random.default_rng(0)
    for seed in seeds:
        for arm, value in (("adamw_clip", 1.65), ("fadam", 1.64)):
            write(root, arm, seed, value + shift + 0.004 * float(rng.standard_normal()))


def only(tmp_path: Path) -> Comparison:
    (found,) = comparisons("llm", "cpu", (tmp_path / "published", tmp_path / "runs"), SEEDS, ARMS)
    return found


def cells(found: Comparison, name: str) -> list[str]:
    assert found.table is not None
    return [c.text for c in next(r for r in found.table.rows if r[0].text == name)][1:]


def test_prediction_interval() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    _, low, high = interval(values, 2) or (0.0, 0.0, 0.0)
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) * np.sqrt(1 / 4 + 1 / 2)
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half))
    assert interval(values[:1], 2) is None
    assert interval(np.array([1.0, np.inf]), 2) is None


def test_the_same_runs_agree(tmp_path: Path) -> None:
    fill(tmp_path / "published")
    fill(tmp_path / "runs", seeds=range(201, 204))
    found = only(tmp_path)
    assert found.sentence.startswith(
        "Language modelling, scale cpu: reproduced; each of your means lies where chance puts"
    )
    assert "In your 3 pairs FAdam needs 0.0" in found.sentence
    assert "As published, FAdam needs 0.0" in found.sentence
    assert "(12 pairs)" in found.sentence
    assert "within the 95% prediction interval of the 12 published runs" in found.sentence
    assert [cells(found, name)[-1] for name in ("AdamW + clip", "FAdam", "gain of FAdam")] == ["yes"] * 3
    assert found.remarks == ()


def test_other_results_do_not(tmp_path: Path) -> None:
    fill(tmp_path / "published")
    fill(tmp_path / "runs", shift=0.1, seeds=range(201, 204))
    found = only(tmp_path)
    assert "not reproduced; AdamW + clip, FAdam lies outside of what chance explains" in found.sentence
    assert cells(found, "gain of FAdam")[-1] == "yes"


def test_nothing_published_and_nothing_of_ones_own(tmp_path: Path) -> None:
    fill(tmp_path / "runs", seeds=range(201, 204))
    found = only(tmp_path)
    assert "nothing has been published to compare with yet" in found.sentence
    assert cells(found, "FAdam")[0] == "–"
    (none,) = comparisons("llm", "cpu", (tmp_path / "x", tmp_path / "y"), SEEDS, ARMS)
    said = "Language modelling, scale cpu: no run of your own is there yet; "
    assert none.sentence == f"{said}`make reproduce-llm` with SCALE=cpu makes some."
    assert none.table is None


def test_stray_runs_block_nothing(tmp_path: Path) -> None:
    """A short try, another seed, another optimizer: each is left out, and said."""
    fill(tmp_path / "published")
    fill(tmp_path / "runs", seeds=range(201, 204))
    write(tmp_path / "runs", "fadam", 7, 9.0)
    write(tmp_path / "runs", "lion", 201, 9.0)
    write(tmp_path / "runs", "fadam", 203, 9.0, steps=2)  # in place of a run of the comparison
    write(tmp_path / "runs", "fadam", 8, 9.0, trial="try")
    found = only(tmp_path)
    assert "reproduced; each" in found.sentence
    assert "In your 2 pairs" in found.sentence
    assert found.remarks[0].startswith(
        "Left out, since other seeds, optimizers or settings made them: 3 runs (llm/cpu/fadam/"
    )


def test_other_data_and_settings_are_said(tmp_path: Path) -> None:
    fill(tmp_path / "published")
    for seed in SEEDS:
        for arm in ARMS:
            write(tmp_path / "runs", arm, seed, 1.65, data={"fingerprint": "sha256:2"}, steps=40)
    found = only(tmp_path)
    assert found.remarks[0].startswith("Your settings are not the published ones: trainer.max_steps is 20 in")
    assert found.remarks[1].startswith("Your data are not the published ones")


def test_diverged_runs_are_counted() -> None:
    metric = task("llm").metric("test/bits_per_byte")
    bad, good = np.array([np.inf, 1.0]), np.array([1.0, 1.1])
    assert line("a", metric, good, bad).agrees is False
    assert line("a", metric, bad, bad).agrees is True
    assert line("a", metric, bad, good).agrees is False


@pytest.mark.parametrize("width", [32, 40, 80, 120])
def test_it_fits_any_terminal(tmp_path: Path, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "published")
    fill(tmp_path / "runs", seeds=range(201, 204))
    words = ["--runs", str(tmp_path / "runs"), "--published", str(tmp_path / "published"), "--width", str(width)]
    assert main(["compare", "llm", *words]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert ("-------------  " in out) == (width >= 80)


def test_bad_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="scale must be one of"):
        comparisons("llm", "huge", (tmp_path, tmp_path), SEEDS, ARMS)
    assert main(["compare", "llm", "--seeds", "a", "--runs", str(tmp_path)]) == 2
    assert "--seeds must be whole numbers" in capsys.readouterr().err
