"""What the four examples share: a small model of text in two domains, its training, and all estimates of its Fisher.

A sample is a sequence of T characters, and its likelihood that of all of them. The training loss is the mean over all
characters of B sequences, so that of one sequence was multiplied by 1 / T: `diagonal_fim(batch_size=B, scale=1 / T)`.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from experiments.llm.model import LanguageModel
from experiments.llm.text import Speeches, read_utf8
from fadam import FAdam
from fadam.fisher import Fim, diagonal_fim, empirical_fim, true_fim

Domain = Literal["speech", "code"]
Role = Literal["train", "val", "test"]
Batch = tuple[Tensor, Tensor]
Penalty = Callable[[nn.Module], Tensor]

VOCABULARY = 128  # ASCII; anything else is a question mark
LENGTH, BATCH = 32, 16  # T characters of a sequence, B sequences of a step
STEPS = 300
RATES = {"FAdam": 1e-2, "AdamW": 1e-2}
# About the last 100 steps: of these short runs the share that 0.999 sees of a run of 3,000.
BETAS = (0.9, 0.99)
PASS = 256  # sequences of a pass over data
METHODS = ("identity", "free", "empirical", "true")


class Trained(NamedTuple):
    """A model and the optimizer that knows its Fisher information."""

    model: LanguageModel
    optimizer: Optimizer


@functools.cache
def text(domain: Domain, role: Role) -> Tensor:
    """Characters (N,) uint8 of the State of the Union speeches, or of the modules of Python's standard library; one
    file of ten validates and one tests."""
    modules = sorted(Path(os.__file__).parent.glob("*.py"))
    files = Speeches(eval_speeches=1).files() if domain == "speech" else modules
    numbers = {"val": [3], "test": [7]}.get(role, [0, 1, 2, 4, 5, 6, 8, 9])
    kept = [read_utf8(file) for i, file in enumerate(files) if i % 10 in numbers]
    return torch.frombuffer(bytearray("\n".join(kept).encode("ascii", "replace")), dtype=torch.uint8)


def sequences(characters: Tensor, n: int, generator: torch.Generator) -> Batch:
    """Random sequences: inputs and targets (n, LENGTH)."""
    starts = torch.randint(len(characters) - LENGTH, (n, 1), generator=generator)
    rows = characters[starts + torch.arange(LENGTH + 1)].long()  # (n, T + 1)
    return rows[:, :-1], rows[:, 1:]


def new_model(seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(VOCABULARY, LENGTH, dim=32, layers=1, heads=2, ffn_dim=64, init_std=0.1)


def train(
    model: LanguageModel,
    optimizer: str,
    characters: Tensor,
    seed: int,
    steps: int = STEPS,
    penalty: Penalty | None = None,
) -> Trained:
    """Train a copy of the model, the learning rate falling linearly to 0; `penalty` is added to the mean loss."""
    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(seed)
    make = {"FAdam": FAdam, "AdamW": AdamW}[optimizer]
    stepper: Optimizer = make(model.named_parameters(), lr=RATES[optimizer], betas=BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(stepper, lambda t: 1 - t / steps)
    for _ in range(steps):
        loss = model(*sequences(characters, BATCH, generator)).mean()
        if penalty is not None:
            loss = loss + penalty(model)
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        schedule.step()
    return Trained(model.eval(), stepper)


@torch.no_grad()
def held_out_loss(model: LanguageModel, domain: Domain, role: Role = "test", n: int = 512) -> float:
    """Nats a character, on the same sequences for every model."""
    batch = sequences(text(domain, role), n, torch.Generator().manual_seed(0))
    return float(model(*batch).mean())


# ---- the estimates ---------------------------------------------------------------------------------------------------
def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Negative log-likelihood of a sequence, or of several."""
    nats: Tensor = model(*batch)  # (n, T)
    return nats.sum()


def draw(model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
    """Each next character drawn from the model, given the characters of the data before it."""
    assert isinstance(model, LanguageModel)
    p = model.llama(input_ids=batch[0], use_cache=False).logits.softmax(-1)  # (n, T, V)
    drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator)
    return batch[0], drawn.view_as(batch[1])


def estimates(trained: Trained, characters: Tensor, seed: int, sequences_seen: int = PASS) -> dict[str, Fim]:
    """The Fisher information of one sequence: for free, and by a pass with the data's and with the model's labels."""
    model, optimizer = trained
    data = [sequences(characters, sequences_seen, torch.Generator().manual_seed(seed))]
    return {
        "free": diagonal_fim(optimizer, model=model, batch_size=BATCH, scale=1 / LENGTH),
        "empirical": empirical_fim(model, loss, data, chunk_size=64),
        "true": true_fim(model, loss, data, sample=draw, seed=seed, chunk_size=64),
    }


def normalised(fim: Mapping[str, Tensor], floor: float = 1e-3) -> dict[str, Tensor]:
    """Divided by its mean over all parameters, and nowhere less than `floor`: where nothing is known, a little."""
    mean = sum(float(f.sum()) for f in fim.values()) / sum(f.numel() for f in fim.values())
    return {name: (f / mean).clamp(min=floor) for name, f in fim.items()}


def ones(model: nn.Module) -> dict[str, Tensor]:
    """The identity, for comparison: no Fisher information at all."""
    return {name: torch.ones_like(p) for name, p in model.named_parameters()}


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p.detach()) for name, p in model.named_parameters())


def with_weights(model: LanguageModel, values: Mapping[str, Tensor]) -> LanguageModel:
    """A copy of the model with other weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(values[name])
    return model
