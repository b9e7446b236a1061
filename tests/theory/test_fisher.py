"""The small study of the Fisher information, against closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch

from experiments.theory import fisher
from experiments.theory.fisher import (
    CLASSES,
    LIKELIHOODS,
    SAMPLES,
    empirical_fisher,
    expected_square,
    problem,
    relation,
    sample_gradients,
    study,
    true_fisher,
)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sample_gradients_are_those_of_autograd(name):
    task = problem(name)
    chosen = 7
    loss = -task.log_likelihood(task.model(task.inputs[chosen]), task.targets[chosen])
    gradient = torch.autograd.grad(loss, list(task.model.parameters()))
    assert torch.allclose(sample_gradients(task)[chosen], torch.cat([g.flatten() for g in gradient]), atol=1e-12)


def test_true_fisher_of_the_last_bias_is_the_covariance_of_the_classes():
    task = problem("categorical")
    p = task.model(task.inputs).softmax(-1).detach()
    # d(-log p_y)/d bias_k = p_k - [y = k], whose variance under the model is p_k (1 - p_k).
    assert torch.allclose(true_fisher(task)[-CLASSES:], (p * (1 - p)).mean(0), atol=1e-12)


@pytest.mark.parametrize(("name", "sigma"), [("gaussian", fisher.NOISE), ("squared_error", 1.0)])
def test_fisher_of_the_last_bias_under_a_gaussian(name, sigma):
    task = problem(name)
    residual = (task.targets - task.model(task.inputs).squeeze(-1)).detach()
    assert true_fisher(task)[-1].item() == pytest.approx(sigma**-2)
    assert empirical_fisher(task)[-1].item() == pytest.approx((residual**2).mean().item() / sigma**4)


def test_where_the_model_is_the_source_of_the_data_both_agree():
    task = problem("gaussian")
    generator = torch.Generator().manual_seed(3)
    mean = task.model(task.inputs).squeeze(-1).detach()
    noise = torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
    own = fisher.Problem(task.name, task.inputs, mean + task.sigma * noise, task.sigma, task.model)
    found = relation(empirical_fisher(own), true_fisher(own))
    assert found["correlation"] > 0.99
    assert 0.9 < found["ratio"] < 1.1


def test_expected_square_of_a_batch_is_the_mean_over_all_batches():
    gradients = torch.tensor([[1.0, 0.0], [3.0, 2.0], [-1.0, 4.0]], dtype=torch.float64)
    for batch in (1, 2, 3):
        draws = [gradients[list(d)].mean(0) ** 2 for d in itertools.product(range(3), repeat=batch)]
        assert torch.allclose(expected_square(gradients, batch), torch.stack(draws).mean(0))


def test_relation_of_known_vectors():
    one = torch.tensor([1.0, 10.0, 100.0, 0.0])
    assert relation(one, torch.tensor([2.0, 20.0, 200.0, 5.0])) == {
        "correlation": 1.0, "low": 0.5, "ratio": 0.5, "high": 0.5,
    }  # fmt: skip
    assert relation(one[:3], torch.tensor([100.0, 10.0, 1.0]))["correlation"] == pytest.approx(-1)


def test_an_unknown_likelihood_is_named():
    with pytest.raises(
        ValueError, match="likelihood must be one of categorical, gaussian, squared_error, got 'poisson'"
    ):
        problem("poisson")


@pytest.fixture(scope="module")
def short():
    return study(("categorical", "gaussian"), (1, 16), {"start": 5, "end": 120})


def test_the_second_moments_agree_to_rounding_and_runs_repeat(short):
    assert 0 < short["rounding"] < 1e-12
    assert study(("categorical",), (16,), {"start": 5, "end": 120})["cases"] == [
        c for c in short["cases"] if (c["likelihood"], c["batch"]) == ("categorical", 16)
    ]


def test_the_square_of_a_batch_is_the_empirical_fisher_over_its_size(short):
    cases = {(c["likelihood"], c["batch"], c["stage"]): c for c in short["cases"]}
    assert len(cases) == len(short["cases"]) == 8
    for likelihood in ("categorical", "gaussian"):
        assert cases[likelihood, 1, "end"]["frozen_empirical"]["ratio"] == 1.0
        assert 1 / 16 <= cases[likelihood, 16, "end"]["frozen_empirical"]["ratio"] < 1 / 8
    assert 0.5 < cases["categorical", 1, "end"]["moment_empirical"]["ratio"] < 2
    assert cases["categorical", 16, "end"]["moment_empirical"]["ratio"] < 0.2
    # An unfitted Gaussian has residuals much larger than its sigma.
    assert cases["gaussian", 1, "start"]["empirical_true"]["ratio"] > 5
