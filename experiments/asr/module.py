"""Training and evaluation of a CTC speech recogniser: greedy decoding, WER and CER on every split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.asr.data import SpeechBatch
from experiments.asr.features import frame_count
from experiments.asr.librispeech import SAMPLE_RATE
from experiments.asr.scores import Scored, SplitScores, table
from experiments.asr.text import Tokenizer
from experiments.core.callbacks import everyones
from experiments.core.errors import ConfigError
from experiments.core.files import write_whole
from experiments.core.module import TaskModule

SAMPLES = 10
UTTERANCES = "utterances.csv"


def greedy_decode(log_probs: Tensor, lengths: Tensor, tokenizer: Tokenizer) -> list[str]:
    """The most probable symbol of each frame, repeats merged, blanks dropped.

    Args:
        log_probs: (B, T, V).
        lengths: (B,).
    """
    best = log_probs.argmax(dim=-1).cpu()  # (B, T)
    texts = []
    for frames, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(frames[:length]).tolist()
        texts.append(tokenizer.decode([symbol for symbol in merged if symbol != tokenizer.blank]))
    return texts


class SpeechModule(TaskModule):
    """CTC training: the loss is the negative log-probability of the transcript, per symbol.

    Args:
        augment: applied to the features of training batches, such as `experiments.asr.features.SpecAugment`; or None.
        others: see `TaskModule`.
    """

    def __init__(self, *args: Any, augment: nn.Module | None = None, **others: Any) -> None:
        super().__init__(*args, **others)
        self.augment = augment
        self.scores = nn.ModuleDict()
        self.kept: dict[str, list[dict[str, Any]]] = {}  # transcripts of the last evaluation, by split
        self.scored: list[Scored] = []  # and what is counted of them

    @property
    def data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        known = self.data.tokenizer.vocab_size
        if known != self.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size must be {known}, the size of the tokenizer, got {self.model.vocab_size}"
            )
        for name in (*self.data.val_names, *self.data.test_names):
            if name not in self.scores:
                self.scores[name] = SplitScores().to(self.device)

    def counters(self, split: str) -> SplitScores:
        """What counts the errors of a split."""
        found = self.scores[split]
        assert isinstance(found, SplitScores)
        return found

    def losses(self, batch: SpeechBatch, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each utterance's loss per symbol (B,), log-probabilities (B, T', V) and their lengths (B,)."""
        log_probs, lengths = self.model(features, batch.feature_lengths)
        losses = F.ctc_loss(
            log_probs.transpose(0, 1),  # (T', B, V)
            batch.targets,
            lengths,
            batch.target_lengths,
            blank=self.data.tokenizer.blank,
            reduction="none",
        )
        return losses / batch.target_lengths.clamp(min=1), log_probs, lengths

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> Tensor:
        features = batch.features
        if self.augment is not None:
            features = self.augment(features, batch.feature_lengths)
        loss = self.losses(batch, features)[0].mean()
        self.log("train/loss_step", loss, batch_size=len(batch.ids))
        return loss

    def evaluate(self, split: str, batch: SpeechBatch) -> None:
        losses, log_probs, lengths = self.losses(batch, batch.features)
        hypotheses = greedy_decode(log_probs, lengths, self.data.tokenizer)
        kept, scored = self.kept.setdefault(split, []), []
        for name, reference, hypothesis, loss in zip(batch.ids, batch.texts, hypotheses, losses.tolist(), strict=True):
            kept.append({"split": split, "id": name, "reference": reference, "hypothesis": hypothesis})
            scored.append(Scored.of(split, name, hypothesis, reference, loss))
        self.counters(split).update(scored)
        self.scored += scored

    def forget_evaluation(self) -> None:
        self.kept.clear()
        self.scored.clear()

    def report_splits(self, splits: list[str]) -> None:
        for split in splits:
            self.report({f"{split}/{k}": v for k, v in self.counters(split).compute().items()})
            self.counters(split).reset()

    def validation_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluate(self.data.val_names[dataloader_idx], batch)

    def on_validation_epoch_start(self) -> None:
        self.forget_evaluation()

    def on_validation_epoch_end(self) -> None:
        self.report_splits(self.data.val_names)

    def on_test_epoch_start(self) -> None:
        self.forget_evaluation()

    def test_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluate(self.data.test_names[dataloader_idx], batch)

    def on_test_epoch_end(self) -> None:
        self.report_splits(self.data.test_names)

    def seen(self, batch: SpeechBatch) -> dict[str, float]:
        return {"hours": batch.frames * self.data.frame_seconds / 3600.0, "utterances": float(len(batch.ids))}

    def probe(self, data: DictConfig) -> Tensor:
        # Without the table of CTC, (B, T', 2 S + 1), which is small beside the encoder.
        frames = frame_count(int(data.max_seconds * SAMPLE_RATE))
        utterances = min(data.max_utterances, int(data.batch_seconds // data.max_seconds))
        features = torch.zeros(utterances, frames, data.n_mels)
        log_probs: Tensor = self.model(features, torch.full((utterances,), frames))[0]  # (B, T', V)
        return log_probs.mean()

    def samples(self) -> list[dict[str, Any]]:
        """Ten transcripts beside their references: the same utterances in every run, spread over the test splits."""
        splits = [sorted(kept, key=lambda sample: sample["id"]) for kept in self.kept.values()]
        each = -(-SAMPLES // max(1, len(splits)))
        chosen = [sample for kept in splits for sample in kept[:: max(1, len(kept) // each)][:each]]
        return chosen[:SAMPLES]

    def save_artifacts(self, stem: str) -> list[str]:
        """Keep a line for each test utterance in the run's own folder, for errors by utterance; nothing to publish."""
        text = table(s for scored in everyones(self.scored) for s in scored)
        if self.trainer.is_global_zero:
            Path(stem).mkdir(parents=True, exist_ok=True)
            write_whole(Path(stem) / UTTERANCES, text)
        return []
