"""A small corpus of local files and the smallest model, for runs of a second."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = [
    "the",
    "of",
    "and",
    "people",
    "Congress",
    "nation",
    "peace",
    "war",
    "money",
    "law",
    "—",
    "naïve",
    "1790",
    "[x]",
]


def documents(count: int, seed: int = 0, words: int = 40) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(words // 2, words))) + ".\n" for _ in range(count)]


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes documents as JSON lines, `per_file` in each of several files; returns their folder."""

    def write(texts: list[str], per_file: int = 20) -> Path:
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        for number in range(0, len(texts), per_file):
            lines = (json.dumps({"text": text}) + "\n" for text in texts[number : number + per_file])
            (folder / f"{number:04d}.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def tiny(jsonl: Callable[..., Path]) -> list[str]:
    """Overrides that turn `experiment=llm_cpu` into a run of a second on 80 local documents."""
    folder = jsonl(documents(80))
    return [
        "experiment=llm_cpu", "scale=smoke", "data=llm_files", f"data.source.files={folder}/*.jsonl",
        "data.source.val_share=0.15", "data.source.test_share=0.15", "data.tokenizer.vocab_size=300",
        "data.length=16", "data.batch_size=4", "data.eval_batch_size=4", "model.dim=16", "model.layers=1",
        "model.heads=2", "model.ffn_dim=32", "trainer.max_steps=6", "eval_every=2", "scheduler.warmup_steps=1",
        "logger=none", "progress=line", "module.samples=1",
    ]  # fmt: skip
