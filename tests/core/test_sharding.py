"""What sharded training refuses; tests/distributed/test_paper.py shows what it does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from experiments.core.errors import ConfigError
from experiments.core.sharding import FullySharded, shard, whole


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gather": "float16"}, "trainer.strategy.gather must be float32 or bfloat16, got 'float16'"),
        ({"timeout_minutes": 0}, "trainer.strategy.timeout_minutes must be above 0, got 0"),
    ],
)
def test_options_are_checked(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FullySharded(**option)


@pytest.mark.parametrize(
    ("precision", "gather", "message"),
    [
        ("bf16-true", "float32", "trainer.precision must be 32-true or bf16-mixed where training is sharded"),
        ("32-true", "bfloat16", "trainer.strategy.gather=bfloat16 needs trainer.precision=bf16-mixed, got 32-true"),
    ],
)
def test_precisions_that_would_round_the_weights_are_refused(precision: str, gather: str, message: str) -> None:
    strategy = FullySharded(gather=gather)  # type: ignore[arg-type]
    strategy._precision_plugin = SimpleNamespace(precision=precision)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=message):
        strategy.shard(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_running_statistics_are_refused(compose_config) -> None:
    small = ("model.dim=8", "model.layers=1", "model.heads=2", "model.channels=[2,2]", "model.vocab_size=9")
    model = instantiate(compose_config("experiment=asr_paper", "model.norm=batch", *small).model)
    with pytest.raises(ConfigError, match=r"got a batch norm, encoder.*; the Conformer has model.norm=layer"):
        shard(model, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("trainer", "replicas"), [("fsdp_node", False), ("fsdp_cluster", True)])
def test_trainers_build_lightnings_strategy(compose_config, trainer: str, replicas: bool) -> None:
    cfg = compose_config("experiment=llm_paper", f"trainer={trainer}")
    strategy = instantiate(cfg.trainer.strategy)
    assert isinstance(strategy, ModelParallelStrategy)
    assert strategy.replicate_nodes is replicas
    assert (cfg.trainer.precision, strategy.gather) == ("bf16-mixed", "bfloat16")


def test_a_plain_tensor_is_whole() -> None:
    tensor = torch.zeros(2)
    assert whole(tensor) is tensor
