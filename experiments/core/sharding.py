"""FSDP2 through Lightning's ModelParallelStrategy: weights, gradients and optimizer state cut over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.utils.checkpoint import checkpoint

from experiments.core.errors import ConfigError

Gather = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Layout:
    """Where a model is cut.

    Attributes:
        root: what is called with the whole batch; takes the parameters that nothing below takes.
        blocks: the repeated layers. Each is gathered, freed and, on request, recomputed and compiled by itself.
        units: further modules that are gathered by themselves, such as token matrices.
        replicated: modules whose own parameters stay whole on every process, because they are written to outside the
            optimizer. They read and write them through `whole`.
    """

    root: nn.Module
    blocks: Sequence[nn.Module]
    units: Sequence[nn.Module] = ()
    replicated: Sequence[nn.Module] = ()


class Shardable(Protocol):
    """A model that can be trained sharded."""

    def layout(self) -> Layout: ...


class _Averaged(torch.autograd.Function):
    """A replicated tensor as a plain one; its gradient is the mean over processes.

    In the graph, because a hook on the parameter is lost when its module is moved to a device.
    """

    @staticmethod
    def forward(ctx: Any, tensor: DTensor) -> Tensor:
        ctx.mesh = tensor.device_mesh
        local = tensor.to_local()
        return local.view_as(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        mesh = ctx.mesh
        parts = DTensor.from_local(gradient / mesh.size(), mesh, [Partial()] * mesh.ndim, run_check=False)
        return parts.redistribute(placements=[Replicate()] * mesh.ndim)


def whole(tensor: Tensor) -> Tensor:
    """A replicated parameter, or the optimizer's state of one, as a plain tensor that shares its memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.requires_grad and torch.is_grad_enabled():
        averaged: Tensor = _Averaged.apply(tensor)  # type: ignore[no-untyped-call]
        return averaged
    return tensor.to_local()


def _replicate(module: nn.Module, mesh: DeviceMesh) -> None:
    """Keep the module's own parameters whole on every process; `whole` sees to their gradients."""
    placements = [Replicate()] * mesh.ndim
    for name, parameter in list(module.named_parameters(recurse=False)):
        copies = nn.Parameter(
            distribute_tensor(parameter.detach().to(mesh.device_type), mesh, placements), parameter.requires_grad
        )
        module.register_parameter(name, copies)


def shard(
    model: Shardable,
    mesh: DeviceMesh,
    gather: Gather = "float32",
    reshard_after_forward: bool = True,
    recompute: bool = False,
    compile_blocks: bool = False,
) -> None:
    """Cut a model over a mesh, in place. A second call does nothing.

    All processes must hold the same weights: each keeps its part of its own copy.

    Args:
        model: see `Layout`.
        mesh: of one dimension, over which parameters are sharded; or of two, replicas and shards.
        gather: dtype in which the blocks' weights are gathered and used; the rest, and every gradient sum, is float32.
        reshard_after_forward, recompute, compile_blocks: see `FullySharded`.

    Raises:
        ConfigError: the model keeps running statistics, which would differ between processes.
    """
    assert isinstance(model, nn.Module)
    if any(isinstance(p, DTensor) for p in model.parameters()):
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"sharded training needs norms without running statistics, got a batch norm, {name}; "
                "the Conformer has model.norm=layer"
            )
    layout = model.layout()
    for module in layout.replicated:
        _replicate(module, mesh)
    ignored = {p for module in layout.replicated for p in module.parameters(recurse=False)}
    for block in layout.blocks:
        if compile_blocks:
            block.forward = torch.compile(block.forward)
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        # The residual stream stays as autocast leaves it, in float32, as on one device.
        policy = MixedPrecisionPolicy(getattr(torch, gather), torch.float32, cast_forward_inputs=False)
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    for unit in layout.units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(layout.root, mesh=mesh, ignored_params=ignored)


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2: all processes share the data, and the layout says what is sharded.

    `TaskModule.configure_model` calls `shard`. Checkpoints are single files, assembled on the first process: they load
    with `weights_only`, on any number of processes and on one device, which the sharded kind's pickled index does not.

    Args:
        gather: dtype in which blocks' weights are gathered, "float32" or "bfloat16"; the latter with
            `precision: bf16-mixed`, which would cast them anyway. Weights, gradient sums and state are float32.
        reshard_after_forward: free a block's gathered weights after its forward pass, and gather them again for the
            backward pass: less memory, half as much communication again.
        recompute: activation checkpointing of each block.
        compile_blocks: `torch.compile` each block.
        replicate_nodes: shard within a node and replicate over the nodes, so that only gradients leave a node.
        process_group_backend: nccl on GPUs and gloo on CPUs if None.
        timeout_minutes: of a collective.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        gather: Gather = "float32",
        reshard_after_forward: bool = True,
        recompute: bool = False,
        compile_blocks: bool = False,
        replicate_nodes: bool = False,
        process_group_backend: str | None = None,
        timeout_minutes: float = 30.0,
    ) -> None:
        if gather not in ("float32", "bfloat16"):
            raise ConfigError(f"trainer.strategy.gather must be float32 or bfloat16, got {gather!r}")
        if not timeout_minutes > 0.0:
            raise ConfigError(f"trainer.strategy.timeout_minutes must be above 0, got {timeout_minutes}")
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.gather, self.reshard_after_forward = gather, reshard_after_forward
        self.recompute, self.compile_blocks, self.replicate_nodes = recompute, compile_blocks, replicate_nodes
        self._mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        # Lightning's "auto" makes tensor parallelism of the processes of a node.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def mesh(self) -> DeviceMesh:
        """One dimension, of shards; with `replicate_nodes`, two: replicas and shards."""
        if self._mesh is None:
            self._mesh = self.device_mesh["data_parallel"]
            if self.replicate_nodes:
                shape = (self.num_nodes, self.num_processes)
                self._mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicas", "shards"))
        return self._mesh

    def shard(self, model: Shardable) -> None:
        precision = str(self.precision_plugin.precision)
        if precision not in ("32-true", "bf16-mixed"):
            raise ConfigError(
                "trainer.precision must be 32-true or bf16-mixed where training is sharded: weights and their sums "
                f"stay float32, got {precision}"
            )
        if self.gather == "bfloat16" and precision != "bf16-mixed":
            raise ConfigError(f"trainer.strategy.gather=bfloat16 needs trainer.precision=bf16-mixed, got {precision}")
        shard(model, self.mesh, self.gather, self.reshard_after_forward, self.recompute, self.compile_blocks)
