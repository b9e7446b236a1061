"""The two networks: shapes, gradients, and options that do not fit."""

from __future__ import annotations

import pytest
import torch

from experiments.core.errors import ConfigError
from experiments.vqvae.likelihood import Categorical, DiscretizedLogistic, Gaussian, Likelihood
from experiments.vqvae.model import VQVAE, ConvVQVAE, ViTVQVAE
from experiments.vqvae.quantiser import VectorQuantiser


def conv(likelihood: Likelihood | None = None, **options: int) -> VQVAE:
    sizes = {"width": 6, "downsampling": 4, "blocks": 1} | options
    return ConvVQVAE(VectorQuantiser(8, 3), likelihood or Gaussian(4), **sizes)


def vit(likelihood: Likelihood | None = None, **options: int) -> VQVAE:
    sizes = {"image_size": 16, "patch": 4, "dim": 8, "layers": 1, "heads": 2, "hidden": 16} | options
    return ViTVQVAE(VectorQuantiser(8, 3, normalise=True), likelihood or Gaussian(4), **sizes)


@pytest.mark.parametrize("make", [conv, vit])
@pytest.mark.parametrize("likelihood", [Gaussian, DiscretizedLogistic, Categorical])
def test_every_parameter_gets_a_gradient(make, likelihood: type[Likelihood]) -> None:
    torch.manual_seed(0)
    model = make(likelihood(4))  # type: ignore[call-arg]
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    out = model(images)
    assert out.quantised.indices.shape == (2, 4, 4)
    assert out.quantised.codes.shape == (2, 3, 4, 4)
    log_prob = model.likelihood.log_prob(out.parameters, images)
    assert log_prob.shape == (2,)
    assert model.likelihood.mean(out.parameters).shape == (2, 3, 16, 16)
    (-log_prob.mean() / 768 + out.quantised.codebook_loss + out.quantised.commitment_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_codes_alone_give_the_reconstruction() -> None:
    model = conv().eval()
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    out = model(images)
    again = model.decode(model.quantiser.lookup(out.quantised.indices))
    assert torch.allclose(again, out.parameters, atol=1e-5)


@pytest.mark.parametrize("downsampling", [4, 8])
def test_downsampling(downsampling: int) -> None:
    out = conv(downsampling=downsampling)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert out.quantised.indices.shape == (1, 32 // downsampling, 32 // downsampling)
    assert out.parameters.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: conv(downsampling=6), "model.downsampling must be a power of 2 of at least 4, got 6"),
        (lambda: conv(downsampling=0), "model.downsampling must be a power of 2 of at least 4, got 0"),
        (lambda: conv(width=0), "model.width must be at least 1 and model.blocks at least 0, got 0 and 1"),
        (lambda: vit(image_size=18), "model.image_size must be a multiple of model.patch=4, got 18"),
        (lambda: vit(dim=9), "model.dim must be a multiple of model.heads=2, got 9"),
        (lambda: vit(layers=0), "model.layers and model.hidden must be at least 1, got 0 and 16"),
    ],
)
def test_options_out_of_range_are_named(make, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}$"):
        make()
