"""Tokens per second of our training run against a bare PyTorch loop with the same model, batches and optimizer.

python -m scripts.bench_llm
python -m scripts.bench_llm --out results/bench/llm_gpu trainer=gpu model=llama_gpu data.batch_size=32 data.length=1024

Segments of the three loops follow each other in one process, so that what else the machine does falls on all of them.
"Lightning" is its trainer alone; "ours" adds the callbacks, logger and flags of experiments.train. Evaluation and the
first steps of each segment are left out. Where other work shares the CPU, the ratio of CPU times is the steadier one.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import logging
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.table import Table

from experiments.core import provenance, run
from experiments.core.checks import check_choices
from experiments.core.errors import UserError
from experiments.core.files import write_whole
from experiments.core.optim import parameter_groups
from experiments.core.precision import set_float32_products

ROOT = Path(__file__).resolve().parents[1]
LOOPS = ("bare", "lightning", "ours")
GOAL = 0.97


def configure(overrides: list[str], steps: int, folder: Path) -> DictConfig:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        words = [
            "experiment=llm_cpu", f"paths.runs_dir={folder}", "progress=line", "resume=never",
            "scheduler.warmup_steps=0", *overrides, f"trainer.max_steps={steps}", f"eval_every={steps}",
            "+trainer.limit_val_batches=0",
        ]  # fmt: skip
        cfg = compose("train", overrides=words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


Seconds = tuple[float, float]  # by the clock, and of this process's work on the CPU


def clocks() -> Seconds:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(start: Seconds) -> Seconds:
    wall, cpu = clocks()
    return wall - start[0], cpu - start[1]


class Stopwatch(Callback):
    """Seconds from the start of batch `first` to the end of the last one."""

    def __init__(self, first: int, batches: int) -> None:
        self.first, self.batches = first, batches
        self.start = self.seconds = (0.0, 0.0)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.start = clocks()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batches - 1:
            self.seconds = since(self.start)


def bare(cfg: DictConfig, first: int) -> Seconds:
    """Seconds of the plain loop."""
    torch.use_deterministic_algorithms(False)
    data = run.build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    module = run.build_module(cfg)
    device = torch.device("cuda" if cfg.trainer.accelerator == "cuda" else "cpu")
    model = module.model.to(device).train()
    optimizer = module.make_optimizer(parameter_groups(model, module.decay))
    scheduler = module.make_scheduler(optimizer, total_steps=cfg.trainer.max_steps)
    half = str(cfg.trainer.precision) == "bf16-mixed"
    accumulated, start = cfg.trainer.accumulate_grad_batches, clocks()
    for number, batch in enumerate(data.train_dataloader()):
        if number == first:
            start = clocks()
        inputs, targets = (x.to(device, non_blocking=True) for x in batch[:2])
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(inputs, targets).mean() / accumulated
        loss.backward()
        if (number + 1) % accumulated == 0:
            if cfg.trainer.gradient_clip_val:
                torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.trainer.gradient_clip_val)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return since(start)


def lightning(cfg: DictConfig, first: int, folder: Path, ours: bool) -> Seconds:
    """Seconds of Lightning's loop, with all that `experiments.train` adds or without."""
    torch.use_deterministic_algorithms(False)
    data = run.build_data(cfg)
    module = run.build_module(cfg)
    trainer = run.build_trainer(cfg, folder) if ours else plain_trainer(cfg, folder)
    watch = Stopwatch(first, cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches)
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(module, datamodule=data)
    return watch.seconds


def plain_trainer(cfg: DictConfig, folder: Path) -> Trainer:
    return Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=cfg.trainer.precision,
        max_steps=cfg.trainer.max_steps,
        max_epochs=1,
        accumulate_grad_batches=cfg.trainer.accumulate_grad_batches,
        gradient_clip_val=cfg.trainer.gradient_clip_val,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
    )


Round = dict[str, Seconds]


def measure(cfg: DictConfig, rounds: int, first: int, folder: Path, console: Console) -> list[Round]:
    """Seconds a step of each loop, round by round; the order turns from round to round."""
    batches = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
    timed = (batches - first) / cfg.trainer.accumulate_grad_batches
    found = []
    for number in range(rounds):
        turn = number % len(LOOPS)
        seconds: Round = {}
        for loop in LOOPS[turn:] + LOOPS[:turn]:
            wall, cpu = bare(cfg, first) if loop == "bare" else lightning(cfg, first, folder, ours=loop == "ours")
            seconds[loop] = wall / timed, cpu / timed
        found.append(seconds)
        shown = ", ".join(f"{loop} {1000 * seconds[loop][0]:.1f} ({1000 * seconds[loop][1]:.1f})" for loop in LOOPS)
        console.print(f"round {number + 1} of {rounds}, ms a step (of CPU): {shown}")
    return found


def summarise(rounds: list[Round], tokens: int) -> dict[str, dict[str, float]]:
    """Per loop: tokens per second, and speed relative to the bare loop, round by round: median and quartiles."""
    rows = {}
    for loop in LOOPS:
        rows[loop] = {"tokens_per_second": tokens / statistics.median(r[loop][0] for r in rounds)}
        for kind, clock in (("", 0), ("cpu_", 1)):
            ratios = [r["bare"][clock] / r[loop][clock] for r in rounds]
            low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
            extra = 1000 * statistics.median(r[loop][clock] - r["bare"][clock] for r in rounds)
            rows[loop] |= {
                f"{kind}ratio": statistics.median(ratios), f"{kind}ratio_q1": low, f"{kind}ratio_q3": high,
                f"{kind}extra_ms": extra,
            }  # fmt: skip
    return rows


def cells(name: str, row: dict[str, float]) -> tuple[str, ...]:
    def ratio(kind: str) -> str:
        return f"{row[f'{kind}ratio']:.3f} ({row[f'{kind}ratio_q1']:.2f}–{row[f'{kind}ratio_q3']:.2f})"

    tokens = f"{row['tokens_per_second']:,.0f}"
    return name, tokens, ratio(""), f"{row['extra_ms']:+.2f}", ratio("cpu_"), f"{row['cpu_extra_ms']:+.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="segments of each loop")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of a segment")
    parser.add_argument("--skip", type=int, default=4, help="steps of a segment that are not timed")
    parser.add_argument("--out", default="results/bench/llm", help="where to write, without .md and .json")
    parser.add_argument("overrides", nargs="*", help="as of experiments.train, such as optimizer=fadam")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or not 0 <= arguments.skip < arguments.steps:
        parser.error("--rounds must be at least 1 and --skip less than --steps")

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        try:
            cfg = configure(arguments.overrides, arguments.steps, Path(folder))
            check_choices(cfg)
            torch.set_num_threads(cfg.threads)
            set_float32_products(cfg.trainer)
            first = arguments.skip * cfg.trainer.accumulate_grad_batches
            rounds = measure(cfg, arguments.rounds, first, Path(folder), console)
        except UserError as error:
            sys.exit(f"error: {error}")
        parameters = sum(p.numel() for p in run.build_module(cfg).model.parameters())
    tokens = cfg.data.batch_size * cfg.data.length * cfg.trainer.accumulate_grad_batches
    rows = summarise(rounds, tokens)

    commit, dirty = provenance.commit()
    accelerator = "cuda" if cfg.trainer.accelerator == "cuda" else "cpu"
    document = {
        "command": shlex.join(["python", "-m", "scripts.bench_llm", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "device": provenance.device_name(accelerator),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "threads": cfg.threads,
        "versions": provenance.versions(),
        "optimizer": cfg.arm,
        "parameters": parameters,
        "tokens_per_step": tokens,
        "goal": GOAL,
        "loops": rows,
        "seconds_per_step": rounds,
    }
    names = {"bare": "bare PyTorch", "lightning": "Lightning", "ours": "ours"}
    headings = ("loop", "tokens/s", "speed / bare", "ms more", "by CPU time", "CPU ms more")
    lines = [cells(names[loop], row) for loop, row in rows.items()]
    table = Table(*headings, title=f"{cfg.arm}, {parameters:,} parameters, {tokens:,} tokens a step")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    word = "reached" if rows["ours"]["ratio"] >= GOAL else "missed"
    verdict = f"Goal: ours at least {GOAL} of the bare loop; {word} with {rows['ours']['ratio']:.3f}."
    if accelerator == "cpu" and (document["load"] or 0.0) > 1.25 * (os.cpu_count() or 1):
        verdict += f" The machine was busy (load {document['load']:.1f}): here the CPU times are to be believed."
    console.print(verdict)

    text = [
        "# Speed of the language task's training loop",
        "",
        f"`{document['command']}`, {document['date'][:10]}, commit {commit}{' with changes' if dirty else ''}, "
        f"{document['device']}, {cfg.threads} thread(s), load {document['load']:.1f}, torch {torch.__version__}.",
        f"{cfg.arm}, {parameters:,} parameters, {tokens:,} tokens a step, {arguments.rounds} rounds of "
        f"{arguments.steps - arguments.skip} timed steps of each loop, side by side in one process. Medians (and "
        'quartiles) over rounds; "Lightning" is its trainer alone, "ours" all of experiments.train.',
        "",
        "| " + " | ".join(headings) + " |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *("| " + " | ".join(line) + " |" for line in lines),
        "",
        verdict,
        "",
    ]
    out = Path(arguments.out)
    write_whole(out.with_suffix(".md"), "\n".join(text))
    write_whole(out.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    console.print(f"written: {out.with_suffix('.md')}, {out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
