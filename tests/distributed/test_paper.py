"""The paper-scale experiments, shrunken, on two processes against one: the real path from config to record, on the CPU.

Two gloo processes run every case, one after the other, while this process runs the same with one process and twice as
many micro-batches a step.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.core import run
from experiments.core.memory import local_elements
from experiments.evaluate import evaluate
from tests.asr.conftest import write_split
from tests.conftest import ROOT
from tests.distributed import worker
from tests.llm.conftest import documents
from tests.vqvae.conftest import sources

pytestmark = pytest.mark.timeout(1200)
TIMEOUT_S = 900  # twenty times what it takes on idle cores
OPTIMIZERS = {
    "adamw_clip": ["optimizer=adamw_clip", "trainer.gradient_clip_val=0.1"],  # so small that it clips
    "fadam": ["optimizer=fadam"],
}
SHARDED = [
    "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.strategy.gather=float32",
    "trainer.strategy.compile_blocks=false", "trainer.strategy.timeout_minutes=5",
]  # fmt: skip
EVERY = [
    "scale=smoke", "threads=1", "logger=none", "progress=line", "eval_every=3", "trainer.max_steps=3",
    "scheduler.warmup_steps=1", "optimizer.lr=0.01",
    # Large, so that entries whose gradient is zero but for rounding do not move.
    "optimizer.eps=0.01",
]  # fmt: skip


def speech(folder: Path) -> list[str]:
    write_split(folder / "speech", "train-clean", 48)
    for speaker, split in enumerate(("dev-clean", "test-clean"), start=8):
        write_split(folder / "speech", split, 5, speaker)
    return [
        "experiment=asr_paper", f"data.root={folder / 'speech'}", "data.train_splits=[train-clean]",
        "data.val_splits=[dev-clean]", "data.test_splits=[test-clean]", f"data.cache_dir={folder / 'speech-cache'}",
        "data.tokenizer=char", "data.vocab_size=29", "data.n_mels=20", "data.num_workers=0", "data.batch_seconds=6",
        "data.max_seconds=4", "data.pin_memory=false", "model.n_mels=20", "model.dim=12", "model.layers=2",
        "model.heads=2", "model.channels=[3,3]", "model.dropout=0.0", "module.augment=null",
        "objective.metric=dev-clean/wer",
    ]  # fmt: skip


def text(folder: Path) -> list[str]:
    (folder / "corpus").mkdir()
    lines = (json.dumps({"text": document}) + "\n" for document in documents(80))
    (folder / "corpus" / "0.jsonl").write_text("".join(lines), encoding="utf-8")
    return [
        "experiment=llm_paper", "data=llm_files", f"data.source.files={folder}/corpus/*.jsonl",
        "data.source.val_share=0.15", "data.source.test_share=0.15", "data.tokenizer.vocab_size=300",
        f"data.cache_dir={folder / 'text'}", "data.length=16", "data.batch_size=2", "data.eval_batch_size=4",
        "model.max_length=64", "model.dim=16", "model.layers=2", "model.heads=4", "model.kv_heads=2",
        "model.ffn_dim=24", "module.samples=1", "trainer.accumulate_grad_batches=1",
    ]  # fmt: skip


def images(folder: Path) -> list[str]:
    from experiments.vqvae.store import Cut, Division, build

    build(folder / "store", "made-up", sources(20), Cut(8, "grid"), Division(val=0.1, test=0.1, per_image=9))
    return [
        "experiment=vqvae_paper", f"data.root={folder / 'store'}", "data.batch_size=4", "data.eval_batch_size=4",
        "data.num_workers=0", "model.image_size=8", "model.patch=2", "model.dim=12", "model.layers=2", "model.heads=2",
        "model.hidden=24", "model.quantiser.codes=16", "model.quantiser.dim=3", "module.perceptual=false",
        "model.quantiser.start_after=0", "model.quantiser.kmeans_iterations=0", "model.quantiser.restart_after=0",
    ]  # fmt: skip


TASKS = {"asr": speech, "llm": text, "vqvae": images}
VARIANTS = {"vqvae": "discretized_logistic-"}  # the likelihood is part of the name


class Runs:
    """Folders of the runs on two processes and on one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, processes: int, task: str, optimizer: str, trial: str) -> Path:
        return self.folder / f"runs-{processes}" / task / "smoke" / optimizer / f"{VARIANTS.get(task, '')}{trial}-s1"

    def record(self, *which: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(f"{self.path(*which)}.json").read_text())
        return found

    def checkpoint(self, *which: Any) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(self.path(*which) / "last.ckpt", weights_only=True)
        return found

    def weights(self, *which: Any) -> dict[str, torch.Tensor]:
        """All but the counts of batches, which are micro-batches on one process."""
        state = self.checkpoint(*which)["state_dict"]
        return {name: value for name, value in state.items() if not name.endswith(("quantiser.batches", ".idle"))}

    def random(self, *which: Any) -> list[torch.Tensor]:
        """States of the processes' random generators at the last checkpoint."""
        callbacks = self.checkpoint(2, *which)["callbacks"]
        states = next(state for name, state in callbacks.items() if name.startswith("RandomState"))["processes"]
        return [state["torch"] for state in states]

    def states(self, *which: Any) -> list[dict[str, Any]]:
        return [torch.load(f"{self.path(2, *which)}-rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def start(cases: list[dict[str, Any]], folder: Path) -> list[subprocess.Popen[bytes]]:
    (folder / "cases.json").write_text(json.dumps(cases))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.worker", str(folder / "cases.json")],
            cwd=ROOT,
            env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=(folder / f"rank{rank}.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]


def finish(processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    try:
        for process in processes:
            process.wait(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            process.kill()
    if any(process.wait() for process in processes):
        logs = [(folder / f"rank{rank}.log").read_text()[-6000:] for rank in (0, 1)]
        pytest.fail("\n\n".join(["the two processes failed", *logs]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("paper")
    small = {task: [*shrink(folder), *EVERY, f"paths.data_dir={folder / 'data'}"] for task, shrink in TASKS.items()}
    sharded = [*SHARDED, f"paths.runs_dir={folder / 'runs-2'}", "trainer.devices=2"]
    alone = ["trainer=cpu", f"paths.runs_dir={folder / 'runs-1'}", "trainer.accumulate_grad_batches=2"]
    pairs = [[*small[task], *OPTIMIZERS[optimizer]] for task in TASKS for optimizer in OPTIMIZERS]
    cases: list[dict[str, Any]] = [{"overrides": [*overrides, *sharded]} for overrides in pairs]
    # Broken off after an evaluation, and started again.
    again = ["trial=again", "trainer.max_steps=5", "eval_every=1", "trainer.strategy.recompute=true"]
    cases.append({"overrides": [*small["llm"], "optimizer=fadam", *sharded, *again], "stop_at": 3})
    cases.append({"overrides": [*small["llm"], "optimizer=fadam", *sharded, *again, "trial=whole"]})
    moving = [
        "trial=moving",
        "optimizer=adamw_clip",
        "model.quantiser.start_after=1",
        "model.quantiser.restart_after=1",
    ]
    cases.append({"overrides": [*small["vqvae"], *sharded, *moving, "model.quantiser.kmeans_iterations=2"]})
    # As two nodes of one process each.
    nodes = ["trial=nodes", "trainer=fsdp_cluster", "trainer.devices=1", "trainer.num_nodes=2"]
    cases.append({"overrides": [*small["llm"], "optimizer=fadam", *nodes, *sharded[:-1]], "nodes": True})
    processes = start(cases, folder)
    try:
        for overrides in pairs:
            run.execute(worker.config([*overrides, *alone]))
    finally:
        finish(processes, folder)
    return Runs(folder)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_learn_and_measure_what_one_does(runs: Runs, task: str, optimizer: str) -> None:
    which = (task, optimizer, "main")
    assert_close(runs.weights(2, *which), runs.weights(1, *which))
    two, one = runs.record(2, *which), runs.record(1, *which)
    for name in ("steps", "parameters", "diverged"):
        assert two[name] == one[name], name
    assert two["seen"] == pytest.approx(one["seen"])
    assert two["metrics"].keys() == one["metrics"].keys()
    # Utterances are evaluated in other batches, and the convolutions see how far each is padded.
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-2 if task == "asr" else 1e-4)
    assert [e["train/loss"] for e in two["history"]] == pytest.approx([e["train/loss"] for e in one["history"]])
    assert not (runs.path(2, *which) / "last.ckpt").is_dir()


@pytest.mark.parametrize("task", TASKS)
def test_every_weight_is_cut_as_counted(runs: Runs, task: str) -> None:
    """All but the codebook lie in two parts, of which the first is what `experiments.size` counts."""
    first, second = (state["local"] for state in runs.states(task, "fadam", "main"))
    for name, value in runs.weights(1, task, "fadam", "main").items():
        name = name.removeprefix("model.")
        if name == "quantiser.embedding.weight":
            assert first[name] == second[name] == value.numel()
        else:
            assert first[name] == local_elements(value, 2)
            assert first[name] + second[name] == value.numel()


def test_a_run_broken_off_goes_on_exactly(runs: Runs) -> None:
    again, expected = (runs.weights(2, "llm", "fadam", trial) for trial in ("again", "whole"))
    for name, value in again.items():
        assert torch.equal(value, expected[name]), name
    one, two = (runs.record(2, "llm", "fadam", trial) for trial in ("again", "whole"))
    assert one["metrics"] == two["metrics"]
    assert one["seen"] == two["seen"]
    assert [entry["step"] for entry in one["history"]] == [1, 2, 3, 4, 5]
    for before, after in zip(*(runs.random("llm", "fadam", trial) for trial in ("again", "whole")), strict=True):
        assert torch.equal(before, after)


def test_one_process_evaluates_what_two_have_trained(runs: Runs) -> None:
    found = evaluate(runs.path(2, "llm", "fadam", "main"))
    expected = runs.record(2, "llm", "fadam", "main")["metrics"]
    assert found == pytest.approx(
        {name: value for name, value in expected.items() if name.startswith("test/")}, rel=1e-4
    )


def test_each_process_draws_its_own_random_numbers(runs: Runs) -> None:
    first, second = runs.random("llm", "fadam", "whole")
    assert not torch.equal(first, second)


def test_codebooks_that_move_stay_the_same_everywhere(runs: Runs) -> None:
    first, second = runs.states("vqvae", "adamw_clip", "moving")
    for name in ("embedding.weight", "batches", "idle"):
        assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first["embedding.weight"], runs.states("vqvae", "adamw_clip", "main")[0]["embedding.weight"])


def test_replicated_nodes_learn_the_same(runs: Runs) -> None:
    assert_close(runs.weights(2, "llm", "fadam", "nodes"), runs.weights(1, "llm", "fadam", "main"))
