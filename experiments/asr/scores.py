"""What is counted of each utterance, and the scores of a split that follow from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class Edits(NamedTuple):
    """The fewest changes that make a reference of a hypothesis."""

    substitutions: int
    deletions: int  # of the reference: words that the hypothesis lacks
    insertions: int


def edits(hypothesis: Sequence[str], reference: Sequence[str]) -> Edits:
    """Levenshtein's distance by kind. Where several alignments are as short, the one with the most substitutions."""
    # Each cell: the distance, and how many of it are deletions and insertions.
    row = [(j, 0, j) for j in range(len(hypothesis) + 1)]
    for i, wanted in enumerate(reference, start=1):
        diagonal, row[0] = row[0], (i, i, 0)
        for j, found in enumerate(hypothesis, start=1):
            distance, deleted, inserted = diagonal
            best = (distance + (wanted != found), deleted, inserted)
            distance, deleted, inserted = diagonal = row[j]
            best = min(best, (distance + 1, deleted + 1, inserted))
            distance, deleted, inserted = row[j - 1]
            row[j] = min(best, (distance + 1, deleted, inserted + 1))
    distance, deleted, inserted = row[-1]
    return Edits(distance - deleted - inserted, deleted, inserted)


@dataclass(frozen=True)
class Scored:
    """One utterance of a split: errors in words and in characters, and the CTC loss of its transcript."""

    split: str
    id: str
    words: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_errors: int
    loss: float  # -log p(transcript | audio) per symbol

    @classmethod
    def of(cls, split: str, key: str, hypothesis: str, reference: str, loss: float) -> Scored:
        words = reference.split()
        changed = edits(hypothesis.split(), words)
        return cls(
            split, key, len(words), *changed, len(reference), sum(edits(hypothesis, reference)), loss
        )  # fmt: skip


class SplitScores(Metric):
    """WER, CER and mean CTC loss of one split, over all processes.

    WER and CER are errors over the length of all references, the loss is the mean over utterances. All are sums of
    single utterances' values in double precision: how the utterances were batched does not matter.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")
        self.sums: Tensor

    def update(self, scored: Iterable[Scored]) -> None:
        rows = [
            (s.substitutions + s.deletions + s.insertions, s.words, s.character_errors, s.characters, s.loss, 1)
            for s in scored
        ]
        self.sums += torch.tensor(rows, dtype=torch.float64, device=self.sums.device).reshape(-1, 6).sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        errors, words, character_errors, characters, loss, utterances = self.sums
        return {"wer": errors / words, "cer": character_errors / characters, "loss": loss / utterances}


def table(scored: Iterable[Scored]) -> str:
    """A line of comma-separated values for each utterance, sorted, below the names of the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Scored)], lineterminator="\n")
    writer.writeheader()
    rows: list[dict[str, Any]] = [asdict(s) | {"loss": f"{s.loss:.6g}"} for s in scored]
    writer.writerows(sorted(rows, key=lambda row: (row["split"], row["id"])))
    return text.getvalue()
