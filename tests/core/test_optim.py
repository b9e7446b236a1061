"""Parameter groups, and the path that an optimizer takes."""

from __future__ import annotations

import pytest
from torch import nn

from experiments.core import run
from experiments.core.optim import embedding_parameters, muon, parameter_groups


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
