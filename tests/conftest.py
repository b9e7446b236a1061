"""Composing the project's configs in tests as the command line does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
TEST_CONFIGS = ROOT / "tests" / "configs"

Compose = Callable[..., "DictConfig"]


def record_path(cfg: DictConfig) -> Path:
    """Where the run's record will lie."""
    return Path(f"{cfg.paths.run_dir}.json")


@pytest.fixture
def compose_config(tmp_path: Path) -> Iterator[Compose]:
    """`compose_config("experiment=asr_cpu", ...)`: the config of a run whose folders lie in `tmp_path`."""
    # Here, so that the optimizer's tests need torch alone.
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from experiments.core import resolvers as resolvers

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):

        def build(*overrides: str) -> DictConfig:
            # Hydra takes the first search path that it is given.
            search = [word for word in overrides if word.startswith("hydra.searchpath=")]
            folders = (
                *(search or [f"hydra.searchpath=[file://{TEST_CONFIGS}]"]),
                f"paths.runs_dir={tmp_path / 'runs'}",
                f"paths.data_dir={tmp_path / 'data'}",
            )
            words = [word for word in overrides if word not in search]
            cfg = compose("train", overrides=[*folders, *words], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                del cfg["hydra"]
            return cfg

        yield build
    HydraConfig.instance().cfg = None
