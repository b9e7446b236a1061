"""Parameters and memory per GPU of an experiment, by part, without a GPU and without data.

python -m experiments.size experiment=llm_paper
python -m experiments.size experiment=asr_paper trainer=fsdp_cluster trainer.num_nodes=4 trainer.strategy.recompute=true

Weights, gradients and optimizer state are those of the first process, which holds the largest share: FSDP2 cuts each
tensor along its first dimension. Activations are what the backward pass finds kept of one micro-batch of the largest
size, counted while the training step runs on tensors without memory; the attention is counted as the fused kernels keep
it. Not counted: temporary tensors inside operations and of the backward pass, the buffers of NCCL, the CUDA context
(about 0.5 GB), the allocator's fragments; allow for a quarter more. The columns of the optimizers are their state,
"FAdam bf16" with the state in bfloat16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from experiments.core import menu
from experiments.core import resolvers as resolvers
from experiments.core.command import leave, told
from experiments.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from experiments.core.memory import Part

OPTIMIZERS: dict[str, dict[str, str]] = {
    "AdamW": {"_target_": "torch.optim.AdamW"},
    "FAdam": {"_target_": "fadam.FAdam"},
    "FAdam bf16": {"_target_": "fadam.FAdam", "momentum_dtype": "bfloat16", "fim_dtype": "bfloat16"},
}


def optimizers() -> dict[str, Callable[..., Any]]:
    """AdamW and FAdam, the latter with its state in float32 and in bfloat16."""
    return {name: hydra.utils.instantiate({**spec, "_partial_": True}) for name, spec in OPTIMIZERS.items()}


def measure(cfg: DictConfig) -> list[Part]:
    """The parts of the experiment's model, see `experiments.core.memory.count`."""
    from experiments.core.memory import count
    from experiments.core.run import build_module

    devices, nodes = cfg.trainer.devices, cfg.trainer.get("num_nodes", 1)
    strategy = cfg.trainer.get("strategy", "auto")
    options: dict[str, Any] = {}
    if not isinstance(strategy, str):
        options = {
            "shards": devices if strategy.replicate_nodes else devices * nodes,
            "gather": strategy.gather,
            "recompute": strategy.recompute,
        }
    return count(lambda: build_module(cfg), cfg.data, autocast=cfg.trainer.precision == "bf16-mixed", **options)


def table(cfg: DictConfig) -> Table:
    """Fits 80 columns."""
    from rich import box
    from rich.table import Table

    from experiments.core.memory import state_bytes

    parts, states = measure(cfg), {name: state_bytes(make) for name, make in optimizers().items()}
    gpus = cfg.trainer.devices * cfg.trainer.get("num_nodes", 1)
    total = sum(part.parameters for part in parts)
    title = f"{cfg.experiment_name}: {total:,} parameters; GB on each of {gpus} GPU{'s' * (gpus > 1)}"
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    shown.add_column("part", min_width=24)
    for name in ("millions", "weights", "grads", *(state.replace(" ", "\n") for state in states), "activa-\ntions"):
        shown.add_column(name, justify="right", no_wrap=True)

    def gb(value: float) -> str:
        return f"{value / 1e9:.2f}" if value else ""

    def millions(value: int) -> str:
        return f"{value / 1e6:.3f}" if value else ""

    for part in parts:
        shown.add_row(
            part.name, millions(part.parameters), gb(part.weights), gb(part.gradients),
            *(gb(per * part.local) for per in states.values()), gb(part.activations),
        )  # fmt: skip
    local, weights, gradients, activations = (
        sum(getattr(part, name) for part in parts) for name in ("local", "weights", "gradients", "activations")
    )
    shown.add_section()
    of_states = (gb(per * local) for per in states.values())
    shown.add_row("sum", millions(total), gb(weights), gb(gradients), *of_states, gb(activations))
    whole = (gb(weights + gradients + per * local + activations) for per in states.values())
    shown.add_row("a whole run", "", "", "", *whole, "")
    return shown


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> None:
    from rich.console import Console

    try:
        if cfg.trainer.devices == "auto":
            raise ConfigError("trainer.devices must be a number, got 'auto'")
        Console().print(table(cfg))
    except Exception as error:
        sys.exit(told(error))


if __name__ == "__main__":
    menu.show_if_asked(__doc__, sys.argv[1:])
    leave(main)
