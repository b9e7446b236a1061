"""The four uses of the Fisher information, on models and texts small enough for seconds."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from examples.fisher import __main__ as command
from examples.fisher import common, consolidation, laplace, merging, pruning

METHODS = {"identity", "free", "empirical", "true", "none"}


@pytest.fixture
def quick(monkeypatch):
    """Few steps and sequences."""
    for module, name, value in (
        (common, "STEPS", 3), (common, "PASS", 4), (merging, "FINE", 2), (consolidation, "SECOND", 2),
        (consolidation, "STRENGTHS", (0.1, 1.0)), (laplace, "PRECISIONS", (10.0, 100.0)), (laplace, "DRAWS", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(common, "train", _with_steps(common.train))
    for cached in (consolidation.first, consolidation.strength, laplace.batch):
        cached.cache_clear()
    yield
    for cached in (consolidation.first, consolidation.strength, laplace.batch):
        cached.cache_clear()


def _with_steps(train):
    def quick_train(*args, **options):
        return train(*args, **{**options, "steps": min(options.get("steps", 3), 3)})

    return quick_train


@pytest.mark.parametrize("use", command.USES)
@pytest.mark.parametrize("optimizer", common.RATES)
def test_each_use_gives_a_value_for_every_method(quick, use, optimizer):
    rows = command.USES[use].run(1, optimizer)
    assert {row["method"] for row in rows} == METHODS
    assert all(1 < row["value"] < 20 for row in rows)


def test_estimates_are_of_one_sequence_and_of_equal_size(quick):
    """Untrained, all characters are as likely, the gradients of different ones independent, and the data as good as the
    model's: the three estimates agree in size."""
    torch.manual_seed(0)
    model = common.new_model(0)
    characters = torch.randint(common.VOCABULARY, (5000,))
    trained = common.train(model, "FAdam", characters, 0, steps=1)
    assert isinstance(trained.model, nn.Module)
    still = common.Trained(common.with_weights(trained.model, dict(common.weights(model))), trained.optimizer)
    stepper = type(trained.optimizer)(still.model.named_parameters(), lr=0.0, weight_decay=0.0)
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        stepper.zero_grad()
        still.model(*common.sequences(characters, common.BATCH, generator)).mean().backward()
        stepper.step()
    found = common.estimates(common.Trained(still.model, stepper), characters, 0, 64)
    sizes = {name: sum(float(f.sum()) for f in fim.values()) for name, fim in found.items()}
    assert sizes["free"] / sizes["true"] == pytest.approx(1, rel=0.5)
    assert sizes["empirical"] / sizes["true"] == pytest.approx(1, rel=0.5)


def test_merging_known_weights():
    one, other = {"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([3.0, 0.0])}
    assert torch.equal(merging.merge([one, other], [{"w": torch.ones(2)}] * 2)["w"], torch.tensor([2.0, 2.0]))
    merged = merging.merge([one, other], [{"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 3.0])}])
    assert torch.equal(merged["w"], torch.tensor([1.5, 1.0]))


def test_the_penalty_pulls_to_the_anchor_as_the_fisher_says():
    model = nn.Linear(2, 1, bias=False)
    anchor, fisher = {"weight": torch.zeros(1, 2)}, {"weight": torch.tensor([[1.0, 3.0]])}
    value = consolidation.penalty(anchor, fisher, 0.5)(model)
    value.backward()
    w = model.weight.detach()
    assert value.item() == pytest.approx(float(0.25 * (w[0, 0] ** 2 + 3 * w[0, 1] ** 2)))
    assert torch.allclose(model.weight.grad, 0.5 * fisher["weight"] * w)


def test_pruning_takes_the_least_salient_entries_of_matrices():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    by_magnitude = pruning.prune(model, common.ones(model), 0.5)
    assert by_magnitude["weight"].tolist() == [[0, 0], [3, -4]]
    assert torch.equal(by_magnitude["bias"], model.bias)
    fisher = {"weight": torch.tensor([[100.0, 1.0], [1.0, 0.1]]), "bias": torch.ones(2)}
    assert pruning.prune(model, fisher, 0.5)["weight"].tolist() == [[1, 0], [3, 0]]


def test_laplace_torch_gets_the_posterior_that_the_fisher_means():
    model = common.new_model(0)
    fisher = {name: torch.full_like(p, 2.0) for name, p in model.named_parameters()}
    fit = laplace.laplace(model, fisher, samples=10, precision=5.0)
    count = sum(p.numel() for p in model.parameters())
    assert torch.equal(fit.posterior_precision, torch.full((count,), 25.0))
    assert torch.equal(fit.mean, torch.cat([p.detach().flatten() for p in model.parameters()]))
    before = dict(common.weights(model))
    mean, deviation = laplace.predict(fit, torch.zeros(1, 3, dtype=torch.int64), seed=0)
    assert torch.allclose(mean.sum(-1), torch.ones(1, 3))
    assert deviation.min() > 0
    assert all(torch.equal(before[name], p) for name, p in common.weights(model))
    prior = laplace.laplace(model, None, samples=10, precision=5.0)
    assert torch.equal(prior.posterior_precision, torch.full((count,), 5.0))


def test_calibration_error_and_loss_of_known_predictions():
    sure = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65]])
    assert laplace.calibration_error(sure, torch.tensor([0, 0, 1])) == pytest.approx((0.2 + 0.35) / 3)
    # In one bin what is too much and what is too little cancel.
    assert laplace.calibration_error(torch.tensor([[0.5, 0.5]] * 2), torch.tensor([0, 1])) == pytest.approx(0)
    assert laplace.nll(sure[:1], torch.tensor([1])) == pytest.approx(2.302585)


def test_normalised_has_mean_one_before_its_floor():
    fim = common.normalised({"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([4.0])})
    assert fim["a"].tolist() == pytest.approx([1e-3, 1.0])
    assert fim["b"].item() == pytest.approx(2.0)


def test_domains_and_roles_share_no_text():
    speech, code = common.text("speech", "train"), common.text("code", "train")
    assert speech.max() < common.VOCABULARY
    assert len(speech) > 1_000_000 < len(code)
    start = common.text("speech", "test")[:200].tolist()
    assert bytes(start) not in bytes(speech.tolist())


def test_the_record_keeps_what_is_done_and_goes_on(quick, tmp_path, capsys):
    assert command.main(["merging", "--seeds", "1", "--out", str(tmp_path)]) == 0
    first = json.loads((tmp_path / "merging.json").read_text())
    assert len(first["rows"]) == 10
    assert capsys.readouterr().out.count(": seed 1, ") == 2
    assert command.main(["merging", "--seeds", "1,2", "--out", str(tmp_path)]) == 0
    second = json.loads((tmp_path / "merging.json").read_text())
    assert second["rows"][:10] == first["rows"]
    assert capsys.readouterr().out.count(": seed 2, ") == 2
    assert command.main(["merging", "--seeds", "3,3", "--out", str(tmp_path)]) == 0
    assert len(json.loads((tmp_path / "merging.json").read_text())["rows"]) == 30


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["baking"], "USE=baking is not allowed; USE must be one of merging, consolidation, pruning, laplace"),
        (["--seeds", "1,x"], "--seeds=1,x is not allowed"),
        (["--seeds", "0"], "--seeds=0 is not allowed; --seeds must be whole numbers other than 0"),
    ],
)
def test_options_are_checked(words, sentence, capsys):
    assert command.main(words) == 2
    assert sentence in capsys.readouterr().err
