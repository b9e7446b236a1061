"""Parameter groups, made only here so that every optimizer gets the same ones, and optimizers that need more."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, _default_to_fused_or_foreach

from experiments.core.errors import ConfigError
from experiments.core.precision import rounded_products
from fadam import FAdam

Decay = Literal["all", "no_norms", "no_embeddings"]

DECAY_CHOICES = ("all", "no_norms", "no_embeddings")


def embedding_parameters(module: nn.Module) -> set[int]:
    """The `id` of every parameter of an embedding, also of one that an output layer shares."""
    return {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}


def parameter_groups(module: nn.Module, decay: Decay) -> list[dict[str, Any]]:
    """The module's trainable parameters, with and without weight decay.

    Args:
        decay: "all" decays every parameter; "no_norms" leaves out norms, biases and other parameters of fewer than
            two dimensions; "no_embeddings" leaves out embeddings as well.

    Returns:
        One or two groups; the second has `weight_decay` 0. A shared parameter appears once.

    Raises:
        ConfigError: `decay` is not one of the choices.
    """
    if decay not in DECAY_CHOICES:
        raise ConfigError(f"module.decay must be one of {', '.join(DECAY_CHOICES)}, got {decay!r}")
    embeddings = embedding_parameters(module)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        spared = decay != "all" and parameter.ndim < 2
        spared = spared or (decay == "no_embeddings" and id(parameter) in embeddings)
        (plain if spared else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}] if decayed else []
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    return groups


def muon(
    groups: list[dict[str, Any]],
    embeddings: Collection[int],
    lr: float = 2e-3,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Optimizer:
    """Muon of `pytorch_optimizer` for the hidden matrices, and AdamW, inside it, for all other parameters.

    Muon's updates are scaled to the size of AdamW's ("use_adjusted_lr"), so that both share `lr` and `weight_decay`.
    It multiplies bfloat16 matrices, see `experiments.core.precision.RoundedProducts`.

    Args:
        groups: parameter groups; one that names a weight decay keeps it.
        embeddings: `id` of the parameters that are no hidden matrices although they have two dimensions or more.
    """
    from pytorch_optimizer import Muon

    split: list[dict[str, Any]] = []
    for group in groups:
        hidden = [p for p in group["params"] if p.ndim >= 2 and id(p) not in embeddings]
        others = [p for p in group["params"] if p.ndim < 2 or id(p) in embeddings]
        common = {"lr": lr, "weight_decay": group.get("weight_decay", weight_decay)}
        if hidden:
            adjusted = {"momentum": momentum, "use_adjusted_lr": True}
            split.append({"params": hidden, "use_muon": True, **common, **adjusted})
        if others:
            split.append({"params": others, "use_muon": False, "betas": tuple(betas), "eps": eps, **common})

    class RoundedMuon(Muon):
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None if closure is None else closure()
            with rounded_products():
                super().step()
            return loss

    made: Optimizer = RoundedMuon(split)
    return made


class AdamAtan2(Optimizer):
    """AdamW whose quotient m / (sqrt(v) + eps) is 4/pi atan2(m, sqrt(v)), which needs no epsilon (arXiv:2407.05872).

    An update is at most 2 lr, and lr where m = sqrt(v), as Adam's; 0 where both are 0.

    Args:
        params: parameters or groups.
        lr, betas, weight_decay: as AdamW's.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self, params: ParamsT, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.01
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                state["step"] += 1
                m, v = state["exp_avg"].lerp_(p.grad, 1 - beta1), state["exp_avg_sq"]
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                one, two = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.atan2(m / one, (v / two).sqrt_()), alpha=-group["lr"] * 4 / math.pi)
        return loss


def path_taken(optimizer: Optimizer) -> str:
    """Which implementation steps the parameters: "fused", "foreach", "single", or "own" of other packages' optimizers.
    Joined by "+" where groups differ. Results of two differ in their last digits.
    """
    if isinstance(optimizer, FAdam):
        paths = {taken.path for by_device in optimizer.paths() for taken in by_device.values()}
    elif not type(optimizer).__module__.startswith("torch.optim"):
        paths = {"own"}
    else:
        paths = {_torch_path(group) for group in optimizer.param_groups}
    return "+".join(sorted(paths))


def _torch_path(group: dict[str, Any]) -> str:
    fused, foreach = group.get("fused"), group.get("foreach")
    if fused is None and foreach is None:
        differentiable = group.get("differentiable", False)
        fused, foreach = _default_to_fused_or_foreach(group["params"], differentiable, use_fused=False)
    return "fused" if fused else "foreach" if foreach else "single"
