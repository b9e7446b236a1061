"""Memory counted without a GPU."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fadam
from experiments import size
from experiments.core import memory
from experiments.core.module import TaskModule
from experiments.core.sharding import Layout
from tests.conftest import CONFIGS

BATCH, WIDTH, BLOCKS = 6, 10, 3
SIZES = {
    # GPUs, parameters, GB a GPU with AdamW, GB of activations
    "asr_paper": (8, 586_298_112, 28.8, 27.4),
    "llm_paper": (8, 1_100_048_384, 25.8, 22.8),
    "vqvae_paper": (8, 102_842_267, 14.5, 14.2),
    "llm_gpu": (1, 123_587_328, 26.6, 24.6),
    "asr_gpu": (1, 8_390_848, 4.8, 4.7),
    "vqvae_gpu": (1, 7_702_555, 0.3, 0.2),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(WIDTH, WIDTH), nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x

    def layout(self) -> Layout:
        return Layout(root=self, blocks=list(self.blocks))


class StackModule(TaskModule):
    def __init__(self) -> None:
        super().__init__(Stack(), torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR)  # type: ignore[arg-type]

    def probe(self, data: Any) -> Tensor:
        return self.model(torch.zeros(data.batch, WIDTH)).sum()


def parts(**options: Any) -> dict[str, memory.Part]:
    found = memory.count(StackModule, SimpleNamespace(batch=BATCH), **options)  # type: ignore[arg-type]
    return {part.name: part for part in found}


def test_what_backward_keeps_is_counted_once() -> None:
    found = parts()
    # Of each block its input and tanh's output, which is the second product's input too; of the root the batch.
    assert found["blocks x 3"].activations == BLOCKS * 4 * BATCH * (WIDTH + 4 * WIDTH)
    assert found["the rest, loss"].activations == 4 * BATCH * WIDTH


def test_autocast_keeps_bfloat16() -> None:
    inside = 2 * BATCH * (WIDTH + 4 * WIDTH)
    assert parts(autocast=True, gather="bfloat16")["blocks x 3"].activations == BLOCKS * inside
    # Weights in float32 are cast in each block, and backward needs the copies.
    assert parts(autocast=True)["blocks x 3"].activations == BLOCKS * (inside + 2 * 2 * 4 * WIDTH**2)


def test_recomputed_blocks_keep_their_inputs() -> None:
    found = parts(recompute=True)
    assert found["blocks x 3"].activations == BLOCKS * 4 * BATCH * WIDTH
    assert found["a block recomputed"].activations == 4 * BATCH * (WIDTH + 4 * WIDTH)


def test_weights_are_cut_along_the_first_dimension_and_rounded_up() -> None:
    block, first = 8 * WIDTH**2 + 4 * WIDTH, WIDTH**2 + WIDTH
    found = parts(shards=4)
    assert [found[name].parameters for name in ("blocks x 3", "the rest, loss")] == [BLOCKS * block, first]
    # 40 rows in four parts; 10 rows in parts of 3.
    assert found["blocks x 3"].local == BLOCKS * (10 * WIDTH + 10 + 3 * 4 * WIDTH)
    assert found["the rest, loss"].local == 3 * WIDTH + 3
    assert found["blocks x 3"].weights == found["blocks x 3"].gradients == 4 * found["blocks x 3"].local
    assert found["gathered at once"].weights == 4 * (2 * block + first)
    assert memory.local_elements(torch.zeros(2, 5), 4) == 5
    assert memory.local_elements(torch.zeros(7), 7) == 1


def test_state_is_measured_on_the_optimizers_themselves() -> None:
    found = {name: memory.state_bytes(make) for name, make in size.optimizers().items()}
    assert found == {"AdamW": 8.0, "FAdam": 8.0, "FAdam bf16": 4.0}
    assert memory.state_bytes(lambda p: torch.optim.SGD(p, lr=0.1)) == 0.0
    assert memory.state_bytes(lambda p: fadam.FAdam(p, fim_dtype=torch.bfloat16)) == 6.0


@pytest.mark.parametrize("experiment", SIZES)
def test_the_configs_say_what_the_command_says(compose_config, experiment: str) -> None:
    gpus, parameters, whole, activations = SIZES[experiment]
    cfg = compose_config(f"experiment={experiment}")
    table = size.table(cfg)
    shown = io.StringIO()
    Console(width=80, file=shown).print(table)
    assert "…" not in shown.getvalue()
    assert f"\na whole run{' ' * 10}" in shown.getvalue()
    assert table.title == f"{experiment}: {parameters:,} parameters; GB on each of {gpus} GPU{'s' * (gpus > 1)}"
    rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    lines = {cells[0]: cells[1:] for cells in rows}
    assert math.isclose(float(lines["sum"][-1]), activations, abs_tol=0.05)
    assert math.isclose(float(lines["a whole run"][3]), whole, abs_tol=0.05)
    text = (Path(CONFIGS) / "experiment" / f"{experiment}.yaml").read_text()
    assert f"{whole} GB a GPU" in " ".join(text.replace("\n#", "").split())
    assert f"{activations} of them" in " ".join(text.replace("\n#", "").split())


def test_more_gpus_take_less_each_and_recomputing_takes_least(compose_config) -> None:
    def total(*words: str) -> float:
        found = size.measure(compose_config("experiment=vqvae_paper", *words))
        return sum(part.weights + part.gradients + part.activations for part in found)

    eight = total()
    assert total("trainer.devices=2") > eight > total("trainer.strategy.recompute=true")
    # Replicas over nodes share nothing; sharded over all of them, they do.
    assert total("trainer=fsdp_cluster") == eight > total("trainer.num_nodes=2")
