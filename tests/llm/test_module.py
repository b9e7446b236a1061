"""Runs of the language task from config to record."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from experiments.core import run
from experiments.core.errors import ConfigError
from experiments.llm.data import IGNORE
from experiments.llm.module import LanguageModule
from scripts.bench_llm import summarise
from scripts.prepare_text import prepare
from tests.core.test_run import break_off_at, weights

STREAMED = [
    "data._target_=experiments.llm.data.StreamedText", "data.tokenizer.train_documents=40", "+data.block=7",
    "+data.max_documents={val: 4, test: 4}",
]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw_clip", "fadam"])
def test_one_run_writes_its_record(compose_config, tiny, tmp_path: Path, optimizer: str) -> None:
    run.execute(compose_config(*tiny, f"optimizer={optimizer}", "optimizer.lr=1e-2"))
    record = json.loads((tmp_path / "runs/llm/smoke" / optimizer / "main-s1.json").read_text())
    assert record["steps"] == 6
    assert record["seen"] == {"tokens": 6 * 4 * 16, "sequences": 24}
    assert [entry["step"] for entry in record["history"]] == [2, 4, 6]
    for split in ("val", "test"):
        loss = record["metrics"][f"{split}/loss"]
        assert math.isclose(record["metrics"][f"{split}/perplexity"], math.exp(loss), rel_tol=1e-5)
        counts = record["data"]
        nats = loss * (counts[f"{split}_tokens"] - 1)
        expected = nats / math.log(2) / counts[f"{split}_bytes"]
        assert math.isclose(record["metrics"][f"{split}/bits_per_byte"], expected, rel_tol=1e-5)
    assert record["history"][-1]["val/loss"] < record["history"][0]["val/loss"]
    assert record["objective"]["value"] == record["metrics"]["val/bits_per_byte"]
    assert [s["id"] for s in record["samples"]] == ["test-0-greedy", "test-0-sampled"]
    assert all({"split", "prompt", "reference", "hypothesis"} <= set(s) for s in record["samples"])
    assert record["samples"][0]["reference"] == record["samples"][1]["reference"] != ""


def test_bits_per_byte_by_hand(compose_config, tiny) -> None:
    """Over the whole split, window by window, against the formula."""
    cfg = compose_config(*tiny, "data.tokenizer.vocab_size=290")
    data, module = run.build_data(cfg), run.build_module(cfg)
    data.prepare_data()
    data.setup("fit")
    tokens = torch.from_numpy(data.packed.tokens("val").astype("int64"))
    length, nats = cfg.data.length, 0.0
    module.eval()
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, length):
            piece = tokens[start : start + length + 1][None]
            logits = module.model.llama(input_ids=piece[:, :-1]).logits.double()
            nats -= logits.log_softmax(-1)[0].gather(-1, piece[0, 1:, None]).sum().item()
    text = [text for text in data.source.documents("val") if text]
    expected = nats / math.log(2) / sum(len(t.encode()) for t in text)

    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    found = trainer.validate(module, datamodule=data, verbose=False)[0]
    assert math.isclose(found["val/bits_per_byte"], expected, rel_tol=1e-5)
    assert math.isclose(found["val/loss"], nats / (len(tokens) - 1), rel_tol=1e-5)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_sums_are_exact_whatever_the_precision_of_the_weights(compose_config, tiny, precision: str) -> None:
    """Lightning casts the whole module; added up in bfloat16, a split of many batches would be off by percents."""
    cfg = compose_config(*tiny, f"trainer.precision={precision}", "data.eval_batch_size=1")
    found: list[torch.Tensor] = []
    report = LanguageModule._report

    def spy(self: LanguageModule, split: str) -> None:
        found.append(self.sums.clone())
        report(self, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModule, "_report", spy)
        record = run.execute(cfg)
    counts = record["data"]
    for sums, split in zip(found, ["val"] * (len(found) - 1) + ["test"], strict=True):
        assert sums.dtype == torch.float64
        assert sums[1:].tolist() == [counts[f"{split}_tokens"] - 1, counts[f"{split}_bytes"]]


def test_ignored_targets_count_nowhere(compose_config, tiny) -> None:
    cfg = compose_config(*tiny)
    data, module = run.build_data(cfg), run.build_module(cfg)
    data.prepare_data()
    data.setup("fit")
    module.token_bytes = torch.from_numpy(data.tokenizer.token_bytes)
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        module._evaluate(batch)
        counted = module.sums.clone()
        module._evaluate(batch._replace(targets=torch.full_like(batch.targets, IGNORE)))
    assert module.sums.equal(counted)
    assert counted[1] == batch.targets.numel()
    assert counted[2] == data.tokenizer.token_bytes[batch.targets].sum()


@pytest.mark.parametrize("extra", [[], STREAMED], ids=["packed", "streamed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_run_is_the_uninterrupted_one(
    compose_config, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str], accumulate: int
) -> None:
    words = [*tiny, *extra, "optimizer=fadam", f"trainer.accumulate_grad_batches={accumulate}"]
    whole = run.execute(compose_config(*words, f"paths.runs_dir={tmp_path / 'whole'}"))
    with monkeypatch.context() as patch:
        break_off_at(patch, 5)
        with pytest.raises(RuntimeError, match="broken off"):
            run.execute(compose_config(*words))
    resumed = run.execute(compose_config(*words))
    assert resumed["seen"] == whole["seen"]
    for name, value in whole["metrics"].items():
        if not name.startswith("speed/"):
            assert resumed["metrics"][name] == value
    parts = Path("llm/smoke/fadam/main-s1")
    first, second = weights(tmp_path / "whole" / parts), weights(tmp_path / "runs" / parts)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_whose_loss_is_not_finite_is_recorded_as_diverged(compose_config, tiny) -> None:
    words = ["optimizer=adamw", "optimizer.lr=1e30", "callbacks.history.check_every=1", "scheduler.warmup_steps=0"]
    record = run.execute(compose_config(*tiny, *words))
    assert record["diverged"] is True
    assert record["steps"] < 6
    assert record["objective"]["value"] is None
    assert record["samples"] == []


def test_a_sequence_has_a_token_to_begin_a_sample_with(compose_config, tiny) -> None:
    with pytest.raises(ConfigError, match=r"data.length must be a whole number of at least 2, got 1"):
        run.execute(compose_config(*tiny, "data.length=1"))


def test_speed_is_logged(compose_config, tiny) -> None:
    record = run.execute(compose_config(*tiny, "trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=2"))
    assert record["history"][0]["speed/tokens_per_second"] > 0
    assert "speed/mfu" not in record["history"][0]  # only where a GPU's peak is known


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vocab_size=301", "model.vocab_size must be 300, the size of the tokenizer, got 301"),
        ("model.max_length=8", "data.length must be at most model.max_length=8, got 16"),
        ("module.samples=-1", "module.samples must be at least 0, got -1"),
        ("module.temperature=0", "module.temperature must be above 0, got 0"),
        ("module.decay=some", "module.decay must be one of"),
    ],
)
def test_what_does_not_fit_is_refused(compose_config, tiny, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.execute(compose_config(*tiny, override))


def test_text_is_prepared_as_the_experiment_reads_it(tiny, tmp_path: Path) -> None:
    overrides = [word for word in tiny if word.startswith("data")]
    data = prepare("llm_cpu", [*overrides, f"paths.data_dir={tmp_path / 'data'}"])
    assert data.packed.folder.parent == tmp_path / "data" / "text"
    assert set(data.packed.splits) == {"train", "val", "test"}


def test_speed_is_compared_round_by_round() -> None:
    rounds = [
        {"bare": (1.0, 1.0), "lightning": (1.0, 1.0), "ours": (2.0, 1.25)},
        {"bare": (4.0, 1.0), "lightning": (4.0, 1.0), "ours": (5.0, 1.25)},
        {"bare": (1.0, 1.0), "lightning": (1.0, 1.0), "ours": (1.0, 1.25)},
    ]
    rows = summarise(rounds, tokens=10)
    assert rows["ours"]["ratio"] == 0.8
    assert rows["ours"]["cpu_ratio"] == 0.8
    assert rows["ours"]["extra_ms"] == 1000.0
    assert rows["bare"]["tokens_per_second"] == 10.0
