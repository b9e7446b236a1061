"""Runs of another length than their experiment's."""

from __future__ import annotations

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiments.core import run
from experiments.core.checks import check_choices
from experiments.core.choices import CONFIGS
from experiments.core.errors import ConfigError
from experiments.core.length import declared_steps, fit_length, nearest_divisor

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def test_declared_steps_are_found_where_an_experiment_is_made_from_another() -> None:
    assert declared_steps("asr_cpu") == 2400
    assert declared_steps("vqvae_cpu_gaussian") == declared_steps("vqvae_cpu")
    assert declared_steps("toy") is None


@pytest.mark.parametrize(
    ("total", "wanted", "found"), [(20, 10, 10), (2600, 800, 650), (2003, 800, 2003), (12, 5, 6), (1, 0.5, 1)]
)
def test_nearest_divisor(total: int, wanted: float, found: int) -> None:
    assert nearest_divisor(total, wanted) == found


@pytest.mark.parametrize(
    ("words", "every", "warmup", "trial"),
    [
        (["trainer.max_steps=20"], 10, 2, "steps20"),
        (["trainer.max_steps=1"], 1, 0, "steps1"),
        (["trainer.max_steps=2600"], 650, 150, "steps2600"),
        (["trainer.max_steps=2400"], 800, 150, "main"),
        (["trainer.max_steps=20", "eval_every=5"], 5, 2, "steps20"),
        (["trainer.max_steps=20", "scheduler.warmup_steps=19"], 10, 19, "steps20"),
        (["trainer.max_steps=20", "trial=mine"], 10, 2, "mine"),
        (["trainer.max_steps=20", "tune=lr"], 10, 2, "tune-lr0.01-steps20"),
        (["trainer.max_steps=20", "debug=fast"], 2, 1, "debug-asr_cpu"),
        (["debug=fast"], 2, 1, "debug-asr_cpu"),
    ],
)
def test_what_follows_from_the_steps(compose_config, words: list[str], every: int, warmup: int, trial: str) -> None:
    cfg = compose_config("experiment=asr_cpu", "optimizer.lr=0.01", *words)
    said = fit_length(cfg)
    check_choices(cfg)
    assert (cfg.eval_every, cfg.scheduler.warmup_steps, cfg.trial) == (every, warmup, trial)
    assert cfg.label.endswith(f" {trial}-s{cfg.seed}")
    changed = (every, warmup, trial) != (800, 150, "main") and "debug=fast" not in words
    assert bool(said) is changed
    if changed:
        assert said.startswith(f"with trainer.max_steps={cfg.trainer.max_steps} come ")


def test_it_says_what_it_changed(compose_config) -> None:
    assert fit_length(compose_config("experiment=llm_cpu", "trainer.max_steps=20")) == (
        "with trainer.max_steps=20 come eval_every=10, scheduler.warmup_steps=2, trial=steps20, which no table takes "
        "for the run of 1000 steps"
    )


def test_what_the_command_line_names_is_still_refused(compose_config) -> None:
    cfg = compose_config("experiment=asr_cpu", "trainer.max_steps=20", "eval_every=7")
    fit_length(cfg)
    with pytest.raises(ConfigError, match=r"eval_every must divide trainer\.max_steps=20, .*, got 7"):
        check_choices(cfg)


@pytest.mark.parametrize("steps", ["0", "-3", "1.5", "true", "abc"])
def test_steps_that_are_no_number_are_left_to_be_refused(compose_config, steps: str) -> None:
    cfg = compose_config("experiment=asr_cpu", f"trainer.max_steps={steps}")
    assert fit_length(cfg) == ""
    with pytest.raises(ConfigError, match=r"trainer\.max_steps must be a whole number of at least 1"):
        check_choices(cfg)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_quick_try_is_one_word(compose_config, experiment: str) -> None:
    for optimizer in ("adamw_clip", "fadam", "schedule_free", "ademamix"):
        cfg = compose_config(f"experiment={experiment}", f"optimizer={optimizer}", "debug=fast")
        assert fit_length(cfg) == ""
        check_choices(cfg)
        assert (cfg.scale, cfg.trainer.max_steps, cfg.trainer.accumulate_grad_batches) == ("smoke", 2, 1)
        run.instantiate(cfg.scheduler)


def test_quick_tries_of_all_experiments_make_one_sweep(compose_config) -> None:
    """It is composed, first without any of them, and no two runs share a record."""
    folders = [compose_config(f"experiment={name}", "debug=fast").paths.run_dir for name in EXPERIMENTS]
    assert len(set(folders)) == len(EXPERIMENTS)
    loader = GlobalHydra.instance().config_loader()
    assert loader.load_configuration("train", [f"experiment={','.join(EXPERIMENTS)}", "debug=fast"], RunMode.MULTIRUN)


def test_a_run_of_a_toy_says_it_and_keeps_its_name(compose_config, capsys) -> None:
    """Scale smoke is in no table already."""
    record = run.execute(compose_config("experiment=toy", "trainer.max_steps=3", "logger=none", "progress=line"))
    assert (record["steps"], record["trial"]) == (3, "main")
    said = "toy/smoke adamw_clip main-s1: with trainer.max_steps=3 come eval_every=1, scheduler.warmup_steps=1\n"
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(
    ("wanted", "small"),
    [("asr_gpu", "asr_cpu"), ("vqvae_gpu_gaussian", "vqvae_cpu_gaussian"), ("vqvae_paper", "vqvae_cpu")],
)
def test_a_gpu_that_is_missing_is_a_sentence(compose_config, monkeypatch, wanted: str, small: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"{wanted} wants a CUDA GPU, and .* none: take experiment={small}$"):
        run.execute(compose_config(f"experiment={wanted}", "debug=fast"))


def test_the_command_line_is_hydras(compose_config) -> None:
    compose_config("experiment=asr_cpu", "trainer.max_steps=20")
    assert "trainer.max_steps=20" in HydraConfig.get().overrides.task
