"""What FAdam would do on the next step, in numbers for a log."""

from __future__ import annotations

import itertools
import math
import statistics

import torch
from torch import Tensor

from fadam.bookkeeping import gathered
from fadam.metric import (
    bias_correction,
    clip_divisor,
    empirical_fim,
    epsilon,
    fim_root,
    metric,
    natural,
    norm_dtype,
    rms,
    working_dtype,
)
from fadam.optimizer import STATE_KEYS, FAdam, initial_state
from fadam.options import Options

_QUANTILES = {"q01": 0.01, "q50": 0.5, "q99": 0.99}
_SAMPLE = 65536  # entries of the FIM that the quantiles are taken from, over all tensors


def _through_all(stride: int, tensor: Tensor) -> int:
    """The next stride that visits every column of `tensor` alike: it has no divisor in common with a row's length."""
    row = tensor[0].numel() if tensor.dim() > 1 else 1
    return next(each for each in itertools.count(stride) if math.gcd(each, row) == 1)


@torch.no_grad()
def diagnose(optimizer: FAdam) -> dict[str, float]:
    """Describe the step that `optimizer` would take now, with the gradients that are present.

    Nothing is changed: neither parameters nor state nor gradients. It costs about a step and waits for the
    device once, so call it every so many steps, between `backward` (and unscaling, with an AMP scaler) and
    `step`. Sharded parameters (DTensor) are gathered, one after the other: call it on every process then.

    Returns:
        One number each; empty if no parameter has a gradient. "Tensors" are the parameters with a gradient,
        "entries" the numbers in them.

        - ``update_rms``: RMS of n_t over all entries before the clip, in units of the learning rate; with
          ``momentum_mode="gradient"`` n_t is the average of g in the metric;
        - ``update_rms_max``: the largest RMS of n_t of one tensor before the clip;
        - ``update_rms_clipped``: RMS of n_t over all entries after the clip;
        - ``clipped_update``, ``clipped_decay``: share of tensors whose n_t, or w_t, is clipped;
        - ``eps_min``, ``eps_median``, ``eps_max``: eps_t over tensors;
        - ``eps_adapted``: share of tensors with eps_t < eps, that is eps2 RMS(g) < eps with
          ``eps_mode="adaptive"``;
        - ``eps_dominated``: share of entries with eps_t^(2 rho) > f_t^rho, where the metric is not the FIM's;
        - ``fim_q01``, ``fim_q50``, ``fim_q99``: quantiles of f_t, from 65,536 entries at most, evenly spaced.
    """
    pairs: list[tuple[Tensor, Options]] = []
    for group in optimizer.param_groups:
        options = Options.of({**group, "lr": 0.0})  # a rate on a device would make the host wait
        pairs += [(p, options) for p in group["params"] if p.grad is not None and p.numel() > 0]
    if not pairs:
        return {}
    total = sum(p.numel() for p, _ in pairs)
    stride = math.ceil(total / _SAMPLE)

    rows: list[Tensor] = []  # of each tensor: eps_t, RMS(n), its divisor, the divisor of w, entries under eps
    samples: list[Tensor] = []
    for param, options in pairs:
        assert param.grad is not None  # by the choice of pairs
        grad, theta = gathered(param.grad), gathered(param)
        known = optimizer.state.get(param, {})
        if "step" not in known:  # others may keep their own things there
            known = initial_state(param, options)
        state = {name: gathered(known[name]) for name in STATE_KEYS}
        if param.is_complex():
            grad, theta = torch.view_as_real(grad.resolve_conj()), torch.view_as_real(param)
        dtype = working_dtype(theta, grad, state["momentum"], state["fim"])
        theta, g = theta.to(dtype), grad.to(dtype)
        if options.maximize:
            g = -g
        (beta1, beta2), rho, clip = options.betas, options.fim_rho, options.clip
        t = state["step"].to(norm_dtype(g.device)) + 1

        f = empirical_fim(state["fim"].to(dtype), g, beta2, t)
        eps_t = torch.as_tensor(
            epsilon(g, options.eps, options.eps2, options.eps_mode),
            dtype=norm_dtype(g.device),
            device=g.device,
        )
        d = metric(f, eps_t, rho)
        if options.momentum_mode == "gradient":
            g = (state["momentum"].to(dtype) * beta1).add(g, alpha=1 - beta1)
            if options.correct_momentum:
                g = g / bias_correction(beta1, t)
        n = natural(g, d)
        one = torch.ones((), device=g.device)
        divisor_n = one if clip is None else clip_divisor(n, clip)
        divisor_w = one
        if clip is not None and options.weight_decay != 0 and options.decay_mode == "natural":
            divisor_w = clip_divisor(natural(theta, d), clip)
        dominated = (eps_t ** (2 * rho) > fim_root(f, rho)).sum()
        row = (eps_t, rms(n), divisor_n, divisor_w, dominated)
        rows.append(torch.stack([x.to(eps_t.dtype) for x in row]))
        samples.append(f.flatten()[:: _through_all(stride, f)].to(eps_t.dtype))

    device = rows[0].device
    quantiles = torch.quantile(
        torch.cat([x.to(device) for x in samples]),
        torch.tensor(list(_QUANTILES.values()), dtype=rows[0].dtype, device=device),
    )
    # The one wait: every number of every tensor in a single copy to the host.
    numbers = torch.cat([*(row.to(device) for row in rows), quantiles]).tolist()
    epsilons, sizes, divisors_n, divisors_w, under = zip(
        *(numbers[5 * i : 5 * i + 5] for i in range(len(rows))), strict=True
    )
    entries = [sample[0].numel() * (2 if sample[0].is_complex() else 1) for sample in pairs]
    weight = sum(entries)

    def overall(values: list[float]) -> float:
        return math.sqrt(sum(k * x * x for k, x in zip(entries, values, strict=True)) / weight)

    def share(flags: list[bool]) -> float:
        return sum(flags) / len(flags)

    return {
        "update_rms": overall(list(sizes)),
        "update_rms_max": max(sizes),
        "update_rms_clipped": overall([size / k for size, k in zip(sizes, divisors_n, strict=True)]),
        "clipped_update": share([k > 1 for k in divisors_n]),
        "clipped_decay": share([k > 1 for k in divisors_w]),
        "eps_min": min(epsilons),
        "eps_median": statistics.median(epsilons),
        "eps_max": max(epsilons),
        "eps_adapted": share([e < options.eps for e, (_, options) in zip(epsilons, pairs, strict=True)]),
        "eps_dominated": sum(under) / weight,
        **{f"fim_{name}": q for name, q in zip(_QUANTILES, numbers[5 * len(rows) :], strict=True)},
    }
