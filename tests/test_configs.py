"""Every experiment config composes with every optimizer and instantiates; the large ones on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.core import run
from experiments.core.checks import check_choices
from experiments.core.data import ResumableDataModule
from experiments.core.module import TaskModule

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
OPTIMIZERS = sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml"))
TUNES = sorted(path.stem for path in (CONFIGS / "tune").glob("*_*.yaml") if not path.stem.startswith("study"))
LARGE = ("gpu", "paper")


def test_there_is_something_to_test() -> None:
    assert {"asr_cpu", "asr_gpu"} <= set(EXPERIMENTS)
    assert {"adam", "adamw", "adamw_clip", "fadam"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_instantiates(compose_config, experiment: str) -> None:
    # The arms of the study belong to the study's experiments, which share all else with the small ones.
    for optimizer in OPTIMIZERS if experiment == "llm_study" else ("adam", "adamw", "adamw_clip", "fadam"):
        cfg = compose_config(f"experiment={experiment}", f"optimizer={optimizer}")
        check_choices(cfg)
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert cfg.arm == optimizer
    assert experiment.startswith(f"{cfg.task}_{cfg.scale}")
    assert isinstance(run.build_data(cfg), ResumableDataModule)
    device = "meta" if cfg.scale in LARGE else "cpu"
    with torch.device(device):
        module = run.build_module(cfg)
    assert isinstance(module, TaskModule)
    assert {p.device.type for p in module.parameters()} == {device}
    module.make_scheduler(module.build_optimizer(), total_steps=cfg.trainer.max_steps)


@pytest.mark.parametrize("tune", TUNES)
def test_search_space_is_the_same_for_both_optimizers(compose_config, tune: str) -> None:
    path = CONFIGS / "tune" / f"{tune}.yaml"
    params = OmegaConf.load(path).hydra.sweeper.params
    assert params.optimizer == "adamw_clip,fadam"
    rates = [float(rate) for rate in params["optimizer.lr"].split(",")]
    assert len(rates) >= 5
    assert rates == sorted(rates)
    cfg = compose_config(f"experiment={tune}", "optimizer=fadam", f"tune={tune}", f"optimizer.lr={rates[0]}")
    assert cfg.purpose == "tune"
    assert cfg.trial == f"tune-lr{rates[0]}"
    assert cfg.seed not in (1, 2, 3)
    assert dict(cfg.searched) == {"optimizer.lr": rates[0]}


@pytest.mark.parametrize("logger", sorted(path.stem for path in (CONFIGS / "logger").glob("*.yaml")))
def test_loggers_compose(compose_config, logger: str) -> None:
    cfg = compose_config("experiment=asr_cpu", f"logger={logger}")
    assert set(cfg.logger or {}) == ({logger} - {"none"})


def test_trainer_is_made_from_its_config(compose_config, tmp_path: Path) -> None:
    cfg = compose_config("experiment=asr_cpu", "optimizer=adamw_clip", "trainer.accumulate_grad_batches=2")
    trainer = run.build_trainer(cfg, tmp_path)
    assert trainer.gradient_clip_val == 1.0
    assert trainer.val_check_interval == 2 * cfg.eval_every
    assert instantiate(cfg.scheduler).keywords["warmup_steps"] == cfg.scheduler.warmup_steps
