"""Evaluate a finished run's checkpoint again on its test splits.

python -m experiments.evaluate runs/asr/cpu/fadam/main-s1 [--checkpoint best]

The folder may be somebody else's. Its config.yaml may only name what this project's own configs name, and modules,
optimizers, schedules and data modules of this project, torch, torchaudio, transformers, lightning and
pytorch_optimizer; --allow names packages from which everything may be called. What was made on a GPU is evaluated on
the CPU, in float32, where there is none.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.core.choices import CONFIGS
from experiments.core.command import told
from experiments.core.errors import ConfigError, DataError

TRUSTED = ("experiments", "fadam", "torch", "torchaudio", "transformers", "lightning", "pytorch_optimizer")
MADE = ("data", "model", "optimizer", "scheduler", "module")


def targets(node: Any) -> Iterator[str]:
    """Everything that Hydra would import and call to make `node`."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from targets(value)


def _named_here() -> set[str]:
    """What this project's own configs call."""
    found: set[str] = set()
    for path in CONFIGS.rglob("*.yaml"):
        found.update(targets(yaml.safe_load(path.read_text(encoding="utf-8"))))
    return found


def _is_part(name: str) -> bool:
    """Whether `name` is a class of what runs are made of. Imports a trusted package, and calls nothing."""
    from hydra.utils import get_object
    from lightning import LightningDataModule
    from torch import nn, optim

    try:
        found = get_object(name)
    except Exception:  # what cannot be imported is refused all the same
        return False
    kinds = (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler, LightningDataModule)
    return isinstance(found, type) and issubclass(found, kinds)


def check_targets(config: Mapping[str, Any], allow: Sequence[str] = ()) -> None:
    """Refuse a config that would run code that is not trusted.

    A package alone is no bound: torch too has functions that run a command.

    Raises:
        ConfigError: naming the callable and what is trusted.
    """
    trusted, named = (*TRUSTED, *allow), _named_here()
    for name in (name for part in MADE for name in targets(config.get(part))):
        package = name.partition(".")[0]
        if package not in trusted:
            raise ConfigError(
                f"config.yaml would call {name!r}, which is no part of {', '.join(trusted)}; "
                f"--allow {package} trusts it"
            )
        if package not in allow and name not in named and not _is_part(name):
            raise ConfigError(
                f"config.yaml would call {name!r}, which is no module, optimizer, schedule or data module; "
                f"--allow {package} trusts everything of {package}"
            )


def evaluate(run: Path, checkpoint: str = "last", allow: Sequence[str] = ()) -> dict[str, float]:
    """Metrics of a checkpoint on the test splits.

    Args:
        run: a run's folder, with `config.yaml` and checkpoints in it.
        checkpoint: "last" or "best".
        allow: packages that config.yaml may name besides `TRUSTED`.

    Raises:
        DataError: the folder holds no such run, or no whole checkpoint.
        ConfigError: its config would run code that is not trusted.
    """
    weights = run / f"{checkpoint}.ckpt"
    for needed in (run / "config.yaml", weights):
        if not needed.exists():
            raise DataError(f"{needed} is missing; name the folder of a run made by experiments.train")
    from omegaconf import OmegaConf

    # Resolved before it is looked at: what is checked is what is made.
    plain = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True)
    if (
        not isinstance(plain, dict)
        or not {*MADE, "trainer", "threads", "seed", "data_seed", "callbacks"} <= plain.keys()
    ):
        raise DataError(f"{run / 'config.yaml'} is no config of a run made by experiments.train")
    check_targets(plain, allow)  # type: ignore[arg-type]

    import torch
    from lightning import Callback, Trainer

    from experiments.core.callbacks import EvaluationWeights
    from experiments.core.folder import read_checkpoint
    from experiments.core.precision import precision_of, set_float32_products
    from experiments.core.run import build_data, build_module, quiet_lightning

    try:
        read_checkpoint(weights)
    except Exception as error:  # torch has many for a file that is no whole checkpoint
        raise DataError(f"{weights} cannot be read: {str(error).splitlines()[0]}") from error
    quiet_lightning()
    cfg = OmegaConf.create(plain)
    torch.set_num_threads(cfg.threads)
    data, module = build_data(cfg), build_module(cfg)
    callbacks: list[Callback] = [EvaluationWeights()] if "evaluation_weights" in plain["callbacks"] else []
    if cfg.trainer.accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        cfg.trainer.accelerator, cfg.trainer.precision = "cpu", "32-true"
    set_float32_products(cfg.trainer)
    trainer = Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        **precision_of(cfg.trainer),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=str(run),
    )
    metrics = trainer.test(module, datamodule=data, ckpt_path=str(weights), weights_only=True, verbose=False)[0]
    return {name: float(value) for name, value in metrics.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="folder of a run, such as runs/asr/cpu/fadam/main-s1")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last")
    parser.add_argument("--allow", action="append", default=[], metavar="package", help="trust this package too")
    args = parser.parse_args()
    try:
        metrics = evaluate(args.run, args.checkpoint, args.allow)
    except Exception as error:
        return told(error)
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", title=f"{args.run} ({args.checkpoint})")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.5g}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
