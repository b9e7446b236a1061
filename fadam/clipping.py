"""Whether somebody clips gradients that FAdam clips anyway."""

from __future__ import annotations

from typing import Any

from fadam.optimizer import FAdam


def inner(optimizer: Any) -> Any:
    """The optimizer itself, out of the wrappers of Lightning and accelerate."""
    while not isinstance(optimizer, FAdam) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def clipped_twice(optimizer: Any, value: float | None, option: str) -> str:
    """A sentence where a trainer clips the gradients of a FAdam that clips inside; else "".

    Args:
        optimizer: any optimizer, also a wrapped one.
        value: what the trainer clips at; None and 0 stand for no clipping, as in Lightning and transformers.
        option: of the trainer, for the sentence.
    """
    found = inner(optimizer)
    if not value or not isinstance(found, FAdam) or all(group["clip"] is None for group in found.param_groups):
        return ""
    return f"gradients are clipped twice: by {option}={value:g} and inside FAdam; leave the first out, or set clip=None"
