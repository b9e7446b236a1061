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
LARGE = ("gpu", "paper")


def test_there_is_something_to_test() -> None:
    assert {"asr_cpu", "asr_gpu"} <= set(EXPERIMENTS)
    assert {"adam", "adamw", "adamw_clip", "fadam"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_instantiates(compose_config, experiment: str) -> None:
    # What an optimizer's config says does not depend on the experiment.
    for optimizer in OPTIMIZERS if experiment == "llm_cpu" else ("adam", "adamw", "adamw_clip", "fadam"):
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


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_a_search(compose_config, experiment: str) -> None:
    params = OmegaConf.load(CONFIGS / "tune" / "lr.yaml").hydra.sweeper.params
    assert params.optimizer == "adamw_clip,fadam"
    cfg = compose_config(f"experiment={experiment}", "optimizer=fadam", "tune=lr", "optimizer.lr=0.5")
    rates = [float(rate) for rate in cfg.rates.split(",")]
    assert len(rates) >= 5
    assert rates == sorted(rates)
    assert (cfg.purpose, cfg.trial, cfg.seed) == ("tune", "tune-lr0.5", 100)
    assert dict(cfg.searched) == {"optimizer.lr": 0.5}


@pytest.mark.parametrize("experiment", ["llm_gpu", "llm_paper"])
def test_a_local_copy_takes_the_place_of_the_hub_and_of_nothing_else(compose_config, experiment: str) -> None:
    words = (f"experiment={experiment}", "optimizer=fadam")
    hub, local = (
        OmegaConf.to_container(compose_config(*words, *more), resolve=True)
        for more in ((), ("data/source=files", "data.source.files=corpus/*.parquet"))
    )
    assert hub["data"].pop("source")["_target_"].endswith(".Hub")
    assert local["data"].pop("source")["files"] == "corpus/*.parquet"
    assert local == hub


def test_chosen_settings_are_read_and_given_way(compose_config) -> None:
    chosen = OmegaConf.load(CONFIGS / "tuned" / "llm_cpu.yaml").tuned.fadam
    assert compose_config("experiment=llm_cpu", "optimizer=fadam").optimizer.lr == chosen.lr
    assert compose_config("experiment=llm_cpu", "optimizer=fadam", "optimizer.lr=0.5").optimizer.lr == 0.5
    # Nothing was chosen for an experiment without a file, nor for an arm that the file does not name.
    assert compose_config("experiment=llm_paper", "optimizer=fadam").optimizer.lr == 1e-3
    assert compose_config("experiment=llm_cpu", "optimizer=lion").optimizer.lr == 3e-4


def test_what_was_chosen_names_arms_that_exist() -> None:
    for path in (CONFIGS / "tuned").glob("*.yaml"):
        assert path.stem in EXPERIMENTS
        assert set(OmegaConf.load(path).tuned) <= set(OPTIMIZERS)


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
