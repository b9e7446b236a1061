"""Evaluate a finished run's checkpoint again on its test splits.

python -m experiments.evaluate runs/asr/cpu/fadam/main-s1 [--checkpoint best]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.core.errors import DataError, UserError


def evaluate(run: Path, checkpoint: str = "last") -> dict[str, float]:
    """Metrics of a checkpoint on the test splits.

    Args:
        run: a run's folder, with `config.yaml` and checkpoints in it.
        checkpoint: "last" or "best".

    Raises:
        DataError: the folder holds no such run.
    """
    import torch
    from lightning import Trainer
    from omegaconf import DictConfig, OmegaConf

    from experiments.core.run import build_data, build_module, quiet_lightning

    quiet_lightning()
    weights = run / f"{checkpoint}.ckpt"
    for needed in (run / "config.yaml", weights):
        if not needed.exists():
            raise DataError(f"{needed} is missing; name the folder of a run made by experiments.train")
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    torch.set_num_threads(cfg.threads)
    data, module = build_data(cfg), build_module(cfg)
    trainer = Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=cfg.trainer.precision,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=str(run),
    )
    metrics = trainer.test(module, datamodule=data, ckpt_path=str(weights), weights_only=True, verbose=False)[0]
    return {name: float(value) for name, value in metrics.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a run, such as runs/asr/cpu/fadam/main-s1")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last")
    args = parser.parse_args()
    try:
        metrics = evaluate(args.run, args.checkpoint)
    except UserError as error:
        sys.exit(f"error: {error}")
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", title=f"{args.run} ({args.checkpoint})")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.5g}")
    Console().print(table)


if __name__ == "__main__":
    main()
