"""Parameter groups, the path that an optimizer takes, and the optimizers of other packages on each task."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.core import run
from experiments.core.optim import AdamAtan2, embedding_parameters, muon, parameter_groups
from tests.core.test_run import break_off_at, weights

OTHERS = ("adam_atan2", "ademamix", "lion", "mars", "muon", "prodigy", "schedule_free", "soap")
SMALL = {
    "asr_cpu": ("model.dim=16", "model.layers=1", "model.heads=2", "model.kernel=3"),
    "llm_cpu": ("data.length=16", "data.batch_size=2", "model.dim=16", "model.layers=1", "model.heads=2",
                "model.ffn_dim=32"),
    "vqvae_cpu": ("data.batch_size=2",),
}  # fmt: skip


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


@pytest.mark.parametrize("experiment", SMALL)
def test_each_steps_on_each_task(compose_config, experiment: str) -> None:
    for optimizer in OTHERS:
        cfg = compose_config(f"experiment={experiment}", f"optimizer={optimizer}", *SMALL[experiment])
        module = run.build_module(cfg)
        stepper = module.build_optimizer()
        before = [p.detach().clone() for p in module.parameters()]
        for _ in range(2):  # some only look at the first gradient
            stepper.zero_grad()
            module.probe(cfg.data).backward()
            stepper.step()
        after = list(module.parameters())
        assert all(bool(p.isfinite().all()) for p in after), optimizer
        assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True)), optimizer


@pytest.mark.parametrize("optimizer", OTHERS)
def test_an_interrupted_run_goes_on_exactly(
    compose_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, optimizer: str
) -> None:
    words = ("experiment=toy", f"optimizer={optimizer}", "logger=none", "progress=line")
    whole = compose_config(*words, "trial=whole")
    expected = run.execute(whole)
    cfg = compose_config(*words)
    with monkeypatch.context() as patch:
        break_off_at(patch, 5)
        with pytest.raises(RuntimeError, match="broken off"):
            run.execute(cfg)
    found = run.execute(cfg)
    assert found["metrics"] == expected["metrics"]
    ours, theirs = (weights(Path(c.paths.run_dir)) for c in (cfg, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_arctangent_step_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = AdamAtan2([weight], lr=0.1, betas=(0.5, 0.75), weight_decay=0.2)
    expected = [1.0, -2.0, 3.0]
    moments = [[0.0, 0.0] for _ in expected]
    for t, gradient in enumerate(([1e-3, 4.0, 0.0], [2e-3, -1.0, 0.0]), start=1):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        for i, g in enumerate(gradient):
            m, v = 0.5 * moments[i][0] + 0.5 * g, 0.75 * moments[i][1] + 0.25 * g * g
            moments[i] = [m, v]
            ratio = math.atan2(m / (1 - 0.5**t), math.sqrt(v / (1 - 0.75**t)))
            expected[i] = expected[i] * (1 - 0.1 * 0.2) - 0.1 * 4 / math.pi * ratio
    assert weight.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("options", "said"), [({"lr": -1.0}, "lr"), ({"betas": (0.9, 1.0)}, "betas")])
def test_the_arctangents_options_are_checked(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AdamAtan2([nn.Parameter(torch.ones(1))], **options)  # type: ignore[arg-type]
