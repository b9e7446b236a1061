"""Elastic weight consolidation: learn to write code without forgetting speeches.

While the second domain is learned, lambda / 2 sum_i F_i (theta_i - theta*_i)^2 holds the weights near those that the
first one left (Kirkpatrick et al., arXiv:1612.00796, equation 3). The strength is chosen for each method, on a seed of
its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from examples.fisher import common
from examples.fisher.common import Penalty, Trained

SECOND = 150  # steps on the second domain
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of lambda, F divided by its mean
TUNING_SEED = 0


def penalty(anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor], strength: float) -> Penalty:
    def of(model: nn.Module) -> Tensor:
        pulls = [(fisher[name] * (p - anchor[name]).square()).sum() for name, p in model.named_parameters()]
        return 0.5 * strength * sum(pulls[1:], pulls[0])

    return of


@functools.cache
def first(seed: int, optimizer: str) -> tuple[Trained, dict[str, Mapping[str, Tensor]]]:
    """The model of speeches, and what each method knows of it."""
    trained = common.train(common.new_model(seed), optimizer, common.text("speech", "train"), seed)
    found = common.estimates(trained, common.text("speech", "train"), seed)
    fishers: dict[str, Mapping[str, Tensor]] = {m: common.normalised(f) for m, f in found.items()}
    return trained, {"identity": common.ones(trained.model), **fishers}


def losses(seed: int, optimizer: str, method: str, strength: float, role: common.Role) -> list[float]:
    """Of speeches and code, after both were learned one after the other."""
    trained, fishers = first(seed, optimizer)
    hold = penalty(dict(common.weights(trained.model)), fishers[method], strength) if strength else None
    after = common.train(trained.model, optimizer, common.text("code", "train"), seed, steps=SECOND, penalty=hold).model
    return [common.held_out_loss(after, "speech", role), common.held_out_loss(after, "code", role)]


@functools.cache
def strength(optimizer: str, method: str) -> float:
    """The one with the least mean loss in validation."""
    return min(STRENGTHS, key=lambda s: sum(losses(TUNING_SEED, optimizer, method, s, "val")))


def run(seed: int, optimizer: str) -> list[dict[str, Any]]:
    """The mean of both domains' test losses, for each method, and `none`: without a penalty."""
    before = common.held_out_loss(first(seed, optimizer)[0].model, "speech")
    rows = []
    for method in (*common.METHODS, "none"):
        chosen = 0.0 if method == "none" else strength(optimizer, method)
        speech, code = losses(seed, optimizer, method, chosen, "test")
        row = {"method": method, "value": (speech + code) / 2, "losses": [speech, code], "strength": chosen}
        rows.append(row | {"forgotten": speech - before})
    return rows
