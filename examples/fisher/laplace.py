"""Diagonal Laplace approximation: how sure is a model that has seen little text?

The weights' posterior is taken for N(theta, 1 / (N F + prior precision)) (Daxberger et al., arXiv:2106.14806, section
2). laplace-torch does the rest: it is given N F instead of fitting a Hessian of its own. The prior precision is chosen
in validation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from examples.fisher import common
from examples.fisher.common import Domain
from experiments.llm.model import LanguageModel

DOMAIN: Domain = "speech"
CHARACTERS = 4096  # of training text: 128 sequences
PRECISIONS = (1.0, 10.0, 100.0, 1e3, 1e4)  # of the prior
DRAWS = 10  # weights drawn from the posterior for a prediction
BINS = 10


class Logits(nn.Module):
    """The model as laplace-torch wants it: inputs (n, T) to logits (n, T, V)."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model.llama(input_ids=inputs, use_cache=False).logits
        return logits


def laplace(model: LanguageModel, fisher: Mapping[str, Tensor] | None, samples: int, precision: float) -> Any:
    """laplace-torch's `DiagLaplace` around the model, with our Hessian; None is the prior alone.

    Args:
        fisher: Fisher information of one sample, by parameter name.
        samples: number N of training samples.
    """
    from laplace.baselaplace import DiagLaplace  # type: ignore[import-not-found,unused-ignore]

    approximation = DiagLaplace(Logits(model), "classification", prior_precision=precision)
    mean = torch.cat([p.flatten() for _, p in common.weights(model)])
    hessian = torch.zeros_like(mean)
    if fisher is not None:
        hessian = samples * torch.cat([fisher[name].flatten() for name, _ in common.weights(model)])
    state = approximation.state_dict() | {"mean": mean, "H": hessian, "n_data": samples, "n_outputs": common.VOCABULARY}
    approximation.load_state_dict(state)
    return approximation


@torch.no_grad()
def predict(approximation: Any, inputs: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the posterior of the probabilities (n, T, V)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = approximation.predictive_samples(inputs, pred_type="nn", n_samples=DRAWS, generator=generator)
    return drawn.mean(0), drawn.std(0)


def calibration_error(probabilities: Tensor, targets: Tensor) -> float:
    """Expected calibration error of the most probable character, in bins of equal width (Guo et al., arXiv:1706.04599).

    Args:
        probabilities: (..., V). targets: (...) int64.
    """
    confidence, guess = probabilities.flatten(0, -2).max(-1)
    right = (guess == targets.flatten()).to(confidence)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    sums = torch.zeros(BINS).index_add_(0, bins, confidence - right)
    return float(sums.abs().sum() / len(confidence))


def nll(probabilities: Tensor, targets: Tensor) -> float:
    return -float(probabilities.gather(-1, targets[..., None]).log().mean())


@functools.cache
def batch(role: common.Role) -> common.Batch:
    return common.sequences(common.text(DOMAIN, role), 128, torch.Generator().manual_seed(1))


def run(seed: int, optimizer: str) -> list[dict[str, Any]]:
    """Test loss in nats, calibration error and mean deviation of the target's probability for each method, and `none`:
    the trained weights alone."""
    characters = common.text(DOMAIN, "train")[:CHARACTERS]
    trained = common.train(common.new_model(seed), optimizer, characters, seed, steps=2 * common.STEPS)
    known: dict[str, Mapping[str, Tensor] | None] = {"identity": None, **common.estimates(trained, characters, seed)}
    samples = len(characters) // common.LENGTH
    (val_inputs, val_targets), (inputs, targets) = batch("val"), batch("test")
    rows: list[dict[str, Any]] = []
    for method in common.METHODS:
        fits = {p: laplace(trained.model, known[method], samples, p) for p in PRECISIONS}
        chosen = min(fits, key=lambda p: nll(predict(fits[p], val_inputs, seed)[0], val_targets))
        mean, deviation = predict(fits[chosen], inputs, seed)
        spread = float(deviation.gather(-1, targets[..., None]).mean())
        row = {"method": method, "value": nll(mean, targets), "calibration": calibration_error(mean, targets)}
        rows.append(row | {"deviation": spread, "precision": chosen})
    with torch.no_grad():
        alone = Logits(trained.model)(inputs).softmax(-1)
    return [*rows, {"method": "none", "value": nll(alone, targets), "calibration": calibration_error(alone, targets)}]
