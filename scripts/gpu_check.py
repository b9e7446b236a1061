"""All that only a GPU can show of fadam, in one command and under ten minutes: make gpu-check

python -m scripts.gpu_check
python -m scripts.gpu_check --only paths,graph
python -m scripts.gpu_check --dry

It needs torch and this checkout, no network; what needs more (pytest, hydra, transformers, lightning, data prepared by
`make data-asr` and the like) is left out where that is missing, and the table says so. It prints one table, writes it
to results/bench/gpu.md, and fails if anything in it has failed. With --dry, and always without a GPU, the checks that
run in this process run on the CPU, the commands are only shown, and nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.util
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from fadam import FAdam, diagnose
from fadam.reference import State, reference_step

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 600.0  # seconds, for everything
SAID = 8  # last lines of a command that failed; Hydra names the cause some lines before its last
STEPS = 12
SHAPES = ((), (1,), (17,), (5, 7), (3, 2, 3, 3), (300, 257), (70_001,))

# In FAdam's words and in the paper's.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "decay": ({"lr": 0.03, "weight_decay": 0.5}, {"eta": 0.03, "lam": 0.5}),
    "no decay": ({"weight_decay": 0.0}, {"lam": 0.0}),
    "clip 0.5": ({"clip": 0.5}, {"c": 0.5}),
    "no clip": ({"clip": None}, {"c": math.inf}),
    "rho 0.7": ({"fim_rho": 0.7}, {"rho": 0.7}),
    "rho 1": ({"fim_rho": 1.0}, {"rho": 1.0}),
    "eps large": ({"eps": 0.5}, {"eps": 0.5}),
    "eps2 large": ({"eps": 1.0, "eps2": 3.0}, {"eps": 1.0, "eps2": 3.0}),
    "betas": ({"betas": (0.5, 0.9)}, {"beta1": 0.5, "beta2": 0.9}),
}
PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "fused, capturable": {"fused": True, "capturable": True},
}


class Left(Exception):
    """A check that cannot be made here; the message says what is missing."""


class Failed(Exception):
    """A check that came out wrong; the message says by how much."""


def normal(seed: int, scale: float = 1.0, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    """The same numbers on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def gradients(t: int) -> list[Tensor]:
    """Their size wanders, so that eps_t < eps now and then."""
    return normal(t, 10.0 ** (-5 + (7 * t) % 11))


def on(values: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [x.to(device, dtype).requires_grad_() for x in values]


def run(opt: FAdam, params: Sequence[Tensor], grads: Callable[[int], Sequence[Tensor]], steps: int) -> None:
    for t in range(1, steps + 1):
        for p, g in zip(params, grads(t), strict=True):
            p.grad = g.to(p)
        opt.step()


def apart(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference, in units of 1 + the number."""
    pairs = [(x.detach().double().cpu(), y.detach().double().cpu()) for x, y in zip(some, others, strict=True)]
    worst = max(((x - y).abs() / (1 + y.abs())).max().item() for x, y in pairs)
    return worst if all(x.isfinite().all() for x, _ in pairs) else math.inf


def within(found: float, limit: float, what: str) -> str:
    if not found <= limit:
        raise Failed(f"{what}: {found:.1e} apart, {limit:.0e} is allowed")
    return f"{found:.1e} apart at most ({limit:.0e} is allowed)"


# ---- checks in this process ------------------------------------------------------------------------------------------
def versions(device: torch.device, dry: bool) -> str:
    if device.type != "cuda":
        return f"torch {torch.__version__} on the CPU"
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    import triton

    return (
        f"{torch.cuda.get_device_name(device)}, compute capability {capability}, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, Triton {triton.__version__}"
    )


@functools.cache
def reference(name: str) -> list[Tensor]:
    thetas = [x.float().double() for x in normal(1000)]
    states = [State.initial(x) for x in thetas]
    for t in range(1, STEPS + 1):
        for i, g in enumerate(gradients(t)):
            thetas[i], states[i] = reference_step(thetas[i], g.float().double(), states[i], **OPTIONS[name][1])
    return thetas


def paths(path: str) -> Callable[[torch.device, bool], str]:
    """Some steps with every option on one path, in float32, against the reference in float64."""

    def check(device: torch.device, dry: bool) -> str:
        worst = 0.0
        for name, (options, _) in OPTIONS.items():
            params = on(normal(1000), device, torch.float32)
            run(FAdam(params, **options, **PATHS[path]), params, gradients, STEPS)
            worst = max(worst, apart(params, reference(name)))
            within(worst, 2e-5, name)
        return f"{len(OPTIONS)} sets of options, " + within(worst, 2e-5, path)

    return check


def mixed(device: torch.device, dry: bool) -> str:
    """bfloat16 and float16 parameters with float32 states, together with float32 ones, against the plain loop."""
    dtypes = torch.float32, torch.bfloat16, torch.float16
    found = 0.0
    results = []
    for fused, foreach in ((True, None), (None, False)):
        path: dict[str, Any] = {"fused": fused, "foreach": foreach}
        params = [p for dtype in dtypes for p in on(normal(1000), device, dtype)]
        opt = FAdam(params, lr=0.01, weight_decay=0.1, momentum_dtype="float32", fim_dtype="float32", **path)
        run(opt, params, lambda t: [g for _ in dtypes for g in normal(t, 10.0 ** -(t % 4))], 10)
        results.append(params)
    found = apart(*results)
    return within(found, 2e-2, "fused against single")  # a neighbour in bfloat16 is 0.8% away


def graph(device: torch.device, dry: bool) -> str:
    """A captured step, replayed with other gradients and another learning rate, against steps outside a graph."""
    lr = torch.tensor(0.01, device=device)
    params, others = on(normal(1000), device, torch.float32), on(normal(1000), device, torch.float32)
    opt, plain = FAdam(params, lr=lr, fused=True, capturable=True), FAdam(others, lr=0.01, foreach=False)
    for p, g in zip(params, gradients(1), strict=True):
        p.grad = g.to(p)
    step: Callable[[], object] = opt.step
    if device.type == "cuda":
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            opt.step()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            opt.step()
        step = captured.replay
    else:
        opt.step()
    run(plain, others, gradients, 1)
    for t in range(2, 8):
        lr.fill_(0.01 * t)
        plain.param_groups[0]["lr"] = 0.01 * t
        for p, q, g in zip(params, others, gradients(t), strict=True):
            assert p.grad is not None
            p.grad.copy_(g)
            q.grad = g.to(q)
        step()
        plain.step()
    return ("" if device.type == "cuda" else "without a graph; ") + within(apart(params, others), 2e-5, "replays")


def amp(device: torch.device, dry: bool) -> str:
    """GradScaler and the fused step: scaled gradients, and one step of four that overflows."""
    (p,), (q,) = on([torch.ones(5000)], device, torch.float32), on([torch.ones(5000)], device, torch.float32)
    opt, plain = FAdam([p], lr=0.01, fused=True), FAdam([q], lr=0.01, foreach=False)
    scaler = GradScaler(device.type, init_scale=1024.0, growth_interval=100)
    for factor in (1.0, math.inf, 2.0, 3.0):
        opt.zero_grad()
        scaler.scale((factor * p * p).sum()).backward()
        scaler.step(opt)
        scaler.update()
        if math.isfinite(factor):
            plain.zero_grad()
            (factor * q * q).sum().backward()
            plain.step()
    if opt.state[p]["step"].item() != 3:
        raise Failed(f"the step that overflowed was counted: {opt.state[p]['step'].item()} instead of 3")
    return within(apart([p], [q]), 1e-5, "scaled steps")


def rounding(device: torch.device, dry: bool) -> str:
    """Steps of a hundredth of bfloat16's resolution: they add up on average, and both paths draw the same bits."""
    results = []
    for name in ("fused", "foreach"):
        path: dict[str, Any] = {name: True}
        (p,) = on([torch.ones(40_000)], device, torch.bfloat16)
        opt = FAdam([p], lr=4e-5, weight_decay=0.0, betas=(0.0, 0.999), stochastic_rounding=True, **path)
        run(opt, [p], lambda t: [torch.ones(40_000)], 20)
        results.append(p.detach().float())
    for p in results:
        drift = (1 - p.double().mean().item()) / (20 * 4e-5)
        if not 0.9 < drift < 1.1:
            raise Failed(f"the mean moved {drift:.3f} times as far as the steps")
    different = (results[0] != results[1]).double().mean().item()
    if different > 0.01:
        raise Failed(f"{different:.1%} of the numbers were rounded differently by fused and foreach")
    return f"drift {drift:.3f} of the steps' sum, {different:.2%} rounded differently by fused and foreach"


def resume(device: torch.device, dry: bool) -> str:
    """State dict, diagnostics and paths on the device."""
    params = on(normal(1000), device, torch.float32)
    opt = FAdam(params, fused=True)
    run(opt, params, gradients, 3)
    if not all(map(math.isfinite, diagnose(opt).values())):
        raise Failed("a diagnostic is not finite")
    others = [p.detach().clone().requires_grad_() for p in params]
    other = FAdam(others)
    other.load_state_dict(opt.state_dict())
    run(opt, params, lambda t: gradients(t + 3), 3)
    run(other, others, lambda t: gradients(t + 3), 3)
    if any(not torch.equal(p, q) for p, q in zip(params, others, strict=True)):
        raise Failed("a resumed run is not the uninterrupted one")
    return "resumed exactly; " + str({k: v.path for k, v in other.paths()[0].items()})


def one_step(device: torch.device, dry: bool) -> str:
    """What compute-sanitizer looks at."""
    params = on(normal(1000), device, torch.float32)
    run(FAdam(params, fused=True), params, gradients, 2)
    return "two steps"


# ---- commands --------------------------------------------------------------------------------------------------------
# What a config is composed with: Hydra asks for the launcher also where there is one run.
COMPOSING = ("hydra", "omegaconf", "hydra_plugins.hydra_joblib_launcher")


def lacking(*modules: str) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]


def has(*modules: str) -> None:
    if missing := lacking(*modules):
        raise Left(f"{' and '.join(missing)} cannot be imported")


def tests() -> list[str]:
    has("pytest", "numpy")
    # Neither pyproject.toml nor tests/conftest.py, which want plugins and hydra.
    alone = ["-c", os.devnull, "--rootdir", ".", "--confcutdir", "tests/fadam", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", "-q", *alone, "tests/fadam"]


def sanitizer() -> list[str]:
    if shutil.which("compute-sanitizer") is None:
        raise Left("compute-sanitizer is not on the PATH")
    return [
        "compute-sanitizer",
        "--error-exitcode",
        "1",
        sys.executable,
        "-m",
        "scripts.gpu_check",
        "--only",
        "one-step",
    ]


def bench() -> list[str]:
    has("rich", "transformers")
    sets = "gpt2" if lacking(*COMPOSING) else "gpt2,llama,conformer_s"
    out = "results/bench/step_gpu"
    return [
        sys.executable,
        "-m",
        "scripts.bench_step",
        "--device",
        "cuda",
        "--sets",
        sets,
        "--rounds",
        "30",
        "--out",
        out,
    ]


SMALL_DATA = {"asr": "asr_synthetic", "llm": "llm_sotu", "vqvae": "vqvae_photographs"}  # `make data-asr` and so on


def training(task: str) -> Callable[[], list[str]]:
    """50 steps of the `gpu` config on the small data of the `cpu` one."""

    def command() -> list[str]:
        has("lightning", *COMPOSING)
        data = SMALL_DATA[task]
        folder = Path(os.environ.get("FADAM_DATA", ROOT / "data"))
        if not folder.is_dir() or not any(folder.iterdir()):
            raise Left(f"there is no prepared data in {folder.name}/; make data-{task} makes it")
        overrides = [f"experiment={task}_gpu", f"data={data}", "optimizer=fadam", "+optimizer.fused=true", "seed=1"]
        overrides += ["trial=gpu-check", "trainer.max_steps=50", "eval_every=50", "scheduler.warmup_steps=10"]
        overrides.append(f"paths.runs_dir=outputs/gpu-check-{os.getpid()}")  # a finished run is not made again
        return [sys.executable, "-m", "experiments.train", *overrides]

    return command


# ---- all of it -------------------------------------------------------------------------------------------------------
@dataclass
class Check:
    name: str
    title: str
    make: Callable[[torch.device, bool], str] | None = None
    command: Callable[[], list[str]] | None = None


CHECKS = [
    Check("versions", "the machine", versions),
    *(Check("paths", f"{name} against the reference", paths(name)) for name in PATHS),
    Check("mixed", "mixed dtypes, fused", mixed),
    Check("graph", "graph capture, fused", graph),
    Check("amp", "GradScaler, fused", amp),
    Check("rounding", "bfloat16, stochastic rounding", rounding),
    Check("resume", "resuming, diagnostics", resume),
    Check("one-step", "steps for compute-sanitizer", one_step),
    Check("tests", "fadam's tests", command=tests),
    Check("sanitizer", "compute-sanitizer", command=sanitizer),
    Check("bench", "make bench's GPU rows", command=bench),
    *(Check("training", f"50 steps of {task}_gpu", command=training(task)) for task in SMALL_DATA),
]


@dataclass
class Row:
    title: str
    outcome: str  # passed, failed, left out or shown
    seconds: float
    words: str = field(default="")


def perform(check: Check, device: torch.device, dry: bool, left: float) -> Row:
    start = time.monotonic()
    outcome = "passed"
    try:
        if check.make is not None:
            words = check.make(device, dry)
        else:
            assert check.command is not None
            command = check.command()
            words = shlex.join(["python" if part == sys.executable else part for part in command])
            if dry:
                outcome = "shown"
            elif left < 20:
                raise Left("no time was left; --only runs it alone")
            else:
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left, check=False)
                if done.returncode != 0:
                    lines = (done.stdout + done.stderr).strip().splitlines()[-SAID:] or ["without a word"]
                    raise Failed(f"exit status {done.returncode}: {' '.join(lines)} ({words})")
    except Left as error:
        outcome, words = "left out", str(error)
    except subprocess.TimeoutExpired:
        outcome, words = "failed", f"it took more than the {left:.0f} s that were left"
    except Exception as error:  # whatever it is, the other checks go on
        outcome = "failed"
        words = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
    return Row(check.title, outcome, time.monotonic() - start, " ".join(words.split()))


def table(rows: Sequence[Row]) -> str:
    lines = ["| check | outcome | seconds | what |", "| --- | --- | ---: | --- |"]
    for row in rows:
        words = row.words.replace("|", "\\|")
        lines.append(f"| {row.title} | **{row.outcome}** | {row.seconds:.1f} | {words} |")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    counts = [f"{sum(r.outcome == o for r in rows)} {o}" for o in ("passed", "failed", "left out", "shown")]
    failed = [row.title for row in rows if row.outcome == "failed"]
    return ", ".join(c for c in counts if not c.startswith("0 ")) + (f"; failed: {', '.join(failed)}" if failed else "")


def commit() -> str:
    with contextlib.suppress(OSError):
        git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return "unknown"


def report(rows: Sequence[Row], seconds: float) -> str:
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    head = (
        f"`make gpu-check`, {date}, commit {commit()}, python {platform.python_version()}, {seconds / 60:.1f} minutes."
    )
    return f"# What a GPU showed\n\n{head}\n\n{table(rows)}\n\n{summary(rows)}.\n"


def chosen(names: Sequence[str] | None) -> Iterator[Check]:
    for check in CHECKS:
        if names is None or check.name in names:
            yield check


def main(argv: Sequence[str] | None = None) -> int:
    known = list(dict.fromkeys(check.name for check in CHECKS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"checks to make, of {', '.join(known)}, with commas; nothing is written then")
    parser.add_argument("--dry", action="store_true", help="on the CPU, commands shown only; always so without a GPU")
    parser.add_argument("--out", default="results/bench/gpu.md", help="where to write the table")
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",") if arguments.only else None
    for name in names or ():
        if name not in known:
            parser.error(f"--only {name}: it is none of {', '.join(known)}")
    dry = arguments.dry or not torch.cuda.is_available()
    device = torch.device("cpu" if dry else "cuda")
    start = time.monotonic()
    rows = []
    for check in chosen(names):
        print(f"{check.title} ...", file=sys.stderr, flush=True)
        rows.append(perform(check, device, dry, LIMIT - (time.monotonic() - start)))
    text = report(rows, time.monotonic() - start)
    if not dry and names is None:
        out = ROOT / arguments.out
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    print(table(rows))
    print(("Dry, on the CPU: " if dry else "") + summary(rows))
    return 1 if any(row.outcome == "failed" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
