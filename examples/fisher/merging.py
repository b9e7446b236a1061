"""Merge two fine-tuned checkpoints: the average weighted by what each one knows of a parameter.

One model is fine-tuned on speeches and on Python code. The merged one is theta = (F_1 theta_1 + F_2 theta_2) / (F_1 +
F_2), elementwise (Matena and Raffel, arXiv:2111.09832, equation 2); with F = 1 this is the plain average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from examples.fisher import common
from examples.fisher.common import Domain, Trained

FINE = 150  # steps of fine-tuning
DOMAINS: tuple[Domain, Domain] = ("speech", "code")


def merge(models: Sequence[Mapping[str, Tensor]], fishers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weighted means of parameters by name."""
    total = {name: torch.stack([f[name] for f in fishers]).sum(0) for name in models[0]}
    parts = [{name: f[name] * m[name] for name in m} for f, m in zip(fishers, models, strict=True)]
    return {name: torch.stack([part[name] for part in parts]).sum(0) / total[name] for name in total}


def run(seed: int, optimizer: str) -> list[dict[str, Any]]:
    """The mean of both domains' test losses after merging, for each method, and `none`: before merging, each domain by
    the other's model."""
    both = torch.cat([common.text(domain, "train") for domain in DOMAINS])
    base = common.train(common.new_model(seed), optimizer, both, seed).model
    tuned: list[Trained] = [
        common.train(base, optimizer, common.text(domain, "train"), seed, steps=FINE) for domain in DOMAINS
    ]
    known = [common.estimates(t, common.text(d, "train"), seed) for t, d in zip(tuned, DOMAINS, strict=True)]
    models = [dict(common.weights(t.model)) for t in tuned]
    rows = []
    for method in common.METHODS:
        fishers = [common.ones(base) if method == "identity" else common.normalised(fims[method]) for fims in known]
        merged = common.with_weights(base, merge(models, fishers))
        losses = [common.held_out_loss(merged, domain) for domain in DOMAINS]
        rows.append({"method": method, "value": sum(losses) / 2, "losses": losses})
    crossed = [common.held_out_loss(t.model, d) for t, d in zip(tuned, reversed(DOMAINS), strict=True)]
    return [*rows, {"method": "none", "value": sum(crossed) / 2, "losses": crossed}]
