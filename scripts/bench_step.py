"""What one optimizer step costs: FAdam against torch's AdamW, the public port of FAdam and the readable reference.

python -m scripts.bench_step
python -m scripts.bench_step --sets gpt2,llama --device cuda --out results/bench/step_gpu
python -m scripts.bench_step --sets conformer_cpu --threads 2 --rounds 100

Every round times one step of each optimizer, in an order drawn anew, and a copy of as much memory; ratios are taken
within rounds. The gradients are constant: normal numbers of standard deviation 1e-3, far
above the size at which eps_t would differ from eps, except in the row that shows that case. Each round of a set that
fits a cache finds its tensors cold, since every optimizer has its own and the others ran meanwhile; the optimizers of a
set above 1 GB share weights, gradients and states, so that all of them find room.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import math
import multiprocessing
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
Shapes = list[tuple[int, ...]]
Row = dict[str, Any]

SHARED_ABOVE = 1e9  # bytes of weights, gradients and two states; far above any cache
COPY_BYTES = 1 << 30  # largest footprint of the measured copy
SLOW_EVERY = 3  # those that take many times as long are timed in every third round


# ---- the parameter sets ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ParameterSet:
    title: str
    shapes: Callable[[], Shapes]
    rounds: int
    fused_only: bool = False  # on a CPU, where the others would take minutes


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
    "gpt2": ParameterSet("GPT-2 124M", gpt2_shapes, rounds=9),
    "llama": ParameterSet("Llama 1B (llm_paper)", configured("experiment=llm_paper"), rounds=4, fused_only=True),
    "conformer_s": ParameterSet(
        "Conformer (conformer_s)", configured("experiment=asr_cpu", "model=conformer_s"), rounds=24
    ),
    "conformer_cpu": ParameterSet("Conformer (asr_cpu)", configured("experiment=asr_cpu"), rounds=60),
    "tiny": ParameterSet("tiny, for tests", lambda: [(64, 32), (32,), (1,), ()], rounds=4),
}
DEFAULT_SETS = ("gpt2", "llama", "conformer_s", "conformer_cpu")


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


def adamw(**options: bool) -> Callable[[list[nn.Parameter]], Any]:
    return lambda params: torch.optim.AdamW(params, **options)


def fadam(**options: bool) -> Callable[[list[nn.Parameter]], Any]:
    def build(params: list[nn.Parameter]) -> Any:
        from fadam import FAdam

        return FAdam(params, **options)

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


BASE, OURS, PORT, RARE = "AdamW fused", "FAdam fused", "pytorch_optimizer FAdam", "FAdam fused, eps_t < eps"
CONTESTANTS = {
    "AdamW for": Contestant(adamw(foreach=False), 28, 2.5),
    "AdamW foreach": Contestant(adamw(foreach=True), 28, 3.0),
    BASE: Contestant(adamw(fused=True), 28, 2.0),
    "FAdam for": Contestant(fadam(foreach=False, fused=False), 44, 3.0, slow=True),
    "FAdam foreach": Contestant(fadam(foreach=True, fused=False), 44, 5.0, slow=True),
    OURS: Contestant(fadam(fused=True), 44, 2.0),
    RARE: Contestant(fadam(fused=True), 44, 2.0, gradient=1e-8),
    PORT: Contestant(port, 44, 5.0, slow=True),
    "reference": Contestant(Reference, 44, 5.0, slow=True),
}
COPY = "copy"


# ---- the goals ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Goal:
    text: str
    figure: str
    limit: float
    at_most: bool
    device: str = ""  # "" for what has neither device nor set
    sets: tuple[str, ...] = ()


CONFORMERS = ("conformer_s", "conformer_cpu")
GOALS = (
    Goal("GPU: step over fused AdamW's", "ratio", 1.5, True, "cuda", ("gpt2", "llama")),
    Goal("GPU: share of copy bandwidth at 44 bytes a parameter", "share", 0.8, False, "cuda", ("gpt2", "llama")),
    Goal("CPU: step over fused AdamW's", "ratio", 1.7, True, "cpu", ("gpt2",)),
    Goal("CPU, small tensors: step over fused AdamW's", "ratio", 2.5, True, "cpu", CONFORMERS),
    Goal("CPU: the public port's step over ours", "port", 8.0, False, "cpu", ("gpt2", *CONFORMERS)),
    # The resident set is counted in pages by several threads: no finer than about a percent.
    Goal("CPU: memory over fused AdamW's", "memory_ratio", 1.01, True, "cpu", ("gpt2",)),
    Goal("GPU: memory over fused AdamW's", "memory_ratio", 1.01, True, "cuda", ("gpt2", "llama")),
    Goal("`import fadam` after `import torch`, ms", "import_ms", 50.0, True),
    Goal("collectives a step, sharded over two processes", "collectives", 2.0, True),
)


def verdict(goal: Goal, value: float | None, reason: str = "") -> str:
    if value is None:
        return f"not measured: {reason}"
    if value <= goal.limit if goal.at_most else value >= goal.limit:
        return "met"
    return f"missed by {abs(value - goal.limit):.2f} ({abs(value / goal.limit - 1):.0%})"


def judge(sections: Sequence[Row], imported: Row, sharded: Row) -> list[Row]:
    """A verdict for every goal in every place where it holds."""
    verdicts: list[Row] = []

    def add(goal: Goal, where: str, value: float | None, reason: str = "") -> None:
        verdicts.append(
            {"goal": goal.text, "limit": goal.limit, "at_most": goal.at_most, "where": where, "value": value,
             "verdict": verdict(goal, value, reason)}
        )  # fmt: skip

    for goal in GOALS:
        if goal.figure == "import_ms":
            add(goal, "", imported["added_ms"])
        elif goal.figure == "collectives":
            row = sharded.get(OURS, {})
            add(goal, OURS, row.get("collectives"), row.get("reason", "left out"))
        for name in goal.sets:
            places = [s for s in sections if s["set"] == name and s["device"] == goal.device]
            # Memory is the same with any number of threads.
            for section in places[:1] if goal.figure == "memory_ratio" else places:
                row = section["rows"][OURS]
                add(goal, where(section), row.get(goal.figure), row.get("reason", "no figure to compare with"))
            if not places:
                gpu = goal.device == "cuda" and not torch.cuda.is_available()
                add(goal, SETS[name].title, None, "no GPU here" if gpu else "left out of this run")
    return verdicts


def where(section: Row) -> str:
    threads = f"{section['threads']} thread" + ("s" if section["threads"] != 1 else "")
    return f"{section['title']}, {'GPU' if section['device'] == 'cuda' else threads}"


# ---- tensors --------------------------------------------------------------------------------------------------------
def filled(shapes: Shapes, device: torch.device, deviation: float, seed: int) -> list[Tensor]:
    """Normal numbers; beyond a few million they repeat, since drawing them would take longer than the benchmark."""
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(1 << 22, generator=generator) * deviation).to(device)
    tensors = [torch.empty(shape, device=device) for shape in shapes]
    for x in tensors:
        for part in x.view(-1).split(len(block)):
            part.copy_(block[: len(part)])
    return tensors


def parameters(values: Sequence[Tensor], grads: Sequence[Tensor]) -> list[nn.Parameter]:
    params = [nn.Parameter(x) for x in values]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return params


def share_states(
    optimizer: Any, build: Callable[..., Any], params: list[nn.Parameter], states: list[list[Tensor]]
) -> None:
    """Give the optimizer the two state tensors of each parameter, as if it had taken a step."""
    example = parameters([torch.zeros(2, device=params[0].device)], [torch.ones(2, device=params[0].device)])
    other = build(example)
    other.step()
    for p, *pair in zip(params, *states, strict=True):
        mine = iter(pair)
        optimizer.state[p] = {
            key: next(mine) if value.shape == example[0].shape else value.clone()
            for key, value in other.state[example[0]].items()
        }
        assert next(mine, None) is None


@dataclass
class Field:
    """The optimizers of one parameter set, ready to step, and why the others are not."""

    steps: dict[str, Callable[[], object]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def reason_of(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def available_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return math.inf


def left_out(contestant: Contestant, chosen: ParameterSet, count: int, device: torch.device, free: float) -> str:
    """Why this optimizer is not timed on this set, or ""."""
    need = 4 * count * (4 + max(0.0, contestant.copies - 2)) + COPY_BYTES
    if 16 * count > SHARED_ABOVE and need > 0.97 * free:
        return f"needs about {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
    if chosen.fused_only and device.type == "cpu" and contestant not in (CONTESTANTS[BASE], CONTESTANTS[OURS]):
        return "left out on the CPU, where a step takes up to a minute"
    return ""


def line_up(chosen: ParameterSet, shapes: Shapes, device: torch.device, advance: Callable[[str], None]) -> Field:
    """Build every optimizer and let it take its first step."""
    ready = Field()
    count = sum(math.prod(shape) for shape in shapes)
    shared = 16 * count > SHARED_ABOVE
    free = available_memory(device)
    values: list[Tensor] = []
    grads: dict[float, list[Tensor]] = {}
    states: list[list[Tensor]] = []
    for name, contestant in CONTESTANTS.items():
        advance(name)
        if reason := left_out(contestant, chosen, count, device, free):
            ready.reasons[name] = reason
            continue
        try:
            if not values or not shared:
                values = filled(shapes, device, 0.02, seed=0)
            if contestant.gradient not in grads or not shared:
                grads[contestant.gradient] = filled(shapes, device, contestant.gradient, seed=1)
            params = parameters(values, grads[contestant.gradient])
            optimizer = contestant.build(params)
            if shared and isinstance(optimizer, torch.optim.Optimizer):
                states = states or [[torch.full_like(x, start) for x in values] for start in (0.0, 1e-6)]
                share_states(optimizer, contestant.build, params, states)
            optimizer.step()
            ready.steps[name] = optimizer.step
        except Exception as error:  # whatever keeps it from stepping is its row in the table
            ready.reasons[name] = reason_of(error)
    floats = min(2 * count, COPY_BYTES // 8)
    source, target = torch.ones(floats, device=device), torch.zeros(floats, device=device)
    ready.steps[COPY] = lambda: target.copy_(source)
    return ready


# ---- time -----------------------------------------------------------------------------------------------------------
class Clock:
    """Seconds of a call. On a GPU by its own events, with the queue full: the host's time is taken beside it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host: dict[str, float] = {}
        self.cycles_per_second = 0.0
        if device.type == "cuda":
            torch.cuda._sleep(1_000_000)
            self.cycles_per_second = 2e7 / self._events(lambda: torch.cuda._sleep(20_000_000))

    def _events(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def seconds(self, name: str, step: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        torch.cuda.synchronize(self.device)
        # The GPU is kept busy until the host has queued the step, as the backward pass does in training.
        torch.cuda._sleep(int(self.cycles_per_second * min(0.2, 1.5 * self.host.get(name, 0.0) + 1e-4)))
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        start = time.perf_counter()
        step()
        self.host[name] = time.perf_counter() - start
        end_event.record()
        end_event.synchronize()
        return start_event.elapsed_time(end_event) / 1000


def timed_rounds(ready: Field, rounds: int, clock: Clock, advance: Callable[[str], None]) -> list[dict[str, float]]:
    """Seconds of every optimizer, round by round; a first round is not counted."""
    found: list[dict[str, float]] = []
    for number in range(rounds + 1):
        names = list(ready.steps)
        if clock.device.type == "cpu" and number % SLOW_EVERY != 1:
            names = [name for name in names if name == COPY or not CONTESTANTS[name].slow]
        random.Random(number).shuffle(names)  # nobody always runs after the same one
        gc.collect()
        gc.disable()
        seconds = {name: clock.seconds(name, ready.steps[name]) for name in names}
        gc.enable()
        advance(f"round {number} of {rounds}")
        if number > 0:
            found.append(seconds)
    return found


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return (values[0],) * 3
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), low, high


def summarise(
    rounds: Sequence[dict[str, float]], ready: Field, count: int, copied: int, extra: dict[str, Row], clock: Clock
) -> dict[str, Row]:
    """A row for each optimizer: time, ratios within rounds, bandwidth, and what the probes found."""
    rows: dict[str, Row] = {}
    base_memory = extra.get(BASE, {}).get("memory")
    for name, contestant in CONTESTANTS.items():
        row = rows[name] = dict(extra.get(name, {}))
        if name in ready.reasons:
            rows[name] = {"reason": ready.reasons[name]}
            continue
        mine = [r for r in rounds if name in r]
        row["rounds"] = len(mine)
        row["seconds"], row["seconds_q1"], row["seconds_q3"] = spread([r[name] for r in mine])
        row["bytes_per_second"] = contestant.yardstick * count / row["seconds"]
        row["share"] = statistics.median(contestant.yardstick * count / r[name] * r[COPY] / copied for r in mine)
        if over := [r[name] / r[BASE] for r in mine if BASE in r]:
            row["ratio"], row["ratio_q1"], row["ratio_q3"] = spread(over)
        if under := [r[PORT] / r[name] for r in mine if PORT in r]:
            row["port"], row["port_q1"], row["port_q3"] = spread(under)
        if base_memory and row.get("memory") is not None:
            row["memory_ratio"] = row["memory"] / base_memory
        if name in clock.host:
            row["host_seconds"] = clock.host[name]
    return rows


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


def probe_cpu(name: str, shapes: Shapes) -> Row:
    """In a process of its own: bytes held beside weights and gradients at the peak, and operators of a later step."""
    torch.set_num_threads(1)
    device, contestant = torch.device("cpu"), CONTESTANTS[name]
    small = contestant.build(parameters(filled([(8, 8)], device, 0.02, 0), filled([(8, 8)], device, 1e-3, 1)))
    small.step()  # libraries and compiled code are loaded now
    params = parameters(filled(shapes, device, 0.02, 0), filled(shapes, device, contestant.gradient, 1))
    row: Row = {"memory": None}
    with contextlib.suppress(OSError, StopIteration):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        row["memory"] = -resident("VmRSS")
    optimizer = contestant.build(params)
    for _ in range(2):
        optimizer.step()
    if row["memory"] is not None:
        row["memory"] += resident("VmHWM")
    with Operators() as operators:
        optimizer.step()
    return row | {"operators": operators.count}


def probe_cuda(name: str, shapes: Shapes, device: torch.device) -> Row:
    """Bytes held beside weights and gradients at the peak, operators and kernel launches of a later step."""
    contestant = CONTESTANTS[name]
    params = parameters(filled(shapes, device, 0.02, 0), filled(shapes, device, contestant.gradient, 1))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    optimizer = contestant.build(params)
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize(device)
    row: Row = {"memory": torch.cuda.max_memory_allocated(device) - before}
    with Operators() as operators:
        optimizer.step()
    row["operators"] = operators.count
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for _ in range(2):  # the first one may miss what runs while tracing starts
        with torch.profiler.profile(activities=activities) as trace:
            optimizer.step()
            torch.cuda.synchronize(device)
    on_device = [
        e.name
        for e in trace.events()
        if e.device_type == torch.autograd.DeviceType.CUDA and not getattr(e, "is_user_annotation", False)
    ]
    copies = sum(kind.startswith(("Memcpy", "Memset")) for kind in on_device)
    return row | {"launches": len(on_device) - copies, "copies": copies}


@contextlib.contextmanager
def fresh_processes() -> Iterator[ProcessPoolExecutor]:
    """A process for each call, forked from a clean one that has torch loaded and gives memory back at once."""
    prompt = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "fadam", "pytorch_optimizer"])
    before = {key: os.environ.get(key) for key in prompt}
    os.environ.update(prompt)
    try:
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            yield pool
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


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
                    found[name] = pool.submit(probe_cpu, name, shapes).result()
                else:
                    found[name] = probe_cuda(name, shapes, device)
            except Exception:  # the same failure is reported where it is to be timed
                continue
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
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
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
        deadline = time.monotonic() + 120
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            if worker.is_alive():
                worker.kill()
        found: Row = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((Path(folder) / "0.json").read_text())
    return {name: found.get(name, {"reason": "the processes did not finish"}) for name in SHARDED}


# ---- the table ------------------------------------------------------------------------------------------------------
def grouped(row: Row, key: str, digits: int = 2) -> str:
    if row.get(key) is None:
        return "–"
    return f"{row[key]:.{digits}f} ({row[f'{key}_q1']:.{digits}f}–{row[f'{key}_q3']:.{digits}f})"


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (headings, rule, *lines)]


def section_table(section: Row) -> list[str]:
    gpu = section["device"] == "cuda"
    headings = ["optimizer", "ms a step", "over AdamW fused", "port over it", "GB/s", "of copy", "memory", "operators"]
    if gpu:
        headings += ["launches", "host ms"]
    lines = []
    for name, row in section["rows"].items():
        if "reason" in row:
            lines.append([name, f"not available: {row['reason']}", *[""] * (len(headings) - 2)])
            continue
        memory = row.get("memory")
        cells = [
            name,
            f"{1000 * row['seconds']:.{3 if row['seconds'] < 0.01 else 1}f}",
            grouped(row, "ratio"),
            grouped(row, "port", 1),
            f"{row['bytes_per_second'] / 1e9:.1f}",
            f"{row['share']:.0%}",
            "–" if memory is None else f"{memory / 4 / section['parameters']:.2f}",
            str(row.get("operators", "–")),
        ]
        if gpu:
            cells += [str(row.get("launches", "–")), f"{1000 * row.get('host_seconds', math.nan):.3f}"]
        lines.append(cells)
    return [
        f"## {where(section)}",
        "",
        f"{section['parameters']:,} parameters in {section['tensors']} tensors, {len(section['rounds'])} rounds, copy "
        f"{section['copy_bytes_per_second'] / 1e9:.1f} GB/s (reading and writing).",
        "",
        *table(headings, lines),
        "",
    ]


def goal_table(verdicts: Sequence[Row]) -> list[str]:
    lines = [
        [v["goal"], v["where"], f"{'at most' if v['at_most'] else 'at least'} {v['limit']:g}",
         "–" if v["value"] is None else f"{v['value']:.2f}", v["verdict"]]
        for v in verdicts
    ]  # fmt: skip
    return table(["goal for FAdam fused", "where", "limit", "measured", "verdict"], lines)


def report(document: Row) -> str:
    added, sharded = document["import"], document["sharded"]
    changed = " with changes" if document["dirty"] else ""
    shard_lines = [
        [name, str(row["collectives"]) if "collectives" in row else f"not available: {row['reason']}"]
        for name, row in sharded["rows"].items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        "# What one optimizer step costs",
        "",
        f"`{document['command']}`, {document['date'][:10]}, commit {document['commit']}{changed}, "
        f"{document['device']}, {document['cores']} cores, load {document['load']:.1f} at the start and "
        f"{document['load_end']:.1f} at the end, {document['minutes']:.1f} minutes; {versions}. All times stand in the "
        ".json beside this file; what was tried, and why what is missed is missed, in [log.md](log.md).",
        "",
        "Float32. One process steps all optimizers in turn, round after round, in an order drawn anew; on a CPU the "
        f"slow ones ({', '.join(name for name, c in CONTESTANTS.items() if c.slow)}) join every {SLOW_EVERY}rd round.",
        "",
        "- Times are medians; ratios are medians (and quartiles) of ratios within rounds; *port over it* is the public "
        "port's time over the row's.",
        "- *GB/s* counts 28 bytes a parameter for AdamW and 44 for FAdam, whatever was really moved, so that a step "
        "which saves a pass can exceed 100% *of copy*: a copy of as much memory, measured in the same rounds.",
        "- *Memory* is the peak beside weights and gradients, in parameters (two states are 2): on a CPU the resident "
        "peak of a process of its own, within 0.3 MB, on a GPU the allocator's.",
        "- *Operators* are those that Python hands to torch in a step. A foreach operator is one, though on a CPU it "
        "is a loop over tensors; a call of an extension may be none.",
        "- Gradients are normal numbers of standard deviation 1e-3, so that eps_t = eps; the row *eps_t < eps* has "
        "1e-8, the rare case in which more has to be computed.",
        "- The optimizers of a set above 1 GB share weights, gradients and states, which no cache holds; in the others "
        "each has its own, cold when its turn comes.",
        "",
        "## Goals",
        "",
        *goal_table(document["goals"]),
        "",
    ]
    for section in document["sections"]:
        lines += section_table(section)
    lines += [
        "## Import",
        "",
        f"`import torch` takes {added['torch_ms']:.0f} ms, `import fadam` after it {grouped(added, 'added_ms', 1)} ms "
        f"({len(added['pairs_ms'])} fresh processes).",
        "",
        "## Sharded over two processes",
        "",
        f"Collectives of one step, {sharded['tensors']} tensors ({sharded['title']}) as DTensors on two gloo "
        "processes; on one process no optimizer needs any.",
        "",
        *table(["optimizer", "collectives"], shard_lines),
        "",
    ]
    return "\n".join(lines)


def headline(section: Row) -> str:
    def figure(name: str) -> str:
        row = section["rows"][name]
        return f"{name} not available" if "reason" in row else f"{name} {1000 * row['seconds']:.2f} ms"

    return f"{where(section)}: {', '.join(map(figure, (BASE, OURS, PORT)))}"


# ---- the command ----------------------------------------------------------------------------------------------------
def words(allowed: Sequence[str] | None) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = [word.strip() for word in text.split(",") if word.strip()]
        for word in chosen:
            if allowed is not None and word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
        if not chosen:
            raise argparse.ArgumentTypeError("name at least one")
        return chosen

    return parse


def thread_counts(text: str) -> list[int]:
    chosen = words(None)(text)
    cores = os.cpu_count() or 1
    for word in chosen:
        if not word.isdigit() or not 1 <= int(word) <= cores:
            raise argparse.ArgumentTypeError(f"{word!r} is no number from 1 to {cores}, this machine's cores")
    return [int(word) for word in chosen]


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sets", type=words(list(SETS)), default=list(DEFAULT_SETS),
        help=f"parameter sets, of {', '.join(SETS)} (default: {','.join(DEFAULT_SETS)})",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=thread_counts, default=[1, 2] if cores > 1 else [1], help="CPU threads (default: 1,2)"
    )
    parser.add_argument(
        "--device", choices=("all", "cpu", "cuda"), default="all", help="all: the CPU, and a GPU if any"
    )
    parser.add_argument("--rounds", type=int, help="rounds of every set (default: each set's own number)")
    parser.add_argument("--quick", action="store_true", help="two rounds and one import: does everything work?")
    parser.add_argument("--out", default="results/bench/step", help="where to write, without .md and .json")
    arguments = parser.parse_args(argv)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; use --device cpu")
    return arguments


def measure(arguments: argparse.Namespace, progress: Progress) -> tuple[list[Row], Row, Row]:
    def bar(title: str, total: int) -> Callable[[str], None]:
        task = progress.add_task(title, total=total, doing="")

        def advance(doing: str) -> None:
            progress.update(task, advance=1, doing=doing, refresh=True)

        return advance

    devices = [torch.device("cpu")] if arguments.device in ("all", "cpu") else []
    if arguments.device in ("all", "cuda") and torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    sections: list[Row] = []
    for name in arguments.sets:
        chosen = SETS[name]
        shapes = chosen.shapes()
        count = sum(math.prod(shape) for shape in shapes)
        for device in devices:
            usual = chosen.rounds if device.type == "cpu" else max(chosen.rounds, 50)
            rounds = 2 if arguments.quick else arguments.rounds or usual
            counts = arguments.threads if device.type == "cpu" else [torch.get_num_threads()]
            advance = bar(f"{chosen.title}, {device.type.upper()}", 2 * len(CONTESTANTS) + len(counts) * (rounds + 1))
            extra = probes(chosen, shapes, device, advance)
            torch.set_num_threads(max(counts))
            ready = line_up(chosen, shapes, device, advance)
            for threads in counts:
                torch.set_num_threads(threads)
                clock = Clock(device)
                found = timed_rounds(ready, rounds, clock, advance)
                copied = 8 * min(2 * count, COPY_BYTES // 8)
                sections.append(
                    {"set": name, "title": chosen.title, "device": device.type, "threads": threads,
                     "parameters": count, "tensors": len(shapes),
                     "copy_bytes_per_second": copied / statistics.median(r[COPY] for r in found),
                     "rows": summarise(found, ready, count, copied, extra, clock), "rounds": found}
                )  # fmt: skip
                progress.console.print(headline(sections[-1]))
            del ready
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    repeats = 1 if arguments.quick else 7
    imported = import_time(repeats, bar("import", repeats + 1))
    advance = bar("sharded", 1)
    small = "tiny" if arguments.quick else "conformer_cpu"
    shapes = SETS[small].shapes() if small != "tiny" else [(8, 4), (4,), (2, 2, 2)]
    sharded = {"title": SETS[small].title, "tensors": len(shapes), "rows": sharded_step(shapes)}
    advance("")
    return sections, imported, sharded


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parsed(argv)
    out = Path(arguments.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out {out}: {error.strerror}")
    from experiments.core import record

    started, load = time.monotonic(), os.getloadavg()[0]
    commit, dirty = record.commit()
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # It draws when it is told to: a thread of its own would be timed along.
    with Progress(*columns, TextColumn("{task.fields[doing]}"), console=console, auto_refresh=False) as progress:
        sections, imported, sharded = measure(arguments, progress)
    versions = {k: v for k, v in record.versions().items() if k in ("python", "torch")}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["pytorch_optimizer"] = metadata.version("pytorch_optimizer")
    document = {
        "command": shlex.join(["python", "-m", "scripts.bench_step", *(sys.argv[1:] if argv is None else argv)]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "device": " and ".join(dict.fromkeys(record.device_name(s["device"]) for s in sections)),
        "cores": os.cpu_count(),
        "load": load,
        "load_end": os.getloadavg()[0],
        "minutes": (time.monotonic() - started) / 60,
        "system": platform.platform(),
        "versions": versions,
        "goals": judge(sections, imported, sharded["rows"]),
        "import": imported,
        "sharded": sharded,
        "sections": sections,
    }
    text = report(document)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    out.with_suffix(".json").write_text(json.dumps(record.jsonable(document), indent=1) + "\n", encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out.with_suffix('.md')}, {out.with_suffix('.json')}", soft_wrap=True)


if __name__ == "__main__":
    main()
