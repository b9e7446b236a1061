"""In which precision matrices are multiplied: of float32 on GPUs, of bfloat16 on CPUs without an instruction for it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_PRODUCTS = frozenset(
    (
        F.linear, F.scaled_dot_product_attention, F.conv1d, F.conv2d, torch.matmul, torch.mm, torch.bmm, torch.addmm,
        torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__,
    )
)  # fmt: skip


class RoundedProducts(TorchFunctionMode):
    """Takes products of bfloat16 tensors on a CPU in float32 and rounds them, and so the gradients of their factors.

    That is what a bfloat16 instruction gives, but for the order of the sums. Where there is none, torch's own products
    of bfloat16 matrices take tens of times as long as those of float32.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (tuple(args), dict(kwargs or {}))
        if func not in _PRODUCTS or not any(map(_is_narrow, tree_leaves(given))):
            return func(*given[0], **given[1])
        out = given[1].pop("out", None)
        args, kwargs = tree_map(lambda x: x.float() if _is_narrow(x) else x, given)
        product = func(*args, **kwargs).bfloat16()
        return product if out is None else out.copy_(product)


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


class RoundedBfloat16(HalfPrecision):
    """Lightning's `bf16-true` with `RoundedProducts`."""

    def __init__(self) -> None:
        super().__init__("bf16-true")

    @contextlib.contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        with super().forward_context(), RoundedProducts():
            yield


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rounded_products() -> contextlib.AbstractContextManager[Any]:
    """`RoundedProducts` where this CPU does not multiply bfloat16 matrices itself."""
    return contextlib.nullcontext() if has_bfloat16() else RoundedProducts()


def precision_of(trainer: DictConfig) -> dict[str, Any]:
    """The Trainer's `precision`, and its plugin where Lightning's own is not taken."""
    if trainer.precision == "bf16-true" and trainer.accelerator == "cpu" and not has_bfloat16():
        return {"precision": None, "plugins": [RoundedBfloat16()]}
    return {"precision": trainer.precision, "plugins": []}


def set_float32_products(trainer: DictConfig) -> None:
    """A run in float32 multiplies in float32; what is left of float32 in another may be TF32 on a GPU."""
    exact = trainer.precision == "32-true"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
