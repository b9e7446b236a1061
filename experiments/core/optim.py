"""Parameter groups, made here alone so that every optimizer gets the same ones, and optimizers that need more."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import _default_to_fused_or_foreach

from experiments.core.errors import ConfigError
from fadam import FAdam
from fadam.backend import choose
from fadam.foreach import ForeachBackend

Decay = Literal["all", "no_norms", "no_embeddings"]

DECAY_CHOICES = ("all", "no_norms", "no_embeddings")


def embedding_parameters(module: nn.Module) -> set[int]:
    """The `id` of every parameter of an embedding, those that an output layer shares included."""
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
    decayed, plain = [], []
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
    made: Optimizer = Muon(split)
    return made


def path_taken(optimizer: Optimizer) -> str:
    """Which implementation steps the parameters: "fused", "foreach", "for-loop", or "own" of other packages'.
    Joined by "+" where groups differ. The results of two differ in the last digits.
    """
    paths = set()
    for group in optimizer.param_groups:
        params = [p for p in group["params"] if p in optimizer.state and p.numel()]
        if params:
            paths.add(_group_path(optimizer, group, params))
    return "+".join(sorted(paths))


def _group_path(optimizer: Optimizer, group: dict[str, Any], params: list[Tensor]) -> str:
    fused, foreach = group.get("fused"), group.get("foreach")
    if isinstance(optimizer, FAdam):
        tensors, grads, momentums, fims = (
            [t.to_local() if isinstance(t, DTensor) else t for t in some]
            for some in (
                [p.detach() for p in params],
                [torch.zeros_like(p) if p.grad is None else p.grad for p in params],
                [optimizer.state[p]["momentum"] for p in params],
                [optimizer.state[p]["fim"] for p in params],
            )
        )
        steps = [optimizer.state[p]["step"] for p in params]
        chosen = choose(
            tensors, grads, momentums, fims, steps,
            foreach=foreach, fused=fused, differentiable=group["differentiable"], options=group,
        )  # fmt: skip
        return {None: "for-loop", ForeachBackend: "foreach"}.get(chosen, "fused")  # type: ignore[arg-type]
    if not type(optimizer).__module__.startswith("torch.optim"):
        return "own"
    if fused is None and foreach is None:
        fused, foreach = _default_to_fused_or_foreach(params, group.get("differentiable", False), use_fused=False)
    return "fused" if fused else "foreach" if foreach else "for-loop"
