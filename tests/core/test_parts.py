"""Sampler, schedule, parameter groups, and what single optimizers need."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import nn

from experiments.core import run
from experiments.core.callbacks import GradientScale
from experiments.core.data import StepBatchSampler
from experiments.core.errors import ConfigError, DataError, DivergedError
from experiments.core.optim import embedding_parameters, muon, parameter_groups
from experiments.core.schedule import warmup_decay
from tests.conftest import CONFIGS
from tests.core.test_run import Spoil, Stop, with_callback

OPTIMIZERS = sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml"))


def epoch_batches(epoch: int) -> list[list[int]]:
    return [[10 * epoch + k, 10 * epoch + k + 5] for k in range(5)]


def test_sampler_runs_through_epochs_and_resumes_anywhere() -> None:
    whole = list(StepBatchSampler(epoch_batches, steps=12))
    assert whole == [*epoch_batches(0), *epoch_batches(1), *epoch_batches(2)[:2]]
    for start in range(13):
        assert list(StepBatchSampler(epoch_batches, steps=12, start=start)) == whole[start:]


def test_sampler_shares_an_epoch_among_processes_without_overlap() -> None:
    parts = [list(StepBatchSampler(epoch_batches, steps=4, rank=rank, world_size=2)) for rank in range(2)]
    assert parts[0] == [epoch_batches(0)[0], epoch_batches(0)[2], epoch_batches(1)[0], epoch_batches(1)[2]]
    assert parts[1] == [epoch_batches(0)[1], epoch_batches(0)[3], epoch_batches(1)[1], epoch_batches(1)[3]]


@pytest.mark.parametrize(
    ("options", "named"), [({"steps": 0}, "steps"), ({"start": 9}, "start"), ({"rank": 1}, "rank")]
)
def test_sampler_options(options: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        StepBatchSampler(epoch_batches, **({"steps": 8} | options))


def test_sampler_with_too_few_batches() -> None:
    with pytest.raises(DataError, match="fewer than the 6 processes"):
        list(StepBatchSampler(epoch_batches, steps=1, rank=0, world_size=6))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, *(0.1 + 0.45 * (1 + math.cos(math.pi * k / 4)) for k in range(5))]),
    ],
)
def test_schedule(shape, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_decay(optimizer, total_steps=6, warmup_steps=2, shape=shape, final_ratio=0.1)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([2.0 * e for e in expected])


def model() -> nn.Module:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    net[3].weight = net[0].weight  # tied
    net[1].bias.requires_grad_(False)
    return net


@pytest.mark.parametrize(("decay", "decayed", "plain"), [("all", 5, 0), ("no_norms", 2, 3), ("no_embeddings", 1, 4)])
def test_parameter_groups(decay, decayed: int, plain: int) -> None:
    groups = parameter_groups(model(), decay)
    counts = {group.get("weight_decay"): len(group["params"]) for group in groups}
    assert counts == {k: v for k, v in {None: decayed, 0.0: plain}.items() if v}


def test_muon_takes_the_hidden_matrices_and_no_embedding() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(7, 4), "hidden": nn.Linear(4, 6), "norm": nn.LayerNorm(6)})
    groups = parameter_groups(model, "no_norms")
    optimizer = muon(groups, embedding_parameters(model), lr=0.01, weight_decay=0.1)
    shapes = {
        (group["use_muon"], group["weight_decay"]): [tuple(p.shape) for p in group["params"]]
        for group in optimizer.param_groups
    }
    assert shapes == {(True, 0.1): [(6, 4)], (False, 0.1): [(7, 4)], (False, 0.0): [(6,), (6,), (6,)]}
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


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


@pytest.mark.parametrize(
    ("optimizer", "words", "path"),
    [
        ("fadam", ["+optimizer.foreach=true"], "foreach"),
        ("fadam", ["+optimizer.foreach=false"], "single"),
        ("fadam_fixed_eps", ["+optimizer.fused=false"], "single"),
        ("fadam_gradient_momentum", [], "single"),
        ("fadam", ["+optimizer.fused=false"], "single"),
        ("adamw", [], "single"),
        ("adamw", ["+optimizer.foreach=true"], "foreach"),
        ("adamw", ["+optimizer.fused=true"], "fused"),
        ("lion", [], "own"),
        ("muon", [], "own"),
    ],
)
def test_records_name_the_path_taken(compose_config, optimizer: str, words: list[str], path: str) -> None:
    cfg = compose_config("experiment=toy", "logger=none", f"optimizer={optimizer}", *words)
    assert run.execute(cfg)["optimizer_path"] == path
