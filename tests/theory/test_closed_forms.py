"""The closed forms of the Fisher information, against `fadam.fisher` and against one another."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from experiments.theory import closed_forms
from experiments.theory.closed_forms import (
    CLASSES,
    Categorical,
    LinearGaussian,
    Softmax,
    cases,
    empirical,
    left,
    mean_gradient,
    study,
)
from fadam.fisher import empirical_fim, true_fim

CASES = {f"{name}, {situation}": (model, theta) for name, situation, model, theta in cases()}


class Holder(nn.Module):
    """Parameters alone; the losses below know what to do with them."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())


def parts(model, theta):
    """(loss of a sample, data, outcomes) for `fadam.fisher`, written anew and without the closed forms."""
    if isinstance(model, Categorical):
        n = 100
        labels = torch.repeat_interleave(torch.arange(len(theta)), (model.frequencies * n).round().long())

        def logits(holder, batch):
            return holder.theta.expand(len(batch[0]), -1)

        data = (torch.zeros(n, 1), labels)
    else:
        data = (model.inputs[:200], model.targets[:200])

        def logits(holder, batch):
            return batch[0] @ holder.theta.view(-1, batch[0].shape[1]).T

    if isinstance(model, LinearGaussian):

        def loss(holder, batch):
            return -torch.distributions.Normal(batch[0] @ holder.theta, model.sigma).log_prob(batch[1])

        def outcomes(holder, batch):
            # Two targets one sigma from the mean have a Gaussian's variance, and the score is linear in the target.
            mean = batch[0] @ holder.theta
            for sign in (-1, 1):
                yield (batch[0], mean + sign * model.sigma), torch.full((len(mean),), 0.5)

        return loss, data, outcomes

    def cross_entropy(holder, batch):
        return nn.functional.cross_entropy(logits(holder, batch), batch[1])

    def every(holder, batch):
        p = logits(holder, batch).softmax(-1)
        for label in range(p.shape[-1]):
            yield (batch[0], torch.full_like(batch[1], label)), p[:, label]

    return cross_entropy, data, every


def of_data(model, data):
    """The model on the data of `parts`."""
    if isinstance(model, LinearGaussian):
        return LinearGaussian(*data, model.sigma)
    return Softmax(*data, CLASSES) if isinstance(model, Softmax) else model


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_diagonals_are_what_passes_over_data_give(case, method):
    model, theta = CASES[case]
    loss, data, outcomes = parts(model, theta)
    small, holder = of_data(model, data), Holder(theta)
    options = {"method": method, "chunk_size": 50}
    found = empirical_fim(holder, loss, [data], **options)["theta"]
    assert torch.allclose(found, small.empirical_diagonal(theta), rtol=1e-6, atol=1e-12)
    found = true_fim(holder, loss, [data], outcomes=outcomes, **options)["theta"]
    assert torch.allclose(found, small.true_diagonal(theta), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_diagonals_are_those_of_the_full_matrices(case):
    model, theta = CASES[case]
    assert torch.allclose(model.true(theta).diagonal(), model.true_diagonal(theta), rtol=1e-6)
    assert torch.allclose(empirical(model, theta).diagonal(), model.empirical_diagonal(theta), rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradient_and_true_fisher_are_those_of_autograd(case):
    model, theta = CASES[case]
    theta = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.loss(theta), theta)
    theta = theta.detach()
    assert torch.allclose(mean_gradient(model, theta), gradient, rtol=1e-6, atol=1e-10)
    # The parametrisation is canonical: the Hessian does not depend on the labels.
    hessian = torch.autograd.functional.hessian(model.loss, theta)
    assert torch.allclose(model.true(theta), hessian, rtol=1e-6, atol=1e-10)


def test_the_true_step_of_the_linear_gaussian_is_exact_for_any_sigma():
    for case, (model, theta) in CASES.items():
        if isinstance(model, LinearGaussian):
            assert left(model, theta, model.true(theta)) == pytest.approx(0.0, abs=1e-9), case


def test_at_the_optimum_only_a_right_sigma_makes_them_agree():
    model, _ = CASES["linear, Gaussian, sigma of the noise, near the optimum"]
    for factor in (1 / 3, 1.0, 3.0):
        other = LinearGaussian(model.inputs, model.targets, factor * model.sigma)
        best = other.best()
        ratio = other.empirical_diagonal(best) / other.true_diagonal(best)
        assert torch.allclose(ratio, torch.full_like(ratio, factor**-2), rtol=0.1)


def test_at_the_optimum_of_a_categorical_they_agree_exactly():
    model, _ = CASES["categorical, near the optimum"]
    best = model.best()
    assert torch.allclose(model.empirical_diagonal(best), model.true_diagonal(best), rtol=1e-12)
    assert torch.allclose(empirical(model, best), model.true(best), rtol=1e-12)


def test_two_classes_of_which_one_is_sure_and_right():
    for q in (0.1, 1e-3):
        theta = torch.tensor([0.0, torch.logit(torch.tensor(q, dtype=torch.float64))], dtype=torch.float64)
        model = Categorical(torch.tensor([1.0, 0.0], dtype=torch.float64))
        ratio = model.empirical_diagonal(theta) / model.true_diagonal(theta)
        assert torch.allclose(ratio, torch.full_like(ratio, q / (1 - q)), rtol=1e-6)


@pytest.mark.parametrize("case", [case for case, (model, _) in CASES.items() if isinstance(model, Categorical)])
def test_steps_of_the_categorical(case):
    model, theta = CASES[case]
    g = mean_gradient(model, theta)
    for matrix, step in (
        (model.true(theta), model.true_step(theta)),
        (empirical(model, theta), model.empirical_step(theta)),
    ):
        solved = torch.linalg.pinv(matrix, hermitian=True) @ g
        assert torch.allclose(solved - solved.mean(), step - step.mean(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", [case for case, (model, _) in CASES.items() if isinstance(model, LinearGaussian)])
def test_the_empirical_step_is_that_of_the_covariance_shrunk(case):
    model, theta = CASES[case]
    g, e = mean_gradient(model, theta), empirical(model, theta)
    solved = torch.linalg.solve(e - torch.outer(g, g), g)
    assert torch.allclose(torch.linalg.solve(e, g), solved / (1 + g @ solved), rtol=1e-6)


def test_the_record_repeats_and_names_every_case():
    one = study()
    assert one == study()
    assert {f"{row['model']}, {row['situation']}" for row in one["rows"]} == set(CASES)
    for row, name in itertools.product(one["rows"], ("ratio", "left_true", "left_empirical")):
        assert row[name] >= 0


def test_the_command_writes_the_record(tmp_path, capsys):
    assert closed_forms.main(["--out", str(tmp_path / "record.json")]) == 0
    assert (tmp_path / "record.json").read_text().startswith('{\n "schema": 1')
    assert "wrote" in capsys.readouterr().out
