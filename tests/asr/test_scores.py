"""Errors by utterance and the scores of a split, which no batching may change."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchmetrics.functional.text import char_error_rate, word_error_rate

from experiments.asr.data import SpeechBatch
from experiments.asr.module import UTTERANCES, SpeechModule, greedy_decode
from experiments.asr.scores import Scored, SplitScores, edits, table
from experiments.asr.text import CharTokenizer


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("", "", (0, 0, 0)),
        ("A B C", "A B C", (0, 0, 0)),
        ("", "A B C", (0, 3, 0)),
        ("A B C", "", (0, 0, 3)),
        ("A X C", "A B C", (1, 0, 0)),
        ("A C", "A B C", (0, 1, 0)),
        ("A B B C", "A B C", (0, 0, 1)),
        ("B C D", "A B C", (0, 1, 1)),
        ("B A", "A B", (2, 0, 0)),
        ("X Y Z W", "A B", (2, 0, 2)),
        ("THE PEOPLE ARE", "OF THE PEOPLE", (0, 1, 1)),
    ],
)
def test_edits_by_kind(hypothesis: str, reference: str, expected: tuple[int, int, int]) -> None:
    assert edits(hypothesis.split(), reference.split()) == expected


def test_edits_are_those_of_an_independent_count() -> None:
    rng = random.Random(0)
    for _ in range(300):
        one, other = ([rng.choice("AB C") for _ in range(rng.randint(1, 9))] for _ in range(2))
        found = edits(one, other)
        assert sum(found) == round(float(char_error_rate(["".join(one)], ["".join(other)])) * len(other))
        assert len(one) - len(other) == found.insertions - found.deletions
        assert min(found) >= 0


def test_scores_are_over_the_whole_split() -> None:
    scores = SplitScores()
    scores.update([Scored.of("s", "a", "A B", "A B", 1.0), Scored.of("s", "b", "C", "D", 1.0)])
    scores.update([Scored.of("s", "c", "E F G H", "E F X H", 4.0)])
    values = {name: value.item() for name, value in scores.compute().items()}
    assert values == {"wer": 2 / 7, "cer": 2 / 11, "loss": 2.0}
    scores.reset()
    scores.update([Scored.of("s", "a", "A", "A", 0.0)])
    assert scores.compute()["wer"].item() == 0.0


def test_one_loss_that_is_not_a_number_is_not_left_out() -> None:
    scores = SplitScores()
    scores.update([Scored.of("s", "a", "A", "A", 1.0), Scored.of("s", "b", "A", "A", float("nan"))])
    assert torch.isnan(scores.compute()["loss"])


# ---- any batch -----------------------------------------------------------------------------------------------------

TEXTS = ["THE PEOPLE", "OF THE UNITED STATES", "IT'S A GOOD YEAR", "WE WILL SEE", "LET US BE", "ALL", "GREAT NATIONS"]


class Told(nn.Module):
    """Log-probabilities known beforehand, by the first feature of each utterance; padding is filled with nonsense."""

    vocab_size = CharTokenizer.vocab_size

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = known

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        chosen = [self.known[int(number)] for number in features[:, 0, 0]]
        padded = pad_sequence(chosen, batch_first=True, padding_value=123.0)
        return padded, torch.tensor([len(x) for x in chosen])


@pytest.fixture
def known() -> list[Tensor]:
    """(T', V) for 21 utterances: about right, and wrong here and there."""
    generator = torch.Generator().manual_seed(3)
    tokenizer, found = CharTokenizer(), []
    for number in range(21):
        labels = tokenizer.encode(TEXTS[number % len(TEXTS)])
        logits = 0.7 * torch.randn(2 * len(labels) + 1 + number % 5, tokenizer.vocab_size, generator=generator)
        for place, label in enumerate(labels):
            logits[2 * place, 0] += 2.0
            logits[2 * place + 1, label] += 2.5
        found.append(logits.log_softmax(-1))
    return found


def module_for(known: list[Tensor]) -> SpeechModule:
    module = SpeechModule(Told(known), None, None)  # type: ignore[arg-type]
    data = SimpleNamespace(tokenizer=CharTokenizer(), val_names=[], test_names=["test-clean"])
    module._trainer = SimpleNamespace(datamodule=data, is_global_zero=True)  # type: ignore[assignment]
    module._fabric = None
    module.scores["test-clean"] = SplitScores()
    return module


def batch_of(numbers: list[int]) -> SpeechBatch:
    tokenizer = CharTokenizer()
    targets = [torch.tensor(tokenizer.encode(TEXTS[n % len(TEXTS)])) for n in numbers]
    return SpeechBatch(
        torch.tensor(numbers, dtype=torch.float32)[:, None, None],
        torch.ones(len(numbers), dtype=torch.int64),
        pad_sequence(targets, batch_first=True),
        torch.tensor([len(t) for t in targets]),
        [f"1-1-{n:04d}" for n in numbers],
        [TEXTS[n % len(TEXTS)] for n in numbers],
        len(numbers),
    )


def evaluated(module: SpeechModule, batches: list[list[int]], folder: Path) -> tuple[dict[str, float], str]:
    module.on_test_epoch_start()
    for numbers in batches:
        module.evaluate("test-clean", batch_of(numbers))
    values = {name: value.item() for name, value in module.scores["test-clean"].compute().items()}
    module.scores["test-clean"].reset()
    assert module.save_artifacts(str(folder)) == []
    return values, (folder / UTTERANCES).read_text()


def batchings() -> list[list[list[int]]]:
    order = list(range(21))
    shuffled = random.Random(1).sample(order, 21)
    sizes = [[order[i : i + size] for i in range(0, 21, size)] for size in (1, 2, 8, 16, 21)]
    return [*sizes, [shuffled[:1], shuffled[1:13], shuffled[13:]], [[n] for n in reversed(order)]]


def test_scores_are_the_same_for_any_evaluation_batch(known: list[Tensor], tmp_path: Path) -> None:
    module = module_for(known)
    first, *others = [evaluated(module, batches, tmp_path) for batches in batchings()]
    assert 0.05 < first[0]["wer"] < 0.95
    for values, lines in others:
        assert lines == first[1]
        assert values["wer"] == first[0]["wer"]
        assert values["cer"] == first[0]["cer"]
        assert values["loss"] == pytest.approx(first[0]["loss"], rel=1e-14)


def test_scores_are_those_of_independent_computations(known: list[Tensor], tmp_path: Path) -> None:
    values, _ = evaluated(module_for(known), batchings()[3], tmp_path)
    tokenizer = CharTokenizer()
    references = [TEXTS[n % len(TEXTS)] for n in range(21)]
    hypotheses = [greedy_decode(x[None], torch.tensor([len(x)]), tokenizer)[0] for x in known]
    assert values["wer"] == pytest.approx(word_error_rate(hypotheses, references).item(), rel=1e-6)
    assert values["cer"] == pytest.approx(char_error_rate(hypotheses, references).item(), rel=1e-6)
    losses = []
    for log_probs, text in zip(known, references, strict=True):
        labels = torch.tensor(tokenizer.encode(text))
        total = F.ctc_loss(log_probs, labels, torch.tensor(len(log_probs)), torch.tensor(len(labels)), reduction="sum")
        losses.append(total.item() / len(labels))
    assert values["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_the_training_loss_is_torchs_own_mean_bit_for_bit(known: list[Tensor]) -> None:
    batch, module = batch_of(list(range(16))), module_for(known)
    log_probs, lengths = module.model(batch.features, batch.feature_lengths)
    theirs = F.ctc_loss(log_probs.transpose(0, 1), batch.targets, lengths, batch.target_lengths)
    assert torch.equal(module.losses(batch, batch.features)[0].mean(), theirs)


def test_the_table_gives_the_scores_again(known: list[Tensor], tmp_path: Path) -> None:
    values, lines = evaluated(module_for(known), batchings()[2], tmp_path)
    rows: list[dict[str, Any]] = list(csv.DictReader(lines.splitlines()))
    assert [row["id"] for row in rows] == [f"1-1-{n:04d}" for n in range(21)]
    assert {row["split"] for row in rows} == {"test-clean"}

    def total(*names: str) -> float:
        return sum(float(row[name]) for row in rows for name in names)

    assert total("substitutions", "deletions", "insertions") / total("words") == values["wer"]
    assert total("character_errors") / total("characters") == values["cer"]
    assert total("loss") / len(rows) == pytest.approx(values["loss"], rel=1e-5)
    assert table([]).count("\n") == 1
