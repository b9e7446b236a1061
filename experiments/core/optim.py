"""Parameter groups. They are made here alone, so that every optimizer gets the same ones."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from experiments.core.errors import ConfigError

Decay = Literal["all", "no_norms", "no_embeddings"]

DECAY_CHOICES = ("all", "no_norms", "no_embeddings")


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
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
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
