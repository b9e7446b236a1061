"""FAdam in other people's training loops: plain PyTorch, Lightning, and the Trainer of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import LightningModule
from lightning import Trainer as LightningTrainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from fadam import FAdam

STEPS, LENGTH = 30, 12


class Counting(Dataset[dict[str, Tensor]]):
    """Sequences that count upwards modulo 16: soon learned."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (torch.arange(LENGTH) + index) % 16
        return {"input_ids": tokens, "labels": tokens}


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM) -> float:
    batch = next(iter(DataLoader(Counting(), batch_size=64)))
    model.eval()
    with torch.no_grad():
        return float(model(**batch).loss)


def loader() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Counting(), batch_size=16, shuffle=True)


def test_plain_pytorch(model: LlamaForCausalLM) -> None:
    before = loss_of(model)
    optimizer = FAdam(model.parameters(), lr=1e-2)
    model.train()
    steps = 0
    while steps < STEPS:
        for batch in loader():
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    assert loss_of(model) < 0.7 * before


class Module(LightningModule):
    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> FAdam:
        return FAdam(self.parameters(), lr=1e-2)


def test_lightning(model: LlamaForCausalLM, tmp_path: Path) -> None:
    before = loss_of(model)
    trainer = LightningTrainer(
        accelerator="cpu", max_steps=STEPS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(model.train()), loader())
    assert trainer.global_step == STEPS
    assert loss_of(model) < 0.7 * before


def test_transformers_trainer(model: LlamaForCausalLM, tmp_path: Path) -> None:
    before = loss_of(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=16, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, max_grad_norm=0.0,
    )  # fmt: skip
    optimizer = FAdam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=STEPS)
    trainer = Trainer(model, arguments, train_dataset=Counting(), optimizers=(optimizer, scheduler))
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert loss_of(model) < 0.7 * before
