"""Prune the weights whose loss is estimated to matter least: theta^2 F / 2, against the magnitude, which is F = 1.

That is the second-order change of the loss when one weight is set to 0, with the Fisher information for the Hessian
(LeCun et al., "Optimal Brain Damage", 1989; Theis et al., arXiv:1801.05787). One threshold serves all matrices, and
nothing is trained afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from examples.fisher import common
from examples.fisher.consolidation import first

SPARSITIES = (0.2, 0.4, 0.6, 0.8)


def prune(model: nn.Module, fisher: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Weights by name, that share of all matrices' entries set to 0."""
    values = dict(common.weights(model))
    saliency = {name: w.square() * fisher[name] for name, w in values.items() if w.dim() > 1}
    every = torch.cat([s.flatten() for s in saliency.values()])
    least = every.argsort(stable=True)[: round(sparsity * len(every))]
    kept = torch.ones_like(every, dtype=torch.bool)
    kept[least] = False
    masks = dict(zip(saliency, torch.split(kept, [s.numel() for s in saliency.values()]), strict=True))
    return {name: w * masks[name].view_as(w) if name in masks else w for name, w in values.items()}


def run(seed: int, optimizer: str) -> list[dict[str, Any]]:
    """The test loss over the sparsities for each method, its mean, and `none`: nothing pruned."""
    trained, fishers = first(seed, optimizer)
    rows: list[dict[str, Any]] = []
    for method in common.METHODS:
        curve = [
            common.held_out_loss(common.with_weights(trained.model, prune(trained.model, fishers[method], s)), "speech")
            for s in SPARSITIES
        ]
        rows.append({"method": method, "value": sum(curve) / len(curve), "curve": curve})
    return [*rows, {"method": "none", "value": common.held_out_loss(trained.model, "speech")}]
