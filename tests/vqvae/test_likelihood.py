"""The likelihoods: true distributions over the values, equal to a slow computation, with the mean that they claim."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from experiments.core.errors import ConfigError
from experiments.vqvae.likelihood import Categorical, DiscretizedLogistic, Gaussian, Likelihood

DISCRETE = [
    lambda: DiscretizedLogistic(6, mixtures=1),
    lambda: DiscretizedLogistic(6, mixtures=3),
    lambda: DiscretizedLogistic(6, mixtures=2, levels=16),
    lambda: Categorical(6),
    lambda: Categorical(6, hidden=3, levels=16),
]


def strong(likelihood: Likelihood) -> Likelihood:
    """With large random weights: sharp, broad and far-off distributions all occur."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in likelihood.parameters():
            p.add_(torch.randn_like(p) * 2.0)
    return likelihood


@torch.no_grad()
def parameters_of(likelihood: Likelihood) -> torch.Tensor:
    """Of one image of 1x2 pixels, in float64: what is tested is the formula, not its rounding."""
    return likelihood.double()(torch.randn(1, 6, 1, 2, dtype=torch.float64)).double()


@torch.no_grad()
def slow_log_prob(likelihood: Likelihood, p: torch.Tensor, channel: int, value: int) -> float:
    """Log-probability of one value of one channel of one pixel, in plain Python."""
    levels = likelihood.levels
    if isinstance(likelihood, DiscretizedLogistic):
        weights, means, scales = p.reshape(3, likelihood.mixtures).tolist()
        total = sum(math.exp(w) for w in weights)
        probability = 0.0
        for w, m, s in zip(weights, means, scales, strict=True):
            scale = math.exp(max(s, likelihood.min_log_scale))

            def cdf(v: float, m: float = m, scale: float = scale) -> float:
                z = (v - m) / scale
                return 1 / (1 + math.exp(-z)) if z > -700 else 0.0

            at = 2 * value / (levels - 1) - 1
            upper = 1.0 if value == levels - 1 else cdf(at + 1 / (levels - 1))
            lower = 0.0 if value == 0 else cdf(at - 1 / (levels - 1))
            probability += math.exp(w) / total * (upper - lower)
        return math.log(max(probability, 1e-300))
    assert isinstance(likelihood, Categorical)
    base, p = likelihood.base, p.reshape(-1)
    coarse, fine = divmod(value, base)
    first = p[:base]
    h = [
        max(0.0, float(a + b)) for a, b in zip(p[base:], likelihood.coarse.weight[channel * base + coarse], strict=True)
    ]
    second = [
        sum(h[i] * float(likelihood.fine[channel, i, k]) for i in range(likelihood.hidden))
        + float(likelihood.fine_bias[channel, k])
        for k in range(base)
    ]
    logsum = math.log(sum(math.exp(v - max(second)) for v in second)) + max(second)
    return float(first[coarse] - first.logsumexp(0)) + second[fine] - logsum


@pytest.mark.parametrize("make", DISCRETE)
def test_values_sum_to_one_and_match_a_slow_computation(make) -> None:
    likelihood = strong(make())
    parameters = parameters_of(likelihood)
    levels = likelihood.levels
    for channel in range(3):
        # One dimension takes every value; what the others add is taken off again.
        images = torch.zeros(levels, 3, 1, 2, dtype=torch.uint8)
        images[:, channel, 0, 1] = torch.arange(levels)
        joint = likelihood.log_prob(parameters.expand(levels, *parameters.shape[1:]), images)
        rest = joint[0] - _pixel(likelihood, parameters, channel, 0)
        logs = joint - rest
        assert logs.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
        for value in (0, 1, levels // 2, levels - 2, levels - 1):
            slow = _pixel(likelihood, parameters, channel, value)
            if slow > -20:  # beyond, differences of sigmoids in plain Python lose their digits
                assert logs[value].item() == pytest.approx(slow, rel=1e-6, abs=1e-6)


def _pixel(likelihood: Likelihood, parameters: torch.Tensor, channel: int, value: int) -> float:
    if isinstance(likelihood, Categorical):
        return slow_log_prob(likelihood, parameters[0, channel, 0, 1], channel, value)
    return slow_log_prob(likelihood, parameters[0, channel, ..., 0, 1], channel, value)


@pytest.mark.parametrize("make", DISCRETE)
def test_every_image_has_a_finite_probability_with_a_gradient(make) -> None:
    likelihood = strong(make())
    features = (5.0 * torch.randn(2, 6, 3, 3)).requires_grad_()
    top = likelihood.levels - 1
    for images in (torch.zeros(2, 3, 3, 3), torch.full((2, 3, 3, 3), top), torch.randint(top + 1, (2, 3, 3, 3))):
        logs = likelihood.log_prob(likelihood(features), images.to(torch.uint8))
        assert logs.shape == (2,)
        assert torch.isfinite(logs).all()
        assert (logs < 0).all()
        (gradient,) = torch.autograd.grad(logs.sum(), features)
        assert torch.isfinite(gradient).all()


def test_mean_of_the_categorical_is_the_sum_over_all_values() -> None:
    likelihood = strong(Categorical(6, levels=16))
    parameters = parameters_of(likelihood)
    for channel in range(3):
        logs = [_pixel(likelihood, parameters, channel, v) for v in range(16)]
        expected = sum(math.exp(p) * v / 15 for v, p in enumerate(logs))
        assert likelihood.mean(parameters)[0, channel, 0, 1].item() == pytest.approx(expected, rel=1e-6)


def test_mean_of_the_logistic_is_the_sum_over_all_values_away_from_the_edges() -> None:
    likelihood = DiscretizedLogistic(1, mixtures=2).double()
    parameters = torch.tensor([[0.3, -0.4], [-0.2, 0.25], [-4.0, -3.5]], dtype=torch.float64)
    parameters = parameters[None, None, :, :, None, None].expand(1, 3, 3, 2, 1, 1)
    logs = torch.tensor([slow_log_prob(likelihood, parameters[0, 0, ..., 0, 0], 0, v) for v in range(256)])
    expected = (logs.double().exp() * torch.arange(256) / 255).sum().item()
    assert likelihood.mean(parameters).flatten().tolist() == pytest.approx([expected] * 3, abs=1e-4)


def test_gaussian_is_the_normal_density_and_its_gradient_that_of_the_squared_error() -> None:
    likelihood = Gaussian(4, sigma=0.2)
    images = torch.randint(256, (2, 3, 5, 5), dtype=torch.uint8)
    parameters = torch.randn(2, 3, 5, 5, requires_grad=True)
    scaled = images / 127.5 - 1.0
    expected = torch.distributions.Normal(parameters, 0.2).log_prob(scaled).flatten(1).sum(1)
    found = likelihood.log_prob(parameters, images)
    assert torch.allclose(found, expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), parameters)
    assert torch.allclose(gradient, (scaled - parameters) / 0.04, rtol=1e-4, atol=1e-4)
    assert not likelihood.discrete


def test_means_lie_between_0_and_1() -> None:
    for likelihood in (Gaussian(4), DiscretizedLogistic(4), Categorical(4)):
        mean = likelihood.mean(likelihood(20.0 * torch.randn(2, 4, 3, 3)))
        assert mean.shape == (2, 3, 3, 3)
        assert mean.min() >= 0.0
        assert mean.max() <= 1.0 + 1e-6


@pytest.mark.parametrize("likelihood", [DiscretizedLogistic(4), Categorical(4)])
def test_a_head_learns_the_values_of_an_image(likelihood: Likelihood) -> None:
    torch.manual_seed(0)
    images = torch.randint(100, 140, (1, 3, 4, 4), dtype=torch.uint8)
    features = nn.Parameter(torch.zeros(1, 4, 4, 4))
    optimizer = torch.optim.Adam([features, *likelihood.parameters()], lr=0.05)
    first = None
    for _ in range(60):
        loss = -likelihood.log_prob(likelihood(features), images).mean() / images[0].numel() / math.log(2)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # 40 equally likely values need 5.3 bits; 8 bits would be knowing nothing.
    assert loss.item() < 5.4 < first


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gaussian(0), "likelihood.features must be at least 1, got 0"),
        (lambda: Gaussian(4, sigma=0.0), "likelihood.sigma must be above 0, got 0.0"),
        (lambda: Gaussian(4, levels=300), "likelihood.levels must lie between 2 and 256, got 300"),
        (lambda: DiscretizedLogistic(4, mixtures=0), "likelihood.mixtures must be at least 1, got 0"),
        (
            lambda: DiscretizedLogistic(4, min_log_scale=1.0),
            "likelihood.min_log_scale must lie between -20 and -2, got 1.0",
        ),
        (lambda: Categorical(4, levels=200), "likelihood.levels must be a square, got 200"),
        (lambda: Categorical(4, hidden=0), "likelihood.hidden must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_named(make, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}$"):
        make()
