"""What is done between backward pass and step, and which weights are evaluated."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Callback, Trainer
from torchmetrics import Metric

from experiments.core import run
from experiments.core.callbacks import GradientScale, ProgressLine
from experiments.core.errors import ConfigError, DivergedError
from tests.conftest import CONFIGS
from tests.core.test_run import Spoil, Stop, with_callback
from tests.core.toy import ToyModel, ToyModule

OPTIMIZERS = sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml"))


def test_gradients_are_scaled_before_they_are_clipped(compose_config, tmp_path: Path) -> None:
    def weights(*words: str) -> dict[str, torch.Tensor]:
        cfg = compose_config("experiment=toy", "optimizer=adamw_clip", "trainer.gradient_clip_val=1e-6", *words)
        run.execute(cfg)
        return torch.load(Path(cfg.paths.run_dir) / "last.ckpt", weights_only=True)["state_dict"]

    plain, scaled = weights(), weights("vary=gradient_scale", "value=1000.0")
    # Clipped to one length, the gradients are the same whatever their scale.
    assert all(torch.allclose(plain[name], scaled[name], rtol=1e-4) for name in plain)
    record = json.loads((tmp_path / "runs/toy/smoke/adamw_clip/gradient_scale1000.0-s1.json").read_text())
    assert record["trial"] == "gradient_scale1000.0"
    with pytest.raises(ConfigError, match="factor must be a finite number > 0"):
        GradientScale(0.0)


def test_the_monitor_logs_what_the_step_takes(compose_config) -> None:
    """After the scaling of the gradients and after the trainer's clip: f_1 is their square."""

    def logged(optimizer: str, *words: str) -> float:
        cfg = compose_config("experiment=toy", f"optimizer={optimizer}", "callbacks.fisher.every_n_steps=1", *words)
        run.execute(cfg)
        table = pd.read_csv(next(Path(cfg.paths.run_dir).rglob("metrics.csv")))
        return float(table["fadam/fim_q99"].dropna().iloc[0])

    plain = logged("fadam", "trial=plain")
    assert logged("fadam", "vary=gradient_scale", "value=0.001") == pytest.approx(1e-6 * plain, rel=1e-4)
    clip, huge = "trainer.gradient_clip_val=0.001", "vary=gradient_scale"
    clipped = logged("fadam_global_clip", clip, "trial=clipped")
    assert 1e-9 < clipped <= 1e-6
    assert logged("fadam_global_clip", clip, huge, "value=1000.0") == pytest.approx(clipped, rel=1e-3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_line_shows_the_loss_of_a_step_whatever_is_accumulated(accumulate: int, capsys) -> None:
    line = ProgressLine("run", "val/loss", every_s=0.0)
    trainer: Any = SimpleNamespace(
        global_step=1, max_steps=4, accumulate_grad_batches=accumulate, callback_metrics={}
    )  # fmt: skip
    line._start = time.monotonic()
    line.on_train_batch_end(trainer, None, {"loss": torch.tensor(8.0) / accumulate}, None, 0)  # type: ignore[arg-type]
    assert "loss 8.000 " in capsys.readouterr().out


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float()])
def test_casting_a_task_leaves_sums_in_double_precision_alone(cast) -> None:
    class Sums(Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

        def update(self) -> None:
            self.sums += 1.0 / 3.0

        def compute(self) -> torch.Tensor:
            return self.sums

    module = ToyModule(ToyModel().double(), torch.optim.SGD, torch.optim.lr_scheduler.LRScheduler)
    module.register_buffer("total", torch.full((1,), 1.0 / 3.0, dtype=torch.float64))
    module.sums = Sums()
    module.sums.update()
    cast(module)
    assert next(module.model.parameters()).dtype != torch.float64
    assert module.total.tolist() == [1.0 / 3.0]
    assert module.sums.sums.tolist() == [1.0 / 3.0] * 2
    module.sums.reset()
    assert module.sums.sums.dtype == torch.float64


def test_schedule_free_is_evaluated_on_its_average(compose_config) -> None:
    seen: list[tuple[str, bool]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append(("train", trainer.optimizers[0].param_groups[0]["train_mode"]))

        def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append(("evaluation", trainer.optimizers[0].param_groups[0]["train_mode"]))

    cfg = compose_config("experiment=toy", "optimizer=schedule_free")
    build = run.build_trainer

    def watched(*words: Any) -> Trainer:
        trainer = build(*words)
        trainer.callbacks.append(Watch())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_trainer", watched)
        run.execute(cfg)
    assert set(seen) == {("train", True), ("evaluation", False)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_without_finite_gradients_is_skipped_or_refused(compose_config, monkeypatch, optimizer: str) -> None:
    words = ("experiment=toy", f"optimizer={optimizer}", "logger=none", "scheduler=constant", "trainer.max_steps=4")

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            after[trainer.global_step] = {k: v.clone() for k, v in pl_module.state_dict().items()}

    after: dict[int, dict[str, torch.Tensor]] = {}
    spoil = Spoil("gradients", 2, math.inf)
    with monkeypatch.context() as patch:
        with_callback(patch, Watch())
        with_callback(patch, spoil)
        record = run.execute(compose_config(*words, "nonfinite_gradients=skip"))
    assert (record["skipped_steps"], record["diverged"], record["steps"]) == (1, False, 4)
    assert all(torch.equal(after[2][name], after[3][name]) for name in after[2])
    assert not all(torch.equal(after[3][name], after[4][name]) for name in after[3])
    with monkeypatch.context() as patch:
        with_callback(patch, spoil)
        with pytest.raises(DivergedError, match=r"of model.net.0.weight is not finite at step 3 \(24 of 24 numbers\)"):
            run.execute(compose_config(*words, "nonfinite_gradients=error", "trial=error"))


def test_skipped_steps_are_counted_over_interruptions(compose_config, monkeypatch) -> None:
    cfg = compose_config("experiment=toy", "logger=none", "nonfinite_gradients=skip")
    with monkeypatch.context() as patch:
        with_callback(patch, Spoil("gradients", 2, math.nan))
        with_callback(patch, Stop(6))
        with pytest.raises(RuntimeError, match="broken off"):
            run.execute(cfg)
    record = run.execute(cfg)
    assert record["skipped_steps"] == 1
    assert record["config"]["nonfinite_gradients"] == "skip"
    kept = run.execute(compose_config("experiment=toy", "logger=none", "trial=kept"))
    assert kept["skipped_steps"] == 0
    assert "nonfinite_gradients" not in kept["config"]
