"""What one optimizer step costs: FAdam against torch's AdamW, the public port of FAdam and the readable reference.

python -m scripts.bench_step
python -m scripts.bench_step --sets gpt2,llama --device cuda --out results/bench/step_gpu
python -m scripts.bench_step --sets conformer_cpu --threads 2 --rounds 100

Every round times one step of each optimizer, in an order drawn anew, and a copy of as much memory; ratios are taken
within rounds. The gradients are constant: normal numbers of standard deviation 1e-3, far above the size at which eps_t
would differ from eps, except in the row that shows that case. The optimizers of a set above 1 GB share weights,
gradients and states, so that all of them find room and no cache holds them; in a smaller one each has its own, which
the others have driven out of the cache when its turn comes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import math
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from experiments.core.files import write_whole
from scripts.bench_step_parts import (
    CONTESTANTS,
    DEFAULT_SETS,
    SETS,
    Contestant,
    ParameterSet,
    Shapes,
    available_memory,
    filled,
    import_time,
    parameters,
    probes,
    reason_of,
    sharded_step,
    spread,
)
from scripts.bench_step_table import BASE, COPY, OURS, PORT, Row, headline, judge, report

SHARED_ABOVE = 1e9  # bytes of weights, gradients and two states; far above any cache
COPY_BYTES = 1 << 30  # largest footprint of the measured copy
SLOW_EVERY = 5  # on a CPU, those that take many times as long join one round in five


# ---- the optimizers, side by side -----------------------------------------------------------------------------------
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
class Lineup:
    """The optimizers of one parameter set, ready to step, and why the others are not."""

    steps: dict[str, Callable[[], object]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def left_out(contestant: Contestant, chosen: ParameterSet, count: int, device: torch.device, free: float) -> str:
    """Why this optimizer is not timed on this set, or ""."""
    need = 4 * count * (4 + max(0.0, contestant.copies - 2)) + COPY_BYTES
    if 16 * count > SHARED_ABOVE and need > 0.97 * free:
        return f"needs about {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
    if chosen.fused_only and device.type == "cpu" and contestant not in (CONTESTANTS[BASE], CONTESTANTS[OURS]):
        return "left out on the CPU, to save time and memory"
    return ""


def line_up(chosen: ParameterSet, shapes: Shapes, device: torch.device, advance: Callable[[str], None]) -> Lineup:
    """Build every optimizer and let it take its first step."""
    ready = Lineup()
    count = sum(math.prod(shape) for shape in shapes)
    # What is shared must suit all of them, which have their states in different dtypes beside bfloat16 weights.
    shared = 16 * count > SHARED_ABOVE and chosen.dtype == torch.float32
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
                values = filled(shapes, device, 0.02, 0, chosen.dtype)
            if contestant.gradient not in grads or not shared:
                grads[contestant.gradient] = filled(shapes, device, contestant.gradient, 1, chosen.dtype)
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
        self.host: dict[str, list[float]] = {}
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
        return float(start.elapsed_time(end)) / 1000

    def seconds(self, name: str, step: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        torch.cuda.synchronize(self.device)
        # The GPU is kept busy until the host has queued the step, as the backward pass does in training.
        host = self.host.setdefault(name, [])
        torch.cuda._sleep(int(self.cycles_per_second * min(0.2, 1.5 * max(host[-3:], default=0.0) + 1e-4)))
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        start = time.perf_counter()
        step()
        host.append(time.perf_counter() - start)
        end_event.record()
        end_event.synchronize()
        return float(start_event.elapsed_time(end_event)) / 1000


def timed_rounds(ready: Lineup, rounds: int, clock: Clock, advance: Callable[[str], None]) -> list[dict[str, float]]:
    """Seconds of every optimizer, round by round; a first round is not counted."""
    found: list[dict[str, float]] = []
    for number in range(rounds + 1):
        names = list(ready.steps)
        if clock.device.type == "cpu" and number % SLOW_EVERY != 1:
            names = [name for name in names if name == COPY or not CONTESTANTS[name].slow]
        random.Random(number).shuffle(names)  # nobody always runs after the same one
        gc.collect()
        gc.disable()
        seconds = {name: round(clock.seconds(name, ready.steps[name]), 9) for name in names}
        gc.enable()
        advance(f"round {number} of {rounds}")
        if number > 0:
            found.append(seconds)
    return found


def summarise(
    rounds: Sequence[dict[str, float]], ready: Lineup, count: int, copied: int, extra: dict[str, Row], clock: Clock
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
            row["host_seconds"] = statistics.median(clock.host[name])
    return rows


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
    repeats = 0 if arguments.quick else 7
    imported = import_time(repeats, bar("import", repeats + 1))
    advance = bar("sharded", 1)
    small = SETS["tiny" if arguments.quick else "conformer_cpu"]
    shapes = small.shapes()
    sharded = {"title": small.title, "tensors": len(shapes), "rows": sharded_step(shapes)}
    advance("")
    return sections, imported, sharded


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parsed(argv)
    out = Path(arguments.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out {out}: {error.strerror}")
    from experiments.core import provenance
    from experiments.core.records import jsonable

    started, load = time.monotonic(), os.getloadavg()[0]
    commit, dirty = provenance.commit()
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # It draws when it is told to: a thread of its own would be timed along.
    with Progress(*columns, TextColumn("{task.fields[doing]}"), console=console, auto_refresh=False) as progress:
        sections, imported, sharded = measure(arguments, progress)
    versions = {k: v for k, v in provenance.versions().items() if k in ("python", "torch")}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["pytorch_optimizer"] = metadata.version("pytorch_optimizer")
    document = {
        "command": shlex.join(["python", "-m", "scripts.bench_step", *(sys.argv[1:] if argv is None else argv)]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "device": " and ".join(dict.fromkeys(provenance.device_name(s["device"]) for s in sections)),
        "cores": os.cpu_count(),
        "load": load,
        "load_end": os.getloadavg()[0],
        "minutes": (time.monotonic() - started) / 60,
        "system": platform.platform(),
        "versions": versions,
        "gpu": torch.cuda.is_available(),
        "titles": {name: chosen.title for name, chosen in SETS.items()},
        "slow": [name for name, contestant in CONTESTANTS.items() if contestant.slow],
        "slow_every": SLOW_EVERY,
        "import": imported,
        "sharded": sharded,
        "sections": sections,
    }
    document["goals"] = judge(document)
    text = report(document)
    write_whole(out.with_suffix(".md"), text)
    write_whole(out.with_suffix(".json"), json.dumps(jsonable(document), indent=1) + "\n")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {out.with_suffix('.md')}, {out.with_suffix('.json')}", soft_wrap=True)


if __name__ == "__main__":
    main()
