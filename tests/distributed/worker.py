"""One of two processes that train together: runs each case of a file as `experiments.train` would.

A case has `overrides` and may have `stop_at`, a step at which the run is broken off and then started again, and
`nodes`, where the two processes are two nodes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, Trainer
from omegaconf import DictConfig, open_dict
from torch.distributed.fsdp import FSDPModule

from experiments.core import run
from experiments.core.sharding import whole
from tests.conftest import CONFIGS


class Broken(Exception):
    pass


class Stop(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Broken


def config(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def break_off(cfg: DictConfig, step: int) -> None:
    build = run.build_trainer

    def with_stop(*args: Any) -> Trainer:
        trainer = build(*args)
        trainer.callbacks.append(Stop(step))
        return trainer

    run.build_trainer = with_stop
    try:
        run.execute(cfg)
    except Broken:
        return
    finally:
        run.build_trainer = build
    raise AssertionError(f"the run was not broken off at step {step}")


def main(cases: Path) -> None:
    torch.use_deterministic_algorithms(True)
    kept: list[Any] = []
    build = run.build_module
    run.build_module = lambda cfg: kept.append(build(cfg)) or kept[-1]  # type: ignore[func-returns-value]
    for case in json.loads(cases.read_text()):
        rank = os.environ["RANK"]
        nodes = case.get("nodes", False)
        os.environ |= {"LOCAL_RANK": "0" if nodes else rank, "GROUP_RANK": rank if nodes else "0"}
        cfg = config(case["overrides"])
        if "stop_at" in case:
            break_off(cfg, case["stop_at"])
        run.execute(cfg)
        model = kept[-1].model
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root stays gathered after an evaluation
        state: dict[str, Any] = {"local": {name: p.to_local().numel() for name, p in model.named_parameters()}}
        if quantiser := getattr(model, "quantiser", None):
            state |= {name: whole(value) for name, value in quantiser.state_dict().items()}
        torch.save(state, f"{cfg.paths.run_dir}-rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
