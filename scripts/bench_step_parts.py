"""The parts of scripts.bench_step: parameter sets, optimizers, and what is measured in processes of its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.bench_step_table import BASE, OURS, PORT, Row

ROOT = Path(__file__).resolve().parents[1]
Shapes = list[tuple[int, ...]]


# ---- the parameter sets ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ParameterSet:
    title: str
    shapes: Callable[[], Shapes]
    rounds: int
    fused_only: bool = False  # on a CPU, where the others would take minutes
    dtype: torch.dtype = torch.float32  # of weights and gradients


def shapes_of(model: nn.Module) -> Shapes:
    return [tuple(p.shape) for p in model.parameters()]


def gpt2_shapes() -> Shapes:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        return shapes_of(GPT2LMHeadModel(GPT2Config()))


def configured(*overrides: str) -> Callable[[], Shapes]:
    """Shapes of the model that an experiment of ours trains."""

    def shapes() -> Shapes:
        from hydra import compose, initialize_config_dir
        from hydra.utils import instantiate

        from experiments.core import resolvers as resolvers

        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose("train", overrides=list(overrides))
        with torch.device("meta"):
            return shapes_of(instantiate(cfg.model))

    return shapes


SETS = {
    "gpt2": ParameterSet("GPT-2 124M", gpt2_shapes, rounds=25),
    "llama": ParameterSet("Llama 1B (llm_paper)", configured("experiment=llm_paper"), rounds=9, fused_only=True),
    "conformer_s": ParameterSet(
        "Conformer (conformer_s)", configured("experiment=asr_cpu", "model=conformer_s"), rounds=50
    ),
    "conformer_cpu": ParameterSet("Conformer (asr_cpu)", configured("experiment=asr_cpu"), rounds=200),
    "gpt2_bf16": ParameterSet("GPT-2 124M in bfloat16", gpt2_shapes, rounds=15, dtype=torch.bfloat16),
    "conformer_s_bf16": ParameterSet(
        "Conformer (conformer_s) in bfloat16",
        configured("experiment=asr_cpu", "model=conformer_s"),
        rounds=25,
        dtype=torch.bfloat16,
    ),
    "tiny": ParameterSet("tiny, for tests", lambda: [(64, 32), (32,), (1, 2)], rounds=4),
}
DEFAULT_SETS = ("gpt2", "llama", "conformer_s", "conformer_cpu", "gpt2_bf16", "conformer_s_bf16")


# ---- the optimizers -------------------------------------------------------------------------------------------------
class Reference:
    """fadam.reference, tensor by tensor."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        from fadam.reference import State

        self.params = params
        self.states = [State.initial(p.detach()) for p in params]

    @torch.no_grad()
    def step(self) -> None:
        from fadam.reference import reference_step

        for i, p in enumerate(self.params):
            assert p.grad is not None
            theta, self.states[i] = reference_step(p, p.grad, self.states[i])
            p.copy_(theta)


def adamw(**options: Any) -> Callable[[list[nn.Parameter]], Any]:
    return lambda params: torch.optim.AdamW(params, **options)


def fadam(**options: Any) -> Callable[[list[nn.Parameter]], Any]:
    def build(params: list[nn.Parameter]) -> Any:
        from fadam import FAdam

        # As the port's, whatever the parameters are.
        return FAdam(params, momentum_dtype="float32", fim_dtype="float32", **options)

    return build


def port(params: list[nn.Parameter]) -> Any:
    from pytorch_optimizer import FAdam

    return FAdam(params)


@dataclass(frozen=True)
class Contestant:
    """An optimizer; `yardstick` is the bytes a parameter that its algorithm has to move, and `copies` an upper bound of
    what it holds beside weights and gradients, in parameters, at its peak."""

    build: Callable[[list[nn.Parameter]], Any]
    yardstick: int
    copies: float
    slow: bool = False
    gradient: float = 1e-3


CONTESTANTS = {
    "AdamW for": Contestant(adamw(foreach=False), 28, 2.5, slow=True),
    "AdamW foreach": Contestant(adamw(foreach=True), 28, 3.0, slow=True),
    BASE: Contestant(adamw(fused=True), 28, 2.0),
    "FAdam for": Contestant(fadam(foreach=False, fused=False), 44, 3.0, slow=True),
    "FAdam foreach": Contestant(fadam(foreach=True, fused=False), 44, 5.0, slow=True),
    OURS: Contestant(fadam(fused=True), 44, 2.0),
    "FAdam fused, eps_t < eps": Contestant(fadam(fused=True), 44, 2.0, gradient=1e-8),
    PORT: Contestant(port, 44, 5.0, slow=True),
    "reference": Contestant(Reference, 44, 5.0, slow=True),
}


# ---- tensors --------------------------------------------------------------------------------------------------------
def filled(
    shapes: Shapes, device: torch.device, deviation: float, seed: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Normal numbers; beyond a few million they repeat, since drawing them would take longer than the benchmark."""
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(1 << 22, generator=generator) * deviation).to(device, dtype)
    tensors = [torch.empty(shape, device=device, dtype=dtype) for shape in shapes]
    for x in tensors:
        for part in x.view(-1).split(len(block)):
            part.copy_(block[: len(part)])
    return tensors


def parameters(values: Sequence[Tensor], grads: Sequence[Tensor]) -> list[nn.Parameter]:
    params = [nn.Parameter(x) for x in values]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return params


def reason_of(error: BaseException) -> str:
    """The first sentence of its message."""
    return re.split(r"(?<=\w[.!?])\s|\n", str(error).strip())[0] or type(error).__name__


def available_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return math.inf


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return (values[0],) * 3
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), low, high


# ---- memory, operators and launches ---------------------------------------------------------------------------------
class Operators(TorchDispatchMode):
    """Counts the operators that Python hands to torch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def resident(key: str) -> int:
    """VmRSS or VmHWM, its peak, of this process in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def give_memory_back() -> None:
    """From now on what this process frees goes back to the system at once, as far as its C library is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
            libc.mallopt(option, 1 << 16)
        libc.malloc_trim(0)


def probe_cpu(name: str, shapes: Shapes, dtype: torch.dtype) -> Row:
    """In a process of its own: bytes held beside weights and gradients at the peak, and operators of a later step."""
    give_memory_back()
    torch.set_num_threads(1)
    device, contestant = torch.device("cpu"), CONTESTANTS[name]
    small = contestant.build(parameters(filled([(8, 8)], device, 0.02, 0), filled([(8, 8)], device, 1e-3, 1)))
    small.step()  # libraries and compiled code are loaded now
    params = parameters(filled(shapes, device, 0.02, 0, dtype), filled(shapes, device, contestant.gradient, 1, dtype))
    row: Row = {"memory": None}
    with contextlib.suppress(OSError, StopIteration):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        row["memory"] = -resident("VmRSS")
    optimizer = contestant.build(params)
    for _ in range(2):
        optimizer.step()
    if row["memory"] is not None:
        row["memory"] += resident("VmHWM")
    with Operators() as operators:  # type: ignore[no-untyped-call]
        optimizer.step()
    return row | {"operators": operators.count}


def probe_cuda(name: str, shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Row:
    """Bytes held beside weights and gradients at the peak, operators and kernel launches of a later step."""
    contestant = CONTESTANTS[name]
    params = parameters(filled(shapes, device, 0.02, 0, dtype), filled(shapes, device, contestant.gradient, 1, dtype))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    optimizer = contestant.build(params)
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize(device)
    row: Row = {"memory": torch.cuda.max_memory_allocated(device) - before}
    with Operators() as operators:  # type: ignore[no-untyped-call]
        optimizer.step()
    row["operators"] = operators.count
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for _ in range(2):  # the first one may miss what runs while tracing starts
        with torch.profiler.profile(activities=activities) as trace:
            optimizer.step()
            torch.cuda.synchronize(device)
    on_device = [
        e.name for e in trace.events() if e.device_type.name == "CUDA" and not getattr(e, "is_user_annotation", False)
    ]
    copies = sum(kind.startswith(("Memcpy", "Memset")) for kind in on_device)
    return row | {"launches": len(on_device) - copies, "copies": copies}


def fresh_processes() -> ProcessPoolExecutor:
    """A process for each call, forked from a clean one that has torch loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "fadam", "pytorch_optimizer"])
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)


def probes(
    chosen: ParameterSet, shapes: Shapes, device: torch.device, advance: Callable[[str], None]
) -> dict[str, Row]:
    """What every optimizer holds and how much it calls, where it has room beside nothing else."""
    found: dict[str, Row] = {}
    count = sum(math.prod(shape) for shape in shapes)
    with fresh_processes() as pool:
        for name, contestant in CONTESTANTS.items():
            advance(f"memory: {name}")
            if chosen.fused_only and device.type == "cpu":
                continue  # the timed ones would need the memory twice
            if 4 * count * (2 + contestant.copies) > 0.95 * available_memory(device):
                continue
            try:
                if device.type == "cpu":
                    found[name] = pool.submit(probe_cpu, name, shapes, chosen.dtype).result()
                else:
                    found[name] = probe_cuda(name, shapes, device, chosen.dtype)
            except Exception as error:  # what cannot step at all says so where it is to be timed
                found[name] = {"not_probed": reason_of(error)}
            finally:
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    return found


# ---- import and sharding --------------------------------------------------------------------------------------------
IMPORT = """
import time
a = time.perf_counter()
import torch
b = time.perf_counter()
import fadam
print(b - a, time.perf_counter() - b)
"""


def import_time(repeats: int, advance: Callable[[str], None]) -> Row:
    """Milliseconds of `import torch` and of `import fadam` after it, in fresh processes."""
    pairs = []
    for number in range(repeats + 1):
        advance(f"import {number} of {repeats}")
        done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True)
        pairs.append([1000 * float(x) for x in done.stdout.split()])
    pairs = pairs[1:] or pairs  # the first one may write bytecode
    median, low, high = spread([b for _, b in pairs])
    return {
        "torch_ms": statistics.median(a for a, _ in pairs),
        "added_ms": median,
        "added_ms_q1": low,
        "added_ms_q3": high,
        "pairs_ms": pairs,
    }


WORLD = 2
SHARDED = ("AdamW foreach", BASE, "FAdam for", "FAdam foreach", OURS, PORT)


def sharded_worker(rank: int, folder: str, shapes: Shapes) -> None:
    """Collectives of a step on parameters sharded over two processes, as fully_shard shards them."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=180)
    )
    mesh = init_device_mesh("cpu", (WORLD,))
    cpu = torch.device("cpu")
    found: dict[str, Row] = {}
    for name in SHARDED:
        try:
            weights, grads = filled(shapes, cpu, 0.02, 0), filled(shapes, cpu, 1e-3, 1)
            split = [[distribute_tensor(x, mesh, [Shard(0)]) for x in part] for part in (weights, grads)]
            optimizer = CONTESTANTS[name].build(parameters(*split))
            optimizer.step()
            with CommDebugMode() as communication:
                optimizer.step()
            found[name] = {"collectives": communication.get_total_counts()}
        except Exception as error:
            found[name] = {"reason": reason_of(error)}
        (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def sharded_step(shapes: Shapes) -> Row:
    """Collectives of each optimizer's step, from two processes."""
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        workers = [context.Process(target=sharded_worker, args=(rank, folder, shapes)) for rank in range(WORLD)]
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + 300
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                worker.kill()
        found: Row = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((Path(folder) / "0.json").read_text())
    return {name: found.get(name, {"reason": "the processes did not finish"}) for name in SHARDED}
