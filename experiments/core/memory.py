"""What training takes of a GPU's memory, counted on tensors without memory: neither a GPU nor much RAM is needed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from multiprocessing.connection import Connection
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from experiments.core.module import TaskModule
from experiments.core.sharding import Gather, Layout

FLOAT = 4  # bytes of a weight, a gradient sum and, unless an option says otherwise, an entry of state


@dataclass
class Part:
    """A part of the model, or what is gathered while it works. All numbers but `parameters` are those of one GPU.

    Attributes:
        parameters: of the whole model's part.
        local: parameters that the first process keeps; each has a weight, a gradient and state.
        weights, gradients, activations: bytes.
    """

    name: str
    parameters: int = 0
    local: int = 0
    weights: int = 0
    gradients: int = 0
    activations: int = 0


def local_elements(parameter: Tensor, shards: int) -> int:
    """What FSDP2 leaves of a parameter on the first process, and pads it to on the others."""
    return ceil(parameter.shape[0] / shards) * (parameter.numel() // max(1, parameter.shape[0]))


def state_bytes(make: Callable[..., torch.optim.Optimizer]) -> float:
    """Bytes of an optimizer's state an element of a float32 parameter, found by a step of a small one.

    What is not of the parameter's shape, such as a step count, is left out.
    """
    parameter = nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.ones_like(parameter)
    optimizer = make([parameter])
    optimizer.step()
    state = optimizer.state[parameter].values()
    return float(sum(s.element_size() for s in state if isinstance(s, Tensor) and s.shape == parameter.shape))


class FusedKernels(TorchFunctionMode):
    """Attention by the fused kernels that a GPU takes, which keep their inputs, their output and a number a row."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self.attend(*args, **(kwargs or {}))

    @staticmethod
    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if enable_gqa:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        if attn_mask is None:
            result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal)
        else:
            bias = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])  # (B, heads, N, N), a view
            result = torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, bias, True, dropout_p, is_causal
            )
        out: Tensor = result[0]
        return out


@dataclass
class Kept:
    """Bytes of what autograd keeps, by the module that is running; each storage counts once, weights do not."""

    weights: set[int]
    by_part: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)
    seen: dict[int, Any] = field(default_factory=dict)
    running: list[str] = field(default_factory=lambda: [""])

    def pack(self, tensor: Tensor) -> None:
        """Count the tensor and let it go: there is no backward pass."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights and storage._cdata not in self.seen:
            self.seen[storage._cdata] = storage  # held, so that no other takes its place
            name = self.running[-1]
            self.by_part[name] = self.by_part.get(name, 0) + storage.nbytes()

    def watch(self, name: str, module: nn.Module) -> None:
        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.running.append(name)
            self.inputs[name] = sum(x.nbytes for x in args if isinstance(x, Tensor) and x.is_floating_point())

        def leave(*_: Any) -> None:
            self.running.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    # torch.autocast turns itself off where there is no GPU.
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_cache_enabled()
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.set_autocast_cache_enabled(before[2])


def _never(_: Any) -> Tensor:
    raise AssertionError("there is no backward pass here")


def count_kept(module: TaskModule, names: dict[nn.Module, str], data: DictConfig, autocast: bool) -> Kept:
    """Run the forward pass of one training step. `module` lies on a fake GPU, see `count`."""
    kept = Kept({p.untyped_storage()._cdata for p in module.parameters()})
    for part, name in names.items():
        kept.watch(name, part)
    module.train()
    with _autocast(autocast), FusedKernels(), torch.autograd.graph.saved_tensors_hooks(kept.pack, _never):
        module.probe(data)
    return kept


def count(
    build: Callable[[], TaskModule],
    data: DictConfig,
    shards: int = 1,
    gather: Gather = "float32",
    autocast: bool = False,
    recompute: bool = False,
) -> list[Part]:
    """The parts of a model and what each takes of one GPU, counted in a process of its own.

    With torch 2.11 the interpreter may crash when it collects what a forward pass on fake tensors has left behind; so
    that pass runs where nothing is collected and from where only the numbers come back.

    Args:
        build: makes the module; called where tensors have no memory.
        data: the experiment's `data` config, which says how large a micro-batch is.
        shards: processes that share the weights; 1 if each holds them all.
        gather, recompute: see `experiments.core.sharding.FullySharded`.
        autocast: bfloat16 arithmetic.

    Raises:
        RuntimeError: the process ended without an answer.
        Exception: whatever `build` raises.
    """
    context = multiprocessing.get_context("fork")  # `build` need not be picklable
    receiver, sender = context.Pipe(duplex=False)
    words = (sender, build, data, shards, gather, autocast, recompute)
    process = context.Process(target=_answer, args=words, daemon=True)
    process.start()
    sender.close()
    try:
        answer: list[Part] | Exception = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"counting memory ended with status {process.exitcode} and no answer") from None
    process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(sender: Connection, *words: Any) -> None:
    gc.disable()
    try:
        sender.send(_count(*words))
    except Exception as error:
        sender.send(error)
    sender.close()
    os._exit(0)  # without the collection at the end


def _count(
    build: Callable[[], TaskModule], data: DictConfig, shards: int, gather: Gather, autocast: bool, recompute: bool
) -> list[Part]:
    # Compiled for a GPU, a model would need one.
    eager = torch.compiler.set_stance("force_eager")
    with FakeTensorMode(), torch.device("cuda"), eager, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # by torchmetrics
        module = build()
        layout: Layout = module.model.layout()  # type: ignore[operator]
        names = {m: name for name, m in module.model.named_modules()}
        if autocast and gather == "bfloat16":
            for part in (m for block in layout.blocks for m in block.modules()):
                for name, parameter in list(part.named_parameters(recurse=False)):
                    part.register_parameter(name, nn.Parameter(parameter.detach().to(torch.bfloat16)))
        taken = {m: names[m] for m in (*layout.units, *layout.replicated, *layout.blocks)}
        kept = count_kept(module, taken, data, autocast)

        found: dict[str, Part] = {}
        assigned: set[nn.Parameter] = set()

        def add(group: str, modules: list[nn.Module], cut: int) -> None:
            part = found.setdefault(group, Part(group))
            for m in modules:
                for p in m.parameters():
                    if p in assigned:
                        continue
                    assigned.add(p)
                    part.parameters += p.numel()
                    part.local += local_elements(p, cut)
                part.activations += (
                    kept.inputs[taken[m]] if recompute and m in blocks else kept.by_part.get(names[m], 0)
                )
            part.weights = part.gradients = FLOAT * part.local

        blocks = set(layout.blocks)
        for unit in layout.units:
            add(names[unit], [unit], shards)
        groups: dict[str, list[nn.Module]] = {}
        for block in layout.blocks:
            groups.setdefault(names[block].rpartition(".")[0], []).append(block)
        for group, members in groups.items():
            add(f"{group} x {len(members)}", members, shards)
        for m in layout.replicated:
            add(f"{names[m]} (on each GPU)", [m], 1)
        rest = found.setdefault("the rest, loss", Part("the rest, loss"))
        root = [p for p in module.model.parameters() if p not in assigned]
        rest.parameters = sum(p.numel() for p in root)
        rest.local = sum(local_elements(p, shards) for p in root)
        rest.weights = rest.gradients = FLOAT * rest.local
        rest.activations = kept.by_part.get("", 0)
        parts = list(found.values())
        largest = max((sum(p.numel() for p in b.parameters()) for b in blocks), default=0)
        widest = max((sum(p.numel() for p in u.parameters()) for u in layout.units), default=0)
        busiest = max((kept.by_part.get(names[b], 0) for b in blocks), default=0)
        if shards > 1:
            size = 2 if gather == "bfloat16" else FLOAT
            parts.append(
                Part(
                    "gathered at once",
                    # Two blocks, of which one is fetched ahead, or a unit; beside the rest, which stays. A gradient
                    # lies there as computed and as float32 to be summed.
                    weights=max(2 * size * largest, FLOAT * widest) + FLOAT * rest.parameters,
                    gradients=max((size + FLOAT) * largest, 2 * FLOAT * widest),
                )
            )
        if recompute:
            parts.append(Part("a block recomputed", activations=busiest))
    return parts
