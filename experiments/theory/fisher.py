"""Is Adam's second moment the diagonal empirical Fisher information (claim C10)? A small study with known answers.

    python -m experiments.theory.fisher [--out runs/fisher/toy.json]

A small network is trained with Adam on data drawn from a known distribution, under three likelihoods: categorical,
Gaussian whose fixed sigma is that of the noise, and Gaussian with sigma 1 (squared error), which is not. On the way are
compared, element by element of the parameters:

- `moment`: Adam's bias-corrected second moment, v_t / (1 - beta2^t); FAdam's f_t on the same gradients must equal it;
- `frozen`: the mean squared minibatch gradient at the present parameters, that is, `moment` without its average over
  the past;
- `empirical`: the diagonal empirical FIM, the mean over the training set of the squared gradient of *one* sample;
- `true`: the diagonal FIM, whose labels are drawn from the model; exact, by summing over classes or in closed form.

The gradient of a batch is a mean over its samples, so its square is no mean of squares: with independent samples
E[g_B^2] = empirical / B + (1 - 1/B) g^2, where g is the gradient of the whole set (`expected_square`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from experiments.core.files import write_whole
from fadam import FAdam

SEED = 0
SAMPLES, INPUTS, HIDDEN, CLASSES = 2048, 8, 16, 4
NOISE = 0.3  # standard deviation of the targets of the regression, around the teacher
BATCHES = (1, 4, 16, 64)
STAGES = {"start": 30, "middle": 300, "end": 1500}  # optimizer steps
LR, BETAS = 3e-3, (0.9, 0.999)
SIGMAS = {"gaussian": NOISE, "squared_error": 1.0}
LIKELIHOODS = ("categorical", *SIGMAS)


def network(outputs: int, seed: int) -> torch.nn.Sequential:
    """A network of one hidden layer: (B, INPUTS) -> (B, outputs)."""
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(INPUTS, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, outputs))
    with torch.no_grad():
        for weight in model.parameters():
            fan_in = weight.shape[-1] if weight.dim() == 2 else HIDDEN
            weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(fan_in))
    return model.double()


@dataclass(frozen=True)
class Problem:
    """A likelihood, its data and its model.

    Attributes:
        inputs: (N, INPUTS). targets: (N,), class indices or real numbers.
        sigma: of the Gaussian; None for the categorical likelihood.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    sigma: float | None
    model: torch.nn.Module

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def log_likelihood(self, output: Tensor, target: Tensor) -> Tensor:
        """log p(target | output), of any leading shape; without the Gaussian's constant."""
        if self.sigma is None:
            return output.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        return -0.5 * ((target - output.squeeze(-1)) / self.sigma) ** 2


def problem(name: str, seed: int = SEED) -> Problem:
    """Data drawn from a random network of the same form as the model, and a model to fit them.

    Raises:
        ValueError: no such likelihood.
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {name!r}")
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, INPUTS, generator=generator, dtype=torch.float64)  # (N, INPUTS)
    sigma = SIGMAS.get(name)
    outputs = CLASSES if sigma is None else 1
    with torch.no_grad():
        answer = 2 * network(outputs, seed + 1)(inputs)  # (N, outputs)
    if sigma is None:
        targets = torch.multinomial(answer.softmax(-1), 1, generator=generator).squeeze(-1)
    else:
        targets = answer.squeeze(-1) + NOISE * torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
    return Problem(name, inputs, targets, sigma, network(outputs, seed + 2))


def flat(tensors: Sequence[Tensor], leading: int = 0) -> Tensor:
    return torch.cat([t.flatten(leading) for t in tensors], dim=-1)


def sample_gradients(task: Problem, targets: Tensor | None = None) -> Tensor:
    """Gradient of the negative log-likelihood of every sample, (N, P), for the data's targets or others."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return -task.log_likelihood(functional_call(task.model, parameters, (x,)), y)

    targets = task.targets if targets is None else targets
    each: Callable[..., dict[str, Tensor]] = vmap(grad(loss), in_dims=(None, 0, 0))
    gradients = each(task.parameters, task.inputs, targets)
    return flat(list(gradients.values()), 1).detach()


def empirical_fisher(task: Problem) -> Tensor:
    """Mean squared gradient of one sample, (P,)."""
    return sample_gradients(task).square().mean(0)


def true_fisher(task: Problem) -> Tensor:
    """The same with labels drawn from the model, (P,), exactly."""
    if task.sigma is not None:
        # The score is (y - mu) / sigma^2 times the slope of mu, and E[(y - mu)^2] = sigma^2. A target one sigma away
        # everywhere has just that square.
        with torch.no_grad():
            mean = task.model(task.inputs).squeeze(-1)
        return sample_gradients(task, mean + task.sigma).square().mean(0)
    with torch.no_grad():
        p = task.model(task.inputs).softmax(-1)  # (N, CLASSES)
    total = torch.zeros(())
    for label in range(CLASSES):
        squares = sample_gradients(task, torch.full_like(task.targets, label)).square()  # (N, P)
        total = total + (p[:, label, None] * squares).mean(0)
    return total


def expected_square(gradients: Tensor, batch: int) -> Tensor:
    """E[g_B^2] of batches of independent samples, (P,), from the gradients of all samples, (N, P)."""
    return gradients.square().mean(0) / batch + (1 - 1 / batch) * gradients.mean(0).square()


def relation(one: Tensor, other: Tensor) -> dict[str, float]:
    """Correlation of the logarithms, and the quartiles of the ratio, of two positive vectors.

    Elements that are zero in either are left out.
    """
    kept = (one > 0) & (other > 0)
    a, b = one[kept].log(), other[kept].log()
    quartiles = (a - b).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=a.dtype)).exp().tolist()
    correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
    names = ("correlation", "low", "ratio", "high")
    return {name: float(f"{value:.4g}") for name, value in zip(names, (correlation, *quartiles), strict=True)}


def train(task: Problem, batch: int, stages: dict[str, int], seed: int = SEED) -> tuple[list[dict[str, Any]], float]:
    """Train with Adam on batches drawn with replacement, and compare at every stage.

    Returns:
        One entry a stage, and the largest relative difference of FAdam's f_t from Adam's corrected second moment.
    """
    generator = torch.Generator().manual_seed(seed + batch)
    weights = list(task.model.parameters())
    adam = torch.optim.Adam(weights, lr=LR, betas=BETAS, foreach=False)
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda t: 1 - t / max(stages.values()))
    # FAdam sees the same gradients and moves nothing.
    twins = [w.detach().clone().requires_grad_() for w in weights]
    fadam = FAdam(twins, lr=0.0, betas=BETAS, weight_decay=0.0)
    entries, rounding = [], 0.0
    names = {step: name for name, step in stages.items()}
    for step in range(1, max(stages.values()) + 1):
        chosen = torch.randint(SAMPLES, (batch,), generator=generator)
        loss = -task.log_likelihood(task.model(task.inputs[chosen]), task.targets[chosen]).mean()
        for weight, twin, gradient in zip(weights, twins, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = twin.grad = gradient
        if step in names:
            before = sample_gradients(task)
            empirical, true = before.square().mean(0), true_fisher(task)
        adam.step()
        fadam.step()
        decay.step()
        if step not in names:
            continue
        correction = 1 - BETAS[1] ** step
        moment = flat([adam.state[w]["exp_avg_sq"] for w in weights]) / correction
        fim = flat([fadam.state[w]["fim"] for w in twins])
        rounding = max(rounding, ((fim - moment).abs() / moment.clamp_min(1e-300)).max().item())
        entries.append(
            {
                "likelihood": task.name,
                "batch": batch,
                "stage": names[step],
                "step": step,
                "moment_empirical": relation(moment, empirical),
                "frozen_empirical": relation(expected_square(before, batch), empirical),
                "empirical_true": relation(empirical, true),
                "moment_true": relation(moment, true),
            }
        )
    return entries, rounding


def study(
    likelihoods: Sequence[str] = LIKELIHOODS, batches: Sequence[int] = BATCHES, stages: dict[str, int] | None = None
) -> dict[str, Any]:
    """All cases, as the record holds them."""
    stages = stages or STAGES
    cases, rounding = [], 0.0
    for name in likelihoods:
        for batch in batches:
            entries, error = train(problem(name), batch, stages)
            cases += entries
            rounding = max(rounding, error)
    return {
        "schema": 1,
        "command": "python -m experiments.theory.fisher",
        "settings": {
            "seed": SEED,
            "samples": SAMPLES,
            "parameters": {n: sum(p.numel() for p in problem(n).model.parameters()) for n in likelihoods},
            "noise": NOISE,
            "sigma": {n: SIGMAS[n] for n in likelihoods if n in SIGMAS},
            "lr": LR,
            "betas": list(BETAS),
            "stages": stages,
        },
        "versions": {"torch": torch.__version__.split("+")[0]},
        "rounding": float(f"{rounding:.2g}"),
        "cases": cases,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.theory.fisher", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", default="runs/fisher/toy.json", help="default: %(default)s")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = Path(options.out)
    write_whole(path, json.dumps(study(), indent=1) + "\n")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
