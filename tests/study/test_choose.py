"""Learning rates from `make tune-<task>`, and the files that name what was chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from experiments.core.errors import UserError
from experiments.study.choose import choose_experiment, declared_steps, write_settings
from tests.made_up import content, put

RATES = (1e-3, 2e-3, 4e-3)


def search(
    root: Path, best: dict[str, float], experiment: str = "llm_gpu", steps: int = 20, seed: int = 100,
    rates: tuple[float, ...] = RATES, worse: float = 0.0,
) -> None:  # fmt: skip
    for arm, bottom in best.items():
        for lr in rates:
            value = worse + (1.0 if lr == bottom else 2.0)
            put(root, content(
                "llm", arm, seed, {"val/bits_per_byte": value}, scale="gpu", trial=f"tune-lr{lr}", purpose="tune",
                experiment_name=experiment, searched={"optimizer.lr": lr}, steps=steps, optimizer={"lr": lr},
                objective={"metric": "val/bits_per_byte", "mode": "min", "value": value},
            ))  # fmt: skip


def test_the_best_rate_is_written_and_other_arms_stay(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    write_settings("llm_gpu", "hand", {"muon": {"lr": 0.01, "weight_decay": 0.1}}, tuned)
    search(tmp_path, {"adamw_clip": 2e-3, "fadam": 2e-3})
    lines = choose_experiment("llm_gpu", tmp_path, tuned, steps=20)
    assert lines[-1] == f"wrote {tuned / 'llm_gpu.yaml'}"
    assert "llm_gpu, fadam: 0.002 is best of 0.001: 2, 0.002: 1, 0.004: 2" in lines
    text = (tuned / "llm_gpu.yaml").read_text()
    assert text.startswith("# @package _global_\n# Written by: python -m experiments.study choose llm_gpu\n")
    assert yaml.safe_load(text)["tuned"] == {
        "adamw_clip": {"lr": 0.002}, "fadam": {"lr": 0.002}, "muon": {"lr": 0.01, "weight_decay": 0.1}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("best", "experiment", "words"),
    [
        ({"adamw_clip": 2e-3, "fadam": 4e-3}, "llm_gpu", "nothing written: fadam at its highest rate; widen `rates`"),
        (
            {"adamw_clip": 2e-3, "fadam": 2e-3},
            "llm_cpu",
            "nothing written: configs/study/llm.yaml",
        ),
    ],
)
def test_edges_and_declared_studies_write_nothing(
    tmp_path: Path, best: dict[str, float], experiment: str, words: str
) -> None:
    search(tmp_path, best, experiment)
    assert choose_experiment(experiment, tmp_path, tmp_path / "tuned", steps=20)[-1].startswith(words)
    assert not (tmp_path / "tuned").exists()


def test_seeds_that_did_not_run_everywhere_are_left_out(tmp_path: Path) -> None:
    """A second search that was interrupted, on a seed that is harder, decides nothing; once it is whole, it counts."""
    search(tmp_path, {"adamw_clip": 2e-3, "fadam": 2e-3})
    search(tmp_path, {"adamw_clip": 2e-3, "fadam": 2e-3}, seed=101, rates=RATES[:2], worse=5.0)
    assert "llm_gpu, fadam: 0.002 is best of 0.001: 2, 0.002: 1, 0.004: 2" in choose_experiment(
        "llm_gpu", tmp_path, tmp_path / "tuned", steps=20
    )
    search(tmp_path, {"adamw_clip": 2e-3, "fadam": 2e-3}, seed=101, worse=5.0)
    assert "llm_gpu, fadam: 0.002 is best of 0.001: 4.5, 0.002: 3.5, 0.004: 4.5" in choose_experiment(
        "llm_gpu", tmp_path, tmp_path / "tuned", steps=20
    )


def test_a_search_without_a_whole_seed_is_named(tmp_path: Path) -> None:
    search(tmp_path, {"adamw_clip": 2e-3, "fadam": 2e-3}, rates=RATES[:2])
    search(tmp_path, {"adamw_clip": 2e-3, "fadam": 2e-3}, seed=101, rates=RATES[2:])
    with pytest.raises(UserError, match="no seed has been run by every arm at every rate"):
        choose_experiment("llm_gpu", tmp_path, tmp_path / "tuned", steps=20)


def test_shortened_runs_write_nothing(tmp_path: Path) -> None:
    search(tmp_path, {"adamw_clip": 2e-3, "fadam": 2e-3}, steps=20)
    with pytest.raises(UserError, match="no run of the search of llm_gpu with all its 3000 steps"):
        choose_experiment("llm_gpu", tmp_path, tmp_path / "tuned", steps=3000)


def test_unequal_searches_and_lost_arms_are_named(tmp_path: Path) -> None:
    search(tmp_path, {"adamw_clip": 2e-3, "fadam": 2e-3})
    next((tmp_path / "llm/gpu/fadam").glob("*.json")).unlink()
    with pytest.raises(UserError, match="every arm must try the same rates"):
        choose_experiment("llm_gpu", tmp_path, tmp_path / "tuned", steps=20)


def test_steps_are_the_experiments() -> None:
    assert declared_steps("llm_gpu") == 3000
    with pytest.raises(UserError, match="there is no experiment 'llm_moon'"):
        declared_steps("llm_moon")
