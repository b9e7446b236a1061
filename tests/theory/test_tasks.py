"""How f_t is compared with the Fisher information of the tasks' own models."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from experiments.core import run
from experiments.theory import tasks
from experiments.theory.tasks import TASKS, compared, gradient_square, layer, layers, rank_correlation
from experiments.vqvae.likelihood import DiscretizedLogistic
from fadam.fisher import empirical_fim
from tests.asr.conftest import speech_root as speech_root
from tests.llm.conftest import jsonl as jsonl
from tests.vqvae.conftest import make_store as make_store

SMALL = {
    "asr": ("model.dim=16", "model.layers=1", "model.heads=2", "model.kernel=3", "data.cache_features=false"),
    "llm": ("data.length=16", "model.dim=16", "model.layers=1", "model.heads=2", "model.ffn_dim=32"),
    "vqvae": ("model.width=8", "model.quantiser.codes=8", "model.blocks=1", "model.likelihood.features=4"),
}


def test_rank_correlation_is_scipy_s_with_ties_too():
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(20, (300,), generator=generator).double()
    other = one + torch.randint(30, (300,), generator=generator)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation(one, one.exp()) == pytest.approx(1)


def test_compared_of_known_vectors():
    found = compared(torch.tensor([1.0, 2.0, 6.0, 0.0]), torch.tensor([2.0, 4.0, 3.0, 1.0]))
    assert found["ratio"] == pytest.approx(0.9)


def test_layers_are_named_up_to_the_first_number():
    assert layer("llama.model.layers.2.self_attn.q_proj.weight") == "llama.model.layers.2"
    assert layer("llama.model.embed_tokens.weight") == "llama.model"
    assert layer("head.bias") == "head.bias"
    found = layers({"a.0.w": torch.ones(2, 2), "a.0.b": torch.zeros(1), "c.w": torch.ones(1)}, "^c")
    assert {name: value.tolist() for name, value in found.items()} == {"a.0": [1, 1, 1, 1, 0], "all": [1, 1, 1, 1, 0]}


def test_the_square_of_the_mean_gradient_is_the_mean_over_pairs_of_samples():
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    x, y = torch.randn(5, 2), torch.randn(5, 1)

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square()

    task = tasks.Task("none", (), "", loss, lambda b: b, lambda m, b: loss(m, b).sum(), lambda m, b, g: b)
    fim = empirical_fim(model, task.loss, [(x, y)])
    g = torch.stack([torch.autograd.grad(loss(model, (x[i], y[i])), model.weight)[0] for i in range(5)])
    pairs = torch.stack([g[i] * g[j] for i, j in itertools.permutations(range(5), 2)]).mean(0)
    assert torch.allclose(gradient_square(model, task, (x, y), fim, 5)["weight"], pairs, atol=1e-6)


class Frames(nn.Module):
    """Fixed log-probabilities of symbols (1, T, V) for every utterance."""

    def __init__(self, log_probs: torch.Tensor) -> None:
        super().__init__()
        self.log_probs = log_probs

    def forward(self, features, lengths):
        return self.log_probs.expand(len(features), -1, -1), lengths


def test_transcripts_are_drawn_with_ctc_s_probabilities():
    log_probs = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    n = 4000
    zero = torch.zeros(n, dtype=torch.int64)
    batch = (torch.zeros(n, 3, 1), zero + 3, torch.zeros(n, 1, dtype=torch.int64), zero, zero + 1)
    model = Frames(log_probs)
    _, _, targets, lengths, _ = TASKS["asr"].draw(model, batch, torch.Generator().manual_seed(1))
    drawn = [tuple(t[:k].tolist()) for t, k in zip(targets, lengths.tolist(), strict=True)]
    for text in ((), (1,), (2,), (1, 2), (2, 2)):
        labels = torch.tensor([text]) if text else torch.zeros(1, 1, dtype=torch.int64)
        one = (torch.zeros(1, 3, 1), torch.tensor([3]), labels, torch.tensor([len(text)]), torch.tensor([1]))
        expected = math.exp(-float(TASKS["asr"].loss(model, one)))
        assert drawn.count(text) / n == pytest.approx(expected, abs=4 * math.sqrt(expected / n) + 1e-3)


class Pixels(nn.Module):
    """A fixed distribution of one pixel for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.likelihood = DiscretizedLogistic(1, mixtures=2, levels=8)
        generator = torch.Generator().manual_seed(0)
        self.parameters_of = torch.randn(1, 3, 3, 2, 1, 1, generator=generator)

    def forward(self, images):
        return SimpleNamespace(parameters=self.parameters_of.expand(len(images), -1, -1, -1, -1, -1))


def test_images_are_drawn_with_the_likelihood_s_probabilities():
    model, n = Pixels(), 6000
    images = torch.zeros(n, 3, 1, 1, dtype=torch.uint8)
    _, drawn = TASKS["vqvae"].draw(model, (images, images), torch.Generator().manual_seed(1))
    for channel in range(3):
        shares = torch.bincount(drawn[:, channel].flatten().long(), minlength=8) / n
        assert torch.allclose(shares, one_channel(model, channel), atol=0.025)


def one_channel(model: Pixels, channel: int) -> torch.Tensor:
    """Probabilities (8,) of the levels of one channel, from those of whole pixels with the other channels at 0."""
    pixels = torch.zeros(8, 3, 1, 1, dtype=torch.uint8)
    pixels[:, channel, 0, 0] = torch.arange(8, dtype=torch.uint8)
    p = model.likelihood.log_prob(model.parameters_of.expand(8, -1, -1, -1, -1, -1), pixels).exp()
    return p / p.sum()


@pytest.fixture
def overrides(request, tmp_path: Path, speech_root, make_store, jsonl) -> tuple[str, ...]:
    """Of a task's config, for a tiny model and tiny data."""
    name = request.param
    if name == "asr":
        return (*SMALL[name], f"data.root={speech_root}")
    if name == "vqvae":
        return (*SMALL[name], f"data.root={make_store(size=8, count=40)}")
    return (*SMALL[name], f"data.cache_dir={tmp_path / 'text'}", "data.tokenizer.vocab_size=300")


@pytest.mark.parametrize(("name", "overrides"), [(name, name) for name in TASKS], indirect=["overrides"])
def test_a_run_of_each_task_is_measured(name, overrides, monkeypatch):
    monkeypatch.setattr(tasks, "BETAS2", (0.5, 0.9))
    rows = list(tasks.train(TASKS[name], 1, 2, (1, 3), 4, overrides))
    assert {row["step"] for row in rows} == {1, 3}
    whole = [row for row in rows if row["layer"] == "all"]
    assert len(whole) == 2
    for row in whole:
        assert row["entries"] == sum(r["entries"] for r in rows if r["step"] == row["step"]) / 2
        assert [free["beta2"] for free in row["free"]] == [0.5, 0.9]
        assert 0 < row["free"][0]["empirical"]["ratio"] < 100
        assert -1 <= row["ceiling"] <= 1
    # At the first step every moving average is the first square.
    first = whole[0]["free"]
    assert first[0]["true"] == pytest.approx(first[1]["true"], rel=1e-5)
    assert json.loads(json.dumps(tasks.rounded(rows)))
    again = list(tasks.train(TASKS[name], 1, 2, (1, 3), 4, overrides, single=False))
    assert again == whole


@pytest.mark.parametrize(("name", "overrides"), [(name, name) for name in TASKS], indirect=["overrides"])
def test_the_loss_of_samples_is_that_of_training(name, overrides):
    """Their mean is the training loss, or its likelihood's part."""
    task = TASKS[name]
    cfg = tasks.configuration(task, 1, 2, 1, overrides)
    data = run.build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    module = run.build_module(cfg)
    module.model.eval()
    batch = next(iter(data.train_dataloader()))
    samples = task.samples(batch)
    each = [task.loss(module.model, tuple(x[i : i + 1] for x in samples)) for i in range(len(samples[0]))]
    expected = task.training(module, batch)
    if name == "vqvae":
        expected = module.nll(module.model(batch), batch).mean()
    assert (sum(each) / len(each)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_record_has_a_row_on_a_line():
    record = {"schema": 1, "settings": {"a": [1]}, "rows": [{"x": 1.5}, {"x": 2}]}
    assert json.loads(tasks.text(record)) == record
    assert tasks.text(record).splitlines()[-4:] == ['  {"x":1.5},', '  {"x":2}', " ]", "}"]


def test_another_task_is_refused(capsys):
    assert tasks.main(["chess"]) == 2
    assert "TASK=chess is not allowed; TASK must be one of asr, llm, vqvae" in capsys.readouterr().err
