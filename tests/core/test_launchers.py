"""Where runs are sent: to processes of this machine, or to SLURM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.core import run
from experiments.core.errors import ConfigError
from tests.conftest import CONFIGS, ROOT, TEST_CONFIGS


def compose_sweep(*overrides: str) -> DictConfig:
    """The config from which a sweep is launched, and Hydra's own part of it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return hydra.compose_config("train", list(overrides), run_mode=RunMode.MULTIRUN)


def launcher(*overrides: str) -> dict[str, Any]:
    found = OmegaConf.to_container(compose_sweep(*overrides).hydra.launcher, resolve=True)
    assert isinstance(found, dict)
    return found


def test_sweeps_run_here_unless_told_otherwise() -> None:
    found = launcher("experiment=asr_cpu", "seed=1,2", "hydra.launcher.n_jobs=3")
    assert found["_target_"].endswith("JoblibLauncher")
    assert found["n_jobs"] == 3


@pytest.mark.parametrize(
    ("words", "nodes", "gpus"),
    [
        (["experiment=llm_paper"], 1, 8),
        (["experiment=vqvae_paper", "trainer.devices=4"], 1, 4),
        (["experiment=asr_paper", "trainer=fsdp_cluster", "trainer.num_nodes=4"], 4, 8),
        (["experiment=llm_gpu"], 1, 1),
    ],
)
def test_slurm_gives_a_process_to_each_gpu_of_the_trainer(words: list[str], nodes: int, gpus: int) -> None:
    overrides = [*words, "optimizer=adamw_clip,fadam", "hydra/launcher=slurm", "hydra.launcher.account=us"]
    found = launcher(*overrides)
    assert found["_target_"].endswith("SlurmLauncher")
    assert (found["nodes"], found["gpus_per_node"], found["tasks_per_node"]) == (nodes, gpus, gpus)
    assert found["account"] == "us"
    assert found["max_num_timeout"] > 0
    assert found["name"] == words[0].removeprefix("experiment=")


def test_one_choice_is_enough_for_a_single_run_to_be_launched() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        words = ["experiment=llm_paper", "hydra/launcher=slurm"]
        assert hydra.get_mode("train", words) == RunMode.MULTIRUN
        assert hydra.get_mode("train", words[:1]) is None


def test_runs_of_several_processes_are_no_sweep_of_this_machine(compose_config, tmp_path: Path) -> None:
    words = ("experiment=toy", "trainer.devices=2", "+trainer.strategy=ddp")
    assert run.build_trainer(compose_config(*words), tmp_path).world_size == 2
    with pytest.raises(
        ConfigError, match=r"cannot start runs of 2 processes: send it to SLURM with hydra/launcher=slurm"
    ):
        run.build_trainer(compose_config(*words, "multirun=true"), tmp_path)


@pytest.mark.timeout(900)
def test_a_run_goes_through_submitit(tmp_path: Path) -> None:
    words = [
        "experiment=toy", "seed=4", f"hydra.searchpath=[file://{TEST_CONFIGS}]", f"paths.runs_dir={tmp_path}",
        "optimizer=fadam", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=14", "trainer.max_steps=4",
        "scheduler.warmup_steps=1",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *words],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=840,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record = json.loads((tmp_path / "toy/smoke/fadam/main-s4.json").read_text())
    assert record["steps"] == 4
    # The job's own output, which submitit keeps.
    assert list(tmp_path.glob(".sweeps/*/.submitit/*/*_log.out"))
