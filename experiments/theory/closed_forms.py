"""Empirical against true Fisher information where both are known in closed form (claim C9), and a step with each.

    python -m experiments.theory.closed_forms [--out runs/fisher/closed_forms.json]

After Kunstner et al., arXiv:1905.12558, sections 3 and 4: the two agree where the model's distribution is that of the
data; elsewhere the empirical one measures the size of the errors, not the curvature. Every model has the diagonals,
which tests compare with `fadam.fisher`'s, and the full matrices, for one natural-gradient step of length 1.

With g the mean gradient and C the covariance of the gradients of the samples, the empirical Fisher is E = C + g g^T, so

    E^-1 g = C^-1 g / (1 + g^T C^-1 g)        (Sherman and Morrison)

The step shrinks where the mean gradient is large, and grows without bound where the errors vanish.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.core.files import write_whole

SAMPLES, INPUTS, CLASSES, NOISE = 4000, 3, 4, 0.5
COUNTS, SURE = (0.4, 0.3, 0.2, 0.1), (0.97, 0.01, 0.01, 0.01)  # frequencies of the categories


@dataclass(frozen=True)
class LinearGaussian:
    """y ~ N(x^T theta, sigma^2) with fixed sigma. inputs (N, D), targets (N,)."""

    inputs: Tensor
    targets: Tensor
    sigma: float

    def loss(self, theta: Tensor) -> Tensor:
        """Mean negative log-likelihood without its constant."""
        return 0.5 * ((self.targets - self.inputs @ theta) / self.sigma).square().mean()

    def gradients(self, theta: Tensor) -> Tensor:
        """Of each sample, (N, D): -x r / sigma^2 with the residual r."""
        return -self.inputs * (self.targets - self.inputs @ theta)[:, None] / self.sigma**2

    def true(self, theta: Tensor) -> Tensor:
        """(D, D): E[x x^T] / sigma^2, whatever theta is; also the Hessian."""
        return self.inputs.T @ self.inputs / len(self.inputs) / self.sigma**2

    def true_diagonal(self, theta: Tensor) -> Tensor:
        return self.inputs.square().mean(0) / self.sigma**2

    def empirical_diagonal(self, theta: Tensor) -> Tensor:
        """(D,): E[x^2 r^2] / sigma^4. It has the residuals in place of sigma, at the optimum too."""
        r = self.targets - self.inputs @ theta
        return (self.inputs.square() * r.square()[:, None]).mean(0) / self.sigma**4

    def best(self) -> Tensor:
        solution: Tensor = torch.linalg.lstsq(self.inputs, self.targets[:, None]).solution
        return solution[:, 0]


@dataclass(frozen=True)
class Softmax:
    """p(y = k | x) = softmax(W x)_k. inputs (N, D), targets (N,) int64; theta is W (K, D) flattened."""

    inputs: Tensor
    targets: Tensor
    classes: int

    def probabilities(self, theta: Tensor) -> Tensor:
        return (self.inputs @ theta.view(self.classes, -1).T).softmax(-1)  # (N, K)

    def loss(self, theta: Tensor) -> Tensor:
        wrong: Tensor = -self.probabilities(theta).log().gather(-1, self.targets[:, None])
        return wrong.mean()

    def gradients(self, theta: Tensor) -> Tensor:
        """(N, K D): (p - e_y) x^T."""
        errors = self.probabilities(theta) - torch.nn.functional.one_hot(self.targets, self.classes)
        return (errors[:, :, None] * self.inputs[:, None]).flatten(1)

    def true(self, theta: Tensor) -> Tensor:
        """(K D, K D): E[(diag p - p p^T) (x) x x^T], also the Hessian."""
        p = self.probabilities(theta)
        covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None]  # (N, K, K)
        size = self.classes * self.inputs.shape[1]
        blocks = torch.einsum("nkl,nd,ne->kdle", covariance, self.inputs, self.inputs)
        return blocks.reshape(size, size) / len(p)

    def true_diagonal(self, theta: Tensor) -> Tensor:
        """(K D,): E[p_k (1 - p_k) x_d^2]."""
        p = self.probabilities(theta)
        return ((p * (1 - p)).T @ self.inputs.square() / len(p)).flatten()

    def empirical_diagonal(self, theta: Tensor) -> Tensor:
        """(K D,): E[(p_k - [y = k])^2 x_d^2]. Two classes of which one is sure: q^2 for q (1 - q), q of being wrong."""
        errors = self.probabilities(theta) - torch.nn.functional.one_hot(self.targets, self.classes)
        return (errors.square().T @ self.inputs.square() / len(errors)).flatten()

    def best(self) -> Tensor:
        theta = torch.zeros(self.classes * self.inputs.shape[1], dtype=self.inputs.dtype)
        for _ in range(50):  # Newton's method: the problem is convex
            theta = theta - torch.linalg.pinv(self.true(theta)) @ self.gradients(theta).mean(0)
        return theta


@dataclass(frozen=True)
class Categorical:
    """p(y = k) = softmax(theta)_k, without inputs; the data are frequencies (K,) that sum to 1."""

    frequencies: Tensor

    def loss(self, theta: Tensor) -> Tensor:
        return -(self.frequencies * theta.log_softmax(-1)).sum()

    def gradients(self, theta: Tensor) -> Tensor:
        """(K, K): pi - e_y for each category y, which counts with its frequency."""
        return theta.softmax(-1) - torch.eye(len(theta), dtype=theta.dtype)

    def true(self, theta: Tensor) -> Tensor:
        pi = theta.softmax(-1)
        return torch.diag(pi) - pi[:, None] * pi

    def true_diagonal(self, theta: Tensor) -> Tensor:
        pi = theta.softmax(-1)
        return pi * (1 - pi)

    def empirical_diagonal(self, theta: Tensor) -> Tensor:
        """(K,): n_k (1 - pi_k)^2 + (1 - n_k) pi_k^2, which is the true one where pi = n, at the optimum."""
        pi, n = theta.softmax(-1), self.frequencies
        return n * (1 - pi).square() + (1 - n) * pi.square()

    def true_step(self, theta: Tensor) -> Tensor:
        """(K,): F^+ g = 1 - n / pi, up to a constant that moves nothing."""
        return 1 - self.frequencies / theta.softmax(-1)

    def empirical_step(self, theta: Tensor) -> Tensor:
        """(K,): E^+ g = (pi / n - 1) / (1 + s) with s = sum (pi - n)^2 / n, up to a constant."""
        pi, n = theta.softmax(-1), self.frequencies
        return (pi / n - 1) / (1 + ((pi - n).square() / n).sum())

    def best(self) -> Tensor:
        return self.frequencies.log()


Model = LinearGaussian | Softmax | Categorical


def _weights(model: Model) -> Tensor:
    """Of each row of `gradients`, summing to 1."""
    if isinstance(model, Categorical):
        return model.frequencies
    return torch.full((len(model.inputs),), 1 / len(model.inputs), dtype=model.inputs.dtype)


def empirical(model: Model, theta: Tensor) -> Tensor:
    """The full empirical Fisher, (P, P)."""
    g = model.gradients(theta)
    return g.T @ (_weights(model)[:, None] * g)


def mean_gradient(model: Model, theta: Tensor) -> Tensor:
    return _weights(model) @ model.gradients(theta)


def left(model: Model, theta: Tensor, fisher: Tensor) -> float:
    """Share of the excess loss that is left after a step of length 1 with that metric; above 1 the step did harm."""
    after = theta - torch.linalg.pinv(fisher, hermitian=True) @ mean_gradient(model, theta)
    least = model.loss(model.best())
    share = float((model.loss(after) - least) / (model.loss(theta) - least))
    return share if abs(share) > 1e-9 else 0.0  # rounding errors of an exact step


def cases() -> list[tuple[str, str, Model, Tensor]]:
    """(model, situation, the model, theta), with data from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, INPUTS, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)
    source = torch.randn(INPUTS, generator=generator, dtype=torch.float64)
    y = x @ source + NOISE * torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
    gaussian: Callable[[float], LinearGaussian] = lambda sigma: LinearGaussian(x, y, sigma)  # noqa: E731
    near = gaussian(NOISE).best() + 0.05
    far = gaussian(NOISE).best() + 2.0
    w = torch.randn(CLASSES * INPUTS, generator=generator, dtype=torch.float64)
    p = Softmax(x, torch.zeros(SAMPLES, dtype=torch.int64), CLASSES).probabilities(w)
    drawn = Softmax(x, torch.multinomial(p, 1, generator=generator).squeeze(-1), CLASSES)
    counts = Categorical(torch.tensor(COUNTS, dtype=torch.float64))
    sure = Categorical(torch.tensor(SURE, dtype=torch.float64))
    one = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    return [
        ("linear, Gaussian", "sigma of the noise, near the optimum", gaussian(NOISE), near),
        ("linear, Gaussian", "sigma of the noise, far away", gaussian(NOISE), far),
        ("linear, Gaussian", "sigma 3 times too large, near the optimum", gaussian(3 * NOISE), near),
        ("linear, Gaussian", "sigma 3 times too small, near the optimum", gaussian(NOISE / 3), near),
        ("softmax of inputs", "near the source of the labels", drawn, drawn.best() + 0.1 * w.sign()),
        ("softmax of inputs", "untrained (all weights 0)", drawn, torch.zeros_like(w)),
        ("softmax of inputs", "confident and often wrong (weights doubled)", drawn, 2 * drawn.best()),
        ("categorical", "near the optimum", counts, counts.best() + 0.1 * one),
        ("categorical", "untrained (all logits 0)", counts, torch.zeros(4, dtype=torch.float64)),
        ("categorical", "confident and wrong (one logit 3)", counts, 3 * one.roll(3)),
        ("categorical", "right more often than it says (0.97 for 0.87)", sure, 3 * one),
    ]


def study() -> dict[str, Any]:
    """Every case as the record holds it: quartiles' middle of the diagonals' ratio, and what a step leaves."""
    rows = []
    for name, situation, model, theta in cases():
        ratio = model.empirical_diagonal(theta) / model.true_diagonal(theta)
        row = {
            "ratio": float(ratio.median()),
            "ratio_low": float(ratio.min()),
            "ratio_high": float(ratio.max()),
            "left_true": left(model, theta, model.true(theta)),
            "left_empirical": left(model, theta, empirical(model, theta)),
        }
        rounded = {key: float(f"{value:.4g}") for key, value in row.items()}
        rows.append({"model": name, "situation": situation, **rounded})
    return {
        "schema": 1,
        "command": "python -m experiments.theory.closed_forms",
        "settings": {
            "samples": SAMPLES,
            "inputs": INPUTS,
            "classes": CLASSES,
            "noise": NOISE,
            "counts": COUNTS,
            "sure": SURE,
        },
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.theory.closed_forms", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", default="runs/fisher/closed_forms.json", help="default: %(default)s")
    options = parser.parse_args(argv)
    write_whole(Path(options.out), json.dumps(study(), indent=1) + "\n")
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
