"""Algorithm 1 of arXiv:2405.12807 in the paper's symbols, one line of the paper a line of code.

This is the oracle of the tests, not a training tool: one tensor at a time, any floating dtype (use float64),
no options but the paper's. `clip = inf` and `weight decay = 0` switch those two lines off. An independent port of the
paper (pytorch_optimizer 4.1.0) agrees with it to rounding errors of float64, but for tensors whose gradient is zero
(tests/fadam/test_port.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def rms(x: Tensor) -> Tensor:
    """Root mean square over one parameter tensor, a 0-d tensor."""
    return x.square().mean().sqrt()


@dataclass
class State:
    """What Algorithm 1 carries from step to step for one tensor; m and f have the parameter's shape."""

    m: Tensor
    f: Tensor
    t: int = 0

    @classmethod
    def initial(cls, theta: Tensor) -> State:
        return cls(m=torch.zeros_like(theta), f=torch.ones_like(theta))


def reference_step(
    theta: Tensor,
    g: Tensor,
    state: State,
    *,
    eta: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps2: float = 0.01,
    c: float = 1.0,
    lam: float = 1e-3,
    rho: float = 0.5,
) -> tuple[Tensor, State]:
    """One pass through the loop of Algorithm 1; neither `theta` nor `state` is changed.

    Args:
        theta: parameter, any shape with at least one element.
        g: gradient of the loss, a negative log-likelihood; shape of `theta`.
        state: m, f and t of the step before.

    Returns:
        The new parameter and the new state.
    """
    one = torch.ones((), dtype=theta.dtype, device=theta.device)
    t = state.t + 1
    beta2_t = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t)
    f = beta2_t * state.f + (1 - beta2_t) * g**2
    eps_t = torch.minimum(eps * one, eps2 * rms(g))
    d = f**rho + eps_t ** (2 * rho)
    n = torch.where(d == 0, 0, g / d)  # where d = 0 nothing is known of the metric, so nothing moves
    n = n / torch.maximum(one, rms(n) / c)
    m = beta1 * state.m + (1 - beta1) * n
    w = torch.where(d == 0, 0, theta / d)
    w = w / torch.maximum(one, rms(w) / c)
    return theta - eta * (m + lam * w), State(m=m, f=f, t=t)
