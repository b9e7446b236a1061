"""The Triton kernels of `fadam.fused` on CPU tensors, one program after another in numpy, by Triton's interpreter.

The interpreter is chosen where a kernel is decorated, so a second copy of the kernels' module is loaded with it
switched on, and everything else in the process goes on with the real compiler.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from fadam.fused import cuda, cuda_kernels


@cache
def interpreted_kernels() -> Any:
    spec = importlib.util.spec_from_file_location("interpreted_kernels", cuda_kernels.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
        spec.loader.exec_module(module)
    # Functions that kernels call would each make the interpreter patch the language anew.
    for name, function in vars(module).copy().items():
        if isinstance(function, interpreter.InterpretedFunction) and name.startswith("_"):
            setattr(module, name, function.rewrite())
    return module


def _index(self: Any) -> int:
    return int(self.handle.data.item())


def _patch_tensor(tensor: Any, scope: Any, original: Any = interpreter._patch_lang_tensor) -> None:
    """Since numpy 2.4 an array of one element is no index any more, which Triton 3.6 takes it for."""
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", _index)


def _convert_float(x: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """float32 to bfloat16 and back. Triton 3.6's own rounds down, and knows no infinities."""
    if target == tl.bfloat16:
        rounded = torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)
    assert source == tl.bfloat16
    return torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(torch.bfloat16).float().numpy()


@contextmanager
def interpreted() -> Iterator[None]:
    """Within it, `fadam.fused.cuda` steps CPU tensors."""
    with (
        mock.patch.object(cuda, "kernels", interpreted_kernels()),
        mock.patch.object(interpreter, "_patch_lang_tensor", _patch_tensor),
        mock.patch.object(interpreter, "_convert_float", _convert_float),
        # Compiled in the standard library of Triton; this is what they are made of.
        mock.patch.object(tl, "sum", lambda x, axis: tl.reduce(x, axis, tl.standard._sum_combine)),
        np.errstate(all="ignore"),
    ):
        yield
